"""Reading the sequences of a Parquet file that is larger than the memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from sevo_jax.data.readers import ALIASES, column_position
from sevo_jax.data.sequences import Sequences

_BATCH = 2**20


def stream(
    path: str | os.PathLike,
    num_items: int,
    *,
    user: str | None = None,
    item: str | None = None,
    timestamp: str | None = None,
) -> Iterator[Sequences]:
    """Reads the sequences of a sorted Parquet file, some million rows at a time.

    The table has one row an interaction, sorted by user and then by time, and items
    that are numbered from 0 already. What is wrong in the file's schema is said at
    once, what is wrong in a row when the reading gets there.

    Args:
      path: the file.
      num_items: number of items, at least 1.
      user: the name of the column of users, integers or text; by default a usual
        one, such as `user_id`. Case does not matter.
      item: likewise for the items, integers in `0..num_items-1`.
      timestamp: likewise for the timestamps, numbers or dates, by which the order is
        checked. Without such a column the order of the file is taken as that of time.

    Returns:
      An iterator over chunks, one row a user; a user is never divided between two.
      `sevo_jax.graphs.cooccurrence` takes it as it is.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no Parquet file, has no rows or lacks a column; a column is
        of the wrong kind or an entry is missing; an item is out of range; users or
        the times of a user are not in order. The message begins with the file and,
        where one row is at fault, its number from 0.

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
    import pyarrow
    from pyarrow import parquet

    if num_items < 1:
        raise ValueError(f"num_items must be at least 1, not {num_items}")
    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file ({error})") from error
    schema = file.schema_arrow
    named = {"user": user, "item": item}
    has_times = any(
        name.strip().lower() in ALIASES["timestamp"] for name in schema.names
    )
    if timestamp is not None or has_times:
        named["timestamp"] = timestamp
    columns = {}
    for title, name in named.items():
        field = schema.field(column_position(f"{path}", schema.names, title, name))
        _check_type(path, title, field)
        columns[title] = field.name
    if not file.metadata.num_rows:
        raise ValueError(f"{path}: the table has no rows")
    return _chunks(path, file, columns, num_items)


def _check_type(path: str | os.PathLike, title: str, field: Any) -> None:
    from pyarrow import types

    kind = field.type
    if title == "user" and types.is_dictionary(kind):
        kind = kind.value_type
    is_integer = types.is_integer(kind)
    is_text = types.is_string(kind) or types.is_large_string(kind)
    is_time = is_integer or types.is_floating(kind) or types.is_temporal(kind)
    fits, wanted = {
        "user": (is_integer or is_text, "integers or text"),
        "item": (is_integer, "integers from 0"),
        "timestamp": (is_time, "numbers or dates"),
    }[title]
    if not fits:
        raise ValueError(
            f"{path}: the column {field.name!r} of the {title}s is {field.type}, but "
            f"must hold {wanted}: convert it first"
        )


def _chunks(
    path: str | os.PathLike, file: Any, columns: dict[str, str], num_items: int
) -> Iterator[Sequences]:
    """Cuts the rows into users, and keeps back the last one, which may go on."""
    before, row = None, 0
    kept: list[np.ndarray] = []
    with file:
        for batch in _batches(file, list(columns.values())):
            arrays = {
                title: _complete(path, name, batch.column(name), row)
                for title, name in columns.items()
            }
            items = _items(path, arrays["item"], row, num_items)
            starts = _starts(path, arrays, before, row)
            if starts.size:
                values = np.concatenate([*kept, items[: starts[-1]]])
                ends = starts + (values.size - starts[-1])
                yield Sequences.from_lengths(values, np.diff(ends, prepend=0))
                kept, items = [], items[starts[-1] :]
            kept.append(items)
            before = {title: array[-1:] for title, array in arrays.items()}
            row += batch.num_rows
    values = np.concatenate(kept)
    yield Sequences.from_lengths(values, np.array([values.size]))


def _batches(file: Any, names: list[str]) -> Iterator[Any]:
    """The rows of the file, without more than one row group in memory."""
    for group in range(file.num_row_groups):
        # A reader of all groups keeps the bytes of each until the last is read.
        yield from file.iter_batches(_BATCH, row_groups=[group], columns=names)


def _complete(path: str | os.PathLike, name: str, array: Any, row: int) -> Any:
    """The column as plain values, none of them missing or infinite."""
    import pyarrow.compute
    from pyarrow import types

    compute: Any = pyarrow.compute
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    present = array.is_valid()
    if types.is_floating(array.type):
        present = compute.and_kleene(present, compute.is_finite(array))
    at = present.index(False).as_py()
    if at >= 0:
        raise ValueError(f"{path}: row {row + at} of column {name!r} is {array[at]}")
    return array


def _items(path: str | os.PathLike, array: Any, row: int, num_items: int) -> np.ndarray:
    items = array.to_numpy()
    if items.min() < 0 or items.max() >= num_items:
        at = int(np.argmax((items < 0) | (items >= num_items)))
        raise ValueError(
            f"{path}: row {row + at} holds item {items[at]}, outside "
            f"0..{num_items - 1} (num_items={num_items}): number the items from 0"
        )
    return items.astype(np.int32)


def _starts(
    path: str | os.PathLike,
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
        return f"{path}: row {row + at} has the {title} {arrays[title][at]}"

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
