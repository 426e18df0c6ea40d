"""Graphs on disk in parts, each a range of rows: larger than one matrix can be."""

import itertools
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import scipy.sparse

from sevo_jax import operators
from sevo_jax._files import sync
from sevo_jax.graphs import _archive

_MANIFEST, _VERSION = "parts.json", 1
# The indices of a part are int32.
_MOST = 2**31 - 2


class _Part(NamedTuple):
    """A line of the list of parts.

    Attributes:
      file: its name in the folder.
      begin: its first row; the next part's first row ends it.
      num_entries: its entries.
      checksums: of its arrays, which tell it from parts of other graphs.
    """

    file: str
    begin: int
    num_entries: int
    checksums: str


class GraphParts:
    """A graph in a folder, in parts of some rows each: larger than one matrix can be.

    Made by :func:`cooccurrence_parts` and :func:`from_edges_parts`, and opened by the
    name of its folder. It is symmetric and not normalised, as all graphs here. Opening
    reads the degrees of the nodes alone, 8 bytes each; :func:`sevo_jax.shard_rows`
    takes it, and each process then reads the rows of its own devices.

    In the folder are a file for each part and ``parts.json``, the list of them with the
    checksums by which a part that was changed, or is another graph's, is refused.

    Args:
      folder: the folder.

    Raises:
      FileNotFoundError: if there is no such folder, or one of its parts is missing.
      ValueError: if it holds no graph in parts, or one of a newer version; or a part is
        damaged, or not the one that was written there.

    Examples:
      >>> import pathlib, tempfile
      >>> import sevo_jax as sevo
      >>> with tempfile.TemporaryDirectory() as place:
      ...     folder = pathlib.Path(place, "items")
      ...     sevo.graphs.cooccurrence_parts(
      ...         folder, [[0, 1, 2]], num_items=3, num_parts=2)
      ...     parts = sevo.graphs.GraphParts(folder)
      ...     print(parts.num_nodes, parts.num_entries, parts.degrees)
      ...     print(parts.rows(1, 3).todense())
      GraphParts(3 nodes, 4 entries, 2 parts)
      3 4 [1. 2. 1.]
      [[1. 0. 1.]
       [0. 1. 0.]]
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = Path(folder)
        self._num_nodes, self._parts = _read_manifest(self._folder)

        def degrees(file: BinaryIO, archive: zipfile.ZipFile) -> np.ndarray:
            return _archive.read_array(file, archive, "degrees").copy()

        each = [self._read(part, degrees) for part in self._parts]
        self._degrees = np.concatenate(each)
        if len(self._degrees) != self._num_nodes:
            raise _damaged(self._folder, "its parts have other rows than it says")

    @property
    def num_nodes(self) -> int:
        """Number of rows and columns."""
        return self._num_nodes

    @property
    def num_entries(self) -> int:
        """Number of entries of all parts; an edge counts twice, a self-loop once."""
        return sum(part.num_entries for part in self._parts)

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return len(self._parts)

    @property
    def degrees(self) -> np.ndarray:
        """The sum of each row, float64 ``[num_nodes]``."""
        return self._degrees

    def rows(self, begin: int, end: int) -> scipy.sparse.csr_array:
        """Reads the rows from `begin` up to `end`, which is left out.

        Only the parts that have some of them are read. What lies in one part stays in
        its file, mapped into memory, read-only.

        Returns:
          Their weights, float32 ``[end - begin, num_nodes]``, not normalised.

        Raises:
          IndexError: if there are no such rows.
          FileNotFoundError, ValueError: if a part is missing, damaged or another.
        """
        if not 0 <= begin <= end <= self._num_nodes:
            raise IndexError(
                f"rows {begin} to {end} are not among the {self._num_nodes} of the "
                f"graph {self._folder}"
            )
        found: list[Any] = []
        starts = [*(part.begin for part in self._parts), self._num_nodes]
        for part, (first, last) in zip(self._parts, itertools.pairwise(starts)):
            low, high = max(begin, first), min(end, last)
            if low < high:
                matrix = self._read(part, _archive.read_rows)
                if matrix.shape != (last - first, self._num_nodes):
                    raise _damaged(self._folder / part.file, "it has another shape")
                found.append(matrix[low - first : high - first])
        if not found:
            return scipy.sparse.csr_array((0, self._num_nodes), dtype=np.float32)
        whole: Any = found[0] if len(found) == 1 else scipy.sparse.vstack(found, "csr")
        return whole

    def _read(
        self, part: _Part, read: Callable[[BinaryIO, zipfile.ZipFile], Any]
    ) -> Any:
        path = self._folder / part.file
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise FileNotFoundError(
                f"the graph {self._folder} has no {part.file}, which is one of its "
                f"{len(self._parts)} parts: copy the folder whole, or build it again"
            ) from None
        with file:
            # Damaged bytes make zipfile and NumPy raise errors of many kinds.
            try:
                archive = zipfile.ZipFile(file)
                known = _archive.checksums(archive) == part.checksums
                result = read(file, archive) if known else None
            except Exception as error:
                reason = str(error).partition("\n")[0][:200] or type(error).__name__
                raise _damaged(path, reason) from error
        if not known:
            raise _damaged(path, "it is not the part that was written there")
        return result

    def __repr__(self) -> str:
        return (
            f"GraphParts({self._num_nodes} nodes, {self.num_entries} entries, "
            f"{len(self._parts)} parts)"
        )


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"cannot load the graph {path}: {reason}: build it again")


def _read_manifest(folder: Path) -> tuple[int, list[_Part]]:
    path = folder / _MANIFEST
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: there is no such folder of a graph in parts"
        )
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no graph in parts, as it has no {_MANIFEST}: give a "
            "folder that cooccurrence_parts or from_edges_parts wrote"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != _archive.PART:
            raise ValueError("not written by this package, by its format")
        version = manifest["version"]
        if version == _VERSION:
            parts = [_Part(**part) for part in manifest["parts"]]
            begins = [part.begin for part in parts]
            if not parts or begins[0] != 0 or begins != sorted(set(begins)):
                raise ValueError("its parts are not in order")
            return int(manifest["num_nodes"]), parts
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error).partition("\n")[0][:200]) from error
    raise ValueError(
        f"cannot load the graph {folder}: its format has version {version}, but this "
        f"release reads {_VERSION}: upgrade sevo_jax, or build it again"
    )


def write_parts(
    folder: Path,
    num_nodes: int,
    begins: Sequence[int],
    count: Callable[[int, tuple[int, int]], Any],
) -> None:
    """Writes all parts of a graph and the list of them.

    Args:
      folder: an existing folder.
      num_nodes: number of rows and columns.
      begins: the first row of each part.
      count: makes the float32 matrix of a part, of a shape, from its number.
    """
    parts = []
    borders = itertools.pairwise([*begins, num_nodes])
    for number, (begin, end) in enumerate(borders):
        matrix = count(number, (end - begin, num_nodes))
        matrix.eliminate_zeros()
        if matrix.nnz > _MOST:
            raise ValueError(
                f"part {number} of {len(begins)} has {matrix.nnz} entries, and a part "
                f"at most {_MOST}, as indices are int32: build the graph in more parts"
            )
        arrays = {
            "shape": matrix.shape,
            "indptr": matrix.indptr,
            "indices": matrix.indices,
            "data": matrix.data,
            "degrees": operators.degrees_of(matrix),
        }
        path = folder / f"part-{number:05}.npz"
        checksums = _archive.write_archive(path, _archive.PART, arrays)
        sync(path)
        parts.append(_Part(path.name, begin, matrix.nnz, checksums)._asdict())
    manifest = {
        "format": _archive.PART,
        "version": _VERSION,
        "num_nodes": num_nodes,
        "parts": parts,
    }
    path = folder / _MANIFEST
    path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    sync(path)
    sync(folder)
