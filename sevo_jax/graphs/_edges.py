"""A graph from a table of its edges, in Parquet files."""

import contextlib
import glob
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCOO

from sevo_jax import operators
from sevo_jax._files import parquet_files
from sevo_jax._messages import listed
from sevo_jax.graphs import _checks

_COLUMNS = ("i", "j", "weight")
_BATCH = 2**20
# The indices of a graph are int32.
_MOST = 2**31 - 2


def from_edges(
    path: str | os.PathLike[str],
    num_items: int,
    *,
    item_offset: int = 0,
    num_nodes: int | None = None,
) -> BCOO:
    r"""Reads a graph from a table of its edges, such as a database writes.

    The table has the columns ``i`` and ``j``, integers, and ``weight``, a number: a row
    for each pair :math:`i \le j` of linked items, in any order, whose weight is the
    entry :math:`A_{ij} = A_{ji}`. It is read a million rows at a time; beside the graph
    the memory holds no more than its size once again.

    Args:
      path: a Parquet file, a folder of them, or a pattern such as
        ``edges/*.parquet``.
      num_items: number of items, at least 1; ids are ``0..num_items-1``.
      item_offset: item ``i`` is node ``i + item_offset``; 1 for a table whose row 0
        is padding.
      num_nodes: number of rows of the table of embeddings; ``None`` for
        ``num_items + item_offset``.

    Returns:
      The adjacency ``[num_nodes, num_nodes]``, symmetric, float32, not normalised, its
      indices sorted by row and unique.

    Raises:
      FileNotFoundError: if there is no such file.
      ModuleNotFoundError: if pyarrow is not installed.
      TypeError: if a column has another type, or a count is no integer.
      ValueError: if it is no Parquet file, or has not these columns; if a value is
        missing, an item out of range, :math:`i > j`, a pair there twice, or a weight
        negative or not finite in float32. The message names the file and, where one
        row is at fault, its number from 0.

    Examples:
      >>> import pathlib, pyarrow, pyarrow.parquet, tempfile
      >>> import sevo_jax as sevo
      >>> table = pyarrow.table({"i": [1, 0], "j": [1, 2], "weight": [2.0, 0.5]})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "edges.parquet")
      ...     pyarrow.parquet.write_table(table, path)
      ...     print(sevo.graphs.from_edges(path, num_items=3).todense())
      [[0.  0.  0.5]
       [0.  2.  0. ]
       [0.5 0.  0. ]]

    See also:
      :func:`sevo_jax.graphs.cooccurrence_sql`, which makes such a table;
      :func:`sevo_jax.graphs.from_edges_parts` for larger ones.
    """
    num_items, item_offset, num_nodes = _checks.item_nodes(
        num_items, item_offset, num_nodes
    )
    files = [(file, _num_edges(file)) for file in _files(path)]
    total = sum(count for _, count in files)
    if 2 * total > _MOST:
        raise ValueError(
            f"{path} has {total:,} edges, more than one graph holds: build it in "
            "parts, from_edges_parts, or make it sparser, by fewer hops, a shorter "
            "max_len or a least weight"
        )
    rows, columns = np.empty(total, np.int32), np.empty(total, np.int32)
    weights = np.empty(total, np.float32)
    filled = 0
    for file, _ in files:
        for batch in _batches(file, num_items):
            end = filled + batch[0].size
            for whole, part in zip((rows, columns, weights), batch, strict=True):
                whole[filled:end] = part
            filled = end
    rows += np.int32(item_offset)
    columns += np.int32(item_offset)
    # The sum below adds up a self-loop and its mirror image, which are one entry.
    weights[rows == columns] /= 2
    upper = scipy.sparse.csr_array(
        scipy.sparse.coo_array((weights, (rows, columns)), shape=(num_nodes, num_nodes))
    )
    if upper.nnz < total:
        raise repeated_error(path, *(_repeated(rows, columns) - item_offset))
    del rows, columns, weights
    return operators.bcoo_from_scipy(upper + upper.T)


def read_edges(
    path: str | os.PathLike[str], num_items: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """Both items and the weights of some rows at a time, checked; schemas at once."""
    files = _files(path)
    for file in files:
        _num_edges(file)
    return itertools.chain.from_iterable(_batches(file, num_items) for file in files)


def repeated_error(path: str | os.PathLike[str], one: int, two: int) -> ValueError:
    return ValueError(
        f"{path}: the pair of the items {one} and {two} is there twice: group the "
        "table by i and j, and sum up the weights"
    )


def _repeated(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The first pair that is there twice."""
    order = np.lexsort((columns, rows))
    pairs = np.stack([rows[order], columns[order]])
    return pairs[:, np.argmax((pairs[:, 1:] == pairs[:, :-1]).all(axis=0))]


def _files(path: str | os.PathLike[str]) -> list[Path]:
    text = os.fspath(path)
    if os.path.isdir(text):
        found = parquet_files(text)
    elif os.path.exists(text):
        found = [Path(text)]
    else:
        found = [Path(file) for file in glob.glob(text, recursive=True)]
    if not found:
        raise FileNotFoundError(
            f"{text}: there is no such file, and no folder or pattern of Parquet files"
        )
    return sorted(found)


@contextlib.contextmanager
def _open(file: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "pyarrow is not installed: pip install 'sevo-jax[engines]' has all that "
            "graphs by a database need"
        ) from None
    try:
        with parquet.ParquetFile(file) as opened:
            yield opened
    except (pyarrow.ArrowException, OSError) as error:
        reason = f"{error}".partition("\n")[0][:200]
        raise ValueError(
            f"{file}: not a Parquet file, or a damaged one ({reason})"
        ) from error


def _num_edges(file: Path) -> int:
    """The rows of a file, whose columns are as they should be."""
    with _open(file) as opened:
        schema = opened.schema_arrow
        for name in _COLUMNS:
            if name not in schema.names:
                raise ValueError(
                    f"{file}: no column {name!r}; there are {listed(schema.names)}: "
                    f"rename the columns to {', '.join(_COLUMNS)}"
                )
            _check_type(file, schema.field(name))
        return opened.metadata.num_rows


def _check_type(file: Path, field: Any) -> None:
    from pyarrow import types

    kind, is_weight = field.type, field.name == "weight"
    whole = types.is_integer(kind) or (types.is_decimal(kind) and not kind.scale)
    if not (
        whole or (is_weight and (types.is_floating(kind) or types.is_decimal(kind)))
    ):
        wanted = "numbers" if is_weight else "integers from 0"
        raise TypeError(
            f"{file}: the column {field.name!r} is {kind}, but must hold {wanted}"
            + ("" if is_weight else ": number the items, items=... of cooccurrence_sql")
        )


def _batches(file: Path, num_items: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Both items and the weights of some rows, checked."""
    import pyarrow

    kinds = (pyarrow.int64(), pyarrow.int64(), pyarrow.float64())
    first = 0
    with _open(file) as opened:
        for batch in opened.iter_batches(_BATCH, columns=list(_COLUMNS)):
            arrays = []
            for name, kind in zip(_COLUMNS, kinds, strict=True):
                array = batch.column(name)
                if array.null_count:
                    row = first + array.is_null().index(True).as_py()
                    raise ValueError(
                        f"{file}: row {row} has no {name}: repair the table"
                    )
                try:
                    arrays.append(array.cast(kind).to_numpy())
                except pyarrow.ArrowInvalid as error:
                    raise ValueError(
                        f"{file}: from row {first} on, a number of the column {name!r} "
                        f"does not fit in {kind}"
                    ) from error
            yield _checked(f"{file}", first, *arrays, num_items=num_items)
            first += len(batch)


def _checked(
    file: str,
    first: int,
    one: np.ndarray,
    two: np.ndarray,
    weight: np.ndarray,
    *,
    num_items: int,
) -> tuple[np.ndarray, ...]:
    """The values of some rows, of which `first` is the number of the first."""
    for name, items in (("i", one), ("j", two)):
        if (at := _checks.first_outside(items, num_items)) is not None:
            where, found = f"{file}: row {first + at}", int(items[at])
            raise ValueError(
                _checks.outside_message(
                    where, f"has {name} =", found, num_items, "num_items"
                )
            )
    if (one > two).any():
        at = int(np.argmax(one > two))
        raise ValueError(
            f"{file}: row {first + at} has i = {one[at]} and j = {two[at]}: each pair "
            "is there once, with i <= j"
        )
    with np.errstate(over="ignore", under="ignore"):
        rounded = weight.astype(np.float32)
    wrong = ~((rounded >= 0) & np.isfinite(rounded)) | ((rounded == 0) & (weight != 0))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(
            f"{file}: row {first + at} has weight = {weight[at]}: weights must be "
            "non-negative, and finite in float32"
        )
    return one, two, rounded
