"""Reading the sequences of a Parquet file that is larger than the memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sevo_jax._messages import named
from sevo_jax.data import ids
from sevo_jax.data.formats.arrow import is_text
from sevo_jax.data.formats.columns import Positions, find_by_name
from sevo_jax.data.formats.tables import damaged, open_parquet, parts
from sevo_jax.data.sequences import Sequences

_BATCH = 2**20


def stream(
    path: str | os.PathLike,
    num_items: int,
    *,
    user: str | int | None = None,
    item: str | int | None = None,
    timestamp: str | int | None = None,
    item_ids: np.ndarray | None = None,
) -> Iterator[Sequences]:
    """Reads the sequences of sorted Parquet files, some million rows at a time.

    The table has one row an interaction, sorted by user and then by time, and items
    that are numbered from 0 already, or by `item_ids`. What is wrong in the file's
    schema is said at once, what is wrong in a row when the reading gets there.

    Args:
      path: a file, or a folder of them, whose rows go on from one to the next in the
        order of their names.
      num_items: number of items, at least 1.
      user: the column of users, integers or text: its name, or its number from 0; by
        default a usual name, such as `user_id`. Case does not matter.
      item: likewise for the items, integers in `0..num_items-1`.
      timestamp: likewise for the timestamps, numbers or dates, by which the order is
        checked. Without such a column the order of the file is taken as that of time.
      item_ids: the ids of all items in the order of their numbers, `[num_items]`, as
        `read_item_ids` finds them; the column of items holds ids then.

    Returns:
      An iterator over chunks, one row a user; a user is never divided between two.
      `sevo_jax.graphs.cooccurrence` takes it as it is.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no Parquet file or damaged, has no rows or lacks a column; a
        column is of the wrong kind or an entry is missing; an item is out of range;
        users or the times of a user are not in order. The message begins with the
        file and, where one row is at fault, its number from 0.

    Example:
      >>> import pathlib, pyarrow, pyarrow.parquet, tempfile
      >>> from sevo_jax.data import stream
      >>> from sevo_jax.graphs import cooccurrence
      >>> table = pyarrow.table({"user": [3, 3, 3, 8, 8], "item": [0, 1, 2, 2, 1]})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "tiny.parquet")
      ...     pyarrow.parquet.write_table(table, path, row_group_size=2)
      ...     graph = cooccurrence(stream(path, num_items=3), num_items=3)
      >>> graph.todense().tolist()
      [[0.0, 1.0, 0.0], [1.0, 0.0, 2.0], [0.0, 2.0, 0.0]]
    """
    if not 1 <= num_items < 2**31:
        raise ValueError(
            f"num_items must be at least 1 and below 2**31, not {num_items}"
        )
    files, columns = _described(path, user, item, timestamp, item_ids is not None)
    return _chunks(files, columns, num_items, item_ids)


def read_item_ids(
    path: str | os.PathLike,
    *,
    user: str | int | None = None,
    item: str | int | None = None,
    timestamp: str | int | None = None,
) -> np.ndarray:
    """Finds the items of Parquet files, some million rows at a time.

    Args:
      path, user, item, timestamp: as in `stream`; items are integers or text.

    Returns:
      Their ids, in the order in which `sevo_jax.data.read` numbers them: int64, or
      objects of type str.

    Raises:
      FileNotFoundError: as `stream`.
      ValueError: as `stream`, for the schema and for items that are missing.

    Example:
      >>> import pathlib, pyarrow, pyarrow.parquet, tempfile
      >>> from sevo_jax.data import read_item_ids, stream
      >>> table = pyarrow.table({"user": [3, 3, 8], "item": ["tea", "cup", "tea"]})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "tiny.parquet")
      ...     pyarrow.parquet.write_table(table, path)
      ...     item_ids = read_item_ids(path)
      ...     chunks = list(stream(path, len(item_ids), item_ids=item_ids))
      >>> item_ids.tolist(), [row.tolist() for chunk in chunks for row in chunk]
      (['cup', 'tea'], [[1, 0], [1]])
    """
    import pyarrow.compute

    compute: Any = pyarrow.compute
    files, columns = _described(path, user, item, timestamp, True)
    found: set[Any] = set()
    for file, row, batch in _batches(files, [columns["item"]]):
        array = _complete(file, columns["item"], batch.column(0), row)
        found.update(compute.unique(array).to_pylist())
    entries = list(found)
    try:
        return ids.in_order(entries, np.arange(len(entries)), "item").ids
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def _described(
    path: str | os.PathLike,
    user: str | int | None,
    item: str | int | None,
    timestamp: str | int | None,
    has_ids: bool,
) -> tuple[list[Path], dict[str, str]]:
    """The files, and the names of their columns, which are checked."""
    given = {"user": user, "item": item, "timestamp": timestamp}
    given = {title: column for title, column in given.items() if column is not None}
    files = parts(path)
    fields, num_rows = [], 0
    for file in files:
        with open_parquet(f"{file}", file) as opened:
            fields.append(_fields(file, opened.schema_arrow, given, has_ids))
            num_rows += opened.metadata.num_rows
        if fields[-1] != fields[0]:
            raise ValueError(
                f"{file}: its columns are not those of {files[0]}, {fields[0]}: write "
                "all parts with the same columns and types"
            )
    if not num_rows:
        raise ValueError(f"{path}: the table has no rows")
    return files, {title: field.name for title, field in fields[0].items()}


def _fields(
    path: Path, schema: Any, given: Mapping[str, str | int], has_ids: bool
) -> dict[str, Any]:
    """The columns of users, items and perhaps times."""
    positions = find_by_name(f"{path}", schema.names, given)
    fields = {
        title: schema.field(position)
        for title, position in zip(Positions._fields, positions)
        if position is not None
    }
    for title, field in fields.items():
        _check_type(path, title, field, has_ids)
    return fields


def _check_type(path: Path, title: str, field: Any, has_ids: bool) -> None:
    from pyarrow import types

    kind = field.type
    if types.is_dictionary(kind):
        kind = kind.value_type
    is_integer = types.is_integer(kind)
    is_number = is_integer or types.is_float32(kind) or types.is_float64(kind)
    is_time = is_number or types.is_timestamp(kind) or types.is_date(kind)
    fits, wanted = {
        "user": (is_integer or is_text(kind), "integers or text"),
        "item": (
            is_integer or (has_ids and is_text(kind)),
            "integers or text" if has_ids else "integers from 0",
        ),
        "timestamp": (is_time, "numbers or dates"),
    }[title]
    if not fits:
        raise ValueError(
            f"{path}: the column {field.name!r} of the {title}s is {kind}, but "
            f"must hold {wanted}: convert it first"
        )


def _chunks(
    files: list[Path],
    columns: dict[str, str],
    num_items: int,
    item_ids: np.ndarray | None,
) -> Iterator[Sequences]:
    """Cuts the rows into users, and keeps back the last one, which may go on."""
    before = None
    kept: list[np.ndarray] = []
    for path, row, batch in _batches(files, list(columns.values())):
        arrays = {
            title: _complete(path, name, batch.column(name), row)
            for title, name in columns.items()
        }
        items = _items(path, arrays["item"], row, num_items, item_ids)
        starts = _starts(path, arrays, before, row)
        if starts.size:
            values = np.concatenate([*kept, items[: starts[-1]]])
            ends = starts + (values.size - starts[-1])
            yield Sequences.from_lengths(values, np.diff(ends, prepend=0))
            kept, items = [], items[starts[-1] :]
        kept.append(items)
        before = {title: array[-1:] for title, array in arrays.items()}
    values = np.concatenate(kept)
    yield Sequences.from_lengths(values, np.array([values.size]))


def _batches(files: list[Path], names: list[str]) -> Iterator[tuple[Path, int, Any]]:
    """Some rows of a file, and the number of the first; never all of a row group."""
    for path in files:
        row = 0
        with open_parquet(f"{path}", path) as file:
            # A reader of all groups keeps the bytes of each until the last is read.
            for group in range(file.num_row_groups):
                batches = file.iter_batches(_BATCH, row_groups=[group], columns=names)
                while True:
                    with damaged(f"{path}"):
                        batch = next(batches, None)
                    if batch is None:
                        break
                    yield path, row, batch
                    row += batch.num_rows
            if row != file.metadata.num_rows:
                raise ValueError(
                    f"{path}: a damaged Parquet file, which has {row} rows and should "
                    f"have {file.metadata.num_rows}"
                )


def _complete(path: Path, name: str, array: Any, row: int) -> Any:
    """The column as plain values, none of them missing or infinite."""
    import pyarrow.compute
    from pyarrow import types

    compute: Any = pyarrow.compute
    with damaged(f"{path}"):
        array.validate(full=True)
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    present = array.is_valid()
    if types.is_floating(array.type):
        present = compute.and_kleene(present, compute.is_finite(array))
    at = present.index(False).as_py()
    if at >= 0:
        raise ValueError(f"{path}: row {row + at} of column {name!r} is {array[at]}")
    return array


def _items(
    path: Path, array: Any, row: int, num_items: int, item_ids: np.ndarray | None
) -> np.ndarray:
    if item_ids is not None:
        return _numbers(path, array, row, item_ids)
    items = array.to_numpy()
    if items.min() < 0 or items.max() >= num_items:
        at = int(np.argmax((items < 0) | (items >= num_items)))
        raise ValueError(
            f"{path}: row {row + at} holds item {items[at]}, outside "
            f"0..{num_items - 1} (num_items={num_items}): number the items from 0"
        )
    return items.astype(np.int32)


def _numbers(path: Path, array: Any, row: int, item_ids: np.ndarray) -> np.ndarray:
    import pyarrow.compute

    compute: Any = pyarrow.compute
    known = pyarrow.array(item_ids)
    if is_text(known.type) != is_text(array.type):
        raise ValueError(
            f"{path}: the items are {array.type}, those of item_ids {known.type}: find "
            "them in the same files"
        )
    try:
        known = known.cast(array.type)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(
            f"{path}: not all of item_ids are {array.type}, as the items are: find "
            "them in the same files"
        ) from error
    numbers = compute.index_in(array, value_set=known)
    if numbers.null_count:
        at = numbers.is_null().index(True).as_py()
        raise ValueError(
            f"{path}: row {row + at} holds item {named(array[at].as_py())}, which is "
            f"not among the {len(item_ids)} of item_ids: find them in the same files"
        )
    return numbers.to_numpy().astype(np.int32)


def _starts(
    path: Path,
    arrays: dict[str, Any],
    before: dict[str, Any] | None,
    row: int,
) -> np.ndarray:
    """Where users begin; `before` is the row before, without which row 0 does not."""
    import pyarrow.compute

    compute: Any = pyarrow.compute

    def compare(how: Any, title: str) -> np.ndarray:
        array = arrays[title]
        if before is not None:
            array = pyarrow.concat_arrays([before[title], array])
        return how(array[1:], array[:-1]).to_numpy(zero_copy_only=False)

    def where(title: str, at: int) -> str:
        # Not by Python, which knows no dates as far away as those of a damaged file.
        value = named(arrays[title].slice(at, 1).to_numpy(zero_copy_only=False)[0])
        return f"{path}: row {row + at} has the {title} {value}"

    changes = compare(compute.not_equal, "user")
    skipped = 0 if before else 1
    comes_back = compare(compute.less, "user")
    if comes_back.any():
        raise ValueError(
            f"{where('user', int(np.argmax(comes_back)) + skipped)}, after a larger "
            "one: sort the rows by user and then by time, so that no user comes back"
        )
    if "timestamp" in arrays:
        goes_back = compare(compute.less, "timestamp") & ~changes
        if goes_back.any():
            raise ValueError(
                f"{where('timestamp', int(np.argmax(goes_back)) + skipped)}, earlier "
                "than the user's row before it: sort the rows by user and then by time"
            )
    return np.flatnonzero(changes) + skipped
