"""The paper's definitions and theorems as properties of random graphs.

A linear transformation of a table is a matrix P on its rows, and P is what it makes of
the identity. Statements about every table are checked on P itself (as inequalities
between matrices), then on a table through the library's own measures.
"""

import functools
from typing import Any

import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
from hypothesis import given

import sevo_jax as sevo
from sevo_jax.smoothing import effect, exact, iterative, neumann, smoothness

NODES = 6  # one size, since every new shape compiles; zero rows make it smaller
HOPS = range(7)

unrescaled = functools.partial(neumann, rescale=False)


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


@st.composite
def graphs(draw):
    """Weighted, with self-loops, isolated nodes and several components."""
    size = NODES * (NODES + 1) // 2
    weight = st.one_of(st.just(0.0), st.just(1.0), st.floats(0.01, 100))
    weights = draw(st.lists(weight, min_size=size, max_size=size).filter(any))
    dense = np.zeros((NODES, NODES))
    dense[np.triu_indices(NODES)] = weights
    return np.maximum(dense, dense.T)


def tables():
    entry = st.floats(-10, 10).map(lambda value: round(value, 3))
    return hypothesis.extra.numpy.arrays(np.float64, (NODES, NODES), elements=entry)


# At 1 - 1e-6 the least eigenvalue is 5e-7: far above rounding, which a strict
# inequality needs.
strengths = st.floats(0, 1 - 1e-6)
hops = st.integers(0, max(HOPS))


# For properties that each example is asked for at every number of hops.
every_hop = hypothesis.settings(max_examples=20)


def prepared(dense):
    return sevo.prepare(scipy.sparse.csr_array(dense))


def matrix(smooth, graph, beta, num_layers):
    p = np.asarray(smooth(graph, jnp.eye(NODES), beta, num_layers))
    np.testing.assert_allclose(p, p.T, rtol=0, atol=1e-15)
    return (p + p.T) / 2


def least(symmetric):
    return np.linalg.eigvalsh(symmetric)[0]


def greatest(symmetric):
    return np.linalg.eigvalsh(symmetric)[-1]


# ------------------------------------------------------------------ Theorem 1


@every_hop
@given(dense=graphs(), beta=strengths)
def test_neumann_is_structure_aware(dense, beta, oracle):
    """Definition 1 for every table: P L P <= L."""
    graph, laplacian = prepared(dense), np.eye(NODES) - oracle.normalised(dense)
    for smooth in (neumann, unrescaled):
        for num_layers in HOPS:
            p = matrix(smooth, graph, beta, num_layers)
            assert least(laplacian - p @ laplacian @ p) >= -1e-13


@every_hop
@given(dense=graphs(), beta=strengths)
def test_neumann_is_direction_aware(dense, beta):
    """Definition 2 for every table: P is positive definite, and by how much.

    The least eigenvalue of the sum is at least (1 - beta^(L+1)) / (1 + beta).
    """
    graph = prepared(dense)
    bound = (1 - beta) / (1 + beta)
    for num_layers in HOPS:
        p = matrix(neumann, graph, beta, num_layers)
        assert least(p) >= bound * (1 - 1e-7)
        p = matrix(unrescaled, graph, beta, num_layers)
        assert least(p) >= bound * (1 - beta ** (num_layers + 1)) * (1 - 1e-7)


@given(dense=graphs(), x=tables().filter(np.any), beta=strengths, num_layers=hops)
def test_definitions_as_the_library_measures_them(dense, x, beta, num_layers):
    graph, x = prepared(dense), jnp.asarray(x)
    for smooth in (neumann, unrescaled):
        report = effect(graph, x, smooth(graph, x, beta, num_layers))
        assert report.cosine > 0
        rounding = 1e-13 * float(jnp.vdot(x, x))
        assert report.smoothness_after <= report.smoothness_before + rounding
        assert report.norm_ratio <= 1 + 1e-13


@every_hop
@given(dense=graphs(), beta=st.floats(0, 0.5, exclude_max=True))
def test_iterative_is_direction_aware_below_one_half(dense, beta):
    graph = prepared(dense)
    for num_layers in HOPS:
        assert least(matrix(iterative, graph, beta, num_layers)) >= 1 - 2 * beta - 1e-14


@every_hop
@given(dense=graphs(), beta=strengths)
def test_iterative_is_structure_aware(dense, beta, oracle):
    """As Table 1 says; a convex combination of powers of A never amplifies."""
    graph, laplacian = prepared(dense), np.eye(NODES) - oracle.normalised(dense)
    for num_layers in HOPS:
        p = matrix(iterative, graph, beta, num_layers)
        assert least(laplacian - p @ laplacian @ p) >= -1e-13


@every_hop
@given(beta=st.floats(0.5, 1, exclude_max=True))
def test_iterative_is_not_direction_aware_from_one_half_on(beta):
    """Two joined nodes and the eigenvalue -1: one iteration gives 1 - 2 beta."""
    pair = prepared(np.array([[0.0, 1.0], [1.0, 0.0]]))
    apart = jnp.array([[1.0], [-1.0]])
    moved = iterative(pair, apart, beta, 1)
    np.testing.assert_allclose(moved, (1 - 2 * beta) * apart, rtol=1e-15, atol=1e-16)
    assert jnp.vdot(moved, apart) <= 0
    for num_layers in HOPS:
        assert jnp.vdot(neumann(pair, apart, beta, num_layers), apart) > 0


@pytest.mark.parametrize("beta", [0.7, 0.9, 0.99])
@pytest.mark.parametrize("num_layers", HOPS)
def test_iterative_reverses_the_pair_after_odd_iterations(num_layers, beta):
    """On the eigenvalue -1: (1 - beta + 2 beta (-beta)^L) / (1 + beta)."""
    pair = prepared(np.array([[0.0, 1.0], [1.0, 0.0]]))
    apart = jnp.array([[1.0], [-1.0]])
    moved = iterative(pair, apart, beta, num_layers)
    factor = (1 - beta + 2 * beta * (-beta) ** num_layers) / (1 + beta)
    np.testing.assert_allclose(moved, factor * apart, rtol=1e-12)
    reversed_by_theory = num_layers % 2 == 1 and 2 * beta ** (num_layers + 1) > 1 - beta
    assert (jnp.vdot(moved, apart) < 0) == reversed_by_theory


# ------------------------------------------------------------------ size and limit


@given(dense=graphs(), x=tables(), beta=strengths, num_layers=hops)
def test_norm_bound(dense, x, beta, num_layers):
    """Section 2.3: |psi_nsa(X)| <= (1 - beta^(L+1)) |X|, and the factor offsets it."""
    graph, size = prepared(dense), np.linalg.norm(x)
    shrunk = np.linalg.norm(unrescaled(graph, jnp.asarray(x), beta, num_layers))
    assert shrunk <= (1 - beta ** (num_layers + 1)) * size * (1 + 1e-9)
    kept = np.linalg.norm(neumann(graph, jnp.asarray(x), beta, num_layers))
    assert kept <= size * (1 + 1e-13)


@given(dense=graphs(), beta=strengths, num_layers=hops)
def test_norm_bound_is_attained_by_the_roots_of_the_degrees(dense, beta, num_layers):
    graph = prepared(dense)
    root = np.sqrt(dense.sum(axis=1))[:, None] * np.ones(NODES)
    np.testing.assert_allclose(
        neumann(graph, jnp.asarray(root), beta, num_layers), root, rtol=1e-12
    )
    np.testing.assert_allclose(
        unrescaled(graph, jnp.asarray(root), beta, num_layers),
        (1 - beta ** (num_layers + 1)) * root,
        rtol=1e-9,
    )


@every_hop
@given(dense=graphs(), beta=st.floats(0, 0.99))
def test_distance_from_the_limit_falls_geometrically(dense, beta, oracle):
    graph = prepared(dense)
    limit = oracle.exact(dense, np.eye(NODES), beta)
    bounds = {
        unrescaled: 1.0,
        neumann: 2.0,  # what is missing, and what rescaling makes up for
        iterative: 2 / (1 + beta),  # attained where the eigenvalue is -1
    }
    for smooth, constant in bounds.items():
        for num_layers in HOPS:
            p = np.asarray(smooth(graph, jnp.eye(NODES), beta, num_layers))
            distance = np.linalg.norm(p - limit, 2)
            assert distance <= constant * beta ** (num_layers + 1) + 1e-13


def test_all_forms_converge_to_the_minimiser(random_graph, oracle):
    dense = random_graph(0, 8, isolated=(3,), self_loops=True)
    graph, x = prepared(dense), np.random.default_rng(0).normal(size=(8, 3))
    expected = oracle.exact(dense, x, 0.5)
    for smooth in (neumann, unrescaled, iterative):
        far = smooth(graph, jnp.asarray(x), 0.5, 50)
        np.testing.assert_allclose(far, expected, rtol=0, atol=1e-14)


def test_exact_minimises_equation_5(random_graph):
    dense = random_graph(0, 8, isolated=(3,), self_loops=True)
    graph, rng, beta = prepared(dense), np.random.default_rng(0), 0.8
    x = jnp.asarray(rng.normal(size=(8, 2)))

    def objective(y):
        return (1 - beta) * jnp.sum((y - x) ** 2) + beta * smoothness(graph, y)

    best = exact(graph, x, beta)
    np.testing.assert_allclose(jax.grad(objective)(best), 0, rtol=0, atol=1e-14)
    for _ in range(5):
        step = 1e-3 * jnp.asarray(rng.normal(size=(8, 2)))
        assert objective(best + step) > objective(best)


# ------------------------------------------------------------------ algebra


@given(dense=graphs(), x=tables(), y=tables(), beta=strengths, num_layers=hops)
def test_smoothing_is_linear_and_symmetric(dense, x, y, beta, num_layers):
    graph, x, y = prepared(dense), jnp.asarray(x), jnp.asarray(y)
    for smooth in (neumann, unrescaled, iterative):
        psi_x, psi_y = (smooth(graph, table, beta, num_layers) for table in (x, y))
        together = smooth(graph, 3 * x - 0.5 * y, beta, num_layers)
        np.testing.assert_allclose(together, 3 * psi_x - 0.5 * psi_y, 0, 1e-13)
        np.testing.assert_allclose(jnp.vdot(psi_x, y), jnp.vdot(x, psi_y), 0, 1e-11)


@given(dense=graphs(), beta=strengths, num_layers=hops, order=st.permutations(range(6)))
def test_names_of_the_nodes_do_not_matter(dense, beta, num_layers, order):
    p = matrix(neumann, prepared(dense), beta, num_layers)
    renamed = matrix(neumann, prepared(dense[np.ix_(order, order)]), beta, num_layers)
    np.testing.assert_allclose(renamed, p[np.ix_(order, order)], rtol=0, atol=1e-14)


@given(dense=graphs(), beta=strengths, num_layers=hops, scale=st.floats(1e-3, 1e3))
def test_unit_of_the_weights_does_not_matter(dense, beta, num_layers, scale):
    p = matrix(neumann, prepared(dense), beta, num_layers)
    scaled = matrix(neumann, prepared(scale * dense), beta, num_layers)
    np.testing.assert_allclose(scaled, p, rtol=0, atol=1e-14)


@given(dense=graphs(), beta=strengths, num_layers=hops)
def test_updates_stay_in_their_component_and_within_reach(dense, beta, num_layers):
    p = matrix(neumann, prepared(dense), beta, num_layers)
    _, component = scipy.sparse.csgraph.connected_components(dense > 0)
    assert (p[component[:, None] != component[None, :]] == 0).all()
    distance = scipy.sparse.csgraph.shortest_path(dense > 0, unweighted=True)
    assert (p[distance > num_layers] == 0).all()
    alone = dense.sum(axis=1) == 0
    factor = 1 / sum(beta**layer for layer in range(num_layers + 1))
    np.testing.assert_allclose(p[alone, alone], factor, rtol=1e-14)


# ------------------------------------------------------------------ every=k


def after_a_window(optimizer, loss, start, every):
    """The parameters after a window of gradient steps."""

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params, state = start, optimizer.init(start)
    for _ in range(every):
        params, state = step(params, state)
    return params


def series_factor(beta, num_layers):
    return 1 / sum(beta**layer for layer in range(num_layers + 1))


@given(
    dense=graphs(),
    xs=st.lists(tables(), min_size=4, max_size=4),
    beta=strengths,
    every=st.sampled_from([2, 4]),
)
def test_the_total_of_a_window_has_the_properties_of_theorem_1(dense, xs, beta, every):
    """It is the smoothed sum of the directions, if they do not depend on it."""
    graph = prepared(dense)
    tx: Any = sevo.scale_by_sevo(graph, beta, 3, every=every)
    state, moved = tx.init(jnp.asarray(xs[0])), jnp.zeros((NODES, NODES))
    for x in xs[:every]:
        update, state = tx.update(jnp.asarray(x), state)
        moved = moved + update
    total = jnp.asarray(sum(xs[:every]))
    scale = 1 + max(np.abs(x).max() for x in xs)
    np.testing.assert_allclose(moved, neumann(graph, total, beta, 3), 0, 1e-13 * scale)
    if np.any(total):
        report = effect(graph, total, moved)
        assert report.cosine > 0
        rounding = 1e-13 * float(jnp.vdot(total, total)) + 1e-26 * scale**2
        assert report.smoothness_after <= report.smoothness_before + rounding


def decreases(rate, every, **options):
    """Whether a window of steps of rate / C does, of rows that are curved alike."""
    pair = prepared(np.array([[0.0, 1.0], [1.0, 0.0]]))
    together = jnp.array([[1.0], [1.0]])  # the eigenvalue 1, which is the worst
    curvature = 3.0

    def loss(x):
        return curvature / 2 * jnp.sum(x**2)

    optimizer = sevo.sevo_sgd(rate / curvature, pair, every=every, **options)
    end = after_a_window(optimizer, loss, together, every)
    return bool(loss(end) < loss(together))


@pytest.mark.parametrize("beta, num_layers", [(0.99, 3), (0.9, 2), (0.99, 5)])
@pytest.mark.parametrize("rate", [1.0, 0.5, 0.25])
def test_window_of_gradient_steps_for_rows_curved_alike(rate, beta, num_layers):
    """The loss decreases if and only if 1 - (1 - eta c C)^k < 2 c."""
    c = series_factor(beta, num_layers)
    longest = int(np.ceil(np.log(1 - 2 * c) / np.log(1 - rate * c))) - 1
    assert longest >= np.ceil(2 / rate) - 1  # k eta C < 2 is enough
    options = {"beta": beta, "num_layers": num_layers}
    assert decreases(rate, longest, **options)
    assert not decreases(rate, longest + 1, **options)


@pytest.mark.parametrize("rate, longest", [(1.0, 2), (0.25, 10)])
def test_window_that_the_learning_rate_of_theorem_2_allows(rate, longest):
    """1 / C for the rescaled series: two updates, by default, and no more."""
    assert decreases(rate, longest) and not decreases(rate, longest + 1)


def rate_for_any_hessian(every, beta, num_layers):
    """The largest eta C with k eta C (1 + rho)^2 / 2 + rho < 1."""
    apart = (every - 1) / 2 * series_factor(beta, num_layers)
    apart *= np.sqrt((1 + beta) / (1 - beta))
    low, high = 0.0, 2.0
    for _ in range(60):
        rate = (low + high) / 2
        rho = rate * apart
        fits = every * rate / 2 * (1 + rho) ** 2 + rho < 1
        low, high = (rate, high) if fits else (low, rate)
    return low


@given(
    dense=graphs(),
    factor=tables(),
    start=tables(),
    beta=st.floats(0, 0.99),
    every=st.sampled_from([1, 2, 8]),
)
def test_window_of_gradient_steps_for_any_quadratic_loss(
    dense, factor, start, beta, every
):
    hessian = factor @ factor.T
    constant = greatest(hessian)
    hypothesis.assume(constant > 1e-3 and np.abs(hessian @ start).max() > 1e-3)

    def loss(x):
        return jnp.sum(x * (hessian @ x)) / 2

    rate = 0.999 * rate_for_any_hessian(every, beta, 3) / constant
    optimizer = sevo.sevo_sgd(rate, prepared(dense), beta=beta, every=every)
    end = after_a_window(optimizer, loss, jnp.asarray(start), every)
    assert loss(end) < loss(jnp.asarray(start))


# ------------------------------------------------------------------ section 3

DECAYS = [(0.9, 0.999), (0.9, 0.98), (0.5, 0.6), (0.0, 0.9), (0.9, 0.0)]


def directions(optimizer, gradients):
    """What the optimizer, of learning rate 1, makes of an isolated row."""
    params = jnp.zeros_like(gradients[0])
    state, out = optimizer.init(params), []
    for gradient in gradients:
        update, state = optimizer.update(gradient, state, params)
        out.append(-np.asarray(update))
    return np.stack(out)


def one_idle_row(active, idle, seed=0):
    """Gradients of three nodes, of which the last, isolated one falls idle."""
    gradients = np.random.default_rng(seed).normal(size=(active + idle, 3, 2))
    gradients[active:, 2] = 0
    return jnp.asarray(gradients)


LAST_ISOLATED = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("b1, b2", DECAYS[:4])
@pytest.mark.parametrize("active", [1, 2, 5])
def test_proposition_1_plain_moments_decay(active, b1, b2):
    """The step shrinks as kappa b1^p / sqrt(b2^p) with kappa of t and p as follows."""
    idle = 8
    optimizer = sevo.sevo_adamw(
        1.0,
        prepared(LAST_ISOLATED),
        b1,
        b2,
        eps=0.0,
        weight_decay=0.0,
        moment_correction=False,
    )
    steps = directions(optimizer, one_idle_row(active, idle))[:, 2]
    t = active
    for p in range(1, idle + 1):
        kappa = (1 - b1**t) / (1 - b1 ** (t + p))
        kappa *= np.sqrt((1 - b2 ** (t + p)) / (1 - b2**t))
        expected = kappa * b1**p / np.sqrt(b2**p) * steps[t - 1]
        np.testing.assert_allclose(steps[t + p - 1], expected, rtol=1e-11)


@pytest.mark.parametrize("b1, b2", DECAYS)
@pytest.mark.parametrize("active", [1, 2, 5])
def test_theorem_3_corrected_moments_stay(active, b1, b2):
    """Equations (9) and (10): the step is the same for as long as the row is idle."""
    optimizer = sevo.sevo_adamw(1.0, prepared(LAST_ISOLATED), b1, b2, weight_decay=0.0)
    steps = directions(optimizer, one_idle_row(active, 8))[:, 2]
    assert (steps[active - 1] != 0).all()
    for step in steps[active:]:
        np.testing.assert_array_equal(step, steps[active - 1])


@given(
    pattern=st.lists(st.booleans(), min_size=1, max_size=12),
    gradient=st.floats(0.01, 100),
)
def test_corrected_moments_are_unbiased(pattern, gradient):
    """A constant gradient is estimated as itself, whenever its row is seen."""
    transform: Any = sevo.scale_by_moment_corrected_adam(0.9, 0.99)
    state = transform.init(jnp.zeros((1, 1)))
    assert isinstance(state, sevo.ScaleByMomentCorrectedAdamState)
    for active in [True, *pattern]:
        _, state = transform.update(jnp.full((1, 1), active * gradient), state)
        np.testing.assert_allclose(state.mu, gradient, rtol=1e-13)
        np.testing.assert_allclose(state.nu, gradient**2, rtol=1e-13)
