"""The operator and its product: against dense algebra, and on the kernel it is for."""

import re
import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental.sparse import BCOO
from jax.test_util import check_grads

import sevo_jax as sevo
from sevo_jax import _sparse
from sevo_jax._sparse import matmul, prepare

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


FORMATS = {
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
    graph = prepare(FORMATS[form](a))
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


def test_degrees_are_summed_in_double_precision(oracle):
    # A star of 2^24 + 5 in float32 steps: in single precision the ones would vanish.
    a = np.zeros((7, 7))
    a[0, 1:] = a[1:, 0] = [2.0**24, 1, 1, 1, 1, 1]
    graph = prepare(scipy.sparse.csr_array(a.astype(np.float32)))
    weight = float(graph.weights[0])
    assert weight == np.float32(np.sqrt(2.0**24 / (2**24 + 5)))
    assert weight < 1


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
    with pytest.raises(ValueError, match=r"spectral radius 1\.0001"):
        prepare(scipy.sparse.csr_array(1.0001 * normalised), normalize=False)
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
    rounded = np.array([[0, 3.0], [np.nextafter(np.float32(3), np.float32(4)), 0]])
    assert prepare(scipy.sparse.csr_array(rounded)).num_entries == 2


@pytest.mark.parametrize("block", [1, 4, 2**20])
def test_asymmetry_is_found_in_every_block(monkeypatch, random_graph, block):
    monkeypatch.setattr(_sparse, "_BLOCK", block)
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
    monkeypatch.setattr(_sparse, "_BLOCK", block)
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
    graph, bcoo = prepare(matrix, normalize=normalize), _sparse.bcoo_from_scipy(matrix)
    data[:], indices[:], starts[:] = 7, 0, 0
    np.testing.assert_array_equal(entries(graph), path.toarray())
    np.testing.assert_array_equal(bcoo.todense(), path.toarray())


@pytest.mark.parametrize("form", ["csr", "bcoo"])
def test_memory_of_prepare(monkeypatch, form):
    """Beside the graph a mirror image (8 bytes an entry), or rows and weights (8).

    JAX's own memory is not seen here.
    """
    monkeypatch.setattr(_sparse, "_BLOCK", 2**14)
    ends = np.random.default_rng(0).integers(20_000, size=(2, 400_000), dtype=np.int32)
    ones = np.ones(ends.shape[1], np.float32)
    graph: Any = scipy.sparse.coo_array((ones, tuple(ends)), shape=(20_000, 20_000))
    graph = (graph + graph.T).tocsr()
    # A BCOO has its columns between its rows, not by themselves.
    bound = 16 if form == "csr" else 20
    matrix = graph if form == "csr" else _sparse.bcoo_from_scipy(graph)
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
    bcoo = _sparse.bcoo_from_scipy(
        scipy.sparse.coo_array((halves, (rows, columns)), shape=dense.shape)
    )
    assert bcoo.indices_sorted and bcoo.unique_indices
    assert bcoo.data.dtype == jnp.float32 and bcoo.indices.dtype == jnp.int32
    np.testing.assert_array_equal(bcoo.indices, np.argwhere(dense))
    np.testing.assert_array_equal(bcoo.todense(), dense.astype(np.float32))


def test_conversions_round_trip(dense):
    single = dense.astype(np.float32)
    bcoo = _sparse.bcoo_from_scipy(scipy.sparse.csr_array(single))
    back = _sparse.to_scipy(bcoo)
    assert back.dtype == np.float64 and back.format == "csr"
    np.testing.assert_array_equal(back.toarray(), single)
    again = _sparse.bcoo_from_scipy(back)
    np.testing.assert_array_equal(again.data, bcoo.data)
    np.testing.assert_array_equal(again.indices, bcoo.indices)
    graph = prepare(bcoo)
    np.testing.assert_array_equal(_sparse.to_scipy(graph).toarray(), entries(graph))
    same = prepare(_sparse.to_scipy(graph), normalize=False)
    for one, two in zip(jax.tree.leaves(graph), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(one, two)


def test_operator_is_a_pytree(random_graph):
    graph = prepare(scipy.sparse.csr_array(random_graph(0, 5)))
    leaves, treedef = jax.tree.flatten(graph)
    assert len(leaves) == 4
    assert treedef.unflatten(leaves).num_nodes == 5
    through = jax.jit(lambda g: g)(graph)
    assert isinstance(through, sevo.GraphOperator)
    np.testing.assert_array_equal(entries(through), entries(graph))
    assert (
        repr(through)
        == repr(graph)
        == (f"GraphOperator(5 nodes, {graph.num_entries} entries)")
    )


# ------------------------------------------------------------------ the product


def tables(rng, dtype, *shape):
    return rng.normal(size=shape).astype(dtype)


def check(actual, expected, dtype):
    assert actual.dtype == dtype
    scale = np.abs(expected).max() + 1
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=8 * np.finfo(dtype).eps * scale
    )


def test_product_is_the_dense_one(dense, oracle, rng, dtype):
    graph = prepare(scipy.sparse.csr_array(dense))
    x = tables(rng, dtype, len(dense), 5)
    check(matmul(graph, jnp.asarray(x)), oracle.normalised(dense) @ x, dtype)


@pytest.mark.parametrize("width", [1, 16, 33])
def test_product_of_every_width(width, random_graph, oracle, rng, dtype):
    a = random_graph(0, 50, density=0.1, isolated=(0, 49))
    x = tables(rng, dtype, 50, width)
    product = matmul(prepare(scipy.sparse.csr_array(a)), jnp.asarray(x))
    check(product, oracle.normalised(a) @ x, dtype)


def test_layout_for_accelerators_gives_the_same(random_graph, oracle, rng, dtype):
    dense = random_graph(0, 9, isolated=(0, 4, 8), self_loops=True)
    graph = prepare(scipy.sparse.csr_array(dense))
    x = tables(rng, dtype, 9, 5)
    product = _sparse._gather_segment_sum(
        graph.weights, graph.columns, graph.row_starts, graph.rows, jnp.asarray(x)
    )
    check(product, oracle.normalised(dense) @ x, dtype)


def test_precision_is_that_of_the_table(random_graph, oracle, rng):
    a = random_graph(0, 6)
    single = prepare(scipy.sparse.csr_array(a))
    with jax.enable_x64(True):
        double = prepare(scipy.sparse.csr_array(a))
        for graph in (single, double):
            for kind in (np.float32, np.float64):
                x = tables(rng, kind, 6, 3)
                product = matmul(graph, jnp.asarray(x))
                assert product.dtype == kind
                np.testing.assert_allclose(
                    product, oracle.normalised(a) @ x, rtol=1e-5, atol=1e-6
                )


def test_operator_is_an_argument_of_jit(random_graph, oracle, rng, dtype):
    traces = 0

    @jax.jit
    def product(graph, x):
        nonlocal traces
        traces += 1
        return matmul(graph, x)

    first = random_graph(0, 6, density=1.0)
    second = random_graph(1, 6, density=1.0)
    x = tables(rng, dtype, 6, 3)
    for a in (first, second):
        graph = prepare(scipy.sparse.csr_array(a))
        check(product(graph, jnp.asarray(x)), oracle.normalised(a) @ x, dtype)
    assert traces == 1


def stacked(*graphs):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *graphs)


def test_vmap_over_tables(random_graph, oracle, rng, dtype):
    dense = random_graph(0, 6, isolated=(0, 5))
    graph, a = prepare(scipy.sparse.csr_array(dense)), oracle.normalised(dense)
    x = tables(rng, dtype, 3, 6, 5)
    expected = np.einsum("ij,bjd->bid", a, x)
    check(jax.vmap(matmul, (None, 0))(graph, jnp.asarray(x)), expected, dtype)
    last = jax.vmap(matmul, (None, 2), 2)(graph, jnp.asarray(np.moveaxis(x, 0, 2)))
    check(last, np.moveaxis(expected, 0, 2), dtype)


def test_vmap_over_graphs_and_over_both(random_graph, oracle, rng, dtype):
    graphs = [random_graph(seed, 6, density=1.0) for seed in range(3)]
    batch = stacked(*(prepare(scipy.sparse.csr_array(a)) for a in graphs))
    normalised = np.stack([oracle.normalised(a) for a in graphs])
    x = tables(rng, dtype, 3, 6, 2)
    check(
        jax.vmap(matmul, (0, None))(batch, jnp.asarray(x[0])), normalised @ x[0], dtype
    )
    check(jax.vmap(matmul)(batch, jnp.asarray(x)), normalised @ x, dtype)


def test_vmap_over_the_weights_alone(random_graph, oracle, rng, dtype):
    a = oracle.normalised(random_graph(0, 6))
    graph = prepare(scipy.sparse.csr_array(a), normalize=False)
    factors = np.array([1, 0.5, 0.25], dtype)
    x = tables(rng, dtype, 6, 2)

    def scaled(factor):
        weights = factor * graph.weights
        return matmul(
            _sparse.GraphOperator(
                weights, graph.columns, graph.row_starts, graph.rows, 6
            ),
            jnp.asarray(x),
        )

    check(
        jax.vmap(scaled)(jnp.asarray(factors)), factors[:, None, None] * (a @ x), dtype
    )


def test_vmap_within_vmap(random_graph, oracle, rng, dtype):
    graphs = [random_graph(seed, 6, density=1.0) for seed in range(3)]
    batch = stacked(*(prepare(scipy.sparse.csr_array(a)) for a in graphs))
    normalised = np.stack([oracle.normalised(a) for a in graphs])
    x = tables(rng, dtype, 3, 4, 6, 2)
    over_tables = jax.vmap(matmul, (None, 0))
    check(
        jax.vmap(over_tables)(batch, jnp.asarray(x)),
        np.einsum("gij,gbjd->gbid", normalised, x),
        dtype,
    )
    check(
        jax.vmap(over_tables, (None, 0))(jax.tree.map(lambda leaf: leaf[0], batch), x),
        np.einsum("ij,gbjd->gbid", normalised[0], x),
        dtype,
    )


def test_gradient_is_the_product_itself(dense, oracle, rng, dtype):
    graph = prepare(scipy.sparse.csr_array(dense))
    x, c = (tables(rng, dtype, len(dense), 3) for _ in range(2))
    _, pullback = jax.vjp(lambda table: matmul(graph, table), jnp.asarray(x))
    check(pullback(jnp.asarray(c))[0], oracle.normalised(dense) @ c, dtype)


def test_first_and_second_derivatives_numerically(random_graph, rng, x64):
    dense = random_graph(0, 6, isolated=(5,), self_loops=True)
    graph = prepare(scipy.sparse.csr_array(dense))
    x = jnp.asarray(rng.normal(size=(6, 2)))
    check_grads(lambda t: jnp.sin(matmul(graph, t)), (x,), order=2, modes=["rev"])


def test_gradient_under_vmap_and_vmap_under_gradient(random_graph, oracle, rng, dtype):
    dense = random_graph(0, 6, isolated=(5,))
    graph, a = prepare(scipy.sparse.csr_array(dense)), oracle.normalised(dense)
    x = tables(rng, dtype, 3, 6, 2)
    expected = np.einsum("ij,bjd->bid", a @ a, x)

    def half_square(table):
        product = matmul(graph, table)
        return jnp.vdot(product, product) / 2

    check(jax.vmap(jax.grad(half_square))(jnp.asarray(x)), expected, dtype)
    together = jax.grad(lambda t: jax.vmap(half_square)(t).sum())
    check(together(jnp.asarray(x)), expected, dtype)


def test_no_gradient_flows_to_the_graph(random_graph, rng):
    graph = prepare(scipy.sparse.csr_array(random_graph(0, 6)))
    x = jnp.asarray(tables(rng, np.float32, 6, 2))
    gradient = jax.grad(lambda g: matmul(g, x).sum(), allow_int=True)(graph)
    np.testing.assert_array_equal(gradient.weights, 0)


# ------------------------------------------------------------------ the kernel

NATIVE = "cpu_csr_sparse_dense_ffi"
SLOW = re.compile(r"= \S+ (gather|scatter|sort|select-and-scatter)\(")
LOOP = re.compile(r"\bwhile\(")


def half_square(graph, x):
    product = matmul(graph, x)
    return jnp.vdot(product, product) / 2


over_tables = jax.vmap(matmul, (None, 0))

# function, number of graphs and tables (0: no batch), native calls, whether it loops
PATHS = {
    "plain": (matmul, 0, 0, 1, False),
    "gradient": (jax.grad(half_square, 1), 0, 0, 2, False),
    "vmap over tables": (over_tables, 0, 3, 1, False),
    "gradient of vmap": (
        jax.grad(lambda g, x: jax.vmap(half_square, (None, 0))(g, x).sum(), 1),
        0,
        3,
        2,
        False,
    ),
    "vmap of gradient": (
        jax.vmap(jax.grad(half_square, 1), (None, 0)),
        0,
        3,
        2,
        False,
    ),
    "vmap over graphs": (jax.vmap(matmul, (0, None)), 3, 0, 1, True),
    "vmap over both": (jax.vmap(matmul), 3, 3, 1, True),
    "vmap of gradient over both": (jax.vmap(jax.grad(half_square, 1)), 3, 3, 2, True),
    "neumann": (
        lambda g, x: sevo.smoothing.neumann(g, x, 0.9, 3),
        0,
        0,
        3,
        False,
    ),
    "gradient of neumann": (
        lambda g, x: jax.vjp(lambda t: sevo.smoothing.neumann(g, t, 0.9, 3), x)[1](x),
        0,
        0,
        3,
        False,
    ),
    "vmap of neumann": (
        jax.vmap(lambda g, x: sevo.smoothing.neumann(g, x, 0.9, 3), (None, 0)),
        0,
        3,
        3,
        False,
    ),
    "iterative": (
        lambda g, x: sevo.smoothing.iterative(g, x, 0.9, 3),
        0,
        0,
        3,
        False,
    ),
    "smoothness": (sevo.smoothing.smoothness, 0, 0, 1, False),
    "exact": (lambda g, x: sevo.smoothing.exact(g, x, 0.9), 0, 0, 2, True),
}


def arguments(random_graph, num_graphs, num_tables):
    graphs = [
        prepare(scipy.sparse.csr_array(random_graph(seed, 6, density=1.0)))
        for seed in range(max(num_graphs, 1))
    ]
    graph = stacked(*graphs) if num_graphs else graphs[0]
    shape = (num_tables, 6, 4) if num_tables else (6, 4)
    return graph, jnp.ones(shape, graph.weights.dtype)


def compiled(function, *args) -> str:
    program = jax.jit(function).lower(*args).compile().as_text()
    assert program is not None
    return program


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a kernel of the CPU")
@pytest.mark.parametrize("path", PATHS)
def test_native_kernel_is_used_on_cpu(path, random_graph, dtype):
    function, num_graphs, num_tables, calls, loops = PATHS[path]
    graph, x = arguments(random_graph, num_graphs, num_tables)
    program = compiled(function, graph, x)
    assert f'custom_call_target="{NATIVE}"' in program
    assert program.count(NATIVE) == calls
    assert not SLOW.search(program)
    assert bool(LOOP.search(program)) == loops


def test_expected_slow_path_would_be_seen(random_graph, rng):
    # What the test above must be able to find: the generic sparse product.
    bcoo = _sparse.bcoo_from_scipy(scipy.sparse.csr_array(random_graph(0, 6)))
    x = jnp.asarray(tables(rng, np.float32, 6, 4))
    program = compiled(lambda m, t: m @ t, bcoo, x)
    assert NATIVE not in program
    assert SLOW.search(program) or LOOP.search(program)


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
@pytest.mark.parametrize("path", ["plain", "gradient", "vmap over both", "neumann"])
def test_another_platform_gets_a_portable_program(path, platform, random_graph):
    function, num_graphs, num_tables, _, _ = PATHS[path]
    graph, x = arguments(random_graph, num_graphs, num_tables)
    lowered = jax.jit(function).trace(graph, x).lower(lowering_platforms=(platform,))
    program = lowered.as_text()
    # Neither the kernel nor what wraps it for the partitioner, but a sorted scatter.
    assert "custom_call" not in program
    assert "stablehlo.gather" in program and "stablehlo.scatter" in program
    assert "indices_are_sorted = true" in program
