"""Cross-entropy by blocks, against its definition in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sevo_jax.models.cross_entropy import _by_blocks, cross_entropy


def literal(features, table, bias, labels, weights):
    """The loss, and its gradients, written out."""
    log_probabilities = special.log_softmax(features @ table.T + bias, axis=1)
    rows = np.arange(len(labels))
    loss = -(weights * log_probabilities[rows, labels]).sum()
    errors = np.exp(log_probabilities)
    errors[rows, labels] -= 1
    errors *= weights[:, None]
    return loss, (errors @ table, errors.T @ features, errors.sum(axis=0))


def problem(num_rows=50, num_classes=31, width=6, scale=1.0):
    rng = np.random.default_rng(0)
    features, table = (
        scale * rng.normal(size=(size, width)) for size in (num_rows, num_classes)
    )
    bias = rng.normal(size=num_classes)
    # Some classes twice and more, some never.
    labels = rng.integers(0, num_classes // 2, num_rows)
    weights = rng.random(num_rows) * (rng.random(num_rows) < 0.8)
    # As what fills a batch up: whole blocks of them may be left out.
    weights[2 * num_rows // 3 :] = 0
    return features, table, bias, labels, weights


value_and_gradients = jax.value_and_grad(cross_entropy, argnums=(0, 1, 2))


def assert_as_defined(found, dtype, tolerance):
    loss, gradients = literal(*problem())
    np.testing.assert_allclose(found[0], loss, rtol=tolerance)
    for a, b in zip(found[1], gradients, strict=True):
        assert a.dtype == found[0].dtype == dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * abs(b).max())


def test_without_a_bias_there_is_none(x64):
    features, table, bias, labels, weights = problem()
    none = jax.value_and_grad(cross_entropy, argnums=(0, 1, 2))(
        features, table, None, labels, weights
    )
    zero = value_and_gradients(features, table, 0 * bias, labels, weights)
    np.testing.assert_allclose(none[0], zero[0], rtol=1e-12)
    assert none[1][2] is None
    for a, b in zip(none[1][:2], zero[1][:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("most_logits", [2**20, 50 * 31, 31 * 16, 1])
def test_any_number_of_blocks_gives_what_is_defined(most_logits, x64):
    # One block; one that fits exactly; four, the last not full; one for each row.
    found = jax.jit(partial(_by_blocks, most_logits=most_logits))(*problem())
    assert_as_defined(found, np.float64, 1e-12)


def test_loss_and_gradients_are_those_defined(dtype):
    features, table, bias, labels, weights = problem()
    features, table, bias, weights = (
        jnp.asarray(x, dtype) for x in (features, table, bias, weights)
    )
    found = jax.jit(lambda *x: value_and_gradients(*x))(
        features, table, bias, labels, weights
    )
    assert_as_defined(found, dtype, 1e-12 if dtype == np.float64 else 1e-5)
    loss = cross_entropy(features, table, bias, labels, weights)
    np.testing.assert_allclose(loss, found[0], rtol=1e-6)


def test_the_gradient_of_a_multiple_is_that_multiple(x64):
    features, table, bias, labels, weights = map(jnp.asarray, problem())

    def squared(table):
        return cross_entropy(features, table, bias, labels, weights) ** 2

    loss, (_, gradient, _) = literal(*problem())
    np.testing.assert_allclose(jax.grad(squared)(table), 2 * loss * gradient, 1e-10)


def test_large_logits_stay_exact():
    arguments = problem(scale=100.0)
    loss, gradients = literal(*arguments)
    features, table, bias, labels, weights = (jnp.asarray(x) for x in arguments)
    found, found_gradients = value_and_gradients(features, table, bias, labels, weights)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    for a, b in zip(found_gradients, gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * abs(b).max())


def test_without_weight_all_is_zero():
    features, table, bias, labels, weights = map(jnp.asarray, problem())
    loss, gradients = value_and_gradients(
        features, table, bias, labels, jnp.zeros_like(weights)
    )
    assert loss == 0
    assert all((leaf == 0).all() for leaf in gradients)


def test_the_logits_are_never_all_there_at_once():
    shapes = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    compiled = (
        jax.jit(lambda *x: value_and_gradients(*x))
        .lower(
            shapes((4096, 16)),
            shapes((8192, 16)),
            shapes((8192,)),
            jax.ShapeDtypeStruct((4096,), jnp.int32),
            shapes((4096,)),
        )
        .compile()
    )
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 4096 * 8192 * 4 / 4
