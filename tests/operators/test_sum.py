"""Weighted sums of operators, against dense algebra in float64."""

from operator import matmul
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import sevo_jax as sevo
from sevo_jax import weighted_sum

SIZE = 8
WEIGHTS = (0.5, 0.3, 0.2)


@pytest.fixture
def relations(random_graph):
    """Three graphs, of which not all have the same isolated nodes."""
    return [
        random_graph(0, SIZE, density=0.3, isolated=(0, 5)),
        random_graph(1, SIZE, density=0.9, isolated=(0, 2), self_loops=True) * 1e3,
        random_graph(2, SIZE, density=0.2),
    ]


@pytest.fixture
def expected(relations, oracle):
    return sum(w * oracle.normalised(a) for w, a in zip(WEIGHTS, relations))


def summed(relations):
    return weighted_sum([scipy.sparse.csr_array(a) for a in relations], WEIGHTS)


def matrix(graph):
    """Column by column, in the precision of the operator."""
    return np.asarray(graph @ jnp.eye(graph.num_nodes, dtype=graph.weights.dtype))


def close(actual, expected, dtype: type = np.float64):
    tolerance = 16 * np.finfo(dtype).eps
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_sum_is_the_dense_one(relations, expected, dtype):
    graph = summed(relations)
    assert graph.weights.dtype == dtype
    assert graph.num_entries == np.count_nonzero(expected)
    close(matrix(graph), expected, dtype)
    np.testing.assert_array_equal(matrix(graph), matrix(graph).T)


def test_every_form_of_a_graph(relations, expected, x64):
    first, second, third = relations
    mixed = [first, sevo.prepare(scipy.sparse.coo_array(second), capacity=90)]
    mixed.append(sevo.prepare(scipy.sparse.csr_array(third)))
    close(matrix(weighted_sum(mixed, WEIGHTS)), expected)
    # A sum is an operator, of which there is a sum.
    inner = weighted_sum(relations[:2], [0.625, 0.375])
    close(matrix(weighted_sum([inner, third], [0.8, 0.2])), expected)


def test_weights_may_be_rounded():
    thirds = weighted_sum([np.ones((2, 2))] * 3, np.full(3, 1 / 3, np.float32).tolist())
    tenths = weighted_sum([np.ones((2, 2))] * 10, [0.1] * 10)
    assert sum([0.1] * 10) != 1
    for graph in (thirds, tenths):
        close(matrix(graph), np.full((2, 2), 0.5), np.float32)


def test_ends_of_the_weights(relations, x64):
    for number, relation in enumerate(relations):
        one = sevo.prepare(relation)
        weights = [float(number == each) for each in range(3)]
        graph = weighted_sum(relations, weights)
        assert graph.num_entries == one.num_entries
        np.testing.assert_array_equal(matrix(graph), matrix(one))
        np.testing.assert_array_equal(matrix(weighted_sum([one], [1])), matrix(one))


@given(seed=st.integers(0, 1000), share=st.floats(0, 1), beta=st.floats(0, 0.999))
def test_theorems_hold_of_it(random_graph, seed, share, beta):
    """Spectral radius at most 1; psi is structure- and direction-aware."""
    with jax.enable_x64(True):
        relations = [
            random_graph(seed, 6, density=0.4, isolated=(seed % 6,), self_loops=True),
            random_graph(seed + 1, 6, density=0.9),
        ]
        graph = weighted_sum(relations, [1 - share, share])
        a, identity = matrix(graph), np.eye(6)
        assert np.abs(np.linalg.eigvalsh(a)).max() <= 1 + 1e-14
        laplacian = identity - a
        for hops in range(5):
            psi = sevo.smoothing.neumann(graph, jnp.eye(6), beta, hops)
            p = np.asarray(psi)
            assert np.linalg.eigvalsh(laplacian - p @ laplacian @ p)[0] >= -1e-13
            assert np.linalg.eigvalsh(p)[0] >= (1 - beta) / (1 + beta) * (1 - 1e-7)


def test_gradients_and_vmap(relations, expected, rng, x64):
    graph = summed(relations)
    x = jnp.asarray(rng.normal(size=(3, SIZE, 2)))
    close(jax.vmap(matmul, (None, 0))(graph, x), expected @ x)
    check_grads(lambda t: jnp.sin(graph @ t), (x[0],), order=2, modes=["rev"])
    _, pullback = jax.vjp(lambda t: graph @ t, x[0])
    close(pullback(x[1])[0], expected @ np.asarray(x[1]))


def test_argument_of_a_compiled_update(relations, oracle, rng, x64):
    """Other weights are another argument, not another program, on the same edges."""
    table = {"item_embedding": jnp.asarray(rng.normal(size=(SIZE, 2)))}
    tx = sevo.scale_by_sevo({"item_embedding": summed(relations)}, 0.9, 2)
    state, traces = tx.init(table), 0

    @jax.jit
    def update(updates, graph) -> Any:
        nonlocal traces
        traces += 1
        return tx.update(updates, state, graphs={"item_embedding": graph})[0]

    for weights in (WEIGHTS, (0.1, 0.2, 0.7)):
        graph = weighted_sum(relations, weights)
        terms = [w * oracle.normalised(r) for w, r in zip(weights, relations)]
        a = np.sum(terms, axis=0)
        x = np.asarray(table["item_embedding"])
        series = x + 0.9 * a @ x + 0.81 * a @ a @ x
        found = update(table, graph)["item_embedding"]
        close(found, (1 - 0.9) / (1 - 0.9**3) * series)
    assert traces == 1


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("rows"), P(None, "columns"), P("rows", "columns")])
@pytest.mark.parametrize("by_rows", [False, True])
def test_on_a_mesh(axis_type, spec, by_rows, relations, expected, rng):
    devices = np.array(jax.devices("cpu")[:8]).reshape(4, 2)
    mesh = jax.sharding.Mesh(devices, ("rows", "columns"), axis_types=(axis_type,) * 2)
    sharding = NamedSharding(mesh, spec)
    graph = summed(relations)
    if by_rows and spec[0] is not None:
        graph = sevo.shard_rows(graph, sharding)
    x = rng.normal(size=(SIZE, 4)).astype(np.float32)
    with jax.set_mesh(mesh):
        psi = jax.jit(lambda g, t: sevo.smoothing.neumann(g, t, 0.5, 1))
        found = psi(graph, jax.device_put(x, sharding))
    assert found.sharding.is_equivalent_to(sharding, 2)
    smoothed = 0.5 / 0.75 * (x + 0.5 * expected @ x)
    np.testing.assert_allclose(found, smoothed, rtol=1e-5, atol=1e-6)


def test_it_takes_the_place_of_a_graph(relations, expected, rng):
    graph = summed(relations)
    table = {"item_embedding": jnp.asarray(rng.normal(size=(SIZE, 2)), jnp.float32)}
    tx = sevo.sevo_sgd(1.0, {"item_embedding": graph}, beta=0.5, num_layers=1)
    updates, _ = tx.update(table, tx.init(table), table)
    trained: Any = optax.apply_updates(table, updates)
    x = np.asarray(table["item_embedding"])
    smoothed = 0.5 / 0.75 * (x + 0.5 * expected @ x)
    np.testing.assert_allclose(
        trained["item_embedding"],
        x - smoothed,
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("count", "weights", "message"),
    [
        (0, [], "0 graphs and 0 weights: give at least one graph"),
        (2, [1.0], "2 graphs and 1 weights"),
        (2, [1.5, -0.5], r"weights\[0\] is 1.5: it must be 0 to 1"),
        (2, [0.5, -0.5], r"weights\[1\] is -0.5"),
        (2, [0.5, float("nan")], r"weights\[1\] is nan"),
        (2, [0.5, 0.25], "add up to 0.75: divide them by that"),
        (2, [0.5, 0.50001], "add up to 1.00001"),
    ],
)
def test_weights_that_are_refused(count, weights, message):
    with pytest.raises(ValueError, match=message):
        weighted_sum([np.ones((2, 2))] * count, weights)


def test_graphs_that_are_refused(mesh_of_two):
    pair = np.ones((2, 2))
    with pytest.raises(ValueError, match=r"graphs\[1\] has 3 nodes, graphs\[0\] has 2"):
        weighted_sum([pair, np.ones((3, 3))], [0.5, 0.5])
    with pytest.raises(ValueError, match="not symmetric"):
        weighted_sum([pair, np.triu(pair)], [0.5, 0.5])
    split = sevo.shard_rows(pair, NamedSharding(mesh_of_two, P("rows")))
    with pytest.raises(TypeError, match="split over devices"):
        weighted_sum([pair, split], [0.5, 0.5])
    with pytest.raises(TypeError, match="is traced"):
        jax.jit(lambda g: weighted_sum([pair, g], [0.5, 0.5]))(sevo.prepare(pair))


@pytest.fixture
def mesh_of_two():
    return jax.sharding.Mesh(jax.devices("cpu")[:2], ("rows",))
