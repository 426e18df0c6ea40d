r"""The product of a normalised adjacency matrix with a table split by its rows.

Each device holds a contiguous block of the rows of :math:`\tilde A` and of the table.
In each hop it receives, from every other device, the rows of the table that its block
of :math:`\tilde A` has entries for, and no others (its *halo*); then it multiplies as
one device does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from sevo_jax._messages import listed
from sevo_jax.operators import _kernels
from sevo_jax.operators._adjacency import (
    AdjacencyLike,
    as_csr,
    csr_operator,
    prepare,
    rows_of,
)
from sevo_jax.operators._blocks import RowParts, split_rows
from sevo_jax.operators._operator import GraphOperator


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weights", "columns", "row_starts", "rows", "sends"],
    meta_fields=["num_nodes", "sharding", "leaves"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ShardedGraphOperator(GraphOperator):
    r"""The operator :math:`\tilde A`, its rows split over the devices of a mesh.

    Made by :func:`shard_rows`. Each device holds one block; all are filled up to the
    size of the largest. A block's columns count its own rows of the table first, then
    those received.

    Attributes:
      weights: entries by block and row, ``[blocks, entries]``.
      columns: column of each entry, int32 ``[blocks, entries]``.
      row_starts: where each row of a block begins, int32 ``[blocks, rows + 1]``.
      rows: row of each entry in its block, int32 ``[blocks, entries]``.
      sends: which of its rows the first block sends to the second, int32
        ``[blocks, blocks, width]``.
      num_nodes: number of rows and columns; static.
      sharding: of the tables ``[num_nodes, d]``; static.
      leaves: the number of rows of each leaf of a joint table, filling included, if
        each block holds its part of every leaf; else None. Static.
    """

    weights: Float[Array, "p e"]
    columns: Int[Array, "p e"]
    row_starts: Int[Array, "p n+1"]
    rows: Int[Array, "p e"]
    sends: Int[Array, "p p w"]
    num_nodes: int
    sharding: NamedSharding
    leaves: tuple[int, ...] | None = None

    @property
    def num_blocks(self) -> int:
        return len(self.sends) if self.leaves else 1

    @property
    def num_entries(self) -> int:
        return self.columns.size

    @property
    def halo(self) -> int:
        """Number of rows that each device receives in a hop, filling included.

        Without locality in the order of the nodes it comes near the ``num_nodes *
        (1 - 1 / blocks)`` of gathering the table; where neighbours have near numbers,
        it is small. All pairs of devices exchange as many rows as the pair that needs
        most. To lower it, number the nodes so that communities lie together.
        """
        blocks, _, width = self.sends.shape
        return (blocks - 1) * width

    def _apply(self, x: jax.Array) -> jax.Array:
        if x.ndim > 2:
            return jax.vmap(self._apply)(x)
        # Inside auto_axes the mesh has other axis types than the one of the tables.
        context = jax.sharding.get_abstract_mesh()
        mesh = self.sharding.mesh if context.empty else context
        product = _product_on(mesh, self.sharding.spec)
        blocks, block_size = self.row_starts.shape[0], self.row_starts.shape[1] - 1
        missing = blocks * block_size - self.num_nodes
        if missing:
            return product(self, jnp.pad(x, ((0, missing), (0, 0))))[:-missing]
        return product(self, x)

    def __repr__(self) -> str:
        return (
            f"ShardedGraphOperator({self.num_nodes} nodes in {len(self.sends)} blocks, "
            f"halo {self.halo})"
        )


# Bounded: a key holds its mesh.
@functools.lru_cache(maxsize=32)
def _product_on(mesh: Any, spec: PartitionSpec) -> Callable[..., jax.Array]:
    # Compiled as a whole outside of jit too, where shard_map goes step by step.
    return jax.jit(
        jax.shard_map(
            _block_product,
            mesh=mesh,
            in_specs=(PartitionSpec(spec[0]), spec),
            out_specs=spec,
        )
    )


def _block_product(graph: ShardedGraphOperator, x: jax.Array) -> jax.Array:
    """What one device does; all of its arrays are of its own block."""
    weights, columns, row_starts, rows, sends = (
        part[0]
        for part in (
            graph.weights,
            graph.columns,
            graph.row_starts,
            graph.rows,
            graph.sends,
        )
    )
    axis = graph.sharding.spec[0]
    received = jax.lax.all_to_all(x[sends], axis, 0, 0, tiled=True)
    table = jnp.concatenate([x, jax.lax.collapse(received, 0, 2)])
    return _kernels.csr_product(weights, columns, row_starts, rows, table)


def shard_rows(
    adjacency: AdjacencyLike | RowParts,
    sharding: NamedSharding,
    *,
    leaves: Sequence[int] | None = None,
) -> ShardedGraphOperator:
    r"""Splits the operator :math:`\tilde A` for tables that are split by their rows.

    With it each device holds its own rows of the graph alone and receives, in each hop,
    only the rows of the table that its own are connected to
    (:attr:`ShardedGraphOperator.halo`). It takes the place of a graph everywhere in
    this library: in optimizers, and in :mod:`sevo_jax.smoothing`. Split over the width
    only, a table needs no exchange and no call of this function.

    Args:
      adjacency: the graph, as :func:`prepare` takes it, or the operator it returned;
        or a graph on the disk (:class:`sevo_jax.graphs.GraphParts`), of which each
        process then reads the rows of its own devices alone, a block at a time.
      sharding: of the tables ``[n, d]`` that will be smoothed, for example
        ``NamedSharding(mesh, PartitionSpec("rows"))``; the width may be split too, by
        another axis. For a table stored as ``[d, n]``, that of its transpose. Tables
        placed otherwise are smoothed all the same, but must be moved for it.
      leaves: the number of rows of each leaf of a joint table, or of the only leaf.
        Each device then holds its part of each of them, and nothing is moved to put
        them together. Leaves that do not divide evenly among the devices are to be
        filled up with rows of zeros at their end until they do; the operator has
        nodes without neighbours there. Its nodes are in the order of the devices, not
        in that of the graph: it is for optimizers, which know both, and not for
        :mod:`sevo_jax.smoothing` or ``op @ x``. Without it, the leaves of a joint
        table are gathered on every device.

    Returns:
      The operator. Pass it through :func:`jax.jit` as an argument, as one that spans
      several processes must be; all of them have to call this function.

    Raises:
      TypeError: if ``sharding`` is no ``NamedSharding``, or ``adjacency`` is no graph
        or is split already.
      ValueError: if ``sharding`` does not split the rows, a device would hold more
        entries than int32 counts, ``leaves`` do not add up to the nodes of the graph,
        or as :func:`prepare`.

    Examples:
      >>> import jax, scipy.sparse
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> import sevo_jax as sevo
      >>> path = scipy.sparse.diags_array([1.0, 1.0], offsets=[-1, 1], shape=(8, 8))
      >>> mesh = jax.sharding.Mesh(jax.devices()[:4], ("rows",))
      >>> sharding = NamedSharding(mesh, PartitionSpec("rows"))
      >>> graph = sevo.shard_rows(path, sharding)
      >>> graph
      ShardedGraphOperator(8 nodes in 4 blocks, halo 3)
      >>> table = jax.device_put(jax.numpy.ones((8, 2)), sharding)
      >>> smoothed = sevo.smoothing.neumann(graph, table, beta=0.9, num_layers=3)
      >>> smoothed.addressable_shards[0].data.shape
      (2, 2)

    .. note:: JAX places no array of which the rows do not divide evenly among the
      devices. Give such a table and its graph (``num_nodes=``) some unused rows more.
    """
    if not isinstance(sharding, NamedSharding):
        raise TypeError(
            "sharding must be a jax.sharding.NamedSharding of the tables, got "
            f"{type(sharding).__name__}"
        )
    spec = tuple(sharding.spec)
    if not 1 <= len(spec) <= 2 or spec[0] is None:
        raise ValueError(
            f"sharding {sharding.spec} does not split the rows of a table [nodes, "
            "width]: name a mesh axis first, PartitionSpec('rows'); a table that is "
            "split over its width takes the graph as it is"
        )
    if isinstance(adjacency, ShardedGraphOperator):
        raise TypeError(f"{adjacency} is split already: give the graph it was made of")
    graph = adjacency if isinstance(adjacency, RowParts) else prepare(adjacency)
    axes = spec[0] if isinstance(spec[0], tuple) else (spec[0],)
    num_blocks = int(np.prod([sharding.mesh.shape[axis] for axis in axes]))
    by_block = NamedSharding(sharding.mesh, PartitionSpec(spec[0]))
    filled = None
    if leaves is not None:
        if isinstance(graph, RowParts):
            raise TypeError(
                "leaves are of a graph in memory: load it, or leave them out"
            )
        graph = _dealt(graph, leaves, num_blocks)
        filled = tuple(-(-rows // num_blocks) * num_blocks for rows in leaves)
    return ShardedGraphOperator(
        **split_rows(graph, by_block, num_blocks),
        num_nodes=graph.num_nodes,
        sharding=sharding,
        leaves=filled,
    )


def _dealt(
    graph: GraphOperator, leaves: Sequence[int], num_blocks: int
) -> GraphOperator:
    """The graph with its nodes in the order in which blocks hold parts of leaves."""
    if sum(leaves) != graph.num_nodes:
        raise ValueError(
            f"leaves of {listed([str(rows) for rows in leaves])} rows are given for a "
            f"graph of {graph.num_nodes} nodes: they must add up to that"
        )
    sizes = [-(-rows // num_blocks) for rows in leaves]
    block_size, number, start = sum(sizes), [], 0
    for rows, size in zip(leaves, sizes, strict=True):
        block, row = np.divmod(np.arange(rows), size)
        number.append(block * block_size + start + row)
        start += size
    number = np.concatenate(number)
    csr = as_csr(graph).tocoo()
    moved = scipy.sparse.csr_array(
        (csr.data, (number[csr.row], number[csr.col])),
        shape=(num_blocks * block_size,) * 2,
    )
    return csr_operator(moved.data, moved.indices, moved.indptr, rows_of(moved))
