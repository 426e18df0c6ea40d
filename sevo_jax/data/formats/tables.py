"""Tables of Arrow: Parquet files, folders of them, and what Python passes."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from sevo_jax._files import replacing
from sevo_jax._messages import listed, shown
from sevo_jax.data import ids
from sevo_jax.data.formats import arrow
from sevo_jax.data.formats.columns import Positions, find, option
from sevo_jax.data.formats.request import Faults, Request, warn
from sevo_jax.data.formats.source import Source
from sevo_jax.data.log import InteractionLog
from sevo_jax.data.times import TimeParser, ranked

_TITLES = Positions._fields


def read_parquet(source: Source, request: Request) -> InteractionLog:
    """Reads a Parquet file, or all of a folder in the order of their names.

    Ids that are text stay text.
    """
    import pyarrow

    files: list[tuple[str, Any]]
    if source.is_stdin or source.packing:
        files = [(source.where, pyarrow.BufferReader(source.read()))]
    else:
        files = [(os.fspath(part), part) for part in parts(source.path)]
    tables = []
    for where, file in files:
        with open_parquet(where, file) as parquet:
            names = parquet.schema_arrow.names
            positions = _find(where, names, request)
            wanted = [names[at] for at in positions if at is not None]
            with damaged(where):
                table = parquet.read(columns=wanted).select(wanted)
        tables.append(_cleaned(where, table, request.faults))
    return _log(tables, request.faults, source.name)


def read_table(table: Any, request: Request) -> InteractionLog:
    """Reads what has the Arrow interface `__arrow_c_stream__`, such as a DataFrame."""
    import pyarrow

    where = f"the {type(table).__name__}"
    table = pyarrow.table(table)
    positions = _find(where, table.column_names, request)
    table = table.select([at for at in positions if at is not None])
    return _log([_cleaned(where, table, request.faults)], request.faults, "table")


def write(log: InteractionLog, path: str | os.PathLike) -> None:
    """Writes a Parquet file; the time is the position in the sequence."""
    import pyarrow
    from pyarrow import parquet

    columns = [pyarrow.array(column) for column in log.to_columns()]
    table = pyarrow.table(columns, names=["user", "item", "timestamp"])
    with replacing(path) as temporary:
        parquet.write_table(table, temporary, write_page_checksum=True)


def parts(path: str | os.PathLike) -> list[Path]:
    """Returns the Parquet files of a folder in the order of their numbers, or the file.

    Raises:
      ValueError: the folder has none.
    """
    if not os.path.isdir(path):
        return [Path(path)]
    found = [
        part
        for part in Path(path).rglob("*")
        if part.suffix.lower() == ".parquet" and not part.name.startswith(("_", "."))
    ]
    if not found:
        raise ValueError(
            f"{path}: a folder without Parquet files: name a file, or a folder whose "
            "parts end in .parquet"
        )

    def by_number(part: Path) -> list[tuple[str, int]]:
        pieces = re.findall(r"([^0-9]*)([0-9]*)", str(part.relative_to(path)))
        return [(text, int(digits or -1)) for text, digits in pieces]

    return sorted(found, key=by_number)


@contextlib.contextmanager
def open_parquet(where: str, file: Any) -> Iterator[Any]:
    """Opens a `pyarrow.parquet.ParquetFile`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no Parquet file.
    """
    from pyarrow import parquet

    with damaged(where):
        opened = parquet.ParquetFile(file, page_checksum_verification=True)
    with opened:
        yield opened


@contextlib.contextmanager
def damaged(where: str) -> Iterator[None]:
    """Turns what Arrow raises for a damaged file into one error that names the file."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # Of a damaged file Arrow raises nearly anything.
        raise ValueError(
            f"{where}: not a Parquet file, or a damaged one ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    lines = f"{error}".splitlines() or [type(error).__name__]
    return lines[0][:200]


def _find(where: str, names: list[str], request: Request) -> Positions:
    # A name may be a number, as a DataFrame calls its columns by default.
    columns = {
        title: str(column) if str(column) in names else column
        for title, column in request.columns.items()
    }
    positions = find(where, names, columns)
    if positions.timestamp is None and len(names) > 2:
        warn(
            where,
            f"none of the columns {listed(names)} is known to hold times, so the order "
            f"of the rows is taken for that of time; if one does, give "
            f"{option('timestamp')}",
        )
    return positions


def _cleaned(where: str, table: Any, faults: Faults) -> tuple[str, list[Any]]:
    """The columns in a few simple types, without the rows at fault."""
    import pyarrow
    import pyarrow.compute

    compute: Any = pyarrow.compute
    columns, bad, first = [], np.zeros(table.num_rows, bool), (table.num_rows, "")
    for title, name, column in zip(_TITLES, table.column_names, table.columns):
        column = _simple(where, title, name, column)
        is_bad = _is_bad(title, column)
        if is_bad.any():
            row = int(np.argmax(is_bad))
            first = min(first, (row, _fault(title, name, row, column[row].as_py())))
        bad |= is_bad
        columns.append(column)
    if bad.any():
        faults.add(where, first[1], int(bad.sum()))
        columns = [compute.filter(column, pyarrow.array(~bad)) for column in columns]
    for at, title in enumerate(_TITLES[:2]):
        if not arrow.is_text(columns[at].type):
            with damaged(where):
                columns[at] = columns[at].cast(pyarrow.int64())
    return where, columns


def _simple(where: str, title: str, name: str, column: Any) -> Any:
    """The column as numbers, large strings or, for times, dates.

    Raises:
      ValueError: it is something else.
    """
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = _decoded(column)
    kind = column.type
    if types.is_null(kind):
        return column.cast(pyarrow.large_string())
    if arrow.is_text(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        try:
            column = column.cast(pyarrow.large_string())
            column.validate(full=True)
            return column
        except pyarrow.ArrowInvalid as error:
            raise ValueError(
                f"{where}: column {name!r} holds bytes that are not UTF-8"
            ) from error
    is_number = types.is_integer(kind) or types.is_floating(kind)
    is_date = types.is_timestamp(kind) or types.is_date(kind)
    if is_number or types.is_decimal(kind) or (is_date and title == "timestamp"):
        return column
    wanted = (
        "numbers, dates or ISO text" if title == "timestamp" else "integers or text"
    )
    raise ValueError(
        f"{where}: column {name!r} of the {title}s holds {shown(str(kind))}, but must "
        f"hold {wanted}: convert it, or choose another, {option(title)}"
    )


def _decoded(column: Any) -> Any:
    """A column of categories as what these are."""
    import pyarrow

    kind = column.type.value_type
    if not arrow.is_text(kind):
        return column.cast(kind)
    # Categories as Polars has them, string views, are decoded by nothing else.
    chunks = [
        pyarrow.DictionaryArray.from_arrays(
            chunk.indices, chunk.dictionary.cast(pyarrow.large_string())
        ).cast(pyarrow.large_string())
        for chunk in column.chunks
    ]
    return pyarrow.chunked_array(chunks, pyarrow.large_string())


def _is_bad(title: str, column: Any) -> np.ndarray:
    """Which rows have no id or no time."""
    import pyarrow.compute
    from pyarrow import types

    compute: Any = pyarrow.compute
    kind, is_time = column.type, title == "timestamp"
    if arrow.is_text(kind):
        good = compute.not_equal(column, "")
        if is_time:
            good = compute.and_kleene(good, pyarrow.array(_are_times(column)))
    elif is_time:
        good = (
            compute.is_finite(column) if types.is_floating(kind) else column.is_valid()
        )
    elif types.is_floating(kind) or types.is_decimal(kind):
        # From here on a float64 is not exact, and a decimal does not fit in 64 bits.
        limit = 2.0**53 if types.is_floating(kind) else Decimal(2**63)
        is_small = compute.less(compute.abs(column), pyarrow.scalar(limit))
        good = compute.and_kleene(
            compute.equal(compute.floor(column), column), is_small
        )
    elif types.is_uint64(kind):
        good = compute.less(column, pyarrow.scalar(2**63, pyarrow.uint64()))
    else:
        good = column.is_valid()
    return ~compute.fill_null(good, False).to_numpy()


def _are_times(column: Any) -> np.ndarray:
    if not column.null_count:
        with contextlib.suppress(ValueError):
            arrow.times_of_text(column)
            return np.ones(len(column), bool)
    texts, codes = ids.distinct(column.to_pylist())
    parse = TimeParser()
    good = np.zeros(len(texts), bool)
    for at, text in enumerate(texts):
        with contextlib.suppress(ValueError):
            good[at] = text is not None and parse(text) is not None
    return good[codes]


def _fault(title: str, name: str, row: int, value: Any) -> str:
    what = f"row {row} of column {name!r} is"
    if value in (None, ""):
        return f"{what} empty"
    if title == "timestamp":
        return f"{what} {shown(value)}, neither a finite number nor an ISO date"
    return f"{what} {shown(value)}, neither text nor a whole number that is exact"


def _log(
    parts: list[tuple[str, list[Any]]], faults: Faults, name: str
) -> InteractionLog:
    """Joins the rows of all parts, whose columns are of a few simple types."""
    import pyarrow

    first_where, first = parts[0]
    for where, columns in parts:
        if [each.type for each in columns[:2]] != [each.type for each in first[:2]]:
            raise ValueError(
                f"{where}: its ids are not of the type of those in {first_where}: "
                "write all parts with the same types"
            )
        if len(columns) != len(first):
            raise ValueError(
                f"{where}: it and {first_where} do not both have a column of times"
            )
    users, items, *times = (
        [chunk for _, columns in parts for chunk in columns[at].chunks]
        for at in range(len(first))
    )
    if not sum(map(len, users)):
        raise faults.nothing_left(first_where)
    return InteractionLog.from_codes(
        arrow.number(pyarrow.chunked_array(users), "user"),
        arrow.number(pyarrow.chunked_array(items), "item"),
        _times(first_where, times[0]) if times else None,
        name=name,
    )


def _times(where: str, chunks: list[Any]) -> np.ndarray:
    """The times of all parts as an array that sorts as they do."""
    import pyarrow

    if all(arrow.is_text(chunk.type) for chunk in chunks):
        column = pyarrow.chunked_array(chunks)
        try:
            return arrow.times_of_text(column)
        except ValueError:
            return ranked([*map(TimeParser(), column.to_pylist())])
    arrays = [chunk.to_numpy(zero_copy_only=False) for chunk in chunks]
    kinds = {array.dtype.kind for array in arrays}
    if len(kinds) == 1 and kinds <= set("iufM"):
        return np.concatenate(arrays)
    if "M" in kinds or any(arrow.is_text(chunk.type) for chunk in chunks):
        raise ValueError(
            f"{where}: the times of the parts are not of one type: write all parts "
            "with the same types"
        )
    # Whole numbers and others, which only Python compares exactly.
    return ranked([time for array in arrays for time in array.tolist()])
