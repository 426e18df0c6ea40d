"""LESSR: next-item recommendation over two graphs of a session.

Chen and Wong, "Handling information loss of graph neural networks for session-based
recommendation", KDD 2020. The nodes of both graphs are the distinct items of a session.
In the edge-order multigraph each item has an edge to the one that follows it, once for
each time that it does; in the shortcut graph an item has an edge to itself and to all
that come after it.

A node stands in the cell of its item's last occurrence, so that in a session whose
items are distinct a node is a cell.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences
from sevo_jax.models import layers
from sevo_jax.models.cross_entropy import cross_entropy
from sevo_jax.models.recommender import SequenceModel
from sevo_jax.models.registry import register
from sevo_jax.samples.prefixes import RunBatch, RunEpochs, Sampling
from sevo_jax.samples.runs import Runs

# Finite, so that nothing becomes NaN whatever a row holds.
_INVISIBLE = -1e30
# A block of additive attention that stays in the processor's cache (1 MB).
_BLOCK = 2**18


@dataclass(frozen=True)
class LESSRConfig:
    """Hyper-parameters of `LESSR`.

    Attributes:
      max_len: longest session, the most recent items of a user.
      width: size of the item embeddings, and of what each layer adds.
      num_blocks: layers, of the edge-order multigraph and of the shortcut graph in
        turn.
      dropout: rate in [0, 1) on the entries of normalised features.
      sampling: how training draws prefixes, those of a user together where that is
        exact ("sequence") or each by itself ("prefix").
    """

    max_len: int = 50
    width: int = 64
    num_blocks: int = 3
    dropout: float = 0.2
    sampling: Sampling = "sequence"

    def __post_init__(self):
        _checks.at_least(self, 1, "max_len", "width", "num_blocks")
        _checks.rates(self, "dropout")
        _checks.one_of(self, "sampling", typing.get_args(Sampling))


class Sessions(NamedTuple):
    """The graphs of sessions that stand side by side in rows.

    A node of a session is visible from another, and from itself, if the shortcut graph
    has an edge from it; so a session's nodes are what its last item sees.

    Attributes:
      items: row of the item table of each cell; 0 in empty ones.
      filled: whether a cell has an item.
      starts: whether a session begins at a cell.
      nodes: column of the node of each cell's item.
      previous: column of the item's previous occurrence in the session, or -1.
      visible: `[row, i, j]`, whether `j` is a node that node `i` sees.
    """

    items: Int[Array, "rows cells"]
    filled: Bool[Array, "rows cells"]
    starts: Bool[Array, "rows cells"]
    nodes: Int[Array, "rows cells"]
    previous: Int[Array, "rows cells"]
    visible: Bool[Array, "rows cells cells"]

    @classmethod
    def of(
        cls, inputs: Int[Array, "rows cells"], starts: Bool[Array, "rows cells"]
    ) -> Sessions:
        """Reads the graphs off rows.

        Args:
          inputs: items from 1 on; 0 in empty cells.
          starts: whether a session begins at a cell.
        """
        filled = inputs > 0
        columns = jnp.arange(inputs.shape[1])
        number = jnp.cumsum(starts, axis=1)
        together = number[:, :, None] == number[:, None]
        together &= filled[:, :, None] & filled[:, None]
        same = together & (inputs[:, :, None] == inputs[:, None])
        first = jnp.argmax(same, axis=2)
        nodes = columns[-1] - jnp.argmax(same[:, :, ::-1], axis=2)
        before = same & (columns < columns[:, None])
        visible = together & (nodes == columns)[:, None]
        return cls(
            items=jnp.maximum(inputs - 1, 0),
            filled=filled,
            starts=starts,
            nodes=nodes,
            previous=jnp.max(jnp.where(before, columns, -1), axis=2),
            visible=visible & (first[:, None] <= columns[:, None]),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and cells."""
        rows, cells = self.items.shape
        return rows, cells


class BatchNorm(nnx.Module):
    """Batch normalisation over weighted cells, with running statistics.

    With weights a batch is normalised by its own mean and variance, to which the
    running ones move by a tenth, to the variance in its unbiased form. Without, the
    running ones normalise.

    Args:
      width: of the features.
    """

    def __init__(self, width: int):
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.variance = nnx.BatchStat(jnp.ones(width))

    def __call__(
        self, x: Float[Array, "cells width"], weights: Float[Array, " cells"] | None
    ) -> Float[Array, "cells width"]:
        """Returns the normalised features.

        Args:
          x: features.
          weights: how often each cell counts, 0 for not at all.
        """
        if weights is None:
            mean, variance = self.mean[...], self.variance[...]
        else:
            count = jnp.sum(weights)
            mean = weights @ x / count
            variance = weights @ jnp.square(x - mean) / count
            unbiased = variance * (count / jnp.maximum(count - 1, 1))
            self.mean[...] += 0.1 * (mean - self.mean[...])
            self.variance[...] += 0.1 * (unbiased - self.variance[...])
        return (x - mean) * (self.scale * lax.rsqrt(variance + 1e-5)) + self.bias


class EdgeOrder(nnx.Module):
    """A layer over the edge-order multigraph.

    A recurrence passes over what precedes a node, in the order in which it does:

    .. math:: PReLU(W_{self} f + W_{neighbours} GRU(drop(f_u): u \\to v))
    """

    def __init__(self, config: LESSRConfig, width_in: int, *, rngs: nnx.Rngs):
        self.dropout = config.dropout
        initial = layers.fan_in_uniform(width_in)
        gates = 3 * width_in
        self.norm = BatchNorm(width_in)
        # Reset, update and new state side by side.
        self.kernel_in, self.kernel_hidden = (
            nnx.Param(initial(rngs.params(), (width_in, gates))) for _ in range(2)
        )
        self.bias_in, self.bias_hidden = (
            nnx.Param(initial(rngs.params(), (gates,))) for _ in range(2)
        )
        self.kernel_self, self.kernel_neighbours = (
            nnx.Param(initial(rngs.params(), (width_in, config.width)))
            for _ in range(2)
        )
        self.slope = nnx.Param(0.25 * jnp.ones(config.width))

    def __call__(
        self,
        x: Float[Array, "cells width_in"],
        sessions: Sessions,
        weights: Float[Array, " cells"] | None,
        key: jax.Array | None,
    ) -> Float[Array, "cells width"]:
        features = self.norm(x, weights)
        dropped = layers.dropout(features, self.dropout, key)
        projected = dropped @ self.kernel_in[...] + self.bias_in[...]
        states = lax.cond(
            jnp.any(sessions.previous >= 0),
            jax.checkpoint(self._recur),
            jax.checkpoint(self._step_once),
            projected.reshape(*sessions.shape, -1),
            sessions,
        )
        out = features @ self.kernel_self[...]
        out += layers.flatten_cells(states) @ self.kernel_neighbours[...]
        return prelu(out, self.slope[...])

    def _step_once(self, projected, sessions):
        """States `[rows, cells, width_in]` where no item repeats: one edge at most."""
        before = jnp.roll(projected, 1, axis=1)
        states = self._step(before, jnp.zeros((), projected.dtype))
        return jnp.where(sessions.starts[..., None], 0, states)

    def _recur(self, projected, sessions):
        """States in general; a cell's is that after the edge to it."""
        rows, cells, _ = projected.shape
        every = jnp.arange(rows)

        def step(states, column):
            source = sessions.nodes[:, column - 1]
            previous = sessions.previous[:, column]
            state = jnp.where((previous >= 0)[:, None], states[previous, every], 0)
            state = self._step(projected[every, source], state)
            state = jnp.where(sessions.starts[:, column, None], 0, state)
            return states.at[column].set(state), None

        width = projected.shape[-1] // 3
        states = jnp.zeros((cells, rows, width), projected.dtype)
        return lax.scan(step, states, jnp.arange(cells))[0].swapaxes(0, 1)

    def _step(self, projected, state):
        """The state of a gated recurrent unit after one more input."""
        width = projected.shape[-1] // 3
        recurrent = self.bias_hidden[...]
        if state.ndim:
            recurrent += state @ self.kernel_hidden[...]
        gates = projected[..., : 2 * width] + recurrent[..., : 2 * width]
        reset, update = jnp.split(jax.nn.sigmoid(gates), 2, axis=-1)
        new = jnp.tanh(
            projected[..., 2 * width :] + reset * recurrent[..., 2 * width :]
        )
        return new + update * (state - new)


class Shortcut(nnx.Module):
    """A layer over the shortcut graph: attention of a node to all that it sees."""

    def __init__(self, config: LESSRConfig, width_in: int, *, rngs: nnx.Rngs):
        width = config.width
        self.dropout = config.dropout
        self.norm = BatchNorm(width_in)
        self.project_query = _linear(width_in, width, rngs, use_bias=False)
        self.project_key = _linear(width_in, width, rngs)
        self.project_value = _linear(width_in, width, rngs, use_bias=False)
        self.score = _linear(width, 1, rngs, use_bias=False)
        self.slope = nnx.Param(0.25 * jnp.ones(width))

    def __call__(
        self,
        x: Float[Array, "cells width_in"],
        sessions: Sessions,
        weights: Float[Array, " cells"] | None,
        key: jax.Array | None,
    ) -> Float[Array, "cells width"]:
        features = layers.dropout(self.norm(x, weights), self.dropout, key)
        query, keys, values = (
            project(features).reshape(*sessions.shape, -1)
            for project in (self.project_query, self.project_key, self.project_value)
        )
        attention = attend(query, keys, self.score.kernel[:, 0], sessions.visible)
        mixed = jnp.einsum("rqc,rcf->rqf", attention, values)
        return prelu(layers.flatten_cells(mixed), self.slope[...])


class Readout(nnx.Module):
    """What stands for a session: the attention of its last node to all of them."""

    def __init__(self, config: LESSRConfig, width_in: int, *, rngs: nnx.Rngs):
        width = config.width
        self.dropout = config.dropout
        self.norm = BatchNorm(width_in)
        self.project_query = _linear(width_in, width, rngs)
        self.project_key = _linear(width_in, width, rngs, use_bias=False)
        self.score = _linear(width, 1, rngs, use_bias=False)
        self.project_out = _linear(width_in, width, rngs, use_bias=False)
        self.slope = nnx.Param(0.25 * jnp.ones(width))

    def __call__(
        self,
        x: Float[Array, "cells width_in"],
        sessions: Sessions,
        ends: Int[Array, " sessions"],
        weights: Float[Array, " cells"] | None,
        key: jax.Array | None,
    ) -> Float[Array, "sessions width"]:
        """Returns the features of the sessions that end at the cells `ends`."""
        features = layers.dropout(self.norm(x, weights), self.dropout, key)
        query, keys, values = (
            each.reshape(*sessions.shape, -1)
            for each in (
                self.project_query(features),
                self.project_key(features),
                features,
            )
        )
        # Of all nodes: to take out those of the ends would cost more.
        attention = attend(query, keys, self.score.kernel[:, 0], sessions.visible)
        mixed = jnp.einsum("rqc,rcf->rqf", attention, values)
        mixed = layers.flatten_cells(mixed)[ends]
        return prelu(self.project_out(mixed), self.slope[...])


@register("lessr")
class LESSR(SequenceModel):
    """Recommender by layers over a session's edge-order and shortcut graphs.

    The input of each layer is what the layer before it put out beside its own input.
    Item `i` is row `i` of the item table, which is input and output table in one.
    Before each step, and to rank, its rows are cut down to a norm of 1.

    A training sample is a prefix of a user's items. Where no item comes twice its
    graphs are paths, and no layer looks ahead: a node is the same in all prefixes that
    have it. So by default prefixes of up to `max_len` items share one pass over the
    user's items (`Runs.shared`), in which a node counts in batch normalisation as often
    as there are prefixes that have it. This differs from `sampling="prefix"` in two
    things alone: the prefixes of a step come from fewer users, and share the dropout of
    the nodes they have in common.

    Args:
      num_items: how many items there are.
      config: hyper-parameters.
      rngs: source of the initial values (stream `params`).

    Examples:
      >>> model = LESSR(9, LESSRConfig(max_len=4, width=8), rngs=nnx.Rngs(0))
      >>> train = Sequences.from_lists([[0, 1, 2, 1], [3, 4]])
      >>> epochs = model.epochs(train, batch_size=4, seed=0)
      >>> step = RunBatch(*(field[0] for field in epochs[0]))
      >>> model.loss(step, rng=jax.random.key(0)).shape
      ()
      >>> model.score(model.inputs(train)).shape
      (2, 9)
    """

    Config = LESSRConfig
    item_offset = 0

    def __init__(self, num_items: int, config: LESSRConfig, *, rngs: nnx.Rngs):
        _checks.require(num_items >= 1, "num_items", num_items, "at least 1")
        self.num_items = num_items
        self.config = config
        width = config.width
        self.item_embedding = nnx.Param(
            jax.random.normal(rngs.params(), (num_items, width))
        )
        self.before_step()
        self.blocks = nnx.List(
            [
                (Shortcut if number % 2 else EdgeOrder)(
                    config, (number + 1) * width, rngs=rngs
                )
                for number in range(config.num_blocks)
            ]
        )
        width_out = (config.num_blocks + 1) * width
        self.readout = Readout(config, width_out, rngs=rngs)
        self.norm = BatchNorm(width_out + width)
        self.project_out = _linear(width_out + width, width, rngs, use_bias=False)

    def before_step(self) -> None:
        """Cuts the rows of the item table down to a norm of 1."""
        self.item_embedding[...] = cut(self.item_embedding[...])

    def loss(self, batch: RunBatch, *, rng: jax.Array | None) -> Float[Array, ""]:
        """Returns the mean cross-entropy of what follows the sessions.

        The rows of the item table are taken as they are: `before_step` has cut them.

        Args:
          batch: one step.
          rng: key of the step's dropout; None for none.
        """
        table = self.item_embedding[...]
        sessions = Sessions.of(jnp.asarray(batch.inputs), jnp.asarray(batch.starts))
        counts = jnp.asarray(batch.targets > 0, table.dtype)
        features = self._features(table, sessions, batch.cells, counts, rng)
        return cross_entropy(
            features,
            table,
            jnp.zeros(len(table), table.dtype),
            jnp.maximum(batch.targets - 1, 0),
            counts / jnp.sum(counts),
        )

    def score(
        self, inputs: Int[Array, "users cells"]
    ) -> Float[Array, "users num_items"]:
        """Returns each item's logit as the next one after left-padded sessions."""
        table = cut(self.item_embedding[...])
        inputs = jnp.asarray(inputs)
        starts = (inputs > 0) & (jnp.cumsum(inputs > 0, axis=1) == 1)
        sessions = Sessions.of(inputs, starts)
        ends = jnp.arange(1, len(inputs) + 1) * inputs.shape[1] - 1
        return self._features(table, sessions, ends, None, None) @ table.T

    def inputs(
        self, sequences: Sequences, users: np.ndarray | None = None
    ) -> np.ndarray:
        # Row 0 of the table is an item, and 0 stands for padding.
        return self._frames(sequences, 1)

    def epochs(self, train: Sequences, *, batch_size: int, seed: int) -> RunEpochs:
        """Returns the epochs of `train`, drawn as `config.sampling` says.

        Args:
          train: train items of each user.
          batch_size: prefixes of a step.
          seed: in [0, 2**32).
        """
        max_len = self.config.max_len
        if self.config.sampling == "prefix":
            runs = Runs.prefixes(train, max_len)
        else:
            runs = Runs.shared(train, max_len, most=batch_size)
        return RunEpochs(train, runs, max_len=max_len, batch_size=batch_size, seed=seed)

    def _features(self, table, sessions, ends, counts, key):
        """Features `[sessions, width]` of the sessions that end at the cells `ends`.

        Args:
          table: of the items.
          sessions: their graphs.
          ends: cells, counted row by row.
          counts: whether each session is one, to train; None to rank.
          key: of dropout, or None.
        """
        *keys, key_readout, key_out = layers.split(key, len(self.blocks) + 2)
        weights = None
        if counts is not None:
            # A node counts once for each session that has it.
            number = jnp.zeros(sessions.items.size, counts.dtype).at[ends].add(counts)
            number = number.reshape(sessions.shape)
            weights = jnp.einsum("rij,ri->rj", sessions.visible, number).reshape(-1)
        filled = sessions.filled.reshape(-1, 1)
        x = jnp.where(filled, table[sessions.items.reshape(-1)], 0)
        for layer, layer_key in zip(self.blocks, keys, strict=True):
            x = jnp.concatenate([layer(x, sessions, weights, layer_key), x], axis=1)
        out = self.readout(x, sessions, ends, weights, key_readout)
        out = self.norm(jnp.concatenate([x[ends], out], axis=1), counts)
        return self.project_out(layers.dropout(out, self.config.dropout, key_out))


def attend(
    query: Float[Array, "rows cells d"],
    keys: Float[Array, "rows cells d"],
    weights: Float[Array, " d"],
    visible: Bool[Array, "rows cells cells"],
) -> Float[Array, "rows cells cells"]:
    """Returns the softmax of additive scores, over the visible cells alone.

    .. math:: e_{ij} = w \\cdot \\sigma(q_i + k_j)

    The sigmoids are made a block of rows at a time, and again for the gradients.
    """

    @jax.checkpoint
    def attend_row(row):
        query, keys, visible = row
        scores = jax.nn.sigmoid(query[:, None] + keys) @ weights
        return jax.nn.softmax(jnp.where(visible, scores, _INVISIBLE), axis=-1)

    rows, cells, d = query.shape
    size = min(max(1, _BLOCK // (cells * cells * d)), rows)
    return lax.map(attend_row, (query, keys, visible), batch_size=size)


def cut(table: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Returns a table whose rows of a norm above 1 are scaled down to it.

    Examples:
      >>> cut(jnp.array([[3.0, 4.0], [0.0, 0.5]])).round(3)
      Array([[0.6, 0.8],
             [0. , 0.5]], dtype=float32)
    """
    norms = jnp.linalg.norm(table, axis=1, keepdims=True)
    return jnp.where(norms > 1, table / (norms + 1e-7), table)


def prelu(x: Float[Array, "cells d"], slope: Float[Array, " d"]) -> Array:
    """Returns `x`, multiplied by a slope for each column where it is negative."""
    return jnp.where(x > 0, x, slope * x)


def _linear(width_in: int, width_out: int, rngs: nnx.Rngs, use_bias: bool = True):
    initial = layers.fan_in_uniform(width_in)
    return nnx.Linear(
        width_in,
        width_out,
        use_bias=use_bias,
        kernel_init=initial,
        bias_init=initial,
        rngs=rngs,
    )
