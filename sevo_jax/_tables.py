"""A table: leaves of a tree that together are the rows of one graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sevo_jax.operators import GraphOperator

LeafName: TypeAlias = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """Leaves that together are the rows of one graph.

    Attributes:
      key: the key of the graph.
      names: the part of the key that names each leaf.
      leaves: positions in the flattened tree, in the order of the graph's nodes.
      paths: "/"-joined paths of the leaves.
      row_axes: the axis of each leaf along which its rows lie: -2, or -1 for one
        that is stored as ``[..., d, n]``.
    """

    key: LeafName
    names: tuple[str, ...]
    leaves: tuple[int, ...]
    paths: tuple[str, ...]
    row_axes: tuple[int, ...]

    def stack(self, leaves: Any, graph: GraphOperator) -> jax.Array:
        """The rows of all its leaves, ``[..., n, d]``, given leaves by position.

        They are in the order of the graph's nodes.
        """
        return _joined(self._parts(leaves), graph.num_blocks)

    def unstack(
        self, rows: jax.Array, leaves: Any, graph: GraphOperator
    ) -> dict[int, jax.Array]:
        """Such rows as leaves by position, of the dtypes and placed as those given."""
        parts = _cut(rows, self._parts(leaves), graph.num_blocks)
        return {
            i: _rows_first(part, axis)
            for i, axis, part in zip(self.leaves, self.row_axes, parts, strict=True)
        }

    def check_fit(self, graph: GraphOperator, leaves: Any) -> None:
        """Refuses a table that is not floating point or has not a row a node."""
        paths = [path or "the only leaf" for path in self.paths]
        shapes = [tuple(jnp.shape(leaves[i])) for i in self.leaves]
        for path, position, shape in zip(paths, self.leaves, shapes, strict=True):
            dtype = jnp.result_type(leaves[position])
            if not jnp.issubdtype(dtype, jnp.floating):
                raise TypeError(
                    f"{path} is {dtype}: only a floating-point table can be smoothed"
                )
            if len(shape) < 2:
                raise ValueError(
                    f"{path} has shape {shape}: a table has two dimensions, [nodes, "
                    "width], or more, [..., nodes, width]; if another leaf is meant, "
                    "write more of its path"
                )
        rows = _num_rows(shapes, self.row_axes)
        # All but the rows must be the same for the parts of a joint table.
        others = {
            (*shape[:-2], shape[-3 - axis])
            for shape, axis in zip(shapes, self.row_axes, strict=True)
        }
        sizes = tuple(
            shape[axis] for shape, axis in zip(shapes, self.row_axes, strict=True)
        )
        if rows == graph.num_nodes and len(others) == 1:
            if graph.leaves in (None, sizes):
                return
            remedy = (
                f"shard_rows split it for leaves of {graph.leaves} rows, but here "
                f"they have {sizes}: give it leaves= in the order of the names"
            )
        elif rows == graph.num_nodes:
            remedy = (
                "the leaves of a joint table need one width, and stacks of tables one "
                "length"
            )
        else:
            offset = (
                "item_offset=1 if row 0 is padding"
                if rows > graph.num_nodes
                else "item_offset=0 if no row is padding"
            )
            remedy = (
                f"build the graph with {offset}, or with num_nodes= the number of rows"
            )
            if _num_rows(shapes, [-1] * len(shapes)) == graph.num_nodes:
                remedy += (
                    "; or pass row_axis={" + f"{self.key!r}: 1" + "} if its rows are "
                    "the last axis"
                )
        raise ValueError(
            f"{' + '.join(paths)} has {rows} rows (shape "
            f"{', '.join(map(str, shapes))}), its graph has {graph.num_nodes} nodes: "
            f"{remedy}"
        )

    def _parts(self, leaves: Any) -> list[jax.Array]:
        return [
            _rows_first(jnp.asarray(leaves[i]), axis)
            for i, axis in zip(self.leaves, self.row_axes, strict=True)
        ]


def _rows_first(x: jax.Array, row_axis: int) -> jax.Array:
    """A leaf ``[..., d, n]`` as ``[..., n, d]``, or back."""
    return x if row_axis == -2 else jnp.swapaxes(x, -1, -2)


def _num_rows(shapes: list[tuple[int, ...]], axes: Iterable[int]) -> int:
    return sum(shape[axis] for shape, axis in zip(shapes, axes, strict=True))


def _joined(parts: list[jax.Array], num_blocks: int) -> jax.Array:
    if len(parts) == 1:
        return parts[0]
    if num_blocks > 1:
        blocks = [_in_blocks(part, num_blocks) for part in parts]
        return jax.lax.collapse(_joined(blocks, 1), parts[0].ndim - 2, -1)
    shardings = [jax.typeof(part).sharding for part in parts]
    explicit = [sharding for sharding in shardings if _is_explicit(sharding)]
    if explicit and any(sharding != explicit[0] for sharding in shardings):
        # An explicit mesh joins only what is placed alike. What is not, every device
        # gets whole; of the rows it needs all in any case.
        specs = zip(*(sharding.spec for sharding in shardings), strict=True)
        same = [axes[0] if len({*axes}) == 1 else None for axes in specs]
        together = NamedSharding(explicit[0].mesh, PartitionSpec(*same))
        parts = [jax.sharding.reshard(part, together) for part in parts]
    return jnp.concatenate(parts, axis=-2)


def _in_blocks(part: jax.Array, num_blocks: int) -> jax.Array:
    *stack, rows, width = part.shape
    return part.reshape(*stack, num_blocks, rows // num_blocks, width)


def _cut(rows: jax.Array, like: list[jax.Array], num_blocks: int) -> list[jax.Array]:
    if len(like) > 1 and num_blocks > 1:
        blocks = [_in_blocks(wanted, num_blocks) for wanted in like]
        parts = _cut(_in_blocks(rows, num_blocks), blocks, 1)
        return [jax.lax.collapse(part, rows.ndim - 2, -1) for part in parts]
    start, parts = 0, []
    for wanted in like:
        end = start + wanted.shape[-2]
        # Not by indexing, which outside jit refuses rows on an explicit mesh.
        part = jax.lax.slice_in_dim(rows, start, end, axis=-2).astype(wanted.dtype)
        sharding = jax.typeof(wanted).sharding
        if _is_explicit(sharding) and jax.typeof(part).sharding != sharding:
            part = jax.sharding.reshard(part, sharding)
        parts.append(part)
        start = end
    return parts


def _is_explicit(sharding: Any) -> bool:
    return AxisType.Explicit in sharding.mesh.axis_types


def wide(x: Any) -> np.dtype:
    """The dtype to compute in: at least float32; of integers the default one."""
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.result_type(float)
    return np.promote_types(dtype, np.float32)


def widened(x: Any) -> jax.Array:
    """In the dtype to compute in, at least float32."""
    x = jnp.asarray(x)
    return x.astype(wide(x))
