"""Reconstruction of masked edges, against loops over pairs of nodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from flax import nnx
from helpers import assert_trees_close
from scipy import stats

import sevo_jax as sevo
from sevo_jax.models.reconstruction import (
    Decoder,
    draw_nodes,
    draw_unlinked,
    reconstruction_loss,
)

NUM_NODES = 14


def dense_links(density=0.4, seed=0):
    """Nodes linked to themselves and some others; node 0 to itself alone."""
    rng = np.random.default_rng(seed)
    links = np.triu(rng.random((NUM_NODES, NUM_NODES)) < density, 1)
    links[0] = False
    return links | links.T | np.eye(NUM_NODES, dtype=bool)


def graph_of(links):
    return sevo.prepare(scipy.sparse.csr_array(links.astype(np.float64)))


# ------------------------------------------------------------------------ draws


@pytest.mark.parametrize("num_items", [NUM_NODES - 1, NUM_NODES - 2])
def test_unlinked_items_are_drawn_uniformly(num_items):
    links = dense_links()
    links[7, 1:] = links[1:, 7] = True  # Linked to all others.
    links[3] = links[:, 3] = False
    links[3, 3] = links[3, -1] = links[-1, 3] = True
    draws = np.asarray(
        draw_unlinked(
            graph_of(links), jnp.arange(NUM_NODES), 3000, num_items, jax.random.key(0)
        )
    )
    assert draws.shape == (NUM_NODES, 3000)
    for node in range(NUM_NODES):
        allowed = [item for item in range(1, num_items + 1) if not links[node, item]]
        values, counts = np.unique(draws[node], return_counts=True)
        if not allowed:
            assert node == 7 and values.tolist() == [-1]
        else:
            assert values.tolist() == allowed
            assert len(allowed) == 1 or stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("num_masked", [3, 8, 40])
def test_masked_edges_are_drawn_uniformly_each_once(num_masked):
    links = dense_links()
    graph = graph_of(links)
    rows, columns = np.asarray(graph.rows), np.asarray(graph.columns)
    masked = np.zeros(graph.num_entries, bool)
    masked[np.random.default_rng(1).permutation(masked.size)[:num_masked]] = True
    draws = np.asarray(
        jax.vmap(
            lambda key: draw_nodes(graph, jnp.asarray(masked), 8, 4, NUM_NODES - 1, key)
        )(jax.random.split(jax.random.key(0), 2000))
    )
    assert draws.shape == (2000, 8, 6)
    known = draws[:, :, 0] >= 0
    assert (known.sum(1) == min(8, num_masked)).all()
    assert (draws[~known] == -1).all()
    edges = draws[known]
    for ends, others in ((1, slice(2, 4)), (0, slice(4, 6))):
        assert not links[edges[:, [ends]], edges[:, others]].any()
    found, counts = np.unique(edges[:, 0] * NUM_NODES + edges[:, 1], return_counts=True)
    assert found.tolist() == (rows * NUM_NODES + columns)[masked].tolist()
    assert stats.chisquare(counts).pvalue > 1e-4
    each = [len({*map(tuple, some[:, :2][some[:, 0] >= 0])}) for some in draws]
    assert set(each) == {min(8, num_masked)}


# ------------------------------------------------------------------------- loss


def literal_loss(params, hops, nodes, log):
    """Of all pairs at once, on numbers of nodes."""
    u, v, others = nodes[:, :1], nodes[:, 1:2], nodes[:, 2:]
    half = others.shape[1] // 2
    u, v = (
        np.concatenate([u, others[:, :half], np.repeat(u, half, 1)], 1),
        np.concatenate([v, np.repeat(v, half, 1), others[:, half:]], 1),
    )
    num_hops = hops.shape[1]
    x = jnp.concatenate(
        [hops[u, i] * hops[v, j] for i in range(num_hops) for j in range(num_hops)], -1
    )
    first, second, third = params["layers"].values()
    x = jnp.maximum(x @ first["kernel"] + first["bias"], 0)
    x = jnp.maximum(x @ second["kernel"] + second["bias"], 0)
    x = (x @ third["kernel"] + third["bias"])[..., 0]
    phi = jnp.exp(1 / (1 + jnp.exp(-x))) * ((u >= 0) & (v >= 0))
    share = phi[:, 0] / (phi.sum(1) + 1e-8) + 1e-8
    share = share[nodes[:, 0] >= 0]
    return -jnp.log(share).mean() if log else -share.sum()


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "dtype, tolerance, num_hops",
    [(np.float32, 1e-5, 2), (np.float64, 1e-10, 2), (np.float64, 1e-10, 3)],
)
def test_loss_and_gradients_are_those_of_the_definition(
    dtype, tolerance, num_hops, log, monkeypatch
):
    # The five edges fill one block and a part of another.
    monkeypatch.setattr("sevo_jax.models.reconstruction._EDGES", 4)
    rng = np.random.default_rng(0)
    nodes = rng.integers(0, NUM_NODES, (5, 6))
    nodes[1, 3] = nodes[2, 4] = -1
    nodes[4] = -1
    decoder = Decoder(4, num_hops, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(decoder)
    params = jax.tree.map(
        lambda x: (x + 0.3 * rng.normal(size=x.shape)).astype(np.float32),
        nnx.to_pure_dict(state),
    )
    hops = rng.normal(size=(NUM_NODES, num_hops, 4)).astype(np.float32)

    def loss_of(params, hops):
        nnx.replace_by_pure_dict(state, params)
        decoder = nnx.merge(graphdef, state)
        # Another factor than 1 comes back through the chain rule.
        return 3 * reconstruction_loss(decoder, hops, jnp.asarray(nodes), log=log)

    with jax.enable_x64(dtype is np.float64):
        inputs = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, hops))
        loss, gradients = jax.jit(jax.value_and_grad(loss_of, (0, 1)))(*inputs)
        assert loss.dtype == dtype
        np.testing.assert_allclose(jax.jit(loss_of)(*inputs), loss, rtol=tolerance)
        loss, gradients = jax.tree.map(np.asarray, (loss, gradients))
    with jax.enable_x64(True):
        inputs = jax.tree.map(lambda x: jnp.asarray(x, float), (params, hops))
        expected, expected_gradients = jax.tree.map(
            np.asarray,
            jax.jit(
                jax.value_and_grad(
                    lambda params, hops: 3 * literal_loss(params, hops, nodes, log),
                    (0, 1),
                )
            )(*inputs),
        )
    np.testing.assert_allclose(loss, expected, rtol=tolerance)
    assert_trees_close(gradients, expected_gradients, 10 * tolerance)


def test_no_masked_edge_has_no_loss():
    decoder = Decoder(4, 2, rngs=nnx.Rngs(0))
    hops = jnp.ones((NUM_NODES, 2, 4))
    for log in (False, True):
        loss, gradient = jax.value_and_grad(
            lambda hops, log=log: reconstruction_loss(
                decoder, hops, jnp.full((3, 6), -1), log=log
            )
        )(hops)
        assert loss == 0
        assert (gradient == 0).all()
