"""Reading interaction logs from files, each fault reported by file and line.

Large files go through Arrow, which parses millions of lines a second but cannot
always say where a fault is. What it refuses is read again line by line, which either
finds the fault or, where Arrow was only too strict, returns the same columns.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sevo_jax.data.log import InteractionLog

ALIASES = {
    "user": ("user", "user_id", "userid", "uid", "reviewerid"),
    "item": (
        "item",
        "item_id",
        "itemid",
        "iid",
        "asin",
        "movie_id",
        "movieid",
        "product_id",
        "productid",
    ),
    "timestamp": (
        "timestamp",
        "time",
        "ts",
        "unixreviewtime",
        "unix_timestamp",
        "datetime",
        "date",
    ),
}
# The ids that come back unchanged from int(): no sign, no leading zero, 64 bits.
_WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
# Between the fields of a MovieLens line, once its two colons are one character.
_UNIT_SEPARATOR = "\x1f"


class _Columns(NamedTuple):
    """The three columns of a log, one entry for each interaction."""

    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray


class _Table(NamedTuple):
    """How the lines of a delimited file are cut, and where its columns are.

    Attributes:
      delimiter: the character between two fields.
      quoted: whether fields may stand in double quotes.
      width: the number of fields of each line.
      has_header: whether the first line is not data.
      positions: which fields are the user, the item and the timestamp.
    """

    delimiter: str
    quoted: bool
    width: int
    has_header: bool
    positions: tuple[int, int, int]


def read(
    path: str | os.PathLike,
    *,
    format: str | None = None,
    user: str | None = None,
    item: str | None = None,
    timestamp: str | None = None,
) -> InteractionLog:
    """Reads an interaction log from a file.

    ============== ====================================== ========================
    format         known by its name                      content
    ============== ====================================== ========================
    `"sequences"`  `*.txt`                                `user item item ...`
    `"csv"`        `*.csv`                                table with a header
    `"tsv"`        `*.tsv`                                table with a header
    `"parquet"`    `*.parquet`                            table
    `"recbole"`    `*.inter`                              table with a typed header
    `"movielens"`  `*.dat`                                `user::item::rating::time`
    `"amazon"`     `*.json`, `*.jsonl`                    one review a line
    ============== ====================================== ========================

    All but Parquet may be compressed with gzip (`*.csv.gz`). Every interaction
    counts, whatever its rating. Ids that are all plain numbers become int64 and are
    numbered by value, others are text. The log is named after the file.

    Args:
      path: the file.
      format: one of the names above, where the file's name does not tell.
      user: the name of the column of users, in the formats that are tables; by
        default a usual one, such as `user_id`. Case does not matter.
      item: likewise for the items.
      timestamp: likewise for the timestamps: numbers or ISO dates.

    Returns:
      The log, sorted by user and time; equal times keep the order of the file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the format is not known, or the file is empty or malformed; the
        message begins with the file and, where one line is at fault, its number.

    Example:
      >>> import pathlib, tempfile
      >>> from sevo_jax.data import read
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "tiny.csv")
      ...     _ = path.write_text("user,item,time\\nbo,7,30\\nal,9,20\\nal,7,10\\n")
      ...     log = read(path)
      >>> log.name, log.user_ids.tolist(), [row.tolist() for row in log.sequences]
      ('tiny', ['al', 'bo'], [[0, 1], [0]])
    """
    format = detect_format(path) if format is None else format
    if format not in FORMATS:
        raise ValueError(
            f"there is no format {format!r}: choose one of {', '.join(FORMATS)}"
        )
    named = {"user": user, "item": item, "timestamp": timestamp}
    named = {title: column for title, column in named.items() if column is not None}
    if named and format not in ("csv", "tsv", "parquet", "recbole"):
        raise ValueError(
            f"{path}: columns cannot be named ({named}), because the format {format!r} "
            "has fixed ones"
        )
    return FORMATS[format](path, **named)


def detect_format(path: str | os.PathLike) -> str:
    """Returns the name of a file's format, by the file's name alone.

    Raises:
      ValueError: the name's ending is not known.

    Example:
      >>> from sevo_jax.data.readers import detect_format
      >>> detect_format("reviews_Beauty_5.json.gz")
      'amazon'
    """
    endings = {
        ".txt": "sequences",
        ".csv": "csv",
        ".tsv": "tsv",
        ".parquet": "parquet",
        ".inter": "recbole",
        ".dat": "movielens",
        ".json": "amazon",
        ".jsonl": "amazon",
    }
    ending = Path(os.fspath(path).removesuffix(".gz")).suffix
    if ending not in endings:
        raise ValueError(
            f"{path}: the ending {ending!r} belongs to no format ({', '.join(endings)} "
            "do): rename the file or pass format="
        )
    return endings[ending]


def read_sequences(path: str | os.PathLike) -> InteractionLog:
    """Reads sequence text: one user a line, `user item item ...`, oldest item first.

    Blank lines are skipped. See `read` for the rest.

    Raises:
      ValueError: the file is empty, a user has no items or a second line.
    """
    lines_of_users: dict[str, int] = {}
    lengths, items = [], []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        user, *sequence = line.split() or (None,)
        if user is None:
            continue
        if not sequence:
            raise ValueError(f"{path}:{number}: user {user} has no items")
        if user in lines_of_users:
            raise ValueError(
                f"{path}:{number}: user {user} stands on line {lines_of_users[user]} "
                "already: put all items of a user on one line"
            )
        lines_of_users[user] = number
        lengths.append(len(sequence))
        items.extend(sequence)
    if not items:
        raise ValueError(f"{path}: the file has no interactions")
    users = np.repeat(_ids(list(lines_of_users)), lengths)
    return InteractionLog.from_columns(users, _ids(items), name=_name(path))


def read_csv(path: str | os.PathLike, **columns: str) -> InteractionLog:
    """Reads comma-separated values with a header; see `read`.

    Args:
      path: the file.
      **columns: the names of the `user`, `item` and `timestamp` columns.
    """
    return _read_table(path, ",", columns)


def read_tsv(path: str | os.PathLike, **columns: str) -> InteractionLog:
    """Reads tab-separated values with a header; see `read_csv`."""
    return _read_table(path, "\t", columns)


def read_recbole(path: str | os.PathLike, **columns: str) -> InteractionLog:
    """Reads a RecBole atomic file: tab-separated, with types in its header.

    The header is such as `user_id:token`, `item_id:token`, `timestamp:float`, with
    columns in any order, others between them. See `read_csv`.
    """
    return _read_table(path, "\t", columns, typed=True)


def read_movielens(path: str | os.PathLike) -> InteractionLog:
    """Reads MovieLens ratings: lines `user::item::rating::timestamp`; see `read`."""
    text = _text(path).replace("::", _UNIT_SEPARATOR)
    table = _Table(_UNIT_SEPARATOR, False, 4, False, (0, 1, 3))
    columns = _parse_table(path, text, table)
    return InteractionLog.from_columns(*columns, name=_name(path))


def read_amazon(path: str | os.PathLike) -> InteractionLog:
    """Reads Amazon reviews (2014): one JSON object a line; see `read`.

    The fields are `reviewerID`, `asin` and `unixReviewTime`. Ids stay text, because
    an `asin` such as `0439886341` would lose its first digit as a number.
    """
    data = _bytes(path)
    try:
        columns = _parse_reviews_with_arrow(data)
    except ValueError:
        columns = _scan_reviews(path, _decode(path, data))
    return InteractionLog.from_columns(*columns, name=_name(path))


def read_parquet(path: str | os.PathLike, **columns: str) -> InteractionLog:
    """Reads a Parquet table; see `read_csv`. Integer and text ids keep their type."""
    import pyarrow
    from pyarrow import parquet

    try:
        names = parquet.read_schema(path).names
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file ({error})") from error
    wanted = [names[position] for position in _positions(f"{path}", names, columns)]
    table = parquet.read_table(path, columns=wanted).select(wanted)
    if not table.num_rows:
        raise ValueError(f"{path}: the table has no rows")
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            row = column.is_null().index(True).as_py()
            raise ValueError(f"{path}: row {row} of column {name!r} is empty")
        if pyarrow.types.is_nested(column.type):
            raise ValueError(
                f"{path}: column {name!r} is {column.type}, but must hold single values"
            )
    users, items, timestamps = (_decoded(column) for column in table.columns)
    try:
        return InteractionLog.from_columns(users, items, timestamps, name=_name(path))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


FORMATS: dict[str, Callable[..., InteractionLog]] = {
    "sequences": read_sequences,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
    "recbole": read_recbole,
    "movielens": read_movielens,
    "amazon": read_amazon,
}


def _read_table(
    path: str | os.PathLike,
    delimiter: str,
    columns: dict[str, str],
    typed: bool = False,
) -> InteractionLog:
    text = _text(path)
    _, header = next(_rows(path, text, delimiter, quoted=not typed))
    if typed:
        header = _untyped(path, header)
    positions = _positions(f"{path}:1", header, columns)
    table = _Table(delimiter, not typed, len(header), True, positions)
    parsed = _parse_table(path, text, table)
    return InteractionLog.from_columns(*parsed, name=_name(path))


def _untyped(path: str | os.PathLike, header: list[str]) -> list[str]:
    for field in header:
        if ":" not in field:
            raise ValueError(
                f"{path}:1: the column {field!r} has no type: a RecBole header is such "
                "as 'user_id:token'"
            )
    return [field.rpartition(":")[0] for field in header]


def _positions(
    where: str, header: Sequence[str], columns: dict[str, str]
) -> tuple[int, int, int]:
    """Finds the user, item and timestamp columns by their names or usual names."""
    user, item, timestamp = (
        column_position(where, header, title, columns.get(title)) for title in ALIASES
    )
    return user, item, timestamp


def column_position(
    where: str, header: Sequence[str], title: str, named: str | None
) -> int:
    """Finds the column of `title` ("user") by the name given or a usual one."""
    present = [name.strip().lower() for name in header]
    wanted = ALIASES[title] if named is None else (named.lower(),)
    name = next((name for name in wanted if name in present), None)
    if name is None:
        raise ValueError(
            f"{where}: no column is named {' or '.join(wanted)}; there are "
            f"{', '.join(header)}: name the {title} column with {title}=..."
        )
    if present.count(name) > 1:
        raise ValueError(f"{where}: two columns are named {name!r}")
    return present.index(name)


def _parse_table(path: str | os.PathLike, text: str, table: _Table) -> _Columns:
    """Returns the columns of a delimited text, ids that are numbers as numbers."""
    try:
        users, items, timestamps = _parse_with_arrow(text, table)
    except ValueError:
        users, items, timestamps = _scan_table(path, text, table)
    return _Columns(_ids(users), _ids(items), timestamps)


def _parse_with_arrow(text: str, table: _Table) -> _Columns:
    """Parses quickly; anything unusual is a ValueError without a line."""
    import pyarrow
    from pyarrow import csv as arrow_csv

    names = [str(position) for position in range(table.width)]
    wanted = [str(position) for position in table.positions]
    parsed = arrow_csv.read_csv(
        io.BytesIO(text.encode()),
        # The header is skipped as a row, so that equal names do not matter here.
        read_options=arrow_csv.ReadOptions(
            column_names=names, skip_rows_after_names=int(table.has_header)
        ),
        parse_options=arrow_csv.ParseOptions(
            delimiter=table.delimiter, quote_char='"' if table.quoted else False
        ),
        convert_options=arrow_csv.ConvertOptions(
            include_columns=wanted, column_types=dict.fromkeys(wanted, pyarrow.string())
        ),
    )
    users, items = (_decoded(parsed[name]) for name in wanted[:2])
    if not parsed.num_rows or any("" in set(column) for column in (users, items)):
        raise ValueError("no rows, or rows without an id")
    for kind in (pyarrow.int64(), pyarrow.float64(), pyarrow.timestamp("us")):
        try:
            timestamps = parsed[wanted[2]].cast(kind).to_numpy()
        except pyarrow.ArrowInvalid:
            continue
        if timestamps.dtype.kind != "f" or np.isfinite(timestamps).all():
            return _Columns(users, items, timestamps)
    raise ValueError("timestamps are neither numbers nor dates")


def _scan_table(path: str | os.PathLike, text: str, table: _Table) -> _Columns:
    """Reads line by line, and stops at the first malformed one."""
    users, items, timestamps = [], [], []
    as_timestamp = None
    rows = _rows(path, text, table.delimiter, table.quoted)
    for number, fields in itertools.islice(rows, table.has_header, None):
        where = f"{path}:{number}"
        if not fields:
            continue
        if len(fields) != table.width:
            raise ValueError(
                f"{where}: {len(fields)} fields instead of {table.width}: "
                f"{_shown(table.delimiter.join(fields).replace(_UNIT_SEPARATOR, '::'))}"
            )
        user, item, timestamp = (fields[position] for position in table.positions)
        for title, entry in (("user", user), ("item", item)):
            if not entry:
                raise ValueError(f"{where}: the {title} is empty")
        as_timestamp = as_timestamp or _timestamp_kind(timestamp)
        try:
            timestamps.append(as_timestamp(timestamp))
        except ValueError as error:
            raise ValueError(
                f"{where}: the timestamp {timestamp!r} is not "
                f"{'a number' if as_timestamp is _number else 'an ISO date'}"
            ) from error
        users.append(user)
        items.append(item)
    if not users:
        raise ValueError(f"{path}: the file has no interactions")
    return _Columns(
        np.array(users, object), np.array(items, object), np.array(timestamps)
    )


def _rows(
    path: str | os.PathLike, text: str, delimiter: str, quoted: bool
) -> Iterator[tuple[int, list[str]]]:
    """The fields of each line, with its number; a quoted field may span lines."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )
    try:
        for fields in reader:
            yield reader.line_num, fields
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: {error}") from error


def _timestamp_kind(entry: str) -> Callable[[str], Any]:
    """Whether timestamps are dates or, as is usual, numbers: by the first of them."""
    try:
        _iso_date(entry)
    except ValueError:
        return _number
    return _number if entry.strip().isdigit() else _iso_date


def _number(entry: str) -> int | float:
    number = float(entry)
    if not math.isfinite(number):
        raise ValueError(f"{entry} is not finite")
    # Nanoseconds since 1970 lose their last digits as floats.
    is_int64 = entry.strip().lstrip("-").isdecimal() and abs(number) < 2**63
    return int(entry) if is_int64 else number


def _iso_date(entry: str) -> np.datetime64:
    date = datetime.fromisoformat(entry.strip())
    if date.tzinfo is not None:
        date = (date - date.utcoffset()).replace(tzinfo=None)  # pyright: ignore
    return np.datetime64(date, "us")


def _parse_reviews_with_arrow(data: bytes) -> _Columns:
    """Parses quickly; anything unusual is a ValueError without a line."""
    import pyarrow
    from pyarrow import json as arrow_json

    kinds = {
        "reviewerID": pyarrow.string(),
        "asin": pyarrow.string(),
        "unixReviewTime": pyarrow.int64(),
    }
    table = arrow_json.read_json(
        io.BytesIO(data),
        parse_options=arrow_json.ParseOptions(
            explicit_schema=pyarrow.schema(list(kinds.items())),
            unexpected_field_behavior="ignore",
        ),
    )
    columns = [table[field] for field in kinds]
    if any(column.null_count for column in columns):
        raise ValueError("reviews without all fields")
    return _Columns(*(_decoded(column) for column in columns))


def _scan_reviews(path: str | os.PathLike, text: str) -> _Columns:
    """Reads reviews line by line, and stops at the first malformed one."""
    kinds = {"reviewerID": str, "asin": str, "unixReviewTime": int}
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            review = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error}): {_shown(line)}") from error
        if not isinstance(review, dict):
            raise ValueError(f"{where}: not a JSON object: {_shown(line)}")
        for field, kind in kinds.items():
            if type(review.get(field)) is not kind:
                raise ValueError(
                    f"{where}: the field {field!r} is {review.get(field, 'missing')!r}"
                    f", not {'text' if kind is str else 'a whole number'}"
                )
        rows.append([review[field] for field in kinds])
    if not rows:
        raise ValueError(f"{path}: the file has no interactions")
    users, items, timestamps = zip(*rows, strict=True)
    return _Columns(
        np.array(users, object), np.array(items, object), np.array(timestamps)
    )


def _decoded(column: Any) -> np.ndarray:
    """An Arrow column as NumPy; text as objects, each distinct one made only once."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        column = column.dictionary_encode()
    if not pyarrow.types.is_dictionary(column.type):
        return column.to_numpy()
    encoded = column.combine_chunks()
    distinct = encoded.dictionary.to_numpy(zero_copy_only=False)
    return distinct[encoded.indices.to_numpy(zero_copy_only=False)]


def _ids(tokens: Sequence[str] | np.ndarray) -> np.ndarray:
    """Tokens as int64 if all are plain whole numbers, otherwise as they are."""
    if all(_WHOLE_NUMBER.fullmatch(token) for token in set(tokens)):
        return np.fromiter(map(int, tokens), np.int64, len(tokens))
    return np.asarray(tokens, object)


def _bytes(path: str | os.PathLike) -> bytes:
    opener = gzip.open if os.fspath(path).endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            data = file.read()
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: broken gzip file ({error})") from error
    if not data.strip():
        raise ValueError(f"{path}: the file is empty")
    return data


def _decode(path: str | os.PathLike, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: not UTF-8 ({error.reason})") from error


def _text(path: str | os.PathLike) -> str:
    return _decode(path, _bytes(path))


def _shown(line: str) -> str:
    """A line for an error message, the start of it if it is long."""
    return repr(line if len(line) <= 60 else line[:57] + "...")


def _name(path: str | os.PathLike) -> str:
    return Path(os.fspath(path).removesuffix(".gz")).stem
