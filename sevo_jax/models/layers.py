"""What the sequence models share: initial values and dropout."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array

# jax.nn.initializers.glorot_normal cuts the normal off at two deviations.
xavier_normal = nnx.initializers.variance_scaling(1.0, "fan_avg", "normal")
xavier_uniform = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def fan_in_uniform(fan_in: int):
    """Initialises a weight or a bias uniformly within `+-1/sqrt(fan_in)`."""
    bound = 1 / math.sqrt(fan_in)

    def initializer(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initializer


def split(key: jax.Array | None, num: int) -> list[jax.Array | None]:
    """Splits a key, and no key (inference) into no keys."""
    return [None] * num if key is None else list(jax.random.split(key, num))


def dropout(x: Array, rate: float, key: jax.Array | None) -> Array:
    """Zeroes entries with probability `rate` and scales the others up to keep the mean.

    Random numbers are most of dropout's cost on a CPU, so an entry takes 16 bits: the
    rate is rounded to a multiple of 2**-16, and the scale is that of the rounded rate.

    Args:
        x: Any shape.
        rate: In [0, 1).
        key: None leaves `x` as it is.
    """
    if key is None or rate == 0:
        return x
    dropped = min(round(rate * 2**16), 2**16 - 1)
    bits = jax.random.bits(key, ((x.size + 1) // 2,), jnp.uint32)
    halves = lax.bitcast_convert_type(bits, jnp.uint16).reshape(-1)[: x.size]
    scale = 2**16 / (2**16 - dropped)
    return jnp.where(halves.reshape(x.shape) >= dropped, x * scale, 0)
