"""The flow of a random walk over directed edges, against dense algebra in float64."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import sevo_jax as sevo
from sevo_jax.graphs import _directed, cooccurrence, from_directed


def directed(seed, n, density=0.5, isolated=()):
    """Random weights of edges, none at the isolated nodes."""
    rng = np.random.default_rng(seed)
    edges = rng.uniform(0.1, 10, (n, n)) * (rng.random((n, n)) < density)
    edges[list(isolated)] = edges[:, list(isolated)] = 0
    return edges


def ring(n):
    """One way round, of period n."""
    return np.roll(np.eye(n), 1, axis=1) * np.arange(1.0, n + 1)


def steps_of(edges):
    leaving = edges.sum(axis=1, keepdims=True)
    return np.divide(edges, leaving, out=np.zeros_like(edges), where=leaving > 0)


def stationary(edges, teleport):
    """By the whole matrix of the walk and its eigenvectors, of linked nodes alone."""
    (linked,) = np.nonzero(edges.sum(axis=0) + edges.sum(axis=1))
    n = len(linked)
    walk = steps_of(edges[np.ix_(linked, linked)])
    walk[walk.sum(axis=1) == 0] = 1 / n
    walk = (1 - teleport) * walk + teleport / n
    np.testing.assert_allclose(walk.sum(axis=1), 1)
    # Of eigenvalue 1, the only one as the walk is irreducible.
    left = np.linalg.svd(walk.T - np.eye(n))[2][-1]
    out = np.zeros(len(edges))
    out[linked] = left / left.sum()
    return out


def operator_of(graph):
    with_identity = sevo.prepare(graph) @ jnp.eye(graph.shape[0])
    return np.asarray(with_identity, np.float64)


CONNECTED = {
    "dense": directed(0, 7, density=1.0),
    "with isolated nodes": directed(1, 9, density=0.9, isolated=(0, 4)),
    "ring": ring(6),
    "pair": np.array([[0.0, 3.0], [5.0, 0.0]]),
    "loop": np.array([[2.0]]),
}


@pytest.mark.parametrize("name", CONNECTED)
def test_without_jumps_it_is_chungs_operator(name, to_dense):
    edges = CONNECTED[name]
    graph = from_directed(scipy.sparse.csr_array(edges), teleport=0)
    to_dense(graph)
    visits = stationary(edges, 0)
    root = np.sqrt(visits)
    back = np.divide(1, root, out=np.zeros_like(root), where=root > 0)
    half = root[:, None] * steps_of(edges) * back
    chung = (half + half.T) / 2
    np.testing.assert_allclose(operator_of(graph), chung, rtol=1e-6, atol=1e-7)
    assert np.abs(np.linalg.eigvalsh(chung)).max() == pytest.approx(1)
    # Its degrees say how often the walk comes to a node.
    degrees = np.asarray(graph.todense(), np.float64).sum(axis=1)
    np.testing.assert_allclose(degrees / degrees.sum(), visits, rtol=1e-5, atol=1e-7)


REDUCIBLE = {
    "one way": np.triu(np.ones((5, 5)), 1),
    "no way on": np.array([[0.0, 1.0], [0.0, 0.0]]),
    "two parts": np.kron(np.eye(2), ring(3)),
    # Of which the walk takes long to find how often it comes to each.
    "two parts, hardly linked": np.kron(np.eye(2), np.ones((3, 3)))
    + 0.01 * np.eye(6, k=5),
    "with isolated nodes": directed(3, 9, density=0.3, isolated=(0, 8)),
}


@pytest.mark.parametrize("teleport", [0.01, 0.15, 0.9])
@pytest.mark.parametrize("name", [*CONNECTED, *REDUCIBLE])
def test_with_jumps_it_is_the_flow_along_the_edges(name, teleport, to_dense):
    edges = (CONNECTED | REDUCIBLE)[name]
    graph = from_directed(scipy.sparse.csr_array(edges), teleport=teleport)
    visits, linked = stationary(edges, teleport), edges.any(axis=0) | edges.any(axis=1)
    flow = linked.sum() / 2 * visits[:, None] * steps_of(edges)
    np.testing.assert_allclose(to_dense(graph), flow + flow.T, rtol=1e-6, atol=1e-9)


@given(
    seed=st.integers(0, 1000),
    density=st.floats(0.05, 1),
    teleport=st.floats(0.01, 0.99),
)
def test_symmetric_and_of_spectral_radius_at_most_1(seed, density, teleport):
    edges = directed(seed, 6, density)
    edges[0, 1] = 1
    operator = operator_of(from_directed(edges, teleport=teleport))
    np.testing.assert_array_equal(operator, operator.T)
    assert np.abs(np.linalg.eigvalsh(operator)).max() <= 1 + 1e-6


def test_it_keeps_more_than_the_sum_with_the_transpose():
    # The edges of a path weigh the same in the sum, and the more a walk comes to them.
    path = np.diag(np.ones(4), 1)
    flow = np.diag(np.asarray(from_directed(path).todense()), 1)
    assert (np.diff(flow) > 0).all() and flow[-1] > 1.5 * flow[0]
    # A symmetric graph is what it was, but for its scale.
    symmetric = directed(5, 6) + directed(5, 6).T
    again = np.asarray(from_directed(symmetric, teleport=0).todense())
    np.testing.assert_allclose(
        again / again.sum(), symmetric / symmetric.sum(), rtol=1e-5
    )


@pytest.mark.parametrize(
    "form", [np.array, scipy.sparse.coo_array, scipy.sparse.csr_array]
)
def test_input_is_left_alone(form):
    edges = form(directed(0, 5))
    before = edges.copy()
    from_directed(edges)
    assert abs(edges - before).sum() == 0


def test_directed_sequences(to_dense):
    rows = [[0, 1, 2, 2], [2, 1, 3], [3, 1]]
    for weighting in ("distance", "frequency"):
        options: Any = dict(max_hop=2, weighting=weighting, item_offset=1, num_nodes=6)
        one_way = np.asarray(cooccurrence(rows, 4, directed=True, **options).todense())
        both = to_dense(cooccurrence(rows, 4, **options))
        np.testing.assert_allclose(one_way + one_way.T, both, rtol=1e-6)
        assert one_way[3, 3] >= 1 and one_way[1, 2] == 1 and one_way[2, 1] == 0


def test_hops_of_directed_sequences():
    graph = cooccurrence([[0, 2, 1]], 3, max_hop=2, directed=True)
    np.testing.assert_array_equal(graph.todense(), [[0, 0.5, 1], [0, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    ("edges", "options", "message"),
    [
        (np.eye(2), {"teleport": 1.0}, r"teleport is 1.0: it must be in \[0, 1\)"),
        (np.eye(2), {"teleport": -0.1}, "teleport is -0.1"),
        (np.eye(2), {"teleport": float("nan")}, "teleport is nan"),
        (-np.eye(2), {}, "entry .0, 0. = -1.0 is negative"),
        (np.zeros((2, 2)), {}, "no edges"),
        (np.ones((2, 3)), {}, "must be square"),
        (np.eye(2), {"teleport": 0}, "2 strongly connected parts: give a teleport"),
        (np.triu(np.ones((3, 3))), {"teleport": 0}, "3 strongly connected parts"),
    ],
)
def test_what_is_refused(edges, options, message):
    with pytest.raises(ValueError, match=message):
        from_directed(edges, **options)


def test_a_prepared_graph_is_refused():
    operator = sevo.prepare(np.ones((2, 2)))
    with pytest.raises(TypeError, match="prepared, and so without directions"):
        from_directed(operator)  # pyright: ignore[reportArgumentType]


def test_a_walk_that_does_not_settle_is_an_error(monkeypatch):
    monkeypatch.setattr(_directed, "_MOST_STEPS", 20)
    with pytest.raises(ValueError, match="not settle within 20 steps, give a larger"):
        from_directed(np.triu(np.ones((9, 9)), 1) + ring(9), teleport=1e-4)


def test_prepare_names_the_remedy():
    with pytest.raises(ValueError, match=r"not symmetric.*from_directed\(A\)"):
        sevo.prepare(np.triu(np.ones((3, 3))))
