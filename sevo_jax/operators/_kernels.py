"""Sparse products on arrays: the native kernel of the CPU, and a portable form.

This is the only module that imports ``jax.experimental.sparse``, but for BCOO as the
type of graphs at the public border.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.sparse import BCSR
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int


@jax.custom_batching.custom_vmap
def csr_product(
    weights: Float[Array, " e"],
    columns: Int[Array, " e"],
    row_starts: Int[Array, " n+1"],
    rows: Int[Array, " e"],
    x: Float[Array, "... m d"],
) -> Float[Array, "... n d"]:
    """The product of a sparse matrix ``[n, m]`` with each of the tables in ``x``.

    Under :func:`jax.vmap` over tables the tables are put side by side as columns, under
    ``vmap`` over matrices they are taken one after another: the slow batched sparse
    product is never reached. It has no gradient; its callers define one.

    Args:
      weights: entries of the matrix, ordered by row. Those behind the last row, and of
        a row out of range, are not read.
      columns: column of each entry.
      row_starts: where each row begins in the two above.
      rows: row of each entry.
      x: tables, float32 or float64, which the product is computed in.
    """
    return jax.lax.platform_dependent(
        weights.astype(x.dtype),
        columns,
        row_starts,
        rows,
        x,
        cpu=_native_csr_product,
        default=gather_segment_sum,
    )


@csr_product.def_vmap
def _product_of_many(
    axis_size: int, in_batched: list[bool], *arrays: jax.Array
) -> tuple[jax.Array, bool]:
    if not any(in_batched[:-1]):
        return csr_product(*arrays), True

    def one(i: jax.Array) -> jax.Array:
        return csr_product(
            *(
                array[i] if batched else array
                for array, batched in zip(arrays, in_batched, strict=True)
            )
        )

    return jax.lax.map(one, jnp.arange(axis_size)), True


def _native_csr_product(weights, columns, row_starts, rows, x):
    del rows
    product = _partitioned_csr_product(weights, columns, row_starts, x)
    # The kernel's type forgets over which axes of a shard_map the result varies. The
    # compiler drops this selection, its type remembers.
    return jnp.where(False, weights[0] * x[..., :1, :], product)


def _csr_product(weights, columns, row_starts, x):
    # BCSR lowers to the native kernel only for a two-dimensional product of equal
    # dtypes whose two index arrays have one dtype; csr_product sees to all of that.
    matrix = BCSR(
        (weights, columns, row_starts),
        shape=(row_starts.shape[0] - 1, x.shape[-2]),
        indices_sorted=True,
        unique_indices=True,
    )
    return _side_by_side(lambda table: matrix @ table, x)


def _side_by_side(product: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """The product of each of the tables ``[..., n, d]``, taken as one wide table."""
    *tables, n, d = x.shape
    count = math.prod(tables)
    wide = jnp.moveaxis(x.reshape(count, n, d), 0, 1).reshape(n, count * d)
    products = product(wide)
    narrow = products.reshape(len(products), count, d)
    return jnp.moveaxis(narrow, 1, 0).reshape(*tables, len(products), d)


def _table_sharding(mesh, table) -> NamedSharding:
    """All rows on every device, columns and batches as they are."""
    spec = list(table.sharding.spec)
    spec += [None] * (len(table.shape) - len(spec))
    spec[-2] = None
    return NamedSharding(mesh, PartitionSpec(*spec))


def _partition_csr_product(mesh, arg_shapes, result_shape):
    del result_shape
    table = _table_sharding(mesh, arg_shapes[-1])
    replicated = NamedSharding(mesh, PartitionSpec(None))
    return mesh, _csr_product, table, (replicated, replicated, replicated, table)


def _infer_csr_product_sharding(mesh, arg_shapes, result_shape):
    del result_shape
    return _table_sharding(mesh, arg_shapes[-1])


# A native kernel is opaque to the partitioner, which would gather the whole table on
# every device; this tells it that columns and batches are independent of each other.
_partitioned_csr_product = custom_partitioning(_csr_product)
_partitioned_csr_product.def_partition(
    partition=_partition_csr_product,
    infer_sharding_from_operands=_infer_csr_product_sharding,
    sharding_rule="e, e, s, ... m d -> ... n d",
    need_replication_factors=("e", "s", "m", "n"),
)


def gather_segment_sum(weights, columns, row_starts, rows, x) -> jax.Array:
    """The product as a gather and a segment sum, for accelerators."""

    def product(table: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(
            weights[:, None] * table[columns],
            rows,
            num_segments=row_starts.shape[0] - 1,
            indices_are_sorted=True,
        )

    return _side_by_side(product, x)
