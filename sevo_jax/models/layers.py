"""What the sequence models share: initial values and dropout."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

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


@jax.custom_vjp
def look_up(
    table: Float[Array, "n d"], *ids: Int[Array, "..."]
) -> tuple[Float[Array, "... d"], ...]:
    """Returns `table[each]` for each array of ids.

    The gradients of all of them are added into one table, where separate gathers would
    make a table each and sum them, and a stack of ids would be padded piece by piece.

    Args:
      table: Of embeddings.
      ids: Rows of it, `0..n-1`.

    Examples:
      >>> table = jnp.arange(6.0).reshape(3, 2)
      >>> first, second = look_up(table, jnp.array(2), jnp.array([0, 1]))
      >>> first.tolist(), second.tolist()
      ([4.0, 5.0], [[0.0, 1.0], [2.0, 3.0]])
    """
    return tuple(table[each] for each in ids)


def _look_up_forward(table, *ids):
    return look_up(table, *ids), (ids, table)


def _look_up_backward(residuals, cotangents):
    ids, table = residuals
    gradient = jnp.zeros_like(table)
    for each, cotangent in zip(ids, cotangents, strict=True):
        gradient = gradient.at[each].add(cotangent)
    return gradient, *(None for _ in ids)


look_up.defvjp(_look_up_forward, _look_up_backward)


def flatten_cells(x: Float[Array, "rows width d"]) -> Float[Array, "cells d"]:
    """Puts the cells of all rows under each other, as linear layers want them.

    The gradient of a kernel is then a plain product of two matrices; summed over two
    axes, XLA would first transpose one of the factors in memory.
    """
    return x.reshape(-1, x.shape[-1])


def split_heads(
    x: Float[Array, "cells d"], rows: int, num_heads: int
) -> Float[Array, "rows_heads width d_head"]:
    """Separates the rows and, within each, the heads.

    Products with one batch axis are several times faster on CPU than with two, so a
    head counts as a row.
    """
    cells, d = x.shape
    x = x.reshape(rows, cells // rows, num_heads, d // num_heads).swapaxes(1, 2)
    return x.reshape(rows * num_heads, cells // rows, -1)


def merge_heads(
    x: Float[Array, "rows_heads width d_head"], rows: int
) -> Float[Array, "cells d"]:
    """Undoes `split_heads`."""
    rows_heads, width, d_head = x.shape
    x = x.reshape(rows, rows_heads // rows, width, d_head).swapaxes(1, 2)
    return x.reshape(rows * width, -1)


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
