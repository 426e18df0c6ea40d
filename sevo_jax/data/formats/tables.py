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

from sevo_jax._files import parquet_files, replacing
from sevo_jax._messages import shown
from sevo_jax.data import ids
from sevo_jax.data.formats import arrow
from sevo_jax.data.formats.columns import Positions, find_by_name, option
from sevo_jax.data.formats.request import Faults, Request, warn_of_order
from sevo_jax.data.formats.source import Source
from sevo_jax.data.log import InteractionLog
from sevo_jax.data.times import TimeParser, ranked

_TITLES = Positions._fields

# A row of a log takes bytes. A file of few bytes and many rows fills the memory.
_MOST_ROWS_A_BYTE = 100
_ALWAYS_FIT = 2**24


def read_parquet(source: Source, request: Request) -> InteractionLog:
    """Reads a Parquet file, or all of a folder in the order of their names.

    Ids that are text stay text.
    """
    import pyarrow

    files: list[tuple[str, Any]]
    if source.is_stdin or source.packing:
        files = [(source.where, pyarrow.BufferReader(source.read()))]
    else:
        files = [(f"{part}", part) for part in parts(source.path)]
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
    try:
        table = pyarrow.table(table)
    except Exception as error:  # Each kind of table raises its own.
        raise ValueError(
            f"{where}: no table of Arrow, whose columns are each of one type "
            f"({_first_line(error)}): convert it, or leave out what is not needed"
        ) from error
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
    found = parquet_files(path)
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
    """Opens a `pyarrow.parquet.ParquetFile`, whose texts are read as categories.

    Args:
      where: what messages begin with.
      file: a path or a `pyarrow.BufferReader`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no Parquet file, or has more rows than fit in its size.
    """
    from pyarrow import parquet

    with damaged(where):
        metadata = parquet.read_metadata(file)
        fields = metadata.schema.to_arrow_schema()
        opened = parquet.ParquetFile(
            file,
            metadata=metadata,
            read_dictionary=[each.name for each in fields if arrow.is_text(each.type)],
            page_checksum_verification=True,
        )
    is_path = isinstance(file, str | os.PathLike)
    size = os.path.getsize(file) if is_path else file.size()
    most = max(_ALWAYS_FIT, _MOST_ROWS_A_BYTE * size)
    with opened:
        if metadata.num_rows > most:
            raise ValueError(
                f"{where}: {metadata.num_rows:,} rows in {size:,} bytes, which are not "
                "those of a log: write it anew if they are"
            )
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
    positions = find_by_name(where, names, request.columns)
    # The index of a DataFrame is no column that was meant to be one.
    others = [name for name in names if not name.startswith("__index_level_")]
    if positions.timestamp is None and len(others) > 2:
        warn_of_order(where, others)
    return positions


def _cleaned(where: str, table: Any, faults: Faults) -> tuple[str, list[Any]]:
    """The columns in a few simple types, without the rows at fault."""
    import pyarrow
    import pyarrow.compute
    from pyarrow import types

    compute: Any = pyarrow.compute
    columns, bad, first = [], np.zeros(table.num_rows, bool), (table.num_rows, "")
    for title, name, column in zip(_TITLES, table.column_names, table.columns):
        given, column = column.type, _simple(where, title, name, column)
        is_bad = _is_bad(title, column, given)
        if is_bad.any():
            row = int(np.argmax(is_bad))
            first = min(first, (row, _fault(title, name, row, column[row].as_py())))
        bad |= is_bad
        columns.append(column)
    if bad.any():
        faults.add(where, first[1], int(bad.sum()))
        columns = [compute.filter(column, pyarrow.array(~bad)) for column in columns]
    for at, title in enumerate(_TITLES[:2]):
        if not types.is_dictionary(columns[at].type):
            with damaged(where):
                columns[at] = columns[at].cast(pyarrow.int64())
    return where, columns


def _simple(where: str, title: str, name: str, column: Any) -> Any:
    """The column as numbers, categories of text or, for times, dates.

    Raises:
      ValueError: it is something else.
    """
    import pyarrow
    from pyarrow import types

    is_encoded = types.is_dictionary(column.type)
    kind = column.type.value_type if is_encoded else column.type
    is_bytes = types.is_binary(kind) or types.is_large_binary(kind)
    if arrow.is_text(kind) or is_bytes or types.is_null(kind):
        try:
            return _categories(column)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowIndexError) as error:
            raise ValueError(
                f"{where}: column {name!r} is damaged, or holds bytes that are not "
                f"UTF-8 ({_first_line(error)})"
            ) from error
    if is_encoded:
        column = column.cast(kind)
    is_number = types.is_integer(kind) or types.is_floating(kind)
    is_date = types.is_timestamp(kind) or types.is_date(kind)
    # Arrow computes with larger ones only.
    if types.is_float16(kind):
        column = column.cast(pyarrow.float32())
    elif types.is_decimal(kind) and kind.bit_width < 128:
        column = column.cast(pyarrow.decimal128(kind.precision, kind.scale))
    if is_number or types.is_decimal(kind) or (is_date and title == "timestamp"):
        return column
    wanted = (
        "numbers, dates or ISO text" if title == "timestamp" else "integers or text"
    )
    raise ValueError(
        f"{where}: column {name!r} of the {title}s holds {shown(str(kind))}, but must "
        f"hold {wanted}: convert it, or choose another, {option(title)}"
    )


def _categories(column: Any) -> Any:
    """Text of any type as categories, so that none is held twice."""
    import pyarrow

    column.validate(full=True)
    if not pyarrow.types.is_dictionary(column.type):
        column = column.cast(pyarrow.large_string()).dictionary_encode()
    chunks = [
        pyarrow.DictionaryArray.from_arrays(
            chunk.indices.cast(pyarrow.int32()),
            chunk.dictionary.cast(pyarrow.large_string()),
        )
        for chunk in column.chunks
    ]
    kind = pyarrow.dictionary(pyarrow.int32(), pyarrow.large_string())
    return pyarrow.chunked_array(chunks, kind)


def _is_bad(title: str, column: Any, given: Any) -> np.ndarray:
    """Which rows have no id or no time; `given` is the type before `_simple`."""
    import pyarrow.compute
    from pyarrow import types

    compute: Any = pyarrow.compute
    kind, is_time = column.type, title == "timestamp"
    if types.is_dictionary(kind):
        texts, codes = arrow.categories(column)
        is_good = _are_times(texts) if is_time else [bool(text) for text in texts]
        return ~np.array(is_good, bool)[codes]
    if is_time:
        good = (
            compute.is_finite(column) if types.is_floating(kind) else column.is_valid()
        )
    elif types.is_floating(kind) or types.is_decimal(kind):
        limit = Decimal(2**63)  # From here on it does not fit in 64 bits.
        if types.is_floating(kind):
            given = given.value_type if types.is_dictionary(given) else given
            limit = 2.0 ** ids.exact_bits(f"f{given.bit_width // 8}")
        is_small = compute.less(compute.abs(column), pyarrow.scalar(limit))
        good = compute.and_kleene(
            compute.equal(compute.floor(column), column), is_small
        )
    elif types.is_uint64(kind):
        good = compute.less(column, pyarrow.scalar(2**63, pyarrow.uint64()))
    else:
        good = column.is_valid()
    return ~compute.fill_null(good, False).to_numpy()


def _are_times(texts: list[str | None]) -> list[bool]:
    """Which of the texts are times, all of one kind."""
    with contextlib.suppress(ValueError):
        _quick_times(texts)
        return [True] * len(texts)
    parse = TimeParser()
    is_good = []
    for text in texts:
        try:
            parse(text or "")
            is_good.append(True)
        except ValueError:
            is_good.append(False)
    return is_good


def _quick_times(texts: list[str | None]) -> np.ndarray:
    import pyarrow

    if not all(texts):
        raise ValueError("a time is missing")
    return arrow.times_of_text(pyarrow.chunked_array([texts], pyarrow.string()))


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

    is_text = {pyarrow.types.is_dictionary(chunk.type) for chunk in chunks}
    if is_text == {True}:
        texts, codes = arrow.categories(pyarrow.chunked_array(chunks))
        try:
            return _quick_times(texts)[codes]
        except ValueError:
            parse = TimeParser()
        try:
            return ranked([parse(f"{text}") for text in texts])[codes]
        except ValueError as error:
            raise ValueError(f"{where} and other parts: {error}") from error
    arrays = [chunk.to_numpy(zero_copy_only=False) for chunk in chunks]
    kinds = {array.dtype.kind for array in arrays}
    if kinds == {"M"} and len({array.dtype for array in arrays}) > 1:
        return ranked([time for array in arrays for time in _nanoseconds(array)])
    if len(kinds) == 1 and kinds <= set("iufM"):
        return np.concatenate(arrays)
    if "M" in kinds or True in is_text:
        raise ValueError(
            f"{where}: the times of the parts are not of one type: write all parts "
            "with the same types"
        )
    # Whole numbers and others, which only Python compares exactly.
    return ranked([time for array in arrays for time in array.tolist()])


def _nanoseconds(dates: np.ndarray) -> list[int]:
    """Since 1970, as exact integers: NumPy's own are of years from 1678 to 2262."""
    unit, count = np.datetime_data(dates.dtype)
    factor = int(np.timedelta64(count, unit) // np.timedelta64(1, "ns"))
    return [number * factor for number in dates.astype(np.int64).tolist()]
