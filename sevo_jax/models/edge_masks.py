"""Masks of a graph's edges that spread from chosen nodes, as `MAERec` renews them.

All is static in shape and drawn on the device: a mask says of each entry of a graph
whether it is left. A graph here is a `CSROperator` of which only the entries count and
not their weights: symmetric, each node linked to itself too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sevo_jax.models.recommender import GraphVariable
from sevo_jax.operators import CSROperator

# Share of entries, and of nodes, that the next hop keeps.
_KEPT = 0.5
# What a mask counts that did not make the loss fall faster.
_LOW_REWARD = 0.2


class Carried(nnx.Variable):
    """What training changes, but no optimizer."""


class AdaptiveMask(nnx.Module):
    """A mask that is renewed every few steps, and what judges the next one.

    Args:
      graph: of which the entries are masked; at first none is.
      steps: how many share a mask.
      num_seeds: see `draw`.
      depth: see `draw`.
      from_ends: see `spread`.

    Attributes:
      graph: the whole one.
      mirror: where the mirror image of each of its entries stands.
      weights: of the graph that is left, normalised; 0 where it is masked.
      num_steps: those so far.
      first_loss: of the step in which the mask was new.
      last_loss: of the last step.
    """

    def __init__(
        self,
        graph: CSROperator,
        *,
        steps: int,
        num_seeds: int,
        depth: int,
        from_ends: bool,
    ):
        self.steps = steps
        self.num_seeds = num_seeds
        self.depth = depth
        self.from_ends = from_ends
        self.graph = GraphVariable(graph)
        self.mirror = GraphVariable(jnp.argsort(graph.columns, stable=True))
        self.weights = Carried(jnp.copy(graph.weights))
        self.num_steps = Carried(jnp.zeros([], jnp.int32))
        self.first_loss, self.last_loss = (
            Carried(jnp.zeros([], graph.weights.dtype)) for _ in range(2)
        )

    def masked_graph(self) -> CSROperator:
        """Returns what is left of the graph, normalised anew."""
        return dataclasses.replace(self.graph.get_value(), weights=self.weights[...])

    def renew(self, table: Float[Array, "n d"], key: jax.Array) -> Float[Array, ""]:
        """Begins a step: renews the mask if it is due.

        Args:
          table: a row a node.
          key: of all draws.

        Returns:
          The mean relatedness of nodes and their surroundings; 0 if it is not due.
        """
        graph, weights = self.graph.get_value(), self.weights[...]

        def renewed():
            left, related = draw(
                graph,
                self.mirror.get_value(),
                table,
                num_seeds=self.num_seeds,
                depth=self.depth,
                from_ends=self.from_ends,
                key=key,
            )
            return normalized(graph, left, weights.dtype), jnp.mean(related)

        def kept():
            return weights, jnp.zeros([], table.dtype)

        due = self.num_steps[...] % self.steps == 0
        self.weights[...], mean = jax.lax.cond(due, renewed, kept)
        return mean

    def reward(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Ends a step and records its loss.

        Returns:
          What a new mask counts: 1 if the loss fell more in this step than in the mean
          of those before it with the old mask or these are none, and else 0.2.
        """
        loss = jax.lax.stop_gradient(loss)
        number, first, last = (
            variable[...]
            for variable in (self.num_steps, self.first_loss, self.last_loss)
        )
        # Steps since the last mask was new, that one included.
        recorded = jnp.where(number > 0, (number - 1) % self.steps + 1, 0)
        mean_fall = (first - last) / jnp.maximum(recorded - 1, 1)
        good = (recorded < 2) | (last - loss > mean_fall)
        self.first_loss[...] = jnp.where(number % self.steps == 0, loss, first)
        self.last_loss[...] = loss
        self.num_steps[...] = number + 1
        return jnp.where(good, 1, _LOW_REWARD)


def draw(
    graph: CSROperator,
    mirror: Int[Array, " e"],
    table: Float[Array, "n d"],
    *,
    num_seeds: int,
    depth: int,
    from_ends: bool,
    key: jax.Array,
) -> tuple[Bool[Array, " e"], Float[Array, " n"]]:
    """Draws a mask that spreads from nodes which are like their surroundings.

    Args:
      graph: of which the entries are masked.
      mirror: where the mirror image of each entry stands.
      table: a row a node.
      num_seeds: where to begin: at the nodes of highest relatedness, under noise.
      depth: how many hops the surroundings and the mask reach.
      from_ends: see `spread`.
      key: of all draws.

    Returns:
      Which entries are left, and the relatedness of each node, with the noise.
    """
    drops_key, noise_key, spread_key = jax.random.split(key, 3)
    kept = draw_kept(drops_key, graph.num_entries, depth)
    noisy = relatedness(graph, mirror, table, kept)
    noisy += jax.random.gumbel(noise_key, noisy.shape, noisy.dtype)
    highest = jax.lax.stop_gradient(noisy)
    _, best = jax.lax.top_k(highest, min(num_seeds, graph.num_nodes))
    seeds = jnp.zeros(noisy.shape, bool).at[best].set(True)
    return spread(graph, seeds, depth, spread_key, from_ends=from_ends), noisy


def draw_kept(key: jax.Array, num_entries: int, depth: int) -> list[Bool[Array, " e"]]:
    """Draws which entries of a graph are kept at each hop, fewer and fewer."""
    kept = [jnp.ones(num_entries, bool)]
    for hop, hop_key in enumerate(jax.random.split(key, depth), 1):
        drawn = jax.random.bernoulli(hop_key, _KEPT**hop, (num_entries,))
        kept.append(kept[-1] & drawn)
    return kept[1:]


def relatedness(
    graph: CSROperator,
    mirror: Int[Array, " e"],
    table: Float[Array, "n d"],
    kept: Sequence[Bool[Array, " e"]],
) -> Float[Array, " n"]:
    """Returns the cosine of each row and the mean of its surroundings.

    Args:
      graph: symmetric; its weights do not count.
      mirror: where the mirror image of each entry stands.
      table: a row a node.
      kept: for each further hop, which entries of the graph are walked. These need not
        be symmetric.
    """

    def hop(weights, x):
        return _one_way_product(
            dataclasses.replace(graph, weights=weights),
            dataclasses.replace(graph, weights=weights[mirror]),
            x,
        )

    ones = jnp.ones((graph.num_nodes, 1), table.dtype)
    weights = jnp.ones(graph.num_entries, table.dtype)
    degrees = num_paths = total_paths = hop(weights, ones)
    found = total = hop(weights, table) - table
    for entries in kept:
        weights = entries.astype(table.dtype)
        found = hop(weights, found) - found - degrees * found
        num_paths = hop(weights, num_paths) - num_paths - degrees
        degrees = hop(weights, ones)
        total += found
        total_paths += num_paths
    # Of the number of paths that the mean divides by, a cosine knows the sign alone.
    sign = jnp.where(total_paths[:, 0] < 0, -1, 1)
    return sign * jnp.sum(_unit(total) * _unit(table), axis=1)


def spread(
    graph: CSROperator,
    seeds: Bool[Array, " n"],
    depth: int,
    key: jax.Array,
    *,
    from_ends: bool,
) -> Bool[Array, " e"]:
    """Masks the edges at some nodes, then at nodes drawn by these edges, and so on.

    Args:
      graph: of which the entries are masked.
      seeds: where to begin.
      depth: how often.
      key: of the draws: half of the next nodes go on, then a quarter, an eighth.
      from_ends: whether the next nodes are the ends of the edges just masked, or the
        sums of their two numbers (and none where there is no such node).

    Returns:
      Which entries are left, a symmetric set.
    """
    n, left = graph.num_nodes, jnp.ones(graph.num_entries, bool)
    next_nodes = graph.rows if from_ends else graph.rows + graph.columns
    for hop, hop_key in enumerate(jax.random.split(key, depth), 1):
        hit = left & (seeds[graph.rows] | seeds[graph.columns])
        left &= ~hit
        nodes = jnp.where(hit, next_nodes, 2 * n)
        nodes = jnp.zeros(2 * n, bool).at[nodes].set(True, mode="drop")
        seeds = draw_share(nodes, _KEPT**hop, hop_key)[:n]
    return left


def draw_share(
    chosen: Bool[Array, " n"], share: float, key: jax.Array
) -> Bool[Array, " n"]:
    """Keeps a random share of what is chosen, rounded down."""
    order = jnp.where(chosen, jax.random.uniform(key, chosen.shape), 2)
    place = jnp.argsort(jnp.argsort(order))
    return place < jnp.floor(share * jnp.sum(chosen)).astype(jnp.int32)


def normalized(
    graph: CSROperator, left: Bool[Array, " e"], dtype: Any
) -> Float[Array, " e"]:
    """Returns weights, equal before normalisation, of the entries that are left."""
    weights = left.astype(dtype)
    ones = jnp.ones((graph.num_nodes, 1), dtype)
    degrees = (dataclasses.replace(graph, weights=weights) @ ones)[:, 0]
    scale = jnp.where(degrees > 0, jax.lax.rsqrt(degrees), 0)
    return weights * scale[graph.rows] * scale[graph.columns]


@jax.custom_vjp
def _one_way_product(
    graph: CSROperator, mirrored: CSROperator, x: Float[Array, "n d"]
) -> Float[Array, "n d"]:
    """The product of a graph that is not symmetric, of which the transpose is given."""
    del mirrored
    return graph @ x


def _one_way_forward(graph, mirrored, x):
    return graph @ x, (graph, mirrored)


def _one_way_backward(graphs, cotangent):
    return None, None, _one_way_product(*reversed(graphs), cotangent)


_one_way_product.defvjp(_one_way_forward, _one_way_backward)


def _unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Rows of norm 1; those of norm below 1e-12 are zero, without a gradient."""
    squares = jnp.sum(jnp.square(x), axis=1, keepdims=True)
    # The row of the padding, which regularization alone moves, gets so small. The
    # derivative has the power -1.5 of the squares, which would overflow.
    large = squares > 1e-24
    return x * jnp.where(large, jax.lax.rsqrt(jnp.where(large, squares, 1)), 0)
