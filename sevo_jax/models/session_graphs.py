"""The two graphs of a session, and the layers of LESSR over them.

The nodes of both graphs are the distinct items of a session. In the edge-order
multigraph each item has an edge to the one that follows it, once for each time that it
does; in the shortcut graph an item has an edge to itself and to all that come after it.

A node stands in the cell of its item's last occurrence, so that in a session whose
items are distinct a node is a cell.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sevo_jax.models import layers

# Finite, so that nothing becomes NaN whatever a row holds.
_INVISIBLE = -1e30
# A block of additive attention that stays in the processor's cache (1 MB).
_BLOCK = 2**18


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

    def __init__(self, width_in: int, width: int, dropout: float, *, rngs: nnx.Rngs):
        self.dropout = dropout
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
            nnx.Param(initial(rngs.params(), (width_in, width))) for _ in range(2)
        )
        self.slope = nnx.Param(0.25 * jnp.ones(width))

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

    def __init__(self, width_in: int, width: int, dropout: float, *, rngs: nnx.Rngs):
        self.dropout = dropout
        self.norm = BatchNorm(width_in)
        self.project_query = linear(width_in, width, rngs, use_bias=False)
        self.project_key = linear(width_in, width, rngs)
        self.project_value = linear(width_in, width, rngs, use_bias=False)
        self.score = linear(width, 1, rngs, use_bias=False)
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

    def __init__(self, width_in: int, width: int, dropout: float, *, rngs: nnx.Rngs):
        self.dropout = dropout
        self.norm = BatchNorm(width_in)
        self.project_query = linear(width_in, width, rngs)
        self.project_key = linear(width_in, width, rngs, use_bias=False)
        self.score = linear(width, 1, rngs, use_bias=False)
        self.project_out = linear(width_in, width, rngs, use_bias=False)
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


def prelu(x: Float[Array, "cells d"], slope: Float[Array, " d"]) -> Array:
    """Returns `x`, multiplied by a slope for each column where it is negative."""
    return jnp.where(x > 0, x, slope * x)


def linear(width_in: int, width_out: int, rngs: nnx.Rngs, use_bias: bool = True):
    initial = layers.fan_in_uniform(width_in)
    return nnx.Linear(
        width_in,
        width_out,
        use_bias=use_bias,
        kernel_init=initial,
        bias_init=initial,
        rngs=rngs,
    )
