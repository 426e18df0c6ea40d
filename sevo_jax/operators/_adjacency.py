"""From a graph as people have it to an operator: conversion, checks, normalisation.

All of it runs on the host, once a graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, TypeAlias, overload

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jax.core import Tracer
from jax.experimental.sparse import BCOO

from sevo_jax import _checks
from sevo_jax.operators._operator import CSROperator, GraphOperator

Adjacency: TypeAlias = (
    BCOO | scipy.sparse.sparray | scipy.sparse.spmatrix | np.ndarray | jax.Array
)
AdjacencyLike: TypeAlias = Adjacency | GraphOperator

_TRACED = (
    "the adjacency is traced: call sevo_jax.prepare(adjacency) outside jit and pass "
    "the GraphOperator it returns as the argument"
)

# How what others have becomes a graph here, by the name of its package or type.
_ELSEWHERE = {
    "networkx": "networkx.to_scipy_sparse_array(graph, nodelist=range(num_nodes))",
    "list": "numpy.array(graph) of the whole matrix",
    "pathlib": "sevo_jax.graphs.load(path)",
    "str": "sevo_jax.graphs.load(path)",
    "GraphParts": "sevo_jax.shard_rows(parts, sharding), the way of graphs in parts",
}
_EDGES = "scipy.sparse.coo_array((weights, (rows, columns)), shape=(n, n)) of its edges"

# Weights outside these bounds would leave the range of float64 on the way.
_SMALLEST, _LARGEST = 1e-150, 1e150

# The indices of an operator are int32.
_MOST = 2**31 - 2

# Entries that are worked on at once, where all would need as much memory again.
_BLOCK = 2**20


def bcoo_from_scipy(matrix: scipy.sparse.sparray | scipy.sparse.spmatrix) -> BCOO:
    """A float32 BCOO with sorted, unique int32 indices, and flagged so.

    ``BCOO.from_scipy_sparse`` leaves the flags off, and GPU kernels need them.
    """
    csr = in_float32(canonical(scipy.sparse.csr_array(matrix)))
    # NumPy's own memory is not aligned as JAX wants it, which would copy it.
    size = 8 * csr.nnz
    memory = np.empty(size + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    indices = memory[begin : begin + size].view(np.int32).reshape(csr.nnz, 2)
    indices[:, 0] = rows_of(csr)
    indices[:, 1] = csr.indices
    return BCOO(
        # A copy: the memory may be the caller's, or a file's.
        (jnp.array(csr.data), jnp.asarray(indices, jnp.int32)),
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


def in_float32(csr: Any) -> Any:
    """The matrix with float32 weights: itself, or another on the same indices.

    Raises:
      ValueError: if a weight is too large or too small for float32.
    """
    if csr.dtype == np.float32:
        return csr
    with np.errstate(over="ignore", under="ignore"):
        data = csr.data.astype(np.float32)
    lost = (np.isinf(data) & np.isfinite(csr.data)) | ((data == 0) & (csr.data != 0))
    if lost.any():
        raise ValueError(
            f"the weight {csr.data[lost][0]} does not fit in float32: scale the "
            "weights, only their ratios matter"
        )
    return scipy.sparse.csr_array((data, csr.indices, csr.indptr), shape=csr.shape)


def rows_of(csr: Any) -> np.ndarray:
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
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(adjacency)):
        raise TypeError(_TRACED)
    if isinstance(adjacency, CSROperator):
        shape = (adjacency.num_nodes, adjacency.num_nodes)
        parts = (adjacency.weights, adjacency.columns, adjacency.row_starts)
        return scipy.sparse.csr_array(
            tuple(np.asarray(part) for part in parts), shape=shape
        )
    if isinstance(adjacency, GraphOperator):
        raise TypeError(
            f"{adjacency!r} is split over devices: give the graph it was made from"
        )
    if isinstance(adjacency, BCOO):
        _check_plain(adjacency)
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
    if type(adjacency).__name__ == "BCSR":
        bcsr: Any = adjacency
        _check_plain(bcsr)
        parts = (bcsr.data, bcsr.indices, bcsr.indptr)
        adjacency = scipy.sparse.csr_array(
            tuple(np.asarray(part) for part in parts), shape=bcsr.shape
        )
    elif isinstance(adjacency, np.ndarray | jax.Array):
        _check_square(adjacency.shape)
        adjacency = scipy.sparse.csr_array(_real(np.asarray(adjacency)))
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
        if matrix.format not in ("csr", "csc", "bsr"):
            # The conversion sums duplicates, in the dtype that they have.
            _check_real(matrix.dtype)
            matrix = matrix.astype(np.float64)
        csr: Any = scipy.sparse.csr_array(matrix)
        csr.data = _real(csr.data)
        return csr
    kind = type(adjacency)
    package = kind.__module__.partition(".")[0]
    remedy = _ELSEWHERE.get(package) or _ELSEWHERE.get(kind.__name__, _EDGES)
    raise TypeError(
        "a graph is a sparse matrix of SciPy or JAX, a square array or a "
        f"GraphOperator, got {kind.__module__}.{kind.__qualname__}: give {remedy}"
    )


def _real(data: np.ndarray) -> np.ndarray:
    """Weights in the float32 or float64 they are in, others in float64."""
    _check_real(data.dtype)
    single_or_double = data.dtype in (np.dtype(np.float32), np.dtype(np.float64))
    return data if single_or_double else data.astype(np.float64)


def _check_real(dtype: np.dtype) -> None:
    if dtype.kind in "cOUS":
        raise TypeError(
            f"the weights of the adjacency are {dtype}: they must be real numbers, "
            "such as abs(A) for a complex A"
        )


def _csr_of_pairs(data: np.ndarray, indices: np.ndarray, shape: tuple) -> Any:
    rows, columns = indices[:, 0], indices[:, 1]
    if (rows[1:] < rows[:-1]).any():
        data = data.astype(np.float64)
        return scipy.sparse.coo_array((data, (rows, columns)), shape=shape).tocsr()
    # In order already: the same without a second copy of everything.
    kind = np.int32 if max(data.size, *shape) < 2**31 else np.int64
    row_starts = np.searchsorted(rows, np.arange(shape[0] + 1))
    parts = (data, columns.astype(kind), row_starts.astype(kind))
    return scipy.sparse.csr_array(parts, shape=shape)


def _check_plain(matrix: Any) -> None:
    """Refuses a matrix of JAX that has dimensions beside its rows and columns."""
    if matrix.n_batch or matrix.n_dense:
        raise ValueError(
            f"the adjacency must be a plain two-dimensional {type(matrix).__name__}, "
            f"got shape {matrix.shape} with n_batch={matrix.n_batch} and "
            f"n_dense={matrix.n_dense}"
        )
    _check_square(matrix.shape)


def _check_square(shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(
            f"an adjacency matrix must be square, got shape {shape}: rows and columns "
            "are the same nodes"
        )


def checked_csr(adjacency: Adjacency) -> Any:
    """As :func:`as_csr`, in order, without zeros, and with weights of edges alone.

    Raises:
      ValueError: if there are no edges, or one has no weight that it may have.
    """
    csr = canonical(as_csr(adjacency))
    if np.count_nonzero(csr.data) < csr.nnz:
        csr = csr.copy()
        csr.eliminate_zeros()
    _check_weights(csr)
    return csr


def check_size(csr: Any) -> None:
    """Refuses a matrix that int32 cannot index."""
    if max(csr.nnz, csr.shape[0]) > _MOST:
        raise ValueError(
            f"the graph has {csr.nnz} entries and {csr.shape[0]} nodes; indices are "
            f"int32, so both must be at most {_MOST}: build it in parts, "
            "sevo_jax.graphs.cooccurrence_parts or from_edges_parts, which shard_rows "
            "splits over devices"
        )


def check_linked(num_entries: int, num_nodes: int) -> None:
    """Refuses a graph without an edge."""
    if num_entries == 0:
        raise ValueError(
            f"the graph of {num_nodes} nodes has no edges: smoothing over it would "
            "only shrink every update; leave the table out of `graphs` instead"
        )


def _check_weights(csr: Any) -> None:
    def entry(position: int) -> str:
        row = int(np.searchsorted(csr.indptr, position, side="right")) - 1
        return f"({row}, {csr.indices[position]}) = {csr.data[position]}"

    check_linked(csr.nnz, csr.shape[0])
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
    # All of float32 is within these bounds.
    double = csr.data.dtype == np.float64
    if double and not _SMALLEST <= csr.data.min() <= csr.data.max() <= _LARGEST:
        wrong = np.flatnonzero((csr.data < _SMALLEST) | (csr.data > _LARGEST))
        raise ValueError(
            f"adjacency entry {entry(wrong[0])} is outside {_SMALLEST} to {_LARGEST} "
            f"({wrong.size} such entries): scale the weights, only their ratios matter"
        )


def _check_symmetric(csr: Any) -> None:
    worst = _worst_asymmetry(csr)
    if worst is not None:
        i, j = worst
        raise ValueError(
            f"the adjacency is not symmetric: entry ({i}, {j}) is {csr[i, j]} and "
            f"entry ({j}, {i}) is {csr[j, i]}; symmetrise it, for example A + A.T, "
            "or sevo_jax.graphs.from_directed(A) if edges have directions"
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


@overload
def prepare(
    adjacency: Adjacency, *, normalize: bool = True, capacity: int | None = None
) -> CSROperator: ...
@overload
def prepare(
    adjacency: AdjacencyLike, *, normalize: bool = True, capacity: int | None = None
) -> GraphOperator: ...
def prepare(
    adjacency: AdjacencyLike, *, normalize: bool = True, capacity: int | None = None
) -> GraphOperator:
    r"""Checks a graph and turns it into the operator :math:`\tilde A`, once.

    .. math::
      \tilde A = D^{-1/2} A D^{-1/2}, \qquad D_{ii} = \sum_j A_{ij},

    with :math:`D_{ii}^{-1/2} = 0` where the degree is 0, so that an isolated node is
    multiplied by zero (the paper leaves this case open). Degrees are summed in float64.

    Args:
      adjacency: symmetric non-negative weights ``[n, n]``, *not* normalised: a sparse
        matrix of SciPy or JAX, or a dense array. Entries that occur twice are summed
        in float64. A :class:`GraphOperator` is returned as it is.
      normalize: ``False`` takes the matrix as already normalised.
      capacity: number of entries to make room for, the rest of which is empty. Graphs
        of one capacity share one compiled program: for a graph that changes as it is
        passed to a jitted step. ``None`` for no empty room.

    Returns:
      The operator, in float32 (float64 where ``jax_enable_x64`` is on).

    Raises:
      TypeError: if ``adjacency`` is no sparse matrix or is traced.
      ValueError: if it is not square, not symmetric, has no edges, an index out of
        range, or a negative or non-finite weight; or if ``normalize=False`` and the
        spectral radius is above 1; or ``capacity`` is below the number of entries.

    Examples:
      >>> import scipy.sparse
      >>> import sevo_jax as sevo
      >>> path = scipy.sparse.csr_array([[0.0, 1.0, 0.0], [1, 0, 1], [0, 1, 0]])
      >>> sevo.prepare(path)
      CSROperator(3 nodes, 4 entries)
    """
    if isinstance(adjacency, GraphOperator):
        if capacity is not None and capacity != adjacency.num_entries:
            raise ValueError(
                f"{adjacency!r} is prepared already, for another capacity than "
                f"{capacity}: give the graph it was made from"
            )
        return adjacency
    csr = checked_csr(adjacency)
    _check_symmetric(csr)
    check_size(csr)
    rows = rows_of(csr)
    if normalize:
        scale = inverse_roots(degrees_of(csr))
        weights = scaled(csr, rows, scale, scale)
    else:
        _check_spectral_radius(csr.astype(np.float64))
        weights = csr.data
        least = weights.min(initial=1)
        if least < jnp.finfo(jnp.result_type(float)).tiny:
            raise ValueError(
                f"the weight {least} is below the range of {jnp.result_type(float)}, "
                "where it would be zero: leave it out, or pass normalize=True"
            )
    columns = csr.indices
    if capacity is not None:
        _checks.require(
            isinstance(capacity, int | np.integer) and csr.nnz <= capacity <= _MOST,
            "capacity",
            capacity,
            f"an integer from {csr.nnz}, the graph's number of entries, to {_MOST}",
        )
        empty = (0, capacity - csr.nnz)
        weights, columns = np.pad(weights, empty), np.pad(columns, empty)
        # Out of range: what fills up is dropped, not added to a row.
        rows = np.pad(rows, empty, constant_values=csr.shape[0])
    return csr_operator(weights, columns, csr.indptr, rows)


def csr_operator(weights: Any, columns: Any, row_starts: Any, rows: Any) -> CSROperator:
    """The operator of these arrays, which are in order, in JAX's default precision."""
    # Copies: the memory may be the caller's, or a file's.
    return CSROperator(
        weights=jnp.array(weights, jnp.result_type(float)),
        columns=jnp.array(columns, jnp.int32),
        row_starts=jnp.array(row_starts, jnp.int32),
        rows=jnp.asarray(rows),
        num_nodes=len(row_starts) - 1,
    )


def degrees_of(csr: Any) -> np.ndarray:
    """The sum of each row, in float64."""
    degrees = np.zeros(csr.shape[0])
    linked = np.flatnonzero(np.diff(csr.indptr))
    degrees[linked] = np.add.reduceat(
        csr.data, csr.indptr[linked].astype(np.intp), dtype=np.float64
    )
    return degrees


def inverse_roots(degrees: np.ndarray) -> np.ndarray:
    """1 / sqrt(degree), and 0 where the degree is 0."""
    scale = np.zeros_like(degrees)
    np.divide(1.0, np.sqrt(degrees), out=scale, where=degrees > 0)
    return scale


def scaled(
    csr: Any, rows: np.ndarray, left: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """The entries times the scales of their row and column, computed in float64."""
    weights = np.empty(csr.nnz, jnp.result_type(float))
    for begin in range(0, csr.nnz, _BLOCK):
        part = slice(begin, begin + _BLOCK)
        # The product of the two scales first: exactly symmetric after rounding.
        scales = left[rows[part]] * right[csr.indices[part]]
        weights[part] = csr.data[part] * scales
    return weights
