"""The product of a normalised adjacency matrix with a table, fast on each backend.

This is the only module that imports ``jax.experimental.sparse``. A graph enters as a
weighted adjacency matrix, is checked and normalised once on the host by
:func:`prepare`, and from then on is a :class:`GraphOperator`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jax.core import Tracer
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.sparse import BCOO, BCSR
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

__all__ = ["BCOO", "AdjacencyLike", "GraphOperator", "matmul", "prepare"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weights", "columns", "row_starts", "rows"],
    meta_fields=["num_nodes"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GraphOperator:
    r"""The symmetric operator :math:`\tilde A = D^{-1/2} A D^{-1/2}`, ready to apply.

    Made by :func:`prepare`. It is a pytree: pass it through :func:`jax.jit` as an
    argument to keep a large graph out of the compiled program. Gradients flow through
    the table it is applied to, never to its own entries.

    Attributes:
      weights: entries of :math:`\tilde A`, ordered by row, ``[num_entries]``.
      columns: column of each entry, int32 ``[num_entries]``.
      row_starts: where each row begins in the two above, int32 ``[num_nodes + 1]``.
      rows: row of each entry, int32 ``[num_entries]`` (the GPU and TPU layout).
      num_nodes: number of rows and columns; static.
    """

    weights: Float[Array, " e"]
    columns: Int[Array, " e"]
    row_starts: Int[Array, " n+1"]
    rows: Int[Array, " e"]
    num_nodes: int

    @property
    def num_entries(self) -> int:
        """Number of stored entries (an undirected edge counts twice)."""
        return self.columns.shape[-1]

    def __matmul__(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        r"""The product :math:`\tilde A X`; see :func:`matmul`."""
        return matmul(self, x)

    def _apply(self, x: jax.Array) -> jax.Array:
        """The product with ``x``, without the rules for sharding and gradients."""
        return _product(self, x)

    def __repr__(self) -> str:
        return f"GraphOperator({self.num_nodes} nodes, {self.num_entries} entries)"


AdjacencyLike: TypeAlias = (
    BCOO | scipy.sparse.sparray | scipy.sparse.spmatrix | GraphOperator
)


# ------------------------------------------------------------------ host side

# Entries that are worked on at once, where all would need as much memory again.
_BLOCK = 2**20


def bcoo_from_scipy(matrix: scipy.sparse.sparray | scipy.sparse.spmatrix) -> BCOO:
    """A float32 BCOO with sorted, unique int32 indices, and flagged so.

    ``BCOO.from_scipy_sparse`` leaves the flags off, and GPU kernels need them.
    """
    csr = canonical(scipy.sparse.csr_array(matrix))
    # NumPy's own memory is not aligned as JAX wants it, which would copy it.
    size = 8 * csr.nnz
    memory = np.empty(size + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    indices = memory[begin : begin + size].view(np.int32).reshape(csr.nnz, 2)
    indices[:, 0] = _rows(csr)
    indices[:, 1] = csr.indices
    return BCOO(
        # A copy: the memory may be the caller's, or a file's.
        (jnp.array(csr.data, jnp.float32), jnp.asarray(indices, jnp.int32)),
        shape=csr.shape,
        indices_sorted=True,
        unique_indices=True,
    )


def canonical(csr: Any) -> Any:
    """The matrix with sorted and unique indices: itself, or a copy in float64."""
    if not csr.has_canonical_format:
        csr = csr.astype(np.float64, copy=True)
        csr.sum_duplicates()
    return csr


def _rows(csr: Any) -> np.ndarray:
    """The row of each entry, int32."""
    return np.repeat(np.arange(csr.shape[0], dtype=np.int32), np.diff(csr.indptr))


def to_scipy(adjacency: AdjacencyLike) -> scipy.sparse.csr_array:
    """The entries of a graph as a float64 SciPy CSR array, structure checked.

    Raises:
      TypeError: if it is not a sparse matrix, or is a tracer.
      ValueError: if it is not square or an index is out of range.
    """
    return scipy.sparse.csr_array(as_csr(adjacency), dtype=np.float64, copy=True)


def as_csr(adjacency: AdjacencyLike) -> Any:
    """As :func:`to_scipy`, but in float32 or float64 and of the caller's own memory.

    What can be shared with the argument is, and must not be written to.
    """
    if isinstance(adjacency, GraphOperator):
        if adjacency.columns.ndim != 1:
            raise TypeError(
                f"{adjacency!r} is split over devices: give the graph it was made from"
            )
        shape = (adjacency.num_nodes, adjacency.num_nodes)
        parts = (adjacency.weights, adjacency.columns, adjacency.row_starts)
        return scipy.sparse.csr_array(
            tuple(np.asarray(part) for part in parts), shape=shape
        )
    if isinstance(adjacency, BCOO):
        if isinstance(adjacency.data, Tracer):
            raise TypeError(
                "the adjacency is a traced BCOO: call sevo_jax.prepare(adjacency) "
                "outside jit and pass the GraphOperator it returns as the argument"
            )
        if adjacency.n_batch or adjacency.n_dense or adjacency.ndim != 2:
            raise ValueError(
                "the adjacency must be a plain two-dimensional BCOO, got shape "
                f"{adjacency.shape} with n_batch={adjacency.n_batch} and "
                f"n_dense={adjacency.n_dense}"
            )
        _check_square(adjacency.shape)
        data, indices = np.asarray(adjacency.data), np.asarray(adjacency.indices)
        data = _real(data)
        # BCOO marks unused slots by an index past the end with weight 0.
        if data.size and not 0 <= indices.min() <= indices.max() < adjacency.shape[0]:
            outside = ((indices < 0) | (indices >= adjacency.shape[0])).any(axis=1)
            if (wrong := np.flatnonzero(outside & (data != 0))).size:
                raise ValueError(
                    f"adjacency index {tuple(indices[wrong[0]].tolist())} is out of "
                    f"range for {adjacency.shape[0]} nodes: node ids are 0.."
                    f"{adjacency.shape[0] - 1}"
                )
            data, indices = data[~outside], indices[~outside]
        return _csr_of_pairs(data, indices, adjacency.shape)
    if scipy.sparse.issparse(adjacency):
        matrix: Any = adjacency
        _check_square(matrix.shape)
        if matrix.format in ("csr", "csc", "bsr"):
            # SciPy does not look at the indices by itself, and its kernels would
            # write past the ends of their buffers.
            try:
                matrix.check_format(full_check=True)
            except ValueError as error:
                raise ValueError(
                    f"the adjacency has an index out of range for "
                    f"{matrix.shape[0]} nodes, or is malformed otherwise: {error}"
                ) from None
            # Which that check skips where the last pointer is 0.
            if (np.diff(matrix.indptr) < 0).any():
                raise ValueError("the row pointers of the adjacency decrease")
        csr: Any = scipy.sparse.csr_array(matrix)
        csr.data = _real(csr.data)
        return csr
    raise TypeError(
        "a graph is a BCOO, a SciPy sparse matrix or a GraphOperator, got "
        f"{type(adjacency).__name__}: wrap a dense matrix in scipy.sparse.csr_array"
    )


def _real(data: np.ndarray) -> np.ndarray:
    """Weights in the float32 or float64 they are in, others in float64."""
    single_or_double = data.dtype in (np.dtype(np.float32), np.dtype(np.float64))
    return data if single_or_double else data.astype(np.float64)


def _csr_of_pairs(data: np.ndarray, indices: np.ndarray, shape: tuple) -> Any:
    rows, columns = indices[:, 0], indices[:, 1]
    if (rows[1:] < rows[:-1]).any():
        return scipy.sparse.coo_array((data, (rows, columns)), shape=shape).tocsr()
    # In order already: the same without a second copy of everything.
    kind = np.int32 if max(data.size, *shape) < 2**31 else np.int64
    row_starts = np.searchsorted(rows, np.arange(shape[0] + 1))
    parts = (data, columns.astype(kind), row_starts.astype(kind))
    return scipy.sparse.csr_array(parts, shape=shape)


def _check_square(shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(
            f"an adjacency matrix must be square, got shape {shape}: rows and columns "
            "are the same nodes"
        )


def _check_weights(csr: Any) -> None:
    def entry(position: int) -> str:
        row = int(np.searchsorted(csr.indptr, position, side="right")) - 1
        return f"({row}, {csr.indices[position]}) = {csr.data[position]}"

    if csr.nnz == 0:
        raise ValueError(
            f"the graph of {csr.shape[0]} nodes has no edges: smoothing over it would "
            "only shrink every update; leave the table out of `graphs` instead"
        )
    if (wrong := np.flatnonzero(~np.isfinite(csr.data))).size:
        raise ValueError(
            f"adjacency entry {entry(wrong[0])} is not finite "
            f"({wrong.size} such entries): weights must be finite and non-negative"
        )
    if (wrong := np.flatnonzero(csr.data < 0)).size:
        raise ValueError(
            f"adjacency entry {entry(wrong[0])} is negative ({wrong.size} such "
            "entries): weights must be non-negative"
        )
    worst = _worst_asymmetry(csr)
    if worst is not None:
        i, j = worst
        raise ValueError(
            f"the adjacency is not symmetric: entry ({i}, {j}) is {csr[i, j]} and "
            f"entry ({j}, {i}) is {csr[j, i]}; symmetrise it, for example A + A.T"
        )


def _worst_asymmetry(csr: Any) -> tuple[int, int] | None:
    """The entry that differs most from its mirror image, if any does."""
    mirrored = csr.T.tocsr()
    worst, largest = None, 0.0
    # A block of rows at a time, so that the temporaries are small.
    for begin, end in _row_blocks(csr):
        one = csr[begin:end].astype(np.float64)
        two = mirrored[begin:end].astype(np.float64)
        # Relative to the two entries, not to the largest weight of the graph: beside
        # heavy edges a light one-way edge would pass for rounding.
        excess = (abs(one - two) - 1e-5 * one.maximum(two)).tocoo()
        if excess.nnz and excess.data.max() > largest:
            place = int(excess.data.argmax())
            largest = excess.data[place]
            row, column = (int(axis[place]) for axis in excess.coords)
            worst = begin + row, column
    return worst


def _row_blocks(csr: Any) -> Iterator[tuple[int, int]]:
    """Ranges of rows that have about a block of entries, or are one long row."""
    marks = np.arange(0, csr.nnz, _BLOCK)
    borders = np.unique(np.searchsorted(csr.indptr, marks, side="right") - 1).tolist()
    return itertools.pairwise([*borders, csr.shape[0]])


def _check_spectral_radius(csr: Any) -> None:
    if csr.shape[0] <= 64:
        radius = np.abs(np.linalg.eigvalsh(csr.toarray())).max()
    else:
        radius = np.abs(
            scipy.sparse.linalg.eigsh(
                csr,
                k=1,
                which="LM",
                v0=np.ones(csr.shape[0]),
                tol=1e-6,  # pyright: ignore[reportArgumentType]
                return_eigenvectors=False,
            )
        ).max()
    if radius > 1 + 1e-5:
        raise ValueError(
            f"the matrix has spectral radius {radius:.6g}, above 1, so its powers "
            "grow: pass normalize=True to have it normalised here"
        )


def prepare(adjacency: AdjacencyLike, *, normalize: bool = True) -> GraphOperator:
    r"""Checks a graph and turns it into the operator :math:`\tilde A`, once.

    .. math::
      \tilde A = D^{-1/2} A D^{-1/2}, \qquad D_{ii} = \sum_j A_{ij},

    with :math:`D_{ii}^{-1/2} = 0` where the degree is 0, so that an isolated node is
    multiplied by zero (the paper leaves this case open). Degrees are summed in float64.

    Args:
      adjacency: symmetric non-negative weights ``[n, n]``, *not* normalised: a BCOO or
        any SciPy sparse matrix. A :class:`GraphOperator` is returned as it is.
      normalize: ``False`` takes the matrix as already normalised.

    Returns:
      The operator, in float32 (float64 where ``jax_enable_x64`` is on).

    Raises:
      TypeError: if ``adjacency`` is no sparse matrix or is traced.
      ValueError: if it is not square, not symmetric, has no edges, an index out of
        range, or a negative or non-finite weight; or if ``normalize=False`` and the
        spectral radius is above 1.

    Examples:
      >>> import scipy.sparse
      >>> import sevo_jax as sevo
      >>> path = scipy.sparse.csr_array([[0.0, 1.0, 0.0], [1, 0, 1], [0, 1, 0]])
      >>> sevo.prepare(path)
      GraphOperator(3 nodes, 4 entries)
    """
    if isinstance(adjacency, GraphOperator):
        return adjacency
    csr = canonical(as_csr(adjacency))
    if np.count_nonzero(csr.data) < csr.nnz:
        csr = csr.copy()
        csr.eliminate_zeros()
    _check_weights(csr)
    if max(csr.nnz, csr.shape[0]) >= 2**31 - 1:
        raise ValueError(
            f"the graph has {csr.nnz} entries and {csr.shape[0]} nodes; indices are "
            "int32, so both must stay below 2**31 - 1: split the graph"
        )
    rows = _rows(csr)
    if normalize:
        weights = _normalized(csr, rows)
    else:
        _check_spectral_radius(csr.astype(np.float64))
        weights = csr.data
    # Copies: the memory may be the caller's, or a file's.
    return GraphOperator(
        weights=jnp.array(weights, jnp.result_type(float)),
        columns=jnp.array(csr.indices, jnp.int32),
        row_starts=jnp.array(csr.indptr, jnp.int32),
        rows=jnp.asarray(rows),
        num_nodes=csr.shape[0],
    )


def _normalized(csr: Any, rows: np.ndarray) -> np.ndarray:
    """The entries divided by the square roots of the degrees, computed in float64."""
    degrees = np.zeros(csr.shape[0])
    linked = np.flatnonzero(np.diff(csr.indptr))
    degrees[linked] = np.add.reduceat(
        csr.data, csr.indptr[linked].astype(np.intp), dtype=np.float64
    )
    scale = np.zeros_like(degrees)
    np.divide(1.0, np.sqrt(degrees), out=scale, where=degrees > 0)
    weights = np.empty(csr.nnz, jnp.result_type(float))
    for begin in range(0, csr.nnz, _BLOCK):
        part = slice(begin, begin + _BLOCK)
        # The product of the two scales first: exactly symmetric after rounding.
        scales = scale[rows[part]] * scale[csr.indices[part]]
        weights[part] = csr.data[part] * scales
    return weights


# ------------------------------------------------------------------ device side


def matmul(graph: GraphOperator, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    r"""The product :math:`\tilde A X`, in the dtype of ``x`` (float32 or float64).

    Under :func:`jax.vmap` over tables the tables are put side by side as columns, under
    ``vmap`` over graphs they are taken one after another: the slow batched sparse
    product is never reached. The gradient is the same product, since the operator is
    symmetric. A table sharded over its columns needs no communication.
    """
    return keep_sharding(_symmetric_product, graph, x)


def keep_sharding(function: Any, *args: Any) -> jax.Array:
    """``function(*args)``, of which the result is sharded like the last argument.

    On an explicit mesh every operation must carry sharding types, which neither the
    kernel nor flattening does. There this lets the partitioner place them, and promises
    the sharding of the result. Elsewhere it is only the call.
    """
    sharding = jax.typeof(args[-1]).sharding
    if not sharding.mesh.empty and AxisType.Explicit in sharding.mesh.axis_types:
        placed: Any = jax.sharding.auto_axes(function, out_sharding=sharding)
        return placed(*args)
    return function(*args)


@jax.custom_vjp
def _symmetric_product(graph: GraphOperator, x: jax.Array) -> jax.Array:
    return graph._apply(x)


# Both rules go through the custom_vjp function again, so that higher derivatives exist.
def _symmetric_product_fwd(graph: GraphOperator, x: jax.Array):
    return _symmetric_product(graph, x), graph


def _symmetric_product_bwd(graph: GraphOperator, cotangent: jax.Array):
    # None stands for a zero cotangent: the graph is data, not a parameter.
    return None, _symmetric_product(graph, cotangent)


_symmetric_product.defvjp(_symmetric_product_fwd, _symmetric_product_bwd)


@jax.custom_batching.custom_vmap
def _product(graph: GraphOperator, x: jax.Array) -> jax.Array:
    """The product of the rows of ``graph`` with a table, which may have more rows."""
    return jax.lax.platform_dependent(
        graph.weights.astype(x.dtype),
        graph.columns,
        graph.row_starts,
        graph.rows,
        x,
        cpu=_native_csr_product,
        default=_gather_segment_sum,
    )


@_product.def_vmap
def _product_of_many(
    axis_size: int, in_batched: list[Any], graph: GraphOperator, x: jax.Array
) -> tuple[jax.Array, bool]:
    graph_batched, x_batched = in_batched
    if not any(jax.tree.leaves(graph_batched)):
        return _product(graph, x), True

    leaves, treedef = jax.tree.flatten(graph)
    batched = jax.tree.leaves(graph_batched)

    def one(i: jax.Array) -> jax.Array:
        this = [leaf[i] if b else leaf for leaf, b in zip(leaves, batched, strict=True)]
        return _product(treedef.unflatten(this), x[i] if x_batched else x)

    return jax.lax.map(one, jnp.arange(axis_size)), True


def _native_csr_product(weights, columns, row_starts, rows, x):
    del rows
    product = _partitioned_csr_product(weights, columns, row_starts, x)
    # The kernel's type forgets over which axes of a shard_map the result varies. The
    # compiler drops this selection, its type remembers.
    return jnp.where(False, weights[0] * x[..., :1, :], product)


def _csr_product(weights, columns, row_starts, x):
    # BCSR lowers to the native kernel only for a two-dimensional product of equal
    # dtypes whose two index arrays have one dtype; _product sees to all of that.
    matrix = BCSR(
        (weights, columns, row_starts),
        shape=(row_starts.shape[0] - 1, x.shape[-2]),
        indices_sorted=True,
        unique_indices=True,
    )
    return _side_by_side(lambda table: matrix @ table, x)


def _side_by_side(product: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """The product of each of the tables ``[..., n, d]``, taken as one wide table."""
    n, d = x.shape[-2:]
    wide = jnp.moveaxis(x.reshape(-1, n, d), 0, 1).reshape(n, -1)
    products = product(wide)
    narrow = products.reshape(len(products), -1, d)
    return jnp.moveaxis(narrow, 1, 0).reshape(*x.shape[:-2], len(products), d)


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


def _gather_segment_sum(weights, columns, row_starts, rows, x):
    def product(table: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(
            weights[:, None] * table[columns],
            rows,
            num_segments=row_starts.shape[0] - 1,
            indices_are_sorted=True,
        )

    return _side_by_side(product, x)


# ------------------------------------------------------------------ shared checks


def check_beta(beta: Any) -> None:
    """Refuses a smoothing strength outside [0, 1), unless it is only known later."""
    if isinstance(beta, Tracer) or callable(beta):
        return
    if not 0.0 <= float(beta) < 1.0:
        raise ValueError(
            f"beta must lie in [0, 1), got {beta}: 0 is no smoothing, 0.99 the paper's"
        )


def check_num_layers(num_layers: Any) -> int:
    """Refuses a number of hops that is traced, fractional or negative."""
    if isinstance(num_layers, Tracer):
        raise TypeError(
            "num_layers is traced, but the number of hops shapes the program: pass a "
            "Python int (with optax.inject_hyperparams list 'num_layers' in "
            "static_args)"
        )
    try:
        value = operator.index(num_layers)
    except TypeError:
        raise TypeError(
            f"num_layers must be a Python int, got {num_layers!r}"
        ) from None
    if value < 0:
        raise ValueError(f"num_layers must be at least 0, got {value}")
    return value


def check_every(every: Any) -> int:
    """Refuses a period that is traced, fractional or below 1."""
    try:
        value = operator.index(every)
    except TypeError:
        raise TypeError(
            f"every must be a Python int, got {every!r}: it shapes the program (with "
            "optax.inject_hyperparams list 'every' in static_args)"
        ) from None
    if value < 1:
        raise ValueError(f"every must be at least 1, got {value}")
    return value
