"""Dropout of 16 bits an entry, and keys that may be missing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sevo_jax.models import layers


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_dropout_drops_at_the_rate_and_keeps_the_mean(rate):
    x = jnp.full((501, 999), 2.0)
    out = np.asarray(layers.dropout(x, rate, jax.random.key(0)))
    dropped = (out == 0).mean()
    assert abs(dropped - rate) < 4 * math.sqrt(rate * (1 - rate) / x.size)
    # The scale belongs to the rate rounded to 16 bits.
    scale = out.max() / 2
    assert scale == pytest.approx(1 / (1 - rate), rel=1e-3)
    assert np.unique(out).tolist() == [0, 2 * scale]
    exact = 2**16 / (2**16 - round(rate * 2**16))
    assert scale == pytest.approx(exact, rel=1e-6)


def test_neighbours_are_dropped_independently():
    # Two entries share a word of random bits.
    out = np.asarray(layers.dropout(jnp.ones((200_000, 2)), 0.3, jax.random.key(0)))
    kept = out > 0
    assert abs((kept[:, 0] & kept[:, 1]).mean() - 0.49) < 4 * 0.5 / np.sqrt(200_000)
    kept = kept.reshape(-1)
    assert abs((kept[1:-1:2] & kept[2::2]).mean() - 0.49) < 4 * 0.5 / np.sqrt(199_999)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 4)])
def test_dropout_keeps_shape_and_dtype(shape):
    for dtype in (jnp.float32, jnp.bfloat16):
        out = layers.dropout(jnp.ones(shape, dtype), 0.5, jax.random.key(0))
        assert out.shape == shape and out.dtype == dtype


def test_no_key_and_no_rate_leave_all_as_it_is():
    x = jnp.arange(5.0)
    assert layers.dropout(x, 0.5, None) is x
    assert layers.dropout(x, 0.0, jax.random.key(0)) is x


def test_a_rate_next_to_one_stays_finite():
    out = layers.dropout(jnp.ones(1000), 1 - 1e-9, jax.random.key(0))
    assert np.isfinite(out).all()


def test_split_gives_distinct_keys_or_none():
    keys = layers.split(jax.random.key(0), 3)
    assert len({str(key) for key in keys}) == 3
    assert layers.split(None, 3) == [None, None, None]


def test_fan_in_uniform_fills_the_bounds():
    values = layers.fan_in_uniform(16)(jax.random.key(0), (1000,))
    assert -0.25 <= values.min() < -0.24 and 0.24 < values.max() <= 0.25


def test_gradients_of_look_ups_add_up_in_one_table():
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(7, 3)), jnp.float32)
    # Row 6 is never looked up; rows come twice in one array and in both.
    ids = jnp.array([[0, 2, 2], [5, 1, 0]]), jnp.array([2, 3, 4, 2])

    def loss(look_up):
        def value(table):
            first, second = look_up(table)
            return jnp.sum(jnp.sin(first)) + jnp.sum(jnp.square(second))

        return jax.value_and_grad(value)(table)

    value, gradient = loss(lambda table: layers.look_up(table, *ids))
    plain_value, plain_gradient = loss(lambda table: [table[each] for each in ids])
    assert value == plain_value
    np.testing.assert_allclose(gradient, plain_gradient, rtol=1e-6)
    assert (gradient[6] == 0).all() and (gradient[:6] != 0).all()


def test_heads_are_split_within_rows_and_merged_again():
    rows, width, num_heads, d_head = 2, 3, 4, 5
    x = np.arange(rows * width * num_heads * d_head).reshape(rows * width, -1)
    split = layers.split_heads(jnp.asarray(x), rows, num_heads)
    for row in range(rows):
        for head in range(num_heads):
            expected = x[row * width : (row + 1) * width].reshape(width, num_heads, -1)
            np.testing.assert_array_equal(
                split[row * num_heads + head], expected[:, head]
            )
    np.testing.assert_array_equal(layers.merge_heads(split, rows), x)
