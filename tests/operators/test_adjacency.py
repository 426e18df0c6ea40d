"""From a graph to an operator: conversion, checks, normalisation."""

import itertools
import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental.sparse import BCOO

import sevo_jax as sevo
from sevo_jax import operators, prepare
from sevo_jax.operators import _adjacency, _kernels

pytestmark = pytest.mark.usefixtures("strict_promotion")


def entries(graph):
    """The operator as a dense matrix, read from its fields alone."""
    weights, columns, rows, starts = (
        np.asarray(part)
        for part in (graph.weights, graph.columns, graph.rows, graph.row_starts)
    )
    out = np.zeros((graph.num_nodes, graph.num_nodes))
    for i in range(graph.num_nodes):
        for k in range(starts[i], starts[i + 1]):
            assert rows[k] == i
            out[i, columns[k]] += weights[k]
    return out


# ------------------------------------------------------------------ prepare


def bcoo(a, unused=0):
    """A BCOO in no order, with unused slots as BCOO marks them: past the end."""
    indices = np.argwhere(a)[::-1]
    data = a[tuple(indices.T)]
    indices = np.concatenate([np.full((unused, 2), len(a)), indices])
    data = np.concatenate([np.zeros(unused, a.dtype), data])
    return BCOO((jnp.asarray(data), jnp.asarray(indices)), shape=a.shape)


FORMATS: dict[str, Any] = {
    "bcoo": bcoo,
    "bcoo_with_unused_slots": lambda a: bcoo(a, unused=3),
    "csr_array": scipy.sparse.csr_array,
    "csr_matrix": scipy.sparse.csr_matrix,
    "csc_array": scipy.sparse.csc_array,
    "coo_array": scipy.sparse.coo_array,
    "lil_matrix": scipy.sparse.lil_matrix,
}


@pytest.mark.parametrize("form", FORMATS)
def test_prepare_normalises_every_format(form, random_graph, oracle, dtype):
    a = random_graph(0, 7, isolated=(2, 6), self_loops=True).astype(np.float32)
    matrix: operators.Adjacency = FORMATS[form](a)
    graph = prepare(matrix)
    assert graph.weights.dtype == dtype
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(
        entries(graph), oracle.normalised(a.astype(np.float64)), rtol=4 * eps, atol=0
    )


def test_prepare_normalises_every_kind_of_graph(dense, oracle, x64):
    graph = prepare(scipy.sparse.csr_array(dense))
    np.testing.assert_allclose(
        entries(graph), oracle.normalised(dense), rtol=1e-15, atol=0
    )


def test_layout_of_the_operator(dense):
    graph = prepare(scipy.sparse.csr_array(dense))
    n, e = len(dense), np.count_nonzero(dense)
    assert (graph.num_nodes, graph.num_entries) == (n, e)
    assert graph.weights.shape == graph.columns.shape == graph.rows.shape == (e,)
    assert graph.row_starts.shape == (n + 1,)
    for index in (graph.columns, graph.rows, graph.row_starts):
        assert index.dtype == jnp.int32
    # Row by row, and within a row by column.
    np.testing.assert_array_equal(
        np.stack([graph.rows, graph.columns]), np.stack(np.nonzero(dense))
    )


def test_operator_is_exactly_symmetric(dense, dtype):
    matrix = entries(prepare(scipy.sparse.csr_array(dense)))
    np.testing.assert_array_equal(matrix, matrix.T)


def test_isolated_nodes_and_self_loops_by_hand():
    # Node 0 has a loop of weight 2 and an edge of weight 2, node 2 nothing.
    a = np.array([[2.0, 2, 0], [2, 0, 0], [0, 0, 0]])
    graph = prepare(scipy.sparse.csr_array(a))
    root = np.sqrt(0.5)
    np.testing.assert_allclose(
        entries(graph), [[0.5, root, 0], [root, 0, 0], [0, 0, 0]], rtol=1e-7
    )
    assert graph.num_entries == 3


def test_operator_is_returned_as_it_is(random_graph):
    graph = prepare(scipy.sparse.csr_array(random_graph(0, 5)))
    assert prepare(graph) is graph
    assert prepare(graph, normalize=False) is graph


def test_duplicates_are_summed_and_zeros_dropped():
    rows, columns = [0, 1, 0, 1, 0, 2, 1], [1, 0, 1, 0, 2, 0, 1]
    data = [1.0, 1, 2, 2, 0, 0, -0.0]
    coo = scipy.sparse.coo_array((data, (rows, columns)), shape=(3, 3))
    from_scipy = prepare(coo)
    indices = jnp.stack([jnp.array(rows), jnp.array(columns)], axis=1)
    from_bcoo = prepare(BCOO((jnp.array(data), indices), shape=(3, 3)))
    for graph in (from_scipy, from_bcoo):
        assert graph.num_entries == 2
        np.testing.assert_array_equal(entries(graph), [[0, 1, 0], [1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8, bool, np.float32])
def test_weights_of_any_real_dtype(kind, oracle):
    a = np.array([[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 0]], kind)
    np.testing.assert_allclose(
        entries(prepare(scipy.sparse.csr_array(a))),
        oracle.normalised(a.astype(np.float64)),
        rtol=1e-7,
    )


def test_degrees_are_summed_in_double_precision(x64):
    # A star of 2^24 + 5: single precision has no such number.
    a = np.zeros((7, 7))
    a[0, 1:] = a[1:, 0] = [2.0**24, 1, 1, 1, 1, 1]
    graph = prepare(scipy.sparse.csr_array(a.astype(np.float32)))
    expected = np.sqrt(2.0**24 / (2**24 + 5))
    np.testing.assert_allclose(graph.weights[0], expected, rtol=1e-14)


def test_input_is_not_changed():
    parts = (
        np.array([1.0, 2, 1, 2, 0]),
        np.array([2, 1, 0, 0, 1]),
        np.array([0, 2, 3, 5]),
    )
    for part in parts:
        part.flags.writeable = False
    data, indices, starts = parts
    matrix = scipy.sparse.csr_array((data, indices, starts), shape=(3, 3))
    indices_before, starts_before = indices.copy(), starts.copy()
    with pytest.raises(ValueError, match="not symmetric"):
        prepare(matrix)
    np.testing.assert_array_equal(matrix.indices, indices_before)
    np.testing.assert_array_equal(matrix.indptr, starts_before)
    data = np.array([1.0, 2, 2, 1, 0])
    data.flags.writeable = False
    matrix = scipy.sparse.csr_array((data, indices, starts), shape=(3, 3))
    assert prepare(matrix).num_entries == 4
    np.testing.assert_array_equal(matrix.data, data)
    np.testing.assert_array_equal(matrix.indices, indices_before)


def test_normalize_false_keeps_the_weights(dense, oracle, x64):
    normalised = oracle.normalised(dense)
    graph = prepare(scipy.sparse.csr_array(normalised), normalize=False)
    np.testing.assert_array_equal(entries(graph), normalised)
    half = prepare(scipy.sparse.csr_array(0.5 * normalised), normalize=False)
    np.testing.assert_array_equal(entries(half), 0.5 * entries(graph))


@pytest.mark.parametrize("n", [10, 100])
def test_normalize_false_refuses_a_spectral_radius_above_one(n, random_graph, oracle):
    normalised = oracle.normalised(random_graph(0, n, density=0.3))
    prepare(scipy.sparse.csr_array(normalised), normalize=False)
    with pytest.raises(ValueError, match=r"spectral radius 1\.00002"):
        prepare(scipy.sparse.csr_array(1.00002 * normalised), normalize=False)
    # Bipartite: the largest eigenvalue by magnitude may be the negative one.
    pairs = np.zeros((2 * n, 2 * n))
    pairs[np.arange(2 * n), np.arange(2 * n) ^ 1] = 2
    with pytest.raises(ValueError, match="spectral radius 2"):
        prepare(scipy.sparse.csr_array(pairs), normalize=False)


def test_symmetry_is_judged_entry_by_entry():
    # One way only, and far lighter than the heaviest edge.
    one_way = np.array([[0, 1e6, 0.5], [1e6, 0, 0], [0, 0, 0]])
    with pytest.raises(ValueError, match=r"\(0, 2\) is 0\.5 and entry \(2, 0\) is 0"):
        prepare(scipy.sparse.csr_array(one_way))
    with pytest.raises(ValueError, match="not symmetric"):
        prepare(np.array([[0, 3.0], [3.00005, 0]]))
    rounded = np.array([[0, 3.0], [np.nextafter(np.float32(3), np.float32(4)), 0]])
    assert prepare(scipy.sparse.csr_array(rounded)).num_entries == 2


@pytest.mark.parametrize("block", [1, 4, 2**20])
def test_asymmetry_is_found_in_every_block(monkeypatch, random_graph, block):
    monkeypatch.setattr(_adjacency, "_BLOCK", block)
    a = random_graph(0, 9, isolated=(0, 4, 8), self_loops=True)
    prepare(scipy.sparse.csr_array(a))
    for i, j in zip(*np.nonzero(np.triu(a, 1)), strict=True):
        other = a.copy()
        # Smaller by half, and by nearly all elsewhere: the worst is named.
        other[2, 2] += 1
        other[j, i] *= 0.5
        message = rf"\({i}, {j}\) is {other[i, j]} and entry \({j}, {i}\) is"
        with pytest.raises(ValueError, match=message):
            prepare(scipy.sparse.csr_array(other))
        other[j, i] = 0
        with pytest.raises(ValueError, match=message):
            prepare(scipy.sparse.csr_array(other))


@pytest.mark.parametrize("block", [1, 4])
def test_normalising_in_blocks(monkeypatch, dense, oracle, x64, block):
    monkeypatch.setattr(_adjacency, "_BLOCK", block)
    graph = prepare(scipy.sparse.csr_array(dense))
    np.testing.assert_allclose(
        entries(graph), oracle.normalised(dense), rtol=1e-15, atol=0
    )


def aligned(array):
    """A copy at an address that JAX would take over without copying."""
    memory = np.empty(array.size + 64, array.dtype)
    begin = -memory.ctypes.data % 64 // array.itemsize
    out = memory[begin : begin + array.size]
    out[:] = array
    return out


@pytest.mark.parametrize("normalize", [True, False])
def test_operator_shares_no_memory_with_what_it_was_made_of(normalize):
    path = scipy.sparse.csr_array(np.eye(200)[np.arange(200) ^ 1])
    data = aligned(path.data.astype(np.float32))
    indices, starts = aligned(path.indices), aligned(path.indptr)
    matrix = scipy.sparse.csr_array((data, indices, starts), shape=path.shape)
    assert np.shares_memory(matrix.data, data)
    graph, bcoo = (
        prepare(matrix, normalize=normalize),
        operators.bcoo_from_scipy(matrix),
    )
    data[:], indices[:], starts[:] = 7, 0, 0
    np.testing.assert_array_equal(entries(graph), path.toarray())
    np.testing.assert_array_equal(bcoo.todense(), path.toarray())


@pytest.mark.parametrize("form", ["csr", "bcoo"])
def test_memory_of_prepare(monkeypatch, form):
    """Beside the graph a mirror image (8 bytes an entry), or rows and weights (8).

    JAX's own memory is not seen here.
    """
    monkeypatch.setattr(_adjacency, "_BLOCK", 2**14)
    ends = np.random.default_rng(0).integers(20_000, size=(2, 400_000), dtype=np.int32)
    ones = np.ones(ends.shape[1], np.float32)
    graph: Any = scipy.sparse.coo_array((ones, tuple(ends)), shape=(20_000, 20_000))
    graph = (graph + graph.T).tocsr()
    # A BCOO has its columns between its rows, not by themselves.
    bound = 16 if form == "csr" else 20
    matrix = graph if form == "csr" else operators.bcoo_from_scipy(graph)
    prepare(matrix)
    tracemalloc.start()
    prepare(matrix)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < bound * graph.nnz


# ------------------------------------------------------------------ conversions


def test_bcoo_from_scipy_is_sorted_unique_and_flagged(random_graph):
    dense = random_graph(0, 9, isolated=(0, 4, 8), self_loops=True)
    shuffled = scipy.sparse.coo_array(dense)
    order = np.random.default_rng(0).permutation(shuffled.nnz)
    rows, columns = (np.concatenate([c[order], c[order]]) for c in shuffled.coords)
    halves = np.tile(shuffled.data[order] / 2, 2)
    bcoo = operators.bcoo_from_scipy(
        scipy.sparse.coo_array((halves, (rows, columns)), shape=dense.shape)
    )
    assert bcoo.indices_sorted and bcoo.unique_indices
    assert bcoo.data.dtype == jnp.float32 and bcoo.indices.dtype == jnp.int32
    np.testing.assert_array_equal(bcoo.indices, np.argwhere(dense))
    np.testing.assert_array_equal(bcoo.todense(), dense.astype(np.float32))


def test_conversions_round_trip(dense):
    single = dense.astype(np.float32)
    bcoo = operators.bcoo_from_scipy(scipy.sparse.csr_array(single))
    back = operators.to_scipy(bcoo)
    assert back.dtype == np.float64 and back.format == "csr"
    np.testing.assert_array_equal(back.toarray(), single)
    again = operators.bcoo_from_scipy(back)
    np.testing.assert_array_equal(again.data, bcoo.data)
    np.testing.assert_array_equal(again.indices, bcoo.indices)
    graph = prepare(bcoo)
    np.testing.assert_array_equal(operators.to_scipy(graph).toarray(), entries(graph))
    same = prepare(operators.to_scipy(graph), normalize=False)
    for one, two in zip(jax.tree.leaves(graph), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(one, two)


# ------------------------------------------------------------------ graphs as they come

PAIR = np.array([[0.0, 3.0], [3.0, 0.0]])


def other_forms() -> dict[str, Any]:
    from jax.experimental.sparse import BCSR

    csr = scipy.sparse.csr_array(PAIR)
    return {
        **{
            name: csr.asformat(name)
            for name in ("csr", "csc", "coo", "lil", "dia", "bsr", "dok")
        },
        "dense NumPy": PAIR,
        "dense JAX": jnp.asarray(PAIR),
        "dense integers": PAIR.astype(int),
        "BCSR": BCSR.fromdense(jnp.asarray(PAIR, jnp.float32)),
    }


@pytest.mark.parametrize("form", other_forms())
def test_a_graph_is_taken_as_people_have_it(form):
    graph = prepare(other_forms()[form])
    np.testing.assert_array_equal(entries(graph), [[0, 1], [1, 0]])


@pytest.mark.parametrize("package", ["networkx", "pandas", "torch"])
def test_other_types_are_told_how(package):
    kind: Any = type("Graph", (), {"__module__": f"{package}.core"})
    remedy = {"networkx": "to_scipy_sparse_array"}.get(package, "coo_array")
    message = f"got {package}.core.Graph: give .*{remedy}"
    with pytest.raises(TypeError, match=message):
        prepare(kind())


SMALL = [bool, np.int8, np.uint8, np.int16, np.uint16, np.float32]


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        *itertools.product(["coo", "csr", "csc", "bsr"], SMALL),
        *itertools.product(
            ["bcoo", "bcoo unsorted"], [*SMALL, np.float16, jnp.bfloat16]
        ),
    ],
)
def test_duplicates_are_summed_in_double_precision(form, kind, tmp_path):
    # Node 0 and 1 share 300 unit edges, 0 and 2 one: 300 does not fit in 8 bits.
    one_way = np.array([[0, 1]] * 300 + [[0, 2]])
    pairs = np.concatenate([one_way, one_way[:, ::-1]])
    if form != "bcoo unsorted":
        pairs = pairs[np.lexsort(pairs.T[::-1])]
    ones = np.ones(len(pairs), kind)
    starts = np.searchsorted(pairs[:, 0], np.arange(4))
    if form.startswith("bcoo"):
        matrix: Any = BCOO((jnp.asarray(ones), jnp.asarray(pairs)), shape=(3, 3))
    elif form == "coo":
        matrix = scipy.sparse.coo_array((ones, pairs.T), shape=(3, 3))
    elif form == "bsr":
        blocks = ones.reshape(-1, 1, 1)
        matrix = scipy.sparse.bsr_array((blocks, pairs[:, 1], starts), shape=(3, 3))
    else:
        build = scipy.sparse.csr_array if form == "csr" else scipy.sparse.csc_array
        matrix = build((ones, pairs[:, 1], starts), shape=(3, 3))
    expected = np.sqrt([300 / 301, 1 / 301])
    np.testing.assert_allclose(entries(prepare(matrix))[0, 1:], expected, rtol=1e-6)
    assert operators.to_scipy(matrix).toarray()[0].tolist() == [0, 300, 1]
    sevo.graphs.save(tmp_path / "graph.npz", matrix)
    saved = sevo.graphs.load(tmp_path / "graph.npz")
    assert np.asarray(saved.todense())[0].tolist() == [0, 300, 1]


def test_light_duplicates_beside_a_heavy_one_are_not_lost():
    # In float32, 2**24 + 1 + 1 is 2**24.
    data = np.array([2**24, 1, 1] * 2, np.float32)
    row, column = [0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]
    matrix = scipy.sparse.coo_array((data, (row, column)), shape=(2, 2))
    assert operators.to_scipy(matrix).toarray()[0, 1] == 2**24 + 2


@pytest.mark.parametrize("form", ["csr", "coo", "dense", "bcoo"])
def test_complex_weights_are_refused(form):
    matrix = PAIR * (1 + 2j)
    forms = {
        "csr": scipy.sparse.csr_array(matrix),
        "coo": scipy.sparse.coo_array(matrix),
        "dense": matrix,
        "bcoo": BCOO.fromdense(jnp.asarray(matrix)),
    }
    with pytest.raises(TypeError, match="are complex.*must be real"):
        prepare(forms[form])


@pytest.mark.parametrize("weight", [5e-324, 1e-300, 1e300, 1.7e308])
def test_weights_that_leave_double_precision_are_refused(weight):
    with pytest.raises(ValueError, match=r"entry \(0, 1\) = .* is outside .*scale"):
        prepare(scipy.sparse.csr_array(PAIR / 3 * weight))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_that_float32_cannot_hold_are_refused(dtype):
    for weight in (1e-40, 1e-50)[: 1 if dtype == np.float32 else 2]:
        matrix = scipy.sparse.csr_array((PAIR / PAIR.max() * weight).astype(dtype))
        with pytest.raises(ValueError, match="is below the range of float32"):
            prepare(matrix, normalize=False)
    least = scipy.sparse.csr_array(PAIR / PAIR.max() * 2e-38)
    np.testing.assert_allclose(entries(prepare(least, normalize=False)).max(), 2e-38)


@pytest.mark.parametrize("weight", [1e-149, 1e-45, 1e-40, 1e38, 1e149])
def test_only_ratios_of_weights_matter(weight, random_graph):
    dense = np.where(random_graph(0, 9) > 0, 1.0, 0.0)
    scaled = prepare(scipy.sparse.csr_array(dense * weight))
    expected = prepare(scipy.sparse.csr_array(dense))
    np.testing.assert_allclose(entries(scaled), entries(expected), rtol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_weights_of_every_magnitude_in_one_graph(seed):
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.uniform(-149, 149, 2))
    n = int(rng.integers(2, 12))
    edges = np.triu(rng.random((n, n)) < 0.5)
    edges[0, 1] = True
    exponents = np.where(edges, rng.uniform(low, high, (n, n)), -np.inf)
    exponents = np.maximum(exponents, exponents.T)
    # Degrees by their logarithms, which overflow nowhere.
    degrees = np.logaddexp.reduce(exponents * np.log(10), axis=1)
    expected = np.zeros((n, n))
    for i, j in zip(*np.nonzero(np.isfinite(exponents)), strict=True):
        logarithm = exponents[i, j] * np.log(10) - (degrees[i] + degrees[j]) / 2
        expected[i, j] = np.exp(logarithm)
    found = entries(prepare(scipy.sparse.csr_array(10.0**exponents)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("weight", [1e39, 1e-46])
def test_weights_that_float32_cannot_hold_are_not_saved(weight, tmp_path):
    with pytest.raises(ValueError, match="does not fit in float32"):
        sevo.graphs.save(tmp_path / "graph.npz", scipy.sparse.csr_array(PAIR * weight))
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ room for more edges


def test_graphs_of_one_capacity_share_a_program(random_graph, rng):
    x = jnp.asarray(rng.normal(size=(9, 2)).astype(np.float32))
    traces = []

    @jax.jit
    def smooth(graph, x):
        traces.append(graph)
        return sevo.smoothing.neumann(graph, x, 0.9, 3)

    for seed in range(4):
        adjacency = scipy.sparse.csr_array(random_graph(seed, 9))
        graph = prepare(adjacency, capacity=90)
        assert graph.num_entries == 90 > adjacency.nnz
        expected = sevo.smoothing.neumann(adjacency, x, 0.9, 3)
        np.testing.assert_allclose(smooth(graph, x), expected, rtol=1e-6)
        # On an accelerator too: what is empty is no part of any row.
        assert (np.diff(graph.rows) >= 0).all()
        for table in (x, x.at[0].set(jnp.nan)):
            portable = _kernels.gather_segment_sum(
                graph.weights, graph.columns, graph.row_starts, graph.rows, table
            )
            np.testing.assert_allclose(portable, graph @ table, rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("capacity", [-1, 1, 2**31, 90.0])
def test_a_capacity_that_does_not_fit_is_refused(capacity: Any, random_graph):
    adjacency = scipy.sparse.csr_array(random_graph(0, 9))
    message = f"capacity is {capacity!r}: it must be an integer from {adjacency.nnz}"
    with pytest.raises(ValueError, match=message):
        prepare(adjacency, capacity=capacity)


def test_a_prepared_graph_has_its_capacity(random_graph):
    adjacency = scipy.sparse.csr_array(random_graph(0, 9))
    roomy = prepare(adjacency, capacity=90)
    assert prepare(roomy) is prepare(roomy, capacity=90) is roomy
    np.testing.assert_array_equal(
        operators.to_scipy(roomy).toarray(), entries(prepare(adjacency))
    )
    with pytest.raises(ValueError, match="prepared already"):
        prepare(prepare(adjacency), capacity=90)
