"""The rows of an operator dealt to devices, a block at a time.

A host holds one block beside what its devices have, so that a graph that is read in
parts is nowhere whole.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.sharding import NamedSharding, PartitionSpec

from sevo_jax.operators._adjacency import (
    as_csr,
    check_linked,
    inverse_roots,
    rows_of,
    scaled,
)
from sevo_jax.operators._operator import GraphOperator

# What a block counts in int32.
_MOST = 2**31 - 2


@runtime_checkable
class RowParts(Protocol):
    """A symmetric graph, not normalised, of which ranges of rows can be read alone."""

    @property
    def num_nodes(self) -> int: ...

    @property
    def num_entries(self) -> int: ...

    @property
    def degrees(self) -> np.ndarray:
        """The sum of each row, float64 ``[num_nodes]``."""
        ...

    def rows(self, begin: int, end: int) -> scipy.sparse.csr_array:
        """The weights of some rows, ``[end - begin, num_nodes]``, none of them 0."""
        ...


def split_rows(
    graph: GraphOperator | RowParts, by_block: NamedSharding, num_blocks: int
) -> dict[str, jax.Array]:
    """The arrays of a ``ShardedGraphOperator``; all processes of the mesh call it.

    Args:
      graph: the operator, or the graph in parts, which is normalised here.
      by_block: how arrays ``[num_blocks, ...]`` are split.
      num_blocks: number of blocks.

    Raises:
      ValueError: if the graph has no edges, or a block is too large for int32.
    """
    read, size = _reader(graph), -(-graph.num_nodes // num_blocks)

    def block(number: int) -> _Block:
        begin = min(number * size, graph.num_nodes)
        return _Block.of(read(begin, min(begin + size, graph.num_nodes)), number, size)

    # All blocks are filled up to the largest, wherever that is.
    # Several devices may hold the same one, which is read once.
    extent = functools.cache(lambda number: block(number).extent)
    largest = _largest(extent, by_block, num_blocks)
    num_entries, width = largest
    if max(num_entries, size + num_blocks * width) > _MOST:
        raise ValueError(
            f"one of the {num_blocks} blocks of the graph has {num_entries} entries, "
            f"and counts {size + num_blocks * width} rows of the table; indices are "
            f"int32, so both must be at most {_MOST}: split it over more devices"
        )
    devices: dict[int, list[Any]] = {}
    places = by_block.addressable_devices_indices_map((num_blocks,))
    for device, place in places.items():
        assert place is not None
        devices.setdefault(place[0].start or 0, []).append(device)
    arrays: dict[str, list[jax.Array]] = {}
    for number, holders in devices.items():
        for name, array in block(number).filled(num_blocks, *largest).items():
            for device in holders:
                placed = jax.device_put(array[None], device)
                arrays.setdefault(name, []).append(placed)
    return {
        name: jax.make_array_from_single_device_arrays(
            (num_blocks, *shards[0].shape[1:]), by_block, shards
        )
        for name, shards in arrays.items()
    }


def _reader(graph: GraphOperator | RowParts) -> Callable[[int, int], Any]:
    """What reads rows of the normalised matrix."""
    if isinstance(graph, GraphOperator):
        csr = as_csr(graph)
        return lambda begin, end: csr[begin:end]
    check_linked(graph.num_entries, graph.num_nodes)
    scale = inverse_roots(graph.degrees)

    def read(begin: int, end: int) -> Any:
        part = graph.rows(begin, end)
        weights = scaled(part, rows_of(part), scale[begin:end], scale)
        parts = (weights, part.indices, part.indptr)
        return scipy.sparse.csr_array(parts, shape=part.shape)

    return read


def _largest(
    extent: Callable[[int], tuple[int, int]], by_block: NamedSharding, num_blocks: int
) -> list[int]:
    """The largest of the numbers of all blocks, each counted by who will hold it."""

    def count(place: Any) -> np.ndarray:
        # Those that are too large anyway stay so, in int32.
        found = np.minimum([extent(place[0].start or 0)], 2**31 - 1)
        return found.astype(np.int32)

    counted = jax.make_array_from_callback((num_blocks, 2), by_block, count)
    everywhere = NamedSharding(by_block.mesh, PartitionSpec())
    largest = jax.jit(lambda x: jnp.max(x, axis=0), out_shardings=everywhere)(counted)
    return np.asarray(largest).tolist()


@dataclasses.dataclass(frozen=True)
class _Block:
    """The rows of one device, before those of all devices are made equally many.

    Attributes:
      csr: entries ``[rows, num_nodes]``, at most `size` rows.
      number: which block it is.
      size: rows of a block.
      received: columns of other blocks that it has entries for, in order.
      sent: its rows that other blocks have entries for, each as its place in a table
        ``[blocks, size]`` of receivers and rows, in order. A symmetric matrix has them
        in this block.
    """

    csr: Any
    number: int
    size: int
    received: np.ndarray
    sent: np.ndarray

    @classmethod
    def of(cls, csr: Any, number: int, size: int) -> _Block:
        other = csr.indices // size
        crossing = other != number
        places = other[crossing] * np.int64(size) + rows_of(csr)[crossing]
        return cls(
            csr, number, size, np.unique(csr.indices[crossing]), np.unique(places)
        )

    @property
    def extent(self) -> tuple[int, int]:
        """Its number of entries, and the most rows that it receives from a block."""
        received = np.bincount(self.received // self.size)
        return self.csr.nnz, int(received.max(initial=0))

    def filled(
        self, num_blocks: int, num_entries: int, width: int
    ) -> dict[str, np.ndarray]:
        """The arrays of this block in a ``ShardedGraphOperator``."""
        csr, size, nnz = self.csr, self.size, self.csr.nnz
        source = self.received // size
        place = size + source * np.int64(width) + _ranks(source, num_blocks)
        columns = np.zeros(num_entries, np.int32)
        weights = np.zeros(num_entries, csr.dtype)
        own = csr.indices // size == self.number
        columns[:nnz][own] = csr.indices[own] - self.number * size
        nth = np.searchsorted(self.received, csr.indices[~own])
        columns[:nnz][~own] = place[nth]
        weights[:nnz] = csr.data
        shape = (csr.shape[0], size + num_blocks * width)
        block = scipy.sparse.csr_array(
            (weights[:nnz], columns[:nnz], csr.indptr), shape=shape
        )
        block.sort_indices()
        weights[:nnz], columns[:nnz] = block.data, block.indices

        target, row = np.divmod(self.sent, size)
        sends = np.zeros((num_blocks, width), np.int32)
        sends[target, _ranks(target, num_blocks)] = row
        row_starts = np.full(size + 1, nnz, np.int32)
        row_starts[: len(csr.indptr)] = csr.indptr
        # Out of range: what fills up a block is dropped, not added to a row.
        rows = np.full(num_entries, size, np.int32)
        rows[:nnz] = rows_of(csr)
        return {
            "weights": weights,
            "columns": columns,
            "row_starts": row_starts,
            "rows": rows,
            "sends": sends,
        }


def _ranks(groups: np.ndarray, num_groups: int) -> np.ndarray:
    """How many of the same group come before each; groups are in order."""
    counts = np.bincount(groups, minlength=num_groups)
    return np.arange(len(groups)) - (np.cumsum(counts) - counts)[groups]
