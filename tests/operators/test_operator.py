"""The product of an operator: against dense algebra, and on the kernel it is for."""

import re
from operator import matmul

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.test_util import check_grads

import sevo_jax as sevo
from sevo_jax import operators, prepare
from sevo_jax.operators import _kernels

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
        == (f"CSROperator(5 nodes, {graph.num_entries} entries)")
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
    product = _kernels.gather_segment_sum(
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


@pytest.mark.parametrize("shape", [(3, 6, 5), (2, 3, 6, 1), (0, 6, 5), (2, 6, 0)])
def test_several_tables(shape, random_graph, oracle, rng, dtype):
    dense = random_graph(0, 6, isolated=(0, 5))
    graph, a = prepare(scipy.sparse.csr_array(dense)), oracle.normalised(dense)
    x = tables(rng, dtype, *shape)
    for product in (matmul, jax.jit(matmul)):
        found = product(graph, jnp.asarray(x))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, a @ x, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda t: matmul(graph, t).sum())(jnp.asarray(x))
    np.testing.assert_allclose(gradient, a @ np.ones(shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("low", ["bfloat16", "float16"])
def test_low_precision_is_computed_in_float32(low, random_graph, rng):
    graph = prepare(scipy.sparse.csr_array(random_graph(0, 50)))
    x = jnp.asarray(rng.normal(size=(50, 3)), low)
    product = matmul(graph, x)
    assert product.dtype == low
    expected = matmul(graph, x.astype(jnp.float32)).astype(low)
    np.testing.assert_array_equal(product, expected)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool"])
def test_what_is_no_table(dtype, random_graph):
    graph = prepare(scipy.sparse.csr_array(random_graph(0, 6)))
    with pytest.raises(TypeError, match=f"must be floating point, got {dtype}"):
        matmul(graph, jnp.ones((6, 2), dtype))
    for shape in ((6,), (5, 2), (2, 6)):
        with pytest.raises(ValueError, match=r"its graph 6 nodes.*\[\.\.\., 6, d\]"):
            matmul(graph, jnp.ones(shape))


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
            sevo.CSROperator(weights, graph.columns, graph.row_starts, graph.rows, 6),
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
    bcoo = operators.bcoo_from_scipy(scipy.sparse.csr_array(random_graph(0, 6)))
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


# ------------------------------------------------------------------ export


@pytest.mark.parametrize("platforms", [["cpu"], ["cuda"], ["tpu"], ["cpu", "tpu"]])
def test_a_training_step_is_exported(platforms, random_graph):
    graph = scipy.sparse.csr_array(random_graph(0, 6))
    params = {"item_embedding": jnp.ones((6, 2)), "bias": jnp.ones(2)}
    tx = sevo.sevo_adamw(0.1, {"item_embedding": graph})
    step = jax.jit(tx.update)
    arguments = params, tx.init(params), params
    allowed = [jax.export.DisabledSafetyCheck.custom_call(NATIVE)]
    # Optax mixes the dtypes of its counts.
    with jax.numpy_dtype_promotion("standard"):
        exported = jax.export.export(step, platforms=platforms, disabled_checks=allowed)
        program = exported(*arguments)
        if "cpu" in platforms:
            updates, _ = program.call(*arguments)
            expected, _ = step(*arguments)
            jax.tree.map(np.testing.assert_array_equal, updates, expected)
