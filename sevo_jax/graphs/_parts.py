"""Graphs on disk in parts, each a range of rows: larger than one matrix can be."""

import contextlib
import itertools
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import scipy.sparse

from sevo_jax import operators
from sevo_jax._files import naming, sync
from sevo_jax.graphs import _archive, _checks, _cooccurrence, _edges, _pairs

_MANIFEST, _VERSION = "parts.json", 1
# The indices of a part are int32.
_MOST = 2**31 - 2
# Pairs that are read back at once.
_BATCH = 2**22


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


class _Builder:
    """Sorts entries into the files of their parts, and counts part by part.

    Args:
      folder: an existing folder, for itself.
      num_nodes: number of rows and columns.
      num_parts: into how many ranges of rows they are cut.
      dtype: of what is kept for an entry: its key, which `_pairs.keys_of` makes of its
        row in the part and its column, and perhaps its weight.
    """

    def __init__(self, folder: Path, num_nodes: int, num_parts: int, dtype: Any):
        self.folder, self.num_nodes, self.dtype = folder, num_nodes, np.dtype(dtype)
        self.size = -(-num_nodes // num_parts)
        self.begins = range(0, num_nodes, self.size)

    def add(
        self, group: int, rows: np.ndarray, columns: np.ndarray, weights: Any = None
    ) -> None:
        """Appends entries to the files of a group, one file a part."""
        parts, rows = np.divmod(rows, self.size)
        entries = np.empty(len(rows), self.dtype)
        if weights is None:
            entries[:] = _pairs.keys_of(rows, columns)
        else:
            entries["key"] = _pairs.keys_of(rows, columns)
            entries["weight"] = weights
        order = np.argsort(parts, kind="stable")
        entries = entries[order]
        borders = np.searchsorted(parts[order], np.arange(len(self.begins) + 1))
        for part, (begin, end) in enumerate(itertools.pairwise(borders.tolist())):
            if begin < end:
                with self._file(group, part).open("ab") as file:
                    entries[begin:end].tofile(file)

    def read(self, group: int, part: int) -> Iterator[np.ndarray]:
        """The entries of a file, some at a time; it is gone after that."""
        path = self._file(group, part)
        if path.exists():
            with path.open("rb") as file:
                while len(entries := np.fromfile(file, self.dtype, _BATCH)):
                    yield entries
            path.unlink()

    def write(self, count: Callable[[int, tuple[int, int]], Any]) -> None:
        """Writes all parts and the list of them.

        Args:
          count: makes the float32 matrix of a part, of a shape, from its number.
        """
        parts = []
        for number, begin in enumerate(self.begins):
            shape = (min(self.size, self.num_nodes - begin), self.num_nodes)
            matrix = count(number, shape)
            matrix.eliminate_zeros()
            if matrix.nnz > _MOST:
                raise ValueError(
                    f"part {number} of {len(self.begins)} has {matrix.nnz} entries, "
                    f"and a part at most {_MOST}, as indices are int32: build the "
                    "graph in more parts"
                )
            arrays = {
                "shape": matrix.shape,
                "indptr": matrix.indptr,
                "indices": matrix.indices,
                "data": matrix.data,
                "degrees": operators.degrees_of(matrix),
            }
            path = self.folder / f"part-{number:05}.npz"
            checksums = _archive.write_archive(path, _archive.PART, arrays)
            sync(path)
            parts.append(_Part(path.name, begin, matrix.nnz, checksums)._asdict())
        manifest = {
            "format": _archive.PART,
            "version": _VERSION,
            "num_nodes": self.num_nodes,
            "parts": parts,
        }
        path = self.folder / _MANIFEST
        path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        sync(path)
        sync(self.folder)

    def _file(self, group: int, part: int) -> Path:
        return self.folder / f"entries-{group}-{part}.tmp"


@contextlib.contextmanager
def _building(
    folder: str | os.PathLike[str], num_nodes: int, num_parts: Any, dtype: Any
) -> Iterator[_Builder]:
    """A builder in a folder that gets its name if the block succeeds."""
    num_parts = _checks.count("num_parts", num_parts, 1)
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(
            f"{folder} is there already: remove it, or choose another folder"
        )
    if not folder.parent.is_dir():
        raise FileNotFoundError(
            f"cannot save {folder}: there is no folder {folder.parent}, create it first"
        )
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        with naming(folder):
            temporary.mkdir()
            yield _Builder(temporary, num_nodes, num_parts, dtype)
            os.rename(temporary, folder)
            sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cooccurrence_parts(
    folder: str | os.PathLike[str],
    sequences: _cooccurrence.Ragged | Iterable[Any],
    num_items: int,
    *,
    num_parts: int,
    max_len: int | None = None,
    keep: str = "last",
    max_hop: int = 1,
    weighting: str = "distance",
    item_offset: int = 0,
    num_nodes: int | None = None,
) -> GraphParts:
    r"""Builds the graph of :func:`cooccurrence` on disk, in parts of some rows each.

    For a graph of more than :math:`2^{31}` entries, or larger than the memory. It is
    that of :func:`cooccurrence` entry by entry and bit for bit. Every pair of related
    items is written to the part of its row, 16 bytes in all for each; then the parts
    are counted one after another. The memory holds some million pairs, and what
    :func:`cooccurrence` takes for a single part; the disk, of `folder`, all the pairs.

    Args:
      folder: where to build it: a new folder, which appears when all of it is there.
      sequences: as :func:`cooccurrence`; ``sevo_jax.data.stream`` reads them from
        files of any size.
      num_items: number of items, at least 1.
      num_parts: into how many ranges of rows, all equally long, the graph is cut; at
        least as many as give a part that fits in the memory, with fewer than
        :math:`2^{31}` entries. It need not be the number of devices, of which each
        reads the parts that its rows are in.
      max_len, keep, max_hop, weighting, item_offset, num_nodes: as
        :func:`cooccurrence`.

    Returns:
      The graph.

    Raises:
      FileExistsError: if `folder` is there already.
      FileNotFoundError: if the folder that it is to be in is not there.
      TypeError, ValueError: as :func:`cooccurrence`; or a part has too many entries.

    Examples:
      >>> import jax, pathlib, tempfile
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> import sevo_jax as sevo
      >>> mesh = jax.sharding.Mesh(jax.devices()[:2], ("rows",))
      >>> sharding = NamedSharding(mesh, PartitionSpec("rows"))
      >>> with tempfile.TemporaryDirectory() as place:
      ...     folder = pathlib.Path(place, "items")
      ...     parts = sevo.graphs.cooccurrence_parts(
      ...         folder, [[0, 1, 2, 3]], num_items=4, num_parts=3)
      ...     sevo.shard_rows(parts, sharding)
      ShardedGraphOperator(4 nodes in 2 blocks, halo 1)
    """
    num_items, item_offset, num_nodes = _checks.item_nodes(
        num_items, item_offset, num_nodes
    )
    related = _cooccurrence.related_pairs(
        sequences, num_items, item_offset, max_len, keep, max_hop, weighting
    )
    with _building(folder, num_nodes, num_parts, np.int64) as builder:
        divisors = set()
        for divisor, one, two in related:
            divisors.add(divisor)
            builder.add(divisor, one, two)
            # A self-loop counts twice, as Algorithm 4 does.
            builder.add(divisor, two, one)

        def counts(divisor: int, part: int, shape: tuple[int, int]) -> Any:
            counted = _pairs.PairCounts(*shape)
            for keys in builder.read(divisor, part):
                counted.add_keys(keys)
            return counted.counts()

        builder.write(
            lambda part, shape: _cooccurrence.weighted_sum(
                ((each, counts(each, part, shape)) for each in sorted(divisors)), shape
            )
        )
    return GraphParts(folder)


def from_edges_parts(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    num_items: int,
    *,
    num_parts: int,
    item_offset: int = 0,
    num_nodes: int | None = None,
) -> GraphParts:
    r"""Builds the graph of :func:`from_edges` on disk, in parts of some rows each.

    For a table of more than :math:`2^{30}` edges, or larger than the memory, such as
    :func:`cooccurrence_sql` makes. Edges are sorted into parts on the disk, 24 bytes
    each; the memory holds about four times a single part.

    Args:
      folder: where to build it: a new folder, which appears when all of it is there.
      path: the table of edges, as :func:`from_edges` takes it.
      num_items: number of items, at least 1.
      num_parts: as :func:`cooccurrence_parts`.
      item_offset, num_nodes: as :func:`from_edges`.

    Returns:
      The graph, equal to that of :func:`from_edges`.

    Raises:
      FileExistsError: if `folder` is there already.
      FileNotFoundError, ModuleNotFoundError, TypeError, ValueError: as
        :func:`from_edges`; or a part has too many entries.

    Examples:
      >>> import pathlib, pyarrow, pyarrow.parquet, tempfile
      >>> import sevo_jax as sevo
      >>> table = pyarrow.table({"i": [1, 0], "j": [1, 2], "weight": [2.0, 0.5]})
      >>> with tempfile.TemporaryDirectory() as place:
      ...     edges = pathlib.Path(place, "edges.parquet")
      ...     pyarrow.parquet.write_table(table, edges)
      ...     sevo.graphs.from_edges_parts(
      ...         pathlib.Path(place, "items"), edges, num_items=3, num_parts=3)
      GraphParts(3 nodes, 3 entries, 3 parts)
    """
    num_items, item_offset, num_nodes = _checks.item_nodes(
        num_items, item_offset, num_nodes
    )
    batches = _edges.read_edges(path, num_items)
    entry = np.dtype([("key", np.int64), ("weight", np.float32)])
    with _building(folder, num_nodes, num_parts, entry) as builder:
        for one, two, weights in batches:
            one, two = one + item_offset, two + item_offset
            builder.add(0, one, two, weights)
            mirrored = one != two
            builder.add(0, two[mirrored], one[mirrored], weights[mirrored])

        def matrix(part: int, shape: tuple[int, int]) -> Any:
            first = np.empty(0, entry)
            entries = np.concatenate([first, *builder.read(0, part)])
            entries.sort(order="key")
            keys = entries["key"]
            rows, columns = _pairs.rows_of(keys), _pairs.columns_of(keys)
            if len(repeated := np.flatnonzero(keys[1:] == keys[:-1])):
                row = builder.begins[part] + rows[repeated[0]]
                pair = sorted(np.array([row, columns[repeated[0]]]) - item_offset)
                raise _edges.repeated_error(path, *pair)
            row_starts = np.searchsorted(rows, np.arange(shape[0] + 1))
            parts = (entries["weight"], columns, row_starts.astype(np.int32))
            return scipy.sparse.csr_array(parts, shape=shape)

        builder.write(matrix)
    return GraphParts(folder)
