"""Tables of text: one interaction a line, its columns cut by a delimiter.

Large files go through Arrow, which parses millions of lines a second but cannot
always say where a fault is. What it refuses is read again line by line, which either
finds the fault or, where Arrow was only too strict, returns the same columns.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from sevo_jax._files import replacing
from sevo_jax._messages import listed, shown
from sevo_jax.data import ids
from sevo_jax.data.formats import arrow
from sevo_jax.data.formats.columns import Positions, find, has_usual_name, option
from sevo_jax.data.formats.request import Faults, Request, warn
from sevo_jax.data.formats.source import Source
from sevo_jax.data.log import InteractionLog
from sevo_jax.data.times import TimeParser, looks_like_a_time, ranked

# Blanks are tried last: they are in dates and titles too.
_DELIMITERS = (",", "\t", ";", "|", "::", " ")
# Stands for a delimiter of several characters, for which the parsers have no place.
_UNIT_SEPARATOR = "\x1f"
_COMMENT = re.compile(r"[ \t]*(#|//|%%|%[ \t]|%$)")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
# How much is looked at to find out the delimiter and the columns.
_HEAD = 2**16
_LONGEST_LINE = 2**20

Columns = tuple[ids.Numbered, ids.Numbered, np.ndarray | None]


class _Table(NamedTuple):
    """How the lines of a file are cut, and where its columns are.

    Attributes:
      delimiter: what stands between two fields.
      quoted: whether fields may stand in double quotes.
      first: the fields of the first line.
      header_lines: how many lines these take if they are names; 0 if they are data.
      positions: which fields are the user, the item and the time.
    """

    delimiter: str
    quoted: bool
    first: list[str]
    header_lines: int
    positions: Positions


class _Row(NamedTuple):
    """A line, or several if a quoted field has line breaks.

    Attributes:
      line: the number of the last line, from 1.
      num_lines: how many lines.
      fields: what they hold.
      fault: what is wrong with them, if not empty.
    """

    line: int
    num_lines: int
    fields: list[str]
    fault: str = ""


def read(source: Source, request: Request, **dialect: Any) -> InteractionLog:
    """Reads a file as `parse` does."""
    return parse(source, source.text(), request, **dialect)


def parse(
    source: Source,
    data: bytes,
    request: Request,
    *,
    usual: str,
    default: Mapping[str, int] | None = None,
    typed: bool = False,
) -> InteractionLog:
    """Reads a table whose columns are found by name, or have numbers.

    Args:
      source: the file.
      data: its content.
      request: columns and delimiter.
      usual: the delimiter to try first.
      default: the columns of a table that has four and no header.
      typed: whether it is a RecBole atomic file: without quotes, and with a header
        such as `user_id:token`, `timestamp:float`.
    """
    where, faults = source.where, request.faults
    start, line = _skip_comments(where, data, faults)
    table = _find_table(
        f"{where}:{line}", _head(data, start), request, usual, default, typed
    )
    for _ in range(table.header_lines):
        start = data.find(b"\n", start) + 1 or len(data)
    body = _normalised(data[start:], table.delimiter)
    columns = arrow.quickly(_parse_with_arrow, body, table) or _scan(
        where, body, line + table.header_lines, table, faults
    )
    if table.positions.timestamp is None and len(table.first) > 2:
        names = table.first if table.header_lines else map(str, range(len(table.first)))
        warn(
            where,
            f"none of the columns {listed(list(names))} is known to hold times, so the "
            "order of the lines is taken for that of time; if one does, give "
            f"{option('timestamp')}",
        )
    return InteractionLog.from_codes(*columns, name=source.name)


def has_header(data: bytes) -> bool:
    """Whether the first line has usual names of users and of items."""
    for delimiter in _DELIMITERS:
        try:
            find("", _first_rows(_head(data, 0), delimiter, False)[0].fields, {})
        except ValueError:
            continue
        return True
    return False


def write(
    log: InteractionLog, path: str | os.PathLike, *, delimiter: str, typed: bool = False
) -> None:
    """Writes a table that `parse` reads; the time is the position in the sequence.

    Raises:
      ValueError: an id would not come back from a RecBole file, which has no quotes.
    """
    users, items, positions = (column.tolist() for column in log.to_columns())
    awkward = _awkward(log.user_ids, r"[\t\r\n]|^" + _COMMENT.pattern) or _awkward(
        log.item_ids, r"[\t\r\n]"
    )
    header = ("user", "item", "timestamp")
    dialect: dict[str, Any] = {"quoting": csv.QUOTE_ALL} if awkward else {}
    if typed:
        if awkward:
            raise ValueError(
                f"{path}: the id {shown(awkward)} contains a tab or a line break, or "
                "begins as a comment does, which this format cannot hold: write .csv "
                "or .parquet"
            )
        header = ("user_id:token", "item_id:token", "timestamp:float")
        dialect = {"quoting": csv.QUOTE_NONE, "quotechar": None}
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n", **dialect)
        writer.writerow(header)
        writer.writerows(zip(users, items, positions, strict=True))


def _awkward(entries: np.ndarray, pattern: str) -> str | None:
    """The first id that the pattern finds something in."""
    if entries.dtype.kind == "i":
        return None
    return next((entry for entry in entries if re.search(pattern, entry)), None)


def _skip_comments(where: str, data: bytes, faults: Faults) -> tuple[int, int]:
    """Where the first line begins that is neither blank nor a comment; its number."""
    start = 0
    for line in itertools.count(1):
        end = data.find(b"\n", start) + 1 or len(data)
        text = data[start : min(end, start + _HEAD)].decode(errors="replace")
        if _COMMENT.match(text):
            faults.add(f"{where}:{line}", _comment_fault(text))
        elif text.strip():
            return start, line
        if end == len(data):
            raise faults.nothing_left(where)
        start = end
    raise AssertionError


def _comment_fault(line: str) -> str:
    return (
        f"the line begins as a comment does, {shown(line.rstrip())}: delete it, or "
        "put the id in quotes if it is one"
    )


def _head(data: bytes, start: int) -> bytes:
    """Some whole lines from `start` on, or the beginning of a very long one."""
    end = data.rfind(b"\n", start, start + _HEAD) + 1
    if not end:
        end = data.find(b"\n", start, start + _LONGEST_LINE) + 1
    return data[start : end or start + _LONGEST_LINE]


def _find_table(
    where: str,
    head: bytes,
    request: Request,
    usual: str,
    default: Mapping[str, int] | None,
    typed: bool,
) -> _Table:
    """Finds out the delimiter and the columns by the first lines."""
    columns = request.columns
    if request.delimiter is not None or typed:
        delimiters = [request.delimiter or usual]
    else:
        delimiters = [usual, *(each for each in _DELIMITERS if each != usual)]
    named = any(isinstance(each, str) for each in columns.values())
    possible: list[_Table] = []
    refusal, widest = "", 0
    for delimiter in delimiters:
        first, second = _first_rows(head, delimiter, typed)
        if first.fault:
            refusal = refusal or f"{where}: {first.fault}"
            continue
        names = _untyped(where, first.fields) if typed else first.fields
        quoted = _may_quote(delimiter, typed)
        try:
            positions = find(where, names, columns)
            if named or has_usual_name(names):
                return _Table(delimiter, quoted, first.fields, first.line, positions)
        except ValueError as error:
            if len(names) > widest:
                refusal, widest = f"{error}", len(names)
            if named or default is None or len(names) != 4:
                continue
            positions = find(where, names, {**default, **columns})
        is_header = _is_header(names, second.fields, positions)
        header_lines = first.line if is_header else 0
        table = _Table(delimiter, quoted, first.fields, header_lines, positions)
        possible.append(table)
    # What is cut by one delimiter should not hold another; and blanks cut whatever
    # another cuts, and more.
    possible = [each for each in possible if not _holds_another(each)] or possible
    possible = [each for each in possible if each.delimiter != " "] or possible
    if not possible:
        raise ValueError(
            f"{refusal}; if this line is data already, give the numbers of all of "
            "them, from 0, and that of the times, if any, with "
            f"{option('timestamp')}"
        )
    if len(possible) > 1:
        raise ValueError(
            f"{where}: {' or '.join(repr(each.delimiter) for each in possible)} may "
            f"cut the line into columns, {shown(possible[0].first)}: choose one, "
            "delimiter=... (--delimiter)"
        )
    return possible[0]


def _first_rows(head: bytes, delimiter: str, typed: bool) -> tuple[_Row, _Row]:
    """The first two rows; without fields if they are not there."""
    lines = _normalised(head, delimiter)
    rows = _rows(lines, delimiter, _may_quote(delimiter, typed))
    first, second, *_ = (*itertools.islice(rows, 2), _Row(0, 0, []), _Row(0, 0, []))
    return first, second


def _untyped(where: str, header: list[str]) -> list[str]:
    for field in header:
        if ":" not in field:
            raise ValueError(
                f"{where}: the column {shown(field)} has no type: a RecBole header is "
                "such as 'user_id:token'"
            )
    return [field.rpartition(":")[0] for field in header]


def _holds_another(table: _Table) -> bool:
    fields = [table.first[i] for i in table.positions if i is not None]
    others = [each for each in _DELIMITERS if each not in (table.delimiter, " ")]
    return any(other in field for field in fields for other in others)


def _is_header(first: list[str], second: list[str], positions: Positions) -> bool:
    """Whether a line without usual names holds names: no digits, but numbers follow."""
    chosen = [position for position in positions if position is not None]
    if len(second) <= max(chosen) or re.search(
        "[0-9]", "".join(first[i] for i in chosen)
    ):
        return False
    is_time = positions.timestamp is not None and looks_like_a_time(
        second[positions.timestamp]
    )
    return is_time or any(_NUMBER.fullmatch(second[i]) for i in chosen)


def _may_quote(delimiter: str, typed: bool) -> bool:
    return not typed and delimiter != " " and len(delimiter) == 1


def _normalised(data: bytes, delimiter: str) -> bytes:
    """The lines with one character between fields, `_character(delimiter)`."""
    if delimiter == " ":
        return b"\n".join(b" ".join(line.split()) for line in data.split(b"\n"))
    if _character(delimiter) != delimiter:
        return data.replace(delimiter.encode(), _UNIT_SEPARATOR.encode())
    return data


def _character(delimiter: str) -> str:
    return delimiter if len(delimiter.encode()) == 1 else _UNIT_SEPARATOR


def _parse_with_arrow(body: bytes, table: _Table) -> Columns:
    """Parses quickly; anything unusual is a ValueError without a line."""
    import pyarrow
    import pyarrow.compute
    from pyarrow import csv as arrow_csv

    has_quotes = table.quoted and b'"' in body
    if has_quotes and body.count(b'"') % 2:
        raise ValueError("a quote that is not closed takes the rest of the file")
    if b"\r" in body and body.count(b"\r") != body.count(b"\r\n"):
        raise ValueError("a carriage return inside a line")
    compute: Any = pyarrow.compute
    user, item, timestamp = table.positions
    # The first column shows comments.
    wanted = {str(i) for i in (0, user, item, timestamp) if i is not None}
    parsed = arrow_csv.read_csv(
        pyarrow.py_buffer(body),
        read_options=arrow_csv.ReadOptions(
            column_names=[str(position) for position in range(len(table.first))]
        ),
        parse_options=arrow_csv.ParseOptions(
            delimiter=_character(table.delimiter),
            quote_char='"' if table.quoted else False,
            newlines_in_values=has_quotes,
        ),
        convert_options=arrow_csv.ConvertOptions(
            include_columns=sorted(wanted),
            column_types=dict.fromkeys(wanted, pyarrow.string()),
        ),
    )
    if not parsed.num_rows:
        raise ValueError("no rows")
    if compute.any(
        compute.match_substring_regex(parsed["0"], f"^(?:{_COMMENT.pattern})")
    ).as_py():
        raise ValueError("comments")
    name = table.first[user]
    if table.header_lines and compute.index(parsed[str(user)], name).as_py() >= 0:
        raise ValueError("a line that may be the header again")
    return (
        arrow.number(parsed[str(user)], "user", tokens=True),
        arrow.number(parsed[str(item)], "item", tokens=True),
        None if timestamp is None else arrow.times_of_text(parsed[str(timestamp)]),
    )


def _scan(
    where: str, body: bytes, first_line: int, table: _Table, faults: Faults
) -> Columns:
    """Reads line by line, and names those that are malformed."""
    users: list[str] = []
    items: list[str] = []
    times: list = []
    parse_time = TimeParser()
    user_at, item_at, time_at = table.positions
    width = len(table.first)
    for row in _rows(body, table.delimiter, table.quoted):
        fields, fault = row.fields, row.fault
        if not fault and len(fields) != width:
            line = _character(table.delimiter).join(fields)
            line = line.replace(_UNIT_SEPARATOR, table.delimiter)
            fault = f"{len(fields)} fields instead of {width}: {shown(line)}"
        if not fault and table.header_lines and fields == table.first:
            fault = f"the header again, {shown(fields)}"
        if not fault:
            fault = _id_fault("user", fields[user_at]) or _id_fault(
                "item", fields[item_at]
            )
        if not fault and time_at is not None:
            try:
                times.append(parse_time(fields[time_at]))
            except ValueError as error:
                fault = f"{error}"
        if fault:
            at = f"{where}:{row.line + first_line - 1}"
            faults.add(at, fault, row.num_lines)
            continue
        users.append(fields[user_at])
        items.append(fields[item_at])
    if not users:
        raise faults.nothing_left(where)
    return (
        ids.number_tokens(users, "user"),
        ids.number_tokens(items, "item"),
        None if time_at is None else ranked(times),
    )


def _id_fault(title: str, entry: str) -> str:
    if not entry:
        return f"the {title} is empty"
    if not (entry.isascii() or ids.is_utf8(entry)):
        return f"not UTF-8, the {title} {shown(entry)}"
    return ""


class _Lines:
    """Lines of text, each with its end, and the first of those since `first` was ""."""

    def __init__(self, data: bytes):
        self._lines = io.TextIOWrapper(
            io.BytesIO(data), encoding="utf-8", errors="surrogateescape", newline="\n"
        )
        self.first = ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.first = self.first or line
        return line


def _rows(data: bytes, delimiter: str, quoted: bool) -> Iterator[_Row]:
    """The rows that are not blank, of data whose fields are cut by one character."""
    lines = _Lines(data)
    reader = csv.reader(
        lines,
        delimiter=_character(delimiter),
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    while True:
        lines.first, before = "", reader.line_num
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault = f"{error}: {shown(lines.first.rstrip())}"
            yield _Row(before + 1, reader.line_num - before, [], fault)
            continue
        fault = _comment_fault(lines.first) if _COMMENT.match(lines.first) else ""
        if fault or len(fields) > 1 or "".join(fields).strip():
            yield _Row(reader.line_num, reader.line_num - before, fields, fault)
