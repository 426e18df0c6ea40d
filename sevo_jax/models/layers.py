"""What the sequence models share: initial values, attention and dropout."""

import math
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

split_by_rows: ContextVar[bool] = ContextVar("split_by_rows", default=False)
"""Whether the tables of the model that is traced are split over devices by rows."""

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
      table: of embeddings.
      ids: rows of it, `0..n-1`.

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


# Finite, so that nothing becomes NaN whatever a row holds.
_INVISIBLE = -1e30


def visibility(
    segments: Int[Array, "rows row_cells"], dtype: Any, *, causal: bool = False
) -> Float[Array, "rows row_cells row_cells"]:
    """Returns what `Attention` adds to the score of a query and, last, a key.

    It is 0 within a segment and prohibitive between two. Empty cells make a segment of
    their own.

    Args:
      segments: id of each cell's segment in its row.
      dtype: of the scores.
      causal: whether later cells of the segment are hidden too.
    """
    visible = segments[:, :, None] == segments[:, None, :]
    if causal:
        visible = jnp.tril(visible)
    return jnp.where(visible, 0, _INVISIBLE).astype(dtype)


class Attention(nnx.Module):
    """Multi-head self-attention of the cells of rows.

    Args:
      kernel_in: initial kernel of query, key and value, `[width, 3 * width]`.
      num_heads: a divisor of the width.
      dropout_rate: of the attention weights.
      kernel_out_init: initializer of the kernel of the output.
      rngs: source of the initial values (stream `params`).
    """

    def __init__(
        self,
        kernel_in: jax.Array,
        num_heads: int,
        dropout_rate: float,
        kernel_out_init: nnx.Initializer,
        *,
        rngs: nnx.Rngs,
    ):
        width = len(kernel_in)
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.kernel_in = nnx.Param(kernel_in)
        self.bias_in = nnx.Param(jnp.zeros(3 * width))
        self.project_out = nnx.Linear(
            width, width, kernel_init=kernel_out_init, rngs=rngs
        )

    def __call__(
        self,
        x: Float[Array, "cells width"],
        visibility: Float[Array, "rows queries row_cells"],
        key: jax.Array | None,
    ) -> Float[Array, "queries_of_rows width"]:
        """Returns what the last cells of each row attend to, as many as are queries."""
        rows = len(visibility)
        projected = x @ self.kernel_in[...] + self.bias_in[...]
        query, keys, values = (
            split_heads(part, rows, self.num_heads)
            for part in jnp.split(projected, 3, axis=-1)
        )
        query = query[:, -visibility.shape[1] :] / math.sqrt(query.shape[-1])
        scores = jnp.einsum("nqd,nkd->nqk", query, keys)
        scores += jnp.repeat(visibility, self.num_heads, axis=0)
        # A softmax whose sum divides the mixed values: fewer numbers than weights.
        highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
        weights = jnp.exp(scores - highest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights = dropout(weights, self.dropout_rate, key)
        mixed = jnp.einsum("nqk,nkd->nqd", weights, values) / total
        return self.project_out(merge_heads(mixed, rows))


def dropout(x: Array, rate: float, key: jax.Array | None) -> Array:
    """Zeroes entries with probability `rate` and scales the others up to keep the mean.

    Random numbers are most of dropout's cost on a CPU, so an entry takes 16 bits: the
    rate is rounded to a multiple of 2**-16, and the scale is that of the rounded rate.

    Args:
      x: any shape.
      rate: in [0, 1).
      key: None leaves `x` as it is.
    """
    if key is None or rate == 0:
        return x
    dropped = min(round(rate * 2**16), 2**16 - 1)
    bits = jax.random.bits(key, ((x.size + 1) // 2,), jnp.uint32)
    halves = lax.bitcast_convert_type(bits, jnp.uint16).reshape(-1)[: x.size]
    scale = 2**16 / (2**16 - dropped)
    return jnp.where(halves.reshape(x.shape) >= dropped, x * scale, 0)
