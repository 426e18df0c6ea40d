"""LESSR: next-item recommendation over two graphs of a session.

Chen and Wong, "Handling information loss of graph neural networks for session-based
recommendation", KDD 2020. The graphs and the layers over them are of
`session_graphs.py`.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences
from sevo_jax.models import layers
from sevo_jax.models.cross_entropy import cross_entropy
from sevo_jax.models.recommender import SequenceModel
from sevo_jax.models.registry import register
from sevo_jax.models.session_graphs import (
    BatchNorm,
    EdgeOrder,
    Readout,
    Sessions,
    Shortcut,
    linear,
)
from sevo_jax.samples.prefixes import RunBatch, RunEpochs, Sampling
from sevo_jax.samples.runs import Runs


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
                    (number + 1) * width, width, config.dropout, rngs=rngs
                )
                for number in range(config.num_blocks)
            ]
        )
        width_out = (config.num_blocks + 1) * width
        self.readout = Readout(width_out, width, config.dropout, rngs=rngs)
        self.norm = BatchNorm(width_out + width)
        self.project_out = linear(width_out + width, width, rngs, use_bias=False)

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


def cut(table: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Returns a table whose rows of a norm above 1 are scaled down to it.

    Examples:
      >>> cut(jnp.array([[3.0, 4.0], [0.0, 0.5]])).round(3)
      Array([[0.6, 0.8],
             [0. , 0.5]], dtype=float32)
    """
    norms = jnp.linalg.norm(table, axis=1, keepdims=True)
    return jnp.where(norms > 1, table / (norms + 1e-7), table)
