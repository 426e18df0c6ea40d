"""Smoothing against dense closed forms in double precision."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from beartype import beartype
from jax.test_util import check_grads
from jaxtyping import jaxtyped

from sevo_jax import GraphOperator, prepare
from sevo_jax.smoothing import effect, exact, iterative, neumann, smoothness

pytestmark = pytest.mark.usefixtures("strict_promotion")


def table_for(dense, rng, dtype: Any = np.float64, width=3):
    return rng.normal(size=(len(dense), width)).astype(dtype)


def prepared(dense):
    return prepare(scipy.sparse.csr_array(dense))


# ------------------------------------------------------------------ definitions


STRENGTHS_AND_HOPS = list(itertools.product((0.0, 0.5, 0.99), (0, 1, 2, 3, 6)))


@pytest.mark.parametrize("rescale", [True, False])
def test_neumann_is_the_sum(rescale, dense, oracle, rng, x64):
    graph, x = prepared(dense), table_for(dense, rng)
    for beta, num_layers in STRENGTHS_AND_HOPS:
        actual = neumann(graph, jnp.asarray(x), beta, num_layers, rescale=rescale)
        expected = oracle.neumann(dense, x, beta, num_layers, rescale)
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


def test_iterative_is_the_recursion(dense, oracle, rng, x64):
    graph, x = prepared(dense), table_for(dense, rng)
    for beta, num_layers in STRENGTHS_AND_HOPS:
        actual = iterative(graph, jnp.asarray(x), beta, num_layers)
        expected = oracle.iterative(dense, x, beta, num_layers)
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


def test_exact_solves_the_system(dense, oracle, rng, x64):
    check_exact(dense, oracle, rng, np.float64)


def test_exact_in_single_precision(random_graph, oracle, rng):
    dense = random_graph(0, 9, isolated=(0, 4, 8), self_loops=True)
    check_exact(dense, oracle, rng, np.float32)


def check_exact(dense, oracle, rng, dtype):
    graph, x = prepared(dense), table_for(dense, rng, dtype)
    solve = jax.jit(exact)
    for beta in (0.0, 0.5, 0.99, 0.9999):
        actual = solve(graph, jnp.asarray(x), jnp.asarray(beta, dtype))
        assert actual.dtype == dtype
        beta = float(np.asarray(beta, dtype))
        expected = oracle.exact(dense, x.astype(np.float64), beta)
        # The tolerance, ten units of rounding, and what rounding the graph's weights
        # does to a system of this condition.
        allowed = (10 + 3 / (1 - beta)) * np.finfo(dtype).eps
        assert np.linalg.norm(actual - expected) <= allowed * np.linalg.norm(x)


def test_exact_is_exact_to_the_tolerance_asked_for(random_graph, oracle, rng, x64):
    dense = random_graph(0, 60, density=0.1)
    graph, x = prepared(dense), table_for(dense, rng)
    expected = oracle.exact(dense, x, 0.9)
    errors = [
        np.linalg.norm(exact(graph, jnp.asarray(x), 0.9, tol=tol) - expected)
        / np.linalg.norm(x)
        for tol in (1e-1, 1e-4, 1e-8, 0.0)
    ]
    assert errors[0] <= 1e-1 and errors[1] <= 1e-4 and errors[2] <= 1e-8
    assert errors[3] <= 1e-14
    # And not by solving to the end whatever is asked.
    assert errors[0] > 1e-6 and errors[1] > 1e-10


def test_smoothness_is_the_trace(dense, oracle, rng, x64):
    x = table_for(dense, rng)
    laplacian = np.eye(len(dense)) - oracle.normalised(dense)
    actual = smoothness(prepared(dense), jnp.asarray(x))
    assert actual.shape == ()
    np.testing.assert_allclose(
        actual, np.trace(x.T @ laplacian @ x), rtol=1e-13, atol=1e-15
    )


def test_smoothness_is_half_the_sum_over_pairs_and_isolated_nodes(dense, rng, x64):
    x, degrees = table_for(dense, rng), dense.sum(axis=1)
    pairs = 0.0
    for i, j in np.argwhere(dense):
        difference = x[i] / np.sqrt(degrees[i]) - x[j] / np.sqrt(degrees[j])
        pairs += dense[i, j] * difference @ difference
    isolated = (x[degrees == 0] ** 2).sum()
    np.testing.assert_allclose(
        smoothness(prepared(dense), jnp.asarray(x)),
        pairs / 2 + isolated,
        rtol=1e-12,
        atol=1e-15,
    )


def test_compare_measures_both_tables(dense, oracle, rng, x64):
    x, y = table_for(dense, rng), table_for(dense, rng)
    laplacian = np.eye(len(dense)) - oracle.normalised(dense)
    report = effect(prepared(dense), jnp.asarray(x), jnp.asarray(y))
    norms = np.sqrt((x**2).sum()), np.sqrt((y**2).sum())
    expected = (
        np.trace(x.T @ laplacian @ x),
        np.trace(y.T @ laplacian @ y),
        (x * y).sum() / (norms[0] * norms[1]),
        norms[1] / norms[0],
    )
    assert report._fields == (
        "smoothness_before",
        "smoothness_after",
        "cosine",
        "norm_ratio",
    )
    np.testing.assert_allclose(report, expected, rtol=1e-12, atol=1e-15)


def test_compare_of_nothing_is_nan_not_an_error(random_graph):
    graph = prepared(random_graph(0, 4))
    report = effect(graph, jnp.zeros((4, 2)), jnp.ones((4, 2)))
    assert report.smoothness_before == 0
    assert np.isnan(report.cosine) and not np.isfinite(report.norm_ratio)


# ------------------------------------------------------------------ test vectors

FIVE_NODES = np.zeros((5, 5))
FIVE_NODES[0, 1] = FIVE_NODES[1, 0] = 2
FIVE_NODES[1, 2] = FIVE_NODES[2, 1] = FIVE_NODES[0, 2] = FIVE_NODES[2, 0] = 1


def with_isolated(block, rest):
    out = np.diag([0, 0, 0, rest, rest])
    out[:3, :3] = block
    return out


@pytest.mark.parametrize(
    "beta, expected",
    [
        (
            0.99,
            with_isolated(
                [
                    [0.46050463, 0.33663291, 0.24845475],
                    [0.33663291, 0.46050463, 0.24845475],
                    [0.24845475, 0.24845475, 0.39141265],
                ],
                0.25378141,
            ),
        ),
        (
            0.5,
            with_isolated(
                [
                    [0.62962963, 0.2345679, 0.16632338],
                    [0.2345679, 0.62962963, 0.16632338],
                    [0.16632338, 0.16632338, 0.59259259],
                ],
                0.53333333,
            ),
        ),
    ],
)
def test_vector_neumann(beta, expected, x64):
    actual = neumann(scipy.sparse.csr_array(FIVE_NODES), jnp.eye(5), beta, 3)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5.01e-9)


def test_vector_iterative(x64):
    expected = with_isolated(
        [
            [0.60416667, 0.25231481, 0.17577357],
            [0.25231481, 0.60416667, 0.17577357],
            [0.17577357, 0.17577357, 0.56944444],
        ],
        0.5,
    )
    actual = iterative(scipy.sparse.csr_array(FIVE_NODES), jnp.eye(5), 0.5, 3)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5.01e-9)


def test_vector_smoothness(x64):
    x = jnp.arange(1.0, 6.0)[:, None]
    trace = smoothness(scipy.sparse.csr_array(FIVE_NODES), x)
    np.testing.assert_allclose(trace, 44.98486410, rtol=0, atol=5.01e-9)
    # Without the squares of the isolated nodes 3 and 4: half the ordered-pair sum.
    np.testing.assert_allclose(trace - 16 - 25, 7.96972821 / 2, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "beta, factor", [(0.99, 0.25378), (0.9, 0.29078), (0.7, 0.39479), (0.5, 0.53333)]
)
def test_vector_isolated_factor(beta, factor):
    out = neumann(scipy.sparse.csr_array(FIVE_NODES), jnp.ones((5, 1)), beta, 3)
    np.testing.assert_allclose(out[3:], factor, rtol=0, atol=5.1e-6)


# ------------------------------------------------------------------ identities


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_without_strength_or_hops_it_is_the_identity_bit_by_bit(
    num_layers, random_graph, rng
):
    graph = prepared(random_graph(0, 6, isolated=(5,)))
    x = jnp.asarray(rng.normal(size=(6, 2)).astype(np.float32)).at[0].set(-0.0)
    tables = [neumann(graph, x, 0.0, num_layers), neumann(graph, x, 0, num_layers)]
    tables += [neumann(graph, x, beta, 0) for beta in (0.5, 0.99)]
    tables += [neumann(graph, x, 0.0, num_layers, rescale=False)]
    for table in tables:
        assert np.asarray(table).tobytes() == np.asarray(x).tobytes()


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.99])
def test_no_hops_unrescaled_is_the_factor_alone(beta, random_graph, rng, x64):
    graph, x = prepared(random_graph(0, 6)), rng.normal(size=(6, 2))
    np.testing.assert_array_equal(
        neumann(graph, jnp.asarray(x), beta, 0, rescale=False), (1 - beta) * x
    )
    np.testing.assert_allclose(
        iterative(graph, jnp.asarray(x), beta, 0), x, rtol=0, atol=0
    )


def test_root_of_the_degrees_is_a_fixed_point(dense, x64):
    graph = prepared(dense)
    root = np.sqrt(dense.sum(axis=1))[:, None] * [1.0, -2.0, 0.5]
    for beta, num_layers in ((0.3, 1), (0.9, 3), (0.999, 6)):
        for smooth in (neumann, iterative):
            out = smooth(graph, jnp.asarray(root), beta, num_layers)
            np.testing.assert_allclose(out, root, rtol=1e-12)


def test_strength_next_to_one_keeps_its_digits(random_graph, oracle, rng):
    # In float32 the quotient (1 - beta) / (1 - beta^(L+1)) has four digits left here.
    dense, beta = random_graph(0, 6), np.float32(0.99995)
    x = rng.normal(size=(6, 2)).astype(np.float32)
    expected = oracle.neumann(dense, x.astype(np.float64), float(beta), 3)
    actual = neumann(prepared(dense), jnp.asarray(x), jnp.asarray(beta), 3)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_strength_of_one_is_the_plain_average(random_graph, oracle, rng, x64):
    """Where the quotient is 0/0; a schedule may reach it."""
    dense = random_graph(0, 6)
    a, x = oracle.normalised(dense), rng.normal(size=(6, 2))
    expected = (x + a @ x + a @ a @ x) / 3
    smooth = jax.jit(neumann, static_argnums=3)
    actual = smooth(prepared(dense), jnp.asarray(x), 1.0, 2)
    np.testing.assert_allclose(actual, expected, rtol=1e-13)


# ------------------------------------------------------------------ precision


SMOOTHERS = {
    "neumann": (lambda g, x: neumann(g, x, 0.9, 3), "neumann", (0.9, 3)),
    "unrescaled": (
        lambda g, x: neumann(g, x, 0.9, 3, rescale=False),
        "neumann",
        (0.9, 3, False),
    ),
    "iterative": (lambda g, x: iterative(g, x, 0.9, 3), "iterative", (0.9, 3)),
    "exact": (lambda g, x: exact(g, x, 0.9), "exact", (0.9,)),
}


@pytest.fixture(params=SMOOTHERS)
def smoother(request, oracle):
    """A function of (graph, table) and its oracle, of (dense, table)."""
    function, name, arguments = SMOOTHERS[request.param]
    return function, lambda dense, x: getattr(oracle, name)(dense, x, *arguments)


def test_single_precision_on_every_graph(dense, oracle, rng):
    x = table_for(dense, rng, np.float32)
    actual = neumann(prepared(dense), jnp.asarray(x), 0.99, 3)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(
        actual,
        oracle.neumann(dense, x.astype(np.float64), 0.99, 3),
        rtol=0,
        atol=1e-6,
    )


def test_single_precision(smoother, random_graph, rng):
    function, expected = smoother
    dense = random_graph(0, 8, isolated=(3,), self_loops=True)
    x = table_for(dense, rng, np.float32)
    actual = function(prepared(dense), jnp.asarray(x))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(
        actual, expected(dense, x.astype(np.float64)), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_rounded_once(half, smoother, random_graph, rng):
    function, expected = smoother
    dense = random_graph(0, 8, isolated=(3,))
    x = jnp.asarray(rng.normal(size=(8, 4))).astype(half)
    actual = function(prepared(dense), x)
    assert actual.dtype == half
    wide = expected(dense, np.asarray(x, np.float64))
    # Half a unit in the last place: no intermediate result was in half precision.
    assert np.all(
        np.abs(np.asarray(actual, np.float64) - wide)
        <= 0.51 * float(jnp.finfo(half).eps) * np.abs(wide) + 3e-6
    )


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
def test_measures_of_half_precision_are_single(half, random_graph, rng):
    graph = prepared(random_graph(0, 8))
    x = jnp.asarray(rng.normal(size=(8, 4))).astype(half)
    assert smoothness(graph, x).dtype == jnp.float32
    np.testing.assert_allclose(
        smoothness(graph, x), smoothness(graph, x.astype(jnp.float32)), rtol=1e-6
    )
    assert {part.dtype for part in effect(graph, x, x)} == {jnp.dtype("float32")}


# ------------------------------------------------------------------ transformations


def test_jit_with_the_operator_as_argument(smoother, random_graph, rng, x64):
    function, expected = smoother
    traces = 0

    @jax.jit
    def step(graph, x):
        nonlocal traces
        traces += 1
        return function(graph, x)

    for seed in range(2):
        dense = random_graph(seed, 6, density=1.0)
        x = table_for(dense, rng)
        np.testing.assert_allclose(
            step(prepared(dense), jnp.asarray(x)), expected(dense, x), rtol=1e-11
        )
    assert traces == 1


def test_jit_over_a_graph_that_is_a_constant(smoother, random_graph, rng, x64):
    function, expected = smoother
    dense = random_graph(0, 6)
    x = table_for(dense, rng)
    adjacency = scipy.sparse.csr_array(dense)
    actual = jax.jit(lambda table: function(adjacency, table))(jnp.asarray(x))
    np.testing.assert_allclose(actual, expected(dense, x), rtol=1e-11, atol=1e-14)


def test_vmap(smoother, random_graph, rng, x64):
    function, expected = smoother
    graphs = [random_graph(seed, 6, density=1.0) for seed in range(3)]
    batch = jax.tree.map(lambda *leaf: jnp.stack(leaf), *map(prepared, graphs))
    x = rng.normal(size=(3, 6, 2))
    tables = jnp.asarray(x)
    for axes, arguments in {
        (None, 0): (prepared(graphs[0]), tables),
        (0, None): (batch, tables[0]),
        (0, 0): (batch, tables),
    }.items():
        actual = jax.jit(jax.vmap(function, axes))(*arguments)
        wanted = [
            expected(
                graphs[i] if axes[0] == 0 else graphs[0], x[i] if axes[1] == 0 else x[0]
            )
            for i in range(3)
        ]
        np.testing.assert_allclose(actual, np.stack(wanted), rtol=1e-11, atol=1e-14)


def test_vmap_over_strengths(random_graph, oracle, rng, x64):
    dense = random_graph(0, 6)
    graph, x = prepared(dense), table_for(dense, rng)
    betas = np.array([0.0, 0.5, 0.99])
    for smooth, name, hops in (
        (neumann, "neumann", (3,)),
        (iterative, "iterative", (3,)),
        (exact, "exact", ()),
    ):
        actual = jax.vmap(lambda b: smooth(graph, jnp.asarray(x), b, *hops))(
            jnp.asarray(betas)
        )
        wanted = [getattr(oracle, name)(dense, x, beta, *hops) for beta in betas]
        np.testing.assert_allclose(actual, np.stack(wanted), rtol=1e-11, atol=1e-14)


def test_pullback_of_smoothing_is_smoothing(smoother, random_graph, rng, x64):
    function, expected = smoother
    dense = random_graph(0, 8, isolated=(2,), self_loops=True)
    graph = prepared(dense)
    x, c = table_for(dense, rng), table_for(dense, rng)
    _, pullback = jax.vjp(lambda table: function(graph, table), jnp.asarray(x))
    np.testing.assert_allclose(
        pullback(jnp.asarray(c))[0], expected(dense, c), rtol=1e-10, atol=1e-13
    )


def test_gradient_of_smoothness_is_twice_the_laplacian(random_graph, oracle, rng, x64):
    dense = random_graph(0, 8, isolated=(3,), self_loops=True)
    x = table_for(dense, rng)
    gradient = jax.grad(smoothness, 1)(prepared(dense), jnp.asarray(x))
    expected = 2 * (x - oracle.normalised(dense) @ x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-14)


def test_gradients_numerically_in_table_and_strength(smoother, random_graph, rng, x64):
    function, _ = smoother
    graph = prepared(random_graph(0, 6, isolated=(2,), self_loops=True))
    x = jnp.asarray(rng.normal(size=(6, 2)))
    check_grads(
        lambda table: jnp.sin(function(graph, table)),
        (x,),
        order=1,
        modes=["rev"],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda g, x, beta: neumann(g, x, beta, 3),
        lambda g, x, beta: neumann(g, x, beta, 3, rescale=False),
        lambda g, x, beta: iterative(g, x, beta, 3),
        lambda g, x, beta: exact(g, x, beta, tol=1e-15),
    ],
    ids=SMOOTHERS,
)
def test_gradient_in_the_strength_numerically(function, random_graph, rng, x64):
    graph = prepared(random_graph(0, 6, isolated=(2,), self_loops=True))
    x, c = (jnp.asarray(rng.normal(size=(6, 2))) for _ in range(2))

    def along(beta):
        return jnp.vdot(c, function(graph, x, beta))

    numeric = (along(0.7 + 1e-6) - along(0.7 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(along)(0.7), numeric, rtol=1e-7)


def test_gradient_of_compare_is_finite(random_graph, rng, x64):
    graph = prepared(random_graph(0, 6))
    x, y = (jnp.asarray(rng.normal(size=(6, 2))) for _ in range(2))
    check_grads(lambda a, b: effect(graph, a, b), (x, y), order=1, modes=["rev"])


def test_exact_stops_on_nan(random_graph):
    x = jnp.ones((6, 2)).at[0, 0].set(jnp.nan)
    assert np.isnan(exact(prepared(random_graph(0, 6)), x, 0.9)).any()


# ------------------------------------------------------------------ the interface


@pytest.mark.parametrize("function", [neumann, iterative, exact, smoothness])
def test_adjacency_and_operator_give_the_same(function, random_graph, rng):
    adjacency = scipy.sparse.csr_array(random_graph(0, 6))
    x = rng.normal(size=(6, 2)).astype(np.float32)
    more = {neumann: (0.9, 3), iterative: (0.9, 3), exact: (0.9,), smoothness: ()}
    np.testing.assert_array_equal(
        function(adjacency, x, *more[function]),
        function(prepare(adjacency), jnp.asarray(x), *more[function]),
    )


def test_shapes_in_the_annotations_hold(random_graph, rng):
    graph = prepared(random_graph(0, 6))
    x = jnp.asarray(rng.normal(size=(6, 2)).astype(np.float32))
    cases: list[tuple[Any, tuple[Any, ...]]] = [
        (GraphOperator.__matmul__, (graph, x)),
        (neumann, (graph, x, 0.5, 2)),
        (iterative, (graph, x, 0.5, 2)),
        (exact, (graph, x, 0.5)),
        (smoothness, (graph, x)),
        (effect, (graph, x, x)),
    ]
    for function, arguments in cases:
        jaxtyped(function, typechecker=beartype)(*arguments)


def test_real_graph_against_scipy(shared_data):
    """The item graph of Beauty, thousands of nodes and isolated ones among them."""
    rows, columns = [], []
    with open(shared_data / "beauty.txt") as lines:
        for line in lines:
            items = np.array(line.split()[1:-2], np.int64)[-50:]
            rows.append(items[:-1])
            columns.append(items[1:])
    row, column = np.concatenate(rows), np.concatenate(columns)
    n = 12101 + 1
    one_way = scipy.sparse.coo_array((np.ones(len(row)), (row, column)), shape=(n, n))
    adjacency = (one_way + one_way.T).tocsr()
    assert adjacency.nnz == 2 * 109_426
    degrees = adjacency.sum(axis=1)
    assert (degrees == 0).sum() == 35 + 1  # the padding row too
    scale = np.divide(1, np.sqrt(degrees), out=np.zeros(n), where=degrees > 0)
    normalised = scipy.sparse.diags_array(scale) @ adjacency
    normalised = normalised @ scipy.sparse.diags_array(scale)
    x = np.random.default_rng(0).normal(size=(n, 8))
    term, total = x, x
    for _ in range(3):
        term = 0.99 * (normalised @ term)
        total = total + term
    expected = total / sum(0.99**layer for layer in range(4))
    actual = neumann(adjacency, jnp.asarray(x, jnp.float32), 0.99, 3)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(actual[degrees == 0], 0.25378141 * x[degrees == 0], 1e-6)


@pytest.mark.parametrize("function", [neumann, iterative, exact])
def test_several_tables_are_smoothed_each_by_itself(function, random_graph, rng):
    graph = prepared(random_graph(0, 6))
    x = jnp.asarray(rng.normal(size=(2, 3, 6, 4)).astype(np.float32))
    more = (0.9,) if function is exact else (0.9, 3)
    smoothed = function(graph, x, *more)
    for place in np.ndindex(2, 3):
        one = function(graph, x[place], *more)
        np.testing.assert_allclose(smoothed[place], one, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 6\), its graph 6 nodes"):
        function(graph, x.swapaxes(2, 3), *more)


def test_exact_is_compiled_once(random_graph, rng):
    from sevo_jax.smoothing import _solve

    graph = prepared(random_graph(0, 6))
    for beta in (0.5, 0.9):
        exact(graph, rng.normal(size=(6, 2)).astype(np.float32), beta)
    programs = _solve._cache_size()  # pyright: ignore
    for beta in (0.6, 0.7, 0.8):
        exact(graph, rng.normal(size=(6, 2)).astype(np.float32), beta)
    assert _solve._cache_size() == programs  # pyright: ignore
