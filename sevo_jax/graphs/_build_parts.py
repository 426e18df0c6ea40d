"""Builds graphs in parts: entries are sorted on the disk, then counted by parts."""

import contextlib
import itertools
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from sevo_jax._files import check_folder, naming, sync
from sevo_jax.graphs import _checks, _cooccurrence, _edges, _pairs
from sevo_jax.graphs._parts import GraphParts, write_parts

# Entries that are read back at once.
_BATCH = 2**22


class _EntryFiles:
    """Entries of a graph on the disk, sorted by the part that they are of.

    Args:
      folder: an existing folder, for itself.
      num_nodes: number of rows and columns.
      num_parts: into how many ranges of rows they are cut.
      dtype: of what is kept for an entry: its key, which `_pairs.keys_of` makes of its
        row in the part and its column, and perhaps its weight.
    """

    def __init__(self, folder: Path, num_nodes: int, num_parts: int, dtype: Any):
        self.folder, self.dtype = folder, np.dtype(dtype)
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

    def _file(self, group: int, part: int) -> Path:
        return self.folder / f"entries-{group}-{part}.tmp"


@contextlib.contextmanager
def _building(
    folder: str | os.PathLike[str], num_nodes: int, num_parts: Any, dtype: Any
) -> Iterator[_EntryFiles]:
    """Files in a folder that gets its name if the block succeeds."""
    num_parts = _checks.count("num_parts", num_parts, 1)
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(
            f"{folder} is there already: remove it, or choose another folder"
        )
    check_folder(folder)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        with naming(folder):
            temporary.mkdir()
            yield _EntryFiles(temporary, num_nodes, num_parts, dtype)
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
    with _building(folder, num_nodes, num_parts, np.int64) as files:
        divisors = set()
        for divisor, one, two in related:
            divisors.add(divisor)
            files.add(divisor, one, two)
            # A self-loop counts twice, as Algorithm 4 does.
            files.add(divisor, two, one)

        def counts(divisor: int, part: int, shape: tuple[int, int]) -> Any:
            counted = _pairs.PairCounts(*shape)
            for keys in files.read(divisor, part):
                counted.add_keys(keys)
            return counted.counts()

        def matrix(part: int, shape: tuple[int, int]) -> Any:
            counted = ((each, counts(each, part, shape)) for each in sorted(divisors))
            return _cooccurrence.weighted_sum(counted, shape)

        write_parts(files.folder, num_nodes, files.begins, matrix)
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
    with _building(folder, num_nodes, num_parts, entry) as files:
        for one, two, weights in batches:
            one, two = one + item_offset, two + item_offset
            files.add(0, one, two, weights)
            mirrored = one != two
            files.add(0, two[mirrored], one[mirrored], weights[mirrored])

        def matrix(part: int, shape: tuple[int, int]) -> Any:
            first = np.empty(0, entry)
            entries = np.concatenate([first, *files.read(0, part)])
            entries.sort(order="key")
            keys = entries["key"]
            rows, columns = _pairs.rows_of(keys), _pairs.columns_of(keys)
            if len(repeated := np.flatnonzero(keys[1:] == keys[:-1])):
                row = files.begins[part] + rows[repeated[0]]
                pair = sorted(np.array([row, columns[repeated[0]]]) - item_offset)
                raise _edges.repeated_error(path, *pair)
            row_starts = np.searchsorted(rows, np.arange(shape[0] + 1))
            parts = (entries["weight"], columns, row_starts.astype(np.int32))
            return scipy.sparse.csr_array(parts, shape=shape)

        write_parts(files.folder, num_nodes, files.begins, matrix)
    return GraphParts(folder)
