"""Graphs on disk: one ``.npz`` file a graph, without pickle."""

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import scipy.sparse

from sevo_jax import _sparse
from sevo_jax._files import replacing

_FORMAT = "sevo_jax.graph"
_VERSION = 1
# Little-endian whatever the machine.
_ARRAYS = {"shape": "<i8", "indptr": "<i8", "indices": "<i4", "data": "<f4"}


def save(
    path: str | os.PathLike[str],
    adjacency: _sparse.BCOO | scipy.sparse.sparray | scipy.sparse.spmatrix,
) -> None:
    """Writes a graph to a file that :func:`load` reads back.

    The file is an uncompressed NumPy archive of the arrays of the compressed sparse
    row form (``shape``, ``indptr``, ``indices``, ``data``) with a ``format`` and a
    ``version``. It appears whole or not at all: a reader never sees half of it, and
    an existing file is kept until the new one is complete.

    Args:
      path: the file, in an existing folder; ``.npz`` by custom, nothing is
        appended to the name.
      adjacency: the graph, ``[n, n]``, not normalised; its weights are stored in
        float32.

    Raises:
      FileNotFoundError: if the folder does not exist.
      TypeError: if ``adjacency`` is no sparse matrix, or has been prepared.
      ValueError: if ``adjacency`` is not square or an index is out of range.

    Examples:
      >>> import pathlib, tempfile
      >>> import sevo_jax as sevo
      >>> graph = sevo.graphs.cooccurrence([[0, 1, 2]], num_items=3)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "items.npz")
      ...     sevo.graphs.save(path, graph)
      ...     print(sevo.graphs.load(path).todense())
      [[0. 1. 0.]
       [1. 0. 1.]
       [0. 1. 0.]]
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"cannot save {path}: there is no folder {path.parent}, create it first"
        )
    if isinstance(adjacency, _sparse.GraphOperator):
        raise TypeError(
            "a prepared graph is normalised, and would be normalised again after "
            "load: save the adjacency that prepare was given"
        )
    matrix = _sparse.to_scipy(adjacency)
    arrays: dict[str, Any] = {
        name: np.asarray(getattr(matrix, name), dtype)
        for name, dtype in _ARRAYS.items()
    }
    with replacing(path) as temporary, open(temporary, "xb") as file:
        np.savez(file, format=_FORMAT, version=_VERSION, **arrays)
        file.flush()
        os.fsync(file.fileno())


def load(path: str | os.PathLike[str]) -> _sparse.BCOO:
    """Reads a graph that :func:`save` wrote, equal to it bit for bit.

    Nothing in the file is executed (no pickle), and its arrays are checked before
    they become a graph.

    Args:
      path: the file.

    Returns:
      The adjacency ``[n, n]``, as it was saved.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged, no graph of this package, or of a newer
        version.

    Examples:
      See :func:`save`.
    """
    with open(path, "rb") as file:
        try:
            return _sparse.bcoo_from_scipy(_read(file))
        # Damaged bytes make zipfile and NumPy raise errors of many kinds.
        except Exception as error:
            raise ValueError(f"cannot load the graph {path}: {error}") from error


def _read(file: BinaryIO) -> scipy.sparse.csr_array:
    """Returns the matrix in an open file, refusing one that is not as it should be."""
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("this is a single array, not an archive of save()")
    if "format" not in archive or str(archive["format"]) != _FORMAT:
        raise ValueError(f"not written by save(): it holds {sorted(archive.files)}")
    version = int(archive["version"])
    if version != _VERSION:
        raise ValueError(
            f"its format has version {version}, but this release reads {_VERSION}: "
            "upgrade sevo_jax, or save the graph again"
        )
    arrays = {name: archive[name] for name in _ARRAYS}
    for name, dtype in _ARRAYS.items():
        if arrays[name].dtype != np.dtype(dtype):
            raise ValueError(f"{name} is {arrays[name].dtype}, not {np.dtype(dtype)}")
    shape, indptr, indices, data = (arrays[name] for name in _ARRAYS)
    # SciPy's own check lets some broken row pointers pass, and its compiled code
    # then writes out of bounds.
    sound = (
        shape.shape == (2,)
        and shape[0] == shape[1] >= 0
        and indptr.shape == (shape[0] + 1,)
        and indptr[0] == 0
        and (np.diff(indptr) >= 0).all()
        and indices.shape == data.shape == (indptr[-1],)
        and ((indices >= 0) & (indices < shape[0])).all()
    )
    if not sound:
        raise ValueError("its arrays do not describe the rows of a square matrix")
    return scipy.sparse.csr_array((data, indices, indptr), shape=tuple(shape.tolist()))
