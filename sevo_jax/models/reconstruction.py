"""Reconstruction of masked edges: a decoder tells them from pairs that are no edges."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sevo_jax.models import layers
from sevo_jax.models.blocks import sum_over_blocks
from sevo_jax.operators import CSROperator
from sevo_jax.samples.triplets import item_outside

# Edges that are decoded at once: what a processor's cache holds.
_EDGES = 64


class Decoder(nnx.Module):
    """Tells from the hops of two nodes, in (0, 1), how surely an edge links them.

    Three layers upon the products of each hop of the one with each hop of the other.

    Args:
      width: of a hop.
      num_hops: hops of a node.
      rngs: source of the initial values (stream `params`).
    """

    def __init__(self, width: int, num_hops: int, *, rngs: nnx.Rngs):
        widths = (width * num_hops**2, width * num_hops, width, 1)
        self.layers = nnx.List(
            [
                nnx.Linear(*pair, kernel_init=layers.xavier_uniform, rngs=rngs)
                for pair in itertools.pairwise(widths)
            ]
        )

    def __call__(
        self, one: Float[Array, "*pairs hops d"], other: Float[Array, "*pairs hops d"]
    ) -> Float[Array, "*pairs"]:
        products = one[..., :, None, :] * other[..., None, :, :]
        pairs = products.shape[:-3]
        x = products.reshape(math.prod(pairs), -1)
        *hidden, last = self.layers
        for layer in hidden:
            x = nnx.relu(layer(x))
        return nnx.sigmoid(last(x)).reshape(pairs)


def draw_nodes(
    graph: CSROperator,
    masked: Bool[Array, " e"],
    num_edges: int,
    num_negatives: int,
    num_items: int,
    key: jax.Array,
) -> Int[Array, "edges nodes"]:
    """Draws masked edges, uniformly, and nodes that are not linked to their ends.

    Args:
      graph: item `i` is node `i + 1`; each node is linked to itself too.
      masked: which of its entries are masked.
      num_edges: how many to draw; all of them if there are fewer.
      num_negatives: nodes to draw for each of them, even.
      num_items: the first items, of which they are.
      key: of the draws.

    Returns:
      For each edge its two ends; then as many nodes that are not linked to the second
      end as such that are not linked to the first. -1 stands where there is none.
    """
    edges_key, second_key, first_key = jax.random.split(key, 3)
    order = jax.random.uniform(edges_key, masked.shape)
    order, edges = jax.lax.top_k(
        jnp.where(masked, order, -1), min(num_edges, graph.num_entries)
    )
    first, second = graph.rows[edges], graph.columns[edges]
    half = num_negatives // 2
    nodes = (
        first[:, None],
        second[:, None],
        draw_unlinked(graph, second, half, num_items, second_key),
        draw_unlinked(graph, first, half, num_items, first_key),
    )
    return jnp.where(order[:, None] >= 0, jnp.concatenate(nodes, axis=1), -1)


def draw_unlinked(
    graph: CSROperator,
    nodes: Int[Array, " k"],
    num: int,
    num_items: int,
    key: jax.Array,
) -> Int[Array, "k num"]:
    """Draws, uniformly, items that no edge links to a node.

    Args:
      graph: item `i` is node `i + 1`; each node is linked to itself too.
      nodes: to each of which `num` are drawn.
      num: how many.
      num_items: how many items there are to draw from, the first ones: all or all but
        one.
      key: of the draw.

    Returns:
      Nodes `1..num_items`; -1 where there is none.
    """
    begins, ends = graph.row_starts[nodes], graph.row_starts[nodes + 1]
    # Node 0 is no item, and linked to itself alone.
    linked = jnp.where(nodes > 0, ends - begins, 0)
    beyond = graph.columns[ends - 1] > num_items
    outside = num_items - linked + beyond
    begins, linked, outside = (each[:, None] for each in (begins, linked, outside))
    ranks = jax.random.randint(key, (len(nodes), num), 0, jnp.maximum(outside, 1))
    bits = graph.num_nodes.bit_length()
    items = item_outside(graph.columns - 1, begins, linked, ranks, bits)
    return jnp.where(outside > 0, items + 1, -1)


def reconstruction_loss(
    decoder: Decoder,
    hops: Float[Array, "n hops d"],
    nodes: Int[Array, "edges nodes"],
    *,
    log: bool,
) -> Float[Array, ""]:
    """Returns the loss of edges, each beside pairs that are no edges.

    An edge's share is its exponential among those of all its pairs, of what the decoder
    gives. The loss is minus the sum of the shares, or minus the mean of their
    logarithms.

    Args:
      decoder: of the pairs.
      hops: of all nodes.
      nodes: see `draw_nodes`.
      log: whether to take logarithms, and the mean.
    """
    graphdef, params = nnx.split(decoder)

    def block_loss(params, block, rows):
        decoder: Any = nnx.merge(graphdef, params)
        half = rows.shape[1] // 2
        one, other = rows[:, :1], rows[:, 1:2]
        # The edge itself is the first of its pairs.
        firsts = [one, rows[:, 2 : half + 1], jnp.repeat(one, half - 1, axis=1)]
        seconds = [jnp.repeat(other, half, axis=1), rows[:, half + 1 :]]
        pairs = decoder(jnp.concatenate(firsts, 1), jnp.concatenate(seconds, 1))
        edge, *_ = jnp.split(jnp.exp(pairs), [1], axis=1)
        others = jnp.sum(jnp.exp(pairs[:, 1:]), axis=1, where=block[:, 2:] >= 0)
        share = edge[:, 0] / (edge[:, 0] + others + 1e-8) + 1e-8
        terms = jnp.log(share) if log else share
        return -jnp.sum(terms, where=block[:, 0] >= 0)

    loss: Any = sum_over_blocks(block_loss, _EDGES, params, hops, nodes)
    if log:
        return loss / jnp.maximum(jnp.sum(nodes[:, 0] >= 0), 1)
    return loss
