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
