"""Masks of a graph against sets of edges and dense matrices, in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from scipy import stats

import sevo_jax as sevo
from sevo_jax.models import edge_masks

NUM_NODES = 14
# Those that are linked to others in `dense_links`.
LINKED = np.setdiff1d(np.arange(NUM_NODES), [0, 5])


def dense_links(density=0.25, seed=0):
    """Nodes linked to themselves and some others; node 0 and 5 to themselves alone."""
    rng = np.random.default_rng(seed)
    links = np.triu(rng.random((NUM_NODES, NUM_NODES)) < density, 1)
    links[[0, 5]] = links[:, [0, 5]] = False
    return links | links.T | np.eye(NUM_NODES, dtype=bool)


def graph_of(links):
    return sevo.prepare(scipy.sparse.csr_array(links.astype(np.float64)))


def mirror_of(graph):
    return jnp.argsort(graph.columns, stable=True)


def matrix_of(graph, entries):
    """Values of the entries of a graph, as a dense matrix."""
    dense = np.zeros((graph.num_nodes,) * 2, np.asarray(entries).dtype)
    dense[np.asarray(graph.rows), np.asarray(graph.columns)] = entries
    return dense


# ------------------------------------------------------------------ relatedness


def literal_relatedness(table, adjacencies):
    """As it is defined; `adjacencies` are the whole one, then what is kept of it."""
    whole, *kept = adjacencies
    degrees = whole.sum(1, keepdims=True)
    found, paths = [whole @ table - table], [degrees]
    for matrix in kept:
        found.append((matrix @ found[-1] - found[-1]) - degrees * found[-1])
        paths.append((matrix @ paths[-1] - paths[-1]) - degrees)
        degrees = matrix.sum(1, keepdims=True)
    mean: Any = sum(found) / (sum(paths) + 1e-8)
    mean, table = mean[LINKED], table[LINKED]
    norms = jnp.linalg.norm(mean, axis=1) * jnp.linalg.norm(table, axis=1)
    return (mean * table).sum(1) / norms


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-9)])
def test_relatedness_and_its_gradient_are_those_of_the_definition(
    dtype, tolerance, depth
):
    links = dense_links(0.5)
    rng = np.random.default_rng(3)
    weights = jnp.asarray(rng.normal(size=len(LINKED)))
    values = rng.normal(size=(NUM_NODES, 4)).astype(np.float32)
    with jax.enable_x64(dtype is np.float64):
        graph = graph_of(links)
        kept = edge_masks.draw_kept(jax.random.key(1), graph.num_entries, depth)

        def ours(table):
            scores = edge_masks.relatedness(graph, mirror_of(graph), table, kept)
            return jnp.sum(weights * scores[LINKED]), scores

        gradient, scores = jax.jit(jax.grad(ours, has_aux=True))(values.astype(dtype))
        assert scores.dtype == dtype
    scores = np.asarray(scores)
    with jax.enable_x64(True):
        matrices = [links, *(matrix_of(graph, np.asarray(each)) for each in kept)]
        assert not (matrices[1] == matrices[1].T).all()
        matrices = [jnp.asarray(each, float) for each in matrices]

        def literal(table):
            scores = literal_relatedness(table, matrices)
            return jnp.sum(weights * scores), scores

        expected_gradient, expected = jax.jit(jax.grad(literal, has_aux=True))(
            values.astype(float)
        )
    np.testing.assert_allclose(scores[LINKED], expected, atol=tolerance)
    np.testing.assert_allclose(gradient, expected_gradient, atol=10 * tolerance)
    # A row that is alone has no surroundings, and no gradient of its cosine.
    assert scores[0] == scores[5] == 0


def test_relatedness_of_many_neighbours_stays_finite():
    links = np.ones((200, 200), bool)
    graph = graph_of(links)
    table = 1e3 * jax.random.normal(jax.random.key(0), (200, 4))
    kept = edge_masks.draw_kept(jax.random.key(1), graph.num_entries, 3)

    def total(table):
        return jnp.sum(edge_masks.relatedness(graph, mirror_of(graph), table, kept))

    value, gradient = jax.jit(jax.value_and_grad(total))(table)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("size", [0, 1e-40, 1e-25, 1e-19, 1e-15, 1e-13, 1e-12, 1e-9])
@pytest.mark.parametrize("rows", [[0], [3, 7], range(NUM_NODES)])
def test_relatedness_of_small_rows_has_finite_gradients(size, rows):
    graph = graph_of(dense_links(0.5))
    table = jax.random.normal(jax.random.key(0), (NUM_NODES, 4))
    rows = jnp.asarray(rows)
    table = table.at[rows].multiply(size)
    kept = edge_masks.draw_kept(jax.random.key(1), graph.num_entries, 3)

    @jax.jit
    @jax.value_and_grad
    def total(table):
        return jnp.sum(edge_masks.relatedness(graph, mirror_of(graph), table, kept))

    value, gradient = total(table)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_each_hop_keeps_a_part_of_the_one_before():
    kept = edge_masks.draw_kept(jax.random.key(0), 40_000, 3)
    for entries, share in zip(kept, (1 / 2, 1 / 8, 1 / 64), strict=True):
        assert np.mean(entries) == pytest.approx(share, abs=4 * np.sqrt(share / 40_000))
    for earlier, later in zip(kept[:-1], kept[1:], strict=True):
        assert not (later & ~earlier).any()


# ------------------------------------------------------------------ spreading


def literal_spread(links, seeds, depth, key, from_ends):
    """Sets of nodes and edges. Only which nodes go on is drawn, and by the same key."""
    n = len(links)
    edges = {(u, v) for u in range(n) for v in range(n) if links[u, v]}
    for hop, hop_key in enumerate(jax.random.split(key, depth), 1):
        hit = {(u, v) for u, v in edges if u in seeds or v in seeds}
        edges -= hit
        nodes = np.zeros(2 * n, bool)
        for u, v in hit:
            nodes[[u, v] if from_ends else [u + v]] = True
        going_on = edge_masks.draw_share(jnp.asarray(nodes), 0.5**hop, hop_key)
        seeds = set(np.flatnonzero(going_on))
    return edges


@pytest.mark.parametrize("from_ends", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_mask_spreads_as_it_is_defined(from_ends, depth):
    links = dense_links()
    graph = graph_of(links)
    for seed in range(5):
        seeds = np.random.default_rng(seed).choice(NUM_NODES, 2, replace=False)
        flags = jnp.zeros(NUM_NODES, bool).at[seeds].set(True)
        key = jax.random.key(seed)
        left = edge_masks.spread(graph, flags, depth, key, from_ends=from_ends)
        expected = literal_spread(links, set(seeds), depth, key, from_ends)
        found = matrix_of(graph, np.asarray(left))
        assert {*zip(*np.nonzero(found), strict=True)} == expected
        assert (found == found.T).all()
        assert 0 < len(expected) < links.sum()


def test_the_next_nodes_are_numbers_of_edges_by_default():
    # A path 1-2-3-4-5-6, begun at 2: its edges sum to 3, 4 and 5. Whoever of these
    # goes on is another node than the ends 1, 2 and 3.
    links = np.eye(7, dtype=bool)
    links[np.arange(1, 6), np.arange(2, 7)] = links[
        np.arange(2, 7), np.arange(1, 6)
    ] = 1
    graph = graph_of(links)
    seeds = jnp.zeros(7, bool).at[2].set(True)
    hit = {True: set(), False: set()}
    for from_ends in hit:
        for seed in range(20):
            key = jax.random.key(seed)
            left = edge_masks.spread(graph, seeds, 2, key, from_ends=from_ends)
            masked = np.argwhere(links & ~matrix_of(graph, np.asarray(left)))
            hit[from_ends] |= {(u, v) for u, v in masked.tolist() if u == v}
    assert hit[True] == {(1, 1), (2, 2), (3, 3)}
    assert hit[False] == {(2, 2), (3, 3), (4, 4), (5, 5)}


def test_a_share_is_drawn_uniformly_and_rounded_down():
    chosen = jnp.zeros(12, bool).at[jnp.array([1, 4, 5, 9, 11])].set(True)
    draws = np.array(
        jax.vmap(lambda key: edge_masks.draw_share(chosen, 0.5, key))(
            jax.random.split(jax.random.key(0), 4000)
        )
    )
    assert (draws.sum(1) == 2).all()
    counts = draws.sum(0)
    assert (counts[~np.asarray(chosen)] == 0).all()
    assert stats.chisquare(counts[np.asarray(chosen)]).pvalue > 1e-3
    assert not edge_masks.draw_share(jnp.zeros(4, bool), 0.5, jax.random.key(0)).any()


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-6), (np.float64, 1e-9)])
def test_what_is_left_is_normalised_anew(dtype, tolerance):
    with jax.enable_x64(dtype is np.float64):
        graph = graph_of(dense_links())
        seeds = jnp.zeros(NUM_NODES, bool).at[jnp.array([3, 7])].set(True)
        left = edge_masks.spread(graph, seeds, 2, jax.random.key(0), from_ends=True)
        weights = edge_masks.normalized(graph, left, dtype)
        assert weights.dtype == dtype
    matrix = matrix_of(graph, np.asarray(left)).astype(float)
    scale = (matrix.sum(1) + 1e-12) ** -0.5
    assert (matrix.sum(1) == 0).any()
    expected = matrix * scale * scale[:, None]
    np.testing.assert_allclose(
        matrix_of(graph, np.asarray(weights)), expected, rtol=tolerance, atol=tolerance
    )
