"""Moments that are corrected for idle rows, against literal ones and Optax's."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sevo_jax as sevo
from sevo_jax import moments

# Optax types updates as any tree; here they are the arrays that were given.
scale_by_moment_corrected_adam: Any = sevo.scale_by_moment_corrected_adam

pytestmark = pytest.mark.usefixtures("strict_promotion")


def literal_moments(gradients, b1, b2, eps=1e-8, active=None):
    """M, V and the direction of each step, row by row, of the definition.

    ``active[t][i]`` replaces the test for zero where it is given.
    """
    m = np.zeros(gradients[0].shape)
    v = np.zeros(gradients[0].shape)
    out = []
    for t, g in enumerate(gradients, start=1):
        k = max(1, t - 1)
        m, v = m.copy(), v.copy()
        for i in range(len(g)):
            idle = all(g[i] == 0) if active is None else not active[t - 1][i]
            gm = m[i] / (1 - b1**k) if idle else g[i]
            gv = v[i] / (1 - b2**k) if idle else g[i] ** 2
            m[i] = b1 * m[i] + (1 - b1) * gm
            v[i] = b2 * v[i] + (1 - b2) * gv
        direction = (m / (1 - b1**t)) / (np.sqrt(v) / math.sqrt(1 - b2**t) + eps)
        out.append((m, v, direction))
    return out


def sparse_gradients(rng, steps=30, rows=8, width=3, dtype: Any = np.float64):
    """Half the rows idle, some steps with none active, row 0 never, row 1 late."""
    gradients = rng.normal(size=(50, rows, width)).astype(dtype)
    gradients[rng.random((50, rows)) < 0.5] = 0
    gradients[[2, 10, 11]] = 0
    gradients[:, 0] = 0
    gradients[:4, 1] = 0
    gradients[0, 2:5] = 1.5
    gradients[4, 3] = [0, 1, 0]  # single zeros in an active row
    return gradients[:steps]


def run(transform: Any, gradients, extras=None):
    """What the transformation makes of each gradient, and its state after the last."""
    gradients = [jax.tree.map(jnp.asarray, gradient) for gradient in gradients]
    state, out = transform.init(gradients[0]), []
    for t, gradient in enumerate(gradients):
        update, state = transform.update(
            gradient, state, **(extras[t] if extras else {})
        )
        out.append(update)
    return out, state


def test_vector_moments(x64):
    gradients = [(0, 0), (1, -2), (0, 0), (0.5, 0), (0, 0)]
    expected = [
        (0, 0),
        (0.74245978, -0.74245978),
        (0.74245978, -0.74245978),
        (0.78331396, -0.6095643),
        (0.78331396, -0.6095643),
    ]
    transform = scale_by_moment_corrected_adam(0.9, 0.99)
    state = transform.init(jnp.zeros((1, 2)))
    for gradient, direction in zip(gradients, expected, strict=True):
        actual, state = transform.update(jnp.array([gradient], float), state)
        np.testing.assert_allclose(actual[0], direction, rtol=0, atol=5.01e-9)
    # The state holds the corrected moments.
    m, v = state.mu[0] * (1 - 0.9**5), state.nu[0] * (1 - 0.99**5)
    np.testing.assert_allclose(m, (0.21239794, -0.30571766), rtol=0, atol=5.01e-9)
    np.testing.assert_allclose(v, (0.02148741, 0.07351183), rtol=0, atol=5.01e-9)


@pytest.mark.parametrize(
    "b1, b2", [(0.9, 0.999), (0.9, 0.98), (0.0, 0.9), (0.9, 0.0), (0.0, 0.0)]
)
def test_moments_are_the_literal_ones(b1, b2, rng, x64):
    gradients = sparse_gradients(rng)
    transform = scale_by_moment_corrected_adam(b1, b2)
    state = transform.init(jnp.zeros(gradients[0].shape))
    update = jax.jit(transform.update)
    literal = literal_moments(gradients, b1, b2)
    for t, (gradient, (m, v, direction)) in enumerate(
        zip(gradients, literal, strict=True), start=1
    ):
        actual, state = update(jnp.asarray(gradient), state)
        assert state.count == t
        np.testing.assert_allclose(state.mu * (1 - b1**t), m, rtol=1e-11, atol=1e-14)
        np.testing.assert_allclose(state.nu * (1 - b2**t), v, rtol=1e-11, atol=1e-14)
        np.testing.assert_allclose(actual, direction, rtol=1e-11, atol=1e-14)
        np.testing.assert_array_equal(actual[0], 0)


def test_moments_in_single_precision(rng):
    gradients = sparse_gradients(rng, steps=50, dtype=np.float32)
    transform = scale_by_moment_corrected_adam(0.9, 0.999)
    state = transform.init(jnp.zeros(gradients[0].shape))
    update = jax.jit(transform.update)
    literal = literal_moments(gradients.astype(np.float64), 0.9, 0.999)
    for gradient, (_, _, direction) in zip(gradients, literal, strict=True):
        actual, state = update(jnp.asarray(gradient), state)
        # The bound is against cancellation in M: the terms are of order one.
        np.testing.assert_allclose(actual, direction, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("decay", [0.9, 0.98, 0.999, 0.9999])
def test_weights_of_the_running_mean_in_single_precision(decay):
    steps = [*range(1, 41), 100, 1000, 10_000, 10**6, 2**31 - 1]
    for t in steps:
        keep, add = moments._running_mean_weights(
            decay, jnp.asarray(t, jnp.int32), jnp.float32
        )
        assert keep.dtype == add.dtype == jnp.float32
        total = -math.expm1(t * math.log(decay))
        before = -math.expm1((t - 1) * math.log(decay))
        np.testing.assert_allclose(keep, decay * before / total, rtol=5e-7)
        np.testing.assert_allclose(add, (1 - decay) / total, rtol=5e-7)


def test_the_count_stays_at_its_end():
    transform = scale_by_moment_corrected_adam(0.9, 0.999)
    gradient = jnp.array([[1.0, -2.0]])
    state = transform.init(gradient)._replace(count=jnp.int32(2**31 - 2))
    _, state = transform.update(gradient, state)
    out, after = transform.update(gradient, state)
    assert state.count == after.count == 2**31 - 1
    # As of moments of zero that have long forgotten their bias.
    np.testing.assert_allclose(after.mu, 0.19 * gradient, rtol=1e-5)
    np.testing.assert_allclose(out, [[4.2496, -4.2496]], rtol=1e-4)


def test_second_moment_is_accurate_from_the_first_step(rng):
    """Plain float32 Adam has 1 - 0.999 wrong by 1.3e-5 there."""
    gradients = rng.normal(size=(10, 4, 3)).astype(np.float32)
    transform = scale_by_moment_corrected_adam(0.9, 0.999)
    state = transform.init(jnp.zeros((4, 3)))
    literal = literal_moments(gradients.astype(np.float64), 0.9, 0.999)
    for t, (gradient, (_, v, _)) in enumerate(
        zip(gradients, literal, strict=True), start=1
    ):
        _, state = transform.update(jnp.asarray(gradient), state)
        np.testing.assert_allclose(state.nu, v / -np.expm1(t * np.log(0.999)), 1e-6)


def test_traced_decays_are_those_of_floats(rng):
    gradients = sparse_gradients(rng, steps=6, dtype=np.float32)

    @jax.jit
    def last(b1, b2):
        return run(scale_by_moment_corrected_adam(b1, b2), gradients)[0][-1]

    direction = literal_moments(gradients.astype(np.float64), 0.9, 0.99)[-1][2]
    # The decays themselves are rounded to float32 here.
    actual = last(jnp.float32(0.9), jnp.float32(0.99))
    np.testing.assert_allclose(actual, direction, rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16])
def test_idle_direction_is_the_same_bits_for_a_thousand_steps(kind, rng):
    transform = scale_by_moment_corrected_adam(0.9, 0.999)
    gradients = jnp.asarray(rng.normal(size=(3, 4, 5))).astype(kind)
    (*_, direction), state = run(transform, gradients)

    def step(state, key):
        busy = jax.random.normal(key, (4, 5), kind).at[:2].set(0)
        out, state = transform.update(busy, state)
        return state, out

    _, out = jax.lax.scan(step, state, jax.random.split(jax.random.key(0), 1000))
    idle = np.asarray(out[:, :2]).view(np.uint16 if kind == jnp.bfloat16 else np.uint32)
    first = np.asarray(direction[:2]).view(idle.dtype)
    np.testing.assert_array_equal(idle, np.broadcast_to(first, idle.shape))
    assert (np.asarray(out[-1, 2:]) != np.asarray(direction[2:])).all()


def test_rows_are_those_of_each_leaf(rng, x64):
    """Vectors have an entry a row, tables a row, higher ranks are stacks of tables."""
    shapes = {"vector": (4,), "table": (4, 3), "block": (4, 2, 2), "scalar": ()}
    gradients = {k: rng.normal(size=(6, *s)) for k, s in shapes.items()}
    for name in ("vector", "table", "block"):
        gradients[name][2:, 1] = 0
        gradients[name][:2, 3] = 0
    gradients["scalar"][3] = 0
    steps = [{k: np.asarray(g[t]) for k, g in gradients.items()} for t in range(6)]
    (*_, out), _ = run(scale_by_moment_corrected_adam(0.9, 0.99), steps)
    for name, gradient in gradients.items():
        rows = gradient.reshape(6, shapes[name][0] if shapes[name] else 1, -1)
        direction = literal_moments(rows, 0.9, 0.99)[-1][2]
        np.testing.assert_allclose(
            np.reshape(out[name], direction.shape), direction, rtol=1e-11, atol=1e-14
        )


@pytest.mark.parametrize("row_axis", [0, 1])
def test_rows_of_a_stack_are_those_of_each_table(row_axis, rng, x64):
    """What is idle in one table is active in the other."""
    gradients = np.stack([sparse_gradients(rng, steps=8) for _ in range(2)], axis=1)
    idle: Any = ~gradients.any(-1)
    assert idle[:, 0].sum() != idle.all(1).sum()

    def turn(x):
        return np.swapaxes(x, -1, -2) if row_axis else x

    transform = scale_by_moment_corrected_adam(0.9, 0.99, row_axis=row_axis)
    (*_, out), _ = run(transform, [turn(g) for g in gradients])
    active = rng.random((8, 2, 8)) < 0.5
    extras = [{"active_rows": mask} for mask in active]
    (*_, masked), _ = run(transform, [turn(g) for g in gradients], extras)
    for i in range(2):
        literal = literal_moments(gradients[:, i], 0.9, 0.99)[-1][2]
        np.testing.assert_allclose(turn(out)[i], literal, rtol=1e-11, atol=1e-14)
        literal = literal_moments(gradients[:, i], 0.9, 0.99, active=active[:, i])
        literal = literal[-1][2]
        np.testing.assert_allclose(turn(masked)[i], literal, rtol=1e-11, atol=1e-14)


def test_rows_of_a_transposed_table(rng, x64):
    gradients = sparse_gradients(rng, steps=8)
    transform = scale_by_moment_corrected_adam(0.9, 0.99, row_axis=1)
    (*_, out), _ = run(transform, [{"kernel": g.T, "bias": g[:, 0]} for g in gradients])
    direction = literal_moments(gradients, 0.9, 0.99)[-1][2]
    np.testing.assert_allclose(out["kernel"].T, direction, rtol=1e-11, atol=1e-14)
    bias = literal_moments(gradients[:, :, :1], 0.9, 0.99)[-1][2]
    np.testing.assert_allclose(out["bias"], bias[:, 0], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("transposed", [False, True])
def test_active_rows_replace_the_test_for_zero(transposed, rng, x64):
    gradients = sparse_gradients(rng, steps=12)
    gradients[:, 5] += 0.01  # noise that the test for zero would take for a gradient
    active = rng.random((12, 8)) < 0.5
    active[0, 0] = True  # a sampled row with a zero gradient
    transform = scale_by_moment_corrected_adam(0.9, 0.99, row_axis=int(transposed))
    turn = np.transpose if transposed else np.asarray
    extras = [{"active_rows": {"a": jnp.asarray(mask)}} for mask in active]
    (*_, out), _ = run(transform, [{"a": turn(g)} for g in gradients], extras)
    literal = literal_moments(gradients, 0.9, 0.99, active=active)[-1][2]
    np.testing.assert_allclose(turn(out["a"]), literal, rtol=1e-11, atol=1e-14)


def test_active_rows_of_one_leaf_leave_the_others_alone(rng):
    gradients = {k: jnp.asarray(rng.normal(size=(4, 2))) for k in "ab"}
    transform = scale_by_moment_corrected_adam()
    state = transform.init(gradients)
    none = jnp.zeros(4, bool)
    out, _ = transform.update(gradients, state, active_rows={"a": none})
    plain, _ = transform.update(gradients, state)
    np.testing.assert_array_equal(out["a"], 0)
    np.testing.assert_array_equal(out["b"], plain["b"])
    alone = gradients["a"]
    out, _ = transform.update(alone, transform.init(alone), active_rows=none)
    np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize(
    "value",
    [
        np.array([[1.5, -2.0], [0.0, 0.0]]),
        np.array([1.5, -0.25], np.float16),
        np.array([[3, -4], [0, 0]]),
        jnp.arange(3),
        jnp.array([True, False]),
        1.5,
        2,
        np.float64(0.5),
        np.array([[3 + 4j, 1j], [0, 0]], np.complex64),
        np.array([3 + 4j, 0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("x64_on", [False, True])
def test_leaves_of_every_kind_are_those_of_optax(value, x64_on):
    """Of equal gradients both make the same direction, whatever is not a float32."""
    with jax.enable_x64(x64_on), jax.numpy_dtype_promotion("standard"):
        results = []
        for transform in (scale_by_moment_corrected_adam(), optax.scale_by_adam()):
            state: Any = transform.init(value)
            out, state = transform.update(value, state)
            results.append((jnp.asarray(out), jnp.asarray(state.mu)))
        (ours, _), (theirs, _) = results
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        np.testing.assert_allclose(
            ours, theirs, rtol=3e-3 if ours.itemsize == 2 else 2e-5
        )


def test_second_moment_of_complex_numbers_is_their_modulus(rng, x64):
    gradients = rng.normal(size=(5, 4, 3)) + 1j * rng.normal(size=(5, 4, 3))
    (*_, out), state = run(scale_by_moment_corrected_adam(0.9, 0.99), gradients)
    m = v = 0
    for g in gradients:
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * np.abs(g) ** 2
    m_hat, v_hat = m / (1 - 0.9**5), v / (1 - 0.99**5)
    np.testing.assert_allclose(out, m_hat / (np.sqrt(v_hat) + 1e-8), rtol=1e-11)
    assert state.nu.dtype == np.float64
    with jax.numpy_dtype_promotion("standard"):
        (*_, theirs), _ = run(optax.scale_by_adam(0.9, 0.99), gradients)
    np.testing.assert_allclose(out, theirs, rtol=1e-11)


def test_eps_inside_and_outside_the_root(x64):
    gradient = jnp.array([[3.0, -4.0]])
    for eps, eps_root in ((0.5, 0.0), (0.0, 0.5), (0.25, 2.0)):
        transform = scale_by_moment_corrected_adam(eps=eps, eps_root=eps_root)
        out, _ = transform.update(gradient, transform.init(gradient))
        g = np.array([[3.0, -4.0]])
        expected = g / (np.sqrt(g**2 + eps_root) + eps)
        np.testing.assert_allclose(out, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "given, mu_dtype, mu, nu",
    [
        ("float32", None, "float32", "float32"),
        ("bfloat16", None, "float32", "float32"),
        ("float16", None, "float32", "float32"),
        ("float64", None, "float64", "float64"),
        ("float32", jnp.bfloat16, "bfloat16", "float32"),
        ("bfloat16", "bfloat16", "bfloat16", "float32"),
    ],
)
def test_dtypes_of_the_state_are_fixed_at_init(given, mu_dtype, mu, nu, x64):
    params = {"a": jnp.ones((3, 2), given)}
    transform = scale_by_moment_corrected_adam(mu_dtype=mu_dtype)
    state = transform.init(params)
    for _ in range(2):
        assert state.mu["a"].dtype == mu and state.nu["a"].dtype == nu
        assert state.count.dtype == jnp.int32
        out, state = transform.update(params, state)
        assert out["a"].dtype == given
