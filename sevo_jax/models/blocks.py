"""Sums over rows gathered from a table, without all the rows at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sum_over_blocks(
    function: Callable[..., jax.Array],
    size: int,
    params: Any,
    table: Float[Array, "n ..."],
    ids: Int[Array, "m k"],
) -> Float[Array, ""]:
    """Returns the sum of `function(params, block, table[block])` over blocks of ids.

    The gradients are taken along with it: what is between lies in the cache meanwhile,
    and is neither kept nor computed twice.

    Args:
      function: gives the scalar of a block. It must take no notice of rows of -1, which
        fill the last block up.
      size: rows of a block.
      params: a pytree.
      table: what is gathered from.
      ids: rows of the table; -1 stands for any.

    Examples:
      >>> def squares(params, block, rows):
      ...     return params * jnp.sum(rows**2, where=block >= 0)
      >>> table = jnp.arange(4.0)
      >>> ids = jnp.array([[1], [3], [-1], [2]])
      >>> jax.value_and_grad(sum_over_blocks, 2)(squares, 3, 0.5, table, ids)[0].item()
      7.0
    """
    return _forward(function, size, params, table, ids)[0]


def _forward(function, size, params, table, ids):
    ids = jnp.pad(ids, ((0, -len(ids) % size), (0, 0)), constant_values=-1)

    def add(sums, block):
        value, (to_params, to_table) = sums
        known = jnp.maximum(block, 0)
        found, (more_params, to_rows) = jax.value_and_grad(function, (0, 2))(
            params, block, table[known]
        )
        to_params = jax.tree.map(jnp.add, to_params, more_params)
        return (value + found, (to_params, to_table.at[known].add(to_rows))), None

    zeros = jax.tree.map(jnp.zeros_like, (params, table))
    blocks = ids.reshape(-1, size, ids.shape[1])
    return jax.lax.scan(add, (jnp.zeros([], table.dtype), zeros), blocks)[0]


def _backward(function, size, gradients, cotangent):
    del function, size
    return *jax.tree.map(lambda gradient: cotangent * gradient, gradients), None


sum_over_blocks.defvjp(_forward, _backward)
