"""How a table is cut into columns and which they are, found out by its first lines."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import NamedTuple

from sevo_jax._messages import shown
from sevo_jax.data.formats.columns import Positions, find, has_usual_name, option
from sevo_jax.data.formats.lines import (
    COMMENT,
    Row,
    comment_fault,
    may_quote,
    normalised,
    rows,
)
from sevo_jax.data.formats.request import Faults, Request
from sevo_jax.data.ids import marks_of_missing
from sevo_jax.data.times import looks_like_a_time

# Blanks are tried last: they are in dates and titles too.
_DELIMITERS = (",", "\t", ";", "|", "::", " ")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_NAME = re.compile(r"[^0-9]+")
_BEST_RATING = 10
# How much is looked at.
_HEAD = 2**16
_LONGEST_LINE = 2**20


class Dialect(NamedTuple):
    """What the tables of a format have in common.

    Attributes:
      delimiter: what usually stands between two fields.
      columns: the columns of a table of users, items, ratings and times that has no
        header.
      typed: whether it is a RecBole atomic file: without quotes, and with a header
        such as `user_id:token`, `timestamp:float`.
    """

    delimiter: str
    columns: Mapping[str, str | int] | None = None
    typed: bool = False


class Table(NamedTuple):
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


def find_table(
    where: str, data: bytes, start: int, request: Request, dialect: Dialect
) -> Table:
    """Finds out the delimiter and the columns by the first lines.

    Args:
      where: what messages begin with, the file and the line.
      data: the content of the file.
      start: where the line begins.
      request: the columns and the delimiter, as far as they are given.
      dialect: the format.

    Raises:
      ValueError: the columns are not found.
    """
    head, usual, typed = _head(data, start), dialect.delimiter, dialect.typed
    columns = request.columns
    if request.delimiter is not None or typed:
        delimiters = [request.delimiter or usual]
    else:
        delimiters = [usual, *(each for each in _DELIMITERS if each != usual)]
    named = any(isinstance(each, str) for each in columns.values())
    possible: list[Table] = []
    refusal, widest = "", 0
    for delimiter in delimiters:
        quoted = may_quote(delimiter, typed)
        first, second = _first_rows(head, delimiter, quoted)
        if first.fault and delimiter == "\t":
            # Titles as people type them: few writers of tabs know quotes.
            quoted = False
            first, second = _first_rows(head, delimiter, quoted)
        if first.fault:
            refusal, widest = f"{where}: {first.fault}", _LONGEST_LINE
            continue
        if delimiter == " " and (possible or widest == _LONGEST_LINE):
            # Blanks cut whatever another cuts, and more.
            continue
        names = _untyped(where, first.fields) if typed else first.fields
        try:
            positions = find(where, names, columns)
            if named or has_usual_name(names):
                return Table(
                    delimiter, quoted, first.fields, first.num_lines, positions
                )
        except ValueError as error:
            if len(names) > widest:
                refusal, widest = f"{error}", len(names)
            if named or dialect.columns is None or delimiter not in (usual, "\t"):
                continue
            if not _are_rated(names):
                continue
            positions = find(where, names, {**dialect.columns, **columns})
        is_header = _is_header(names, second.fields, positions)
        header_lines = first.num_lines if is_header else 0
        table = Table(delimiter, quoted, first.fields, header_lines, positions)
        possible.append(table)
    # What is cut by one delimiter should not hold another.
    possible = [each for each in possible if not _holds_another(each)] or possible
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


def _are_rated(fields: list[str]) -> bool:
    """Whether they may be a user, an item, a rating and a time."""
    if len(fields) != 4 or not _NUMBER.fullmatch(fields[2]):
        return False
    return float(fields[2]) <= _BEST_RATING and looks_like_a_time(fields[3])


def has_header(data: bytes) -> bool:
    """Whether the first line has usual names of users and of items."""
    for delimiter in _DELIMITERS:
        quoted = may_quote(delimiter, typed=False)
        first, _ = _first_rows(_head(data, 0), delimiter, quoted)
        try:
            find("", first.fields, {})
        except ValueError:
            continue
        return True
    return False


def skip_comments(where: str, data: bytes, faults: Faults) -> tuple[int, int]:
    """Where the first line begins that is neither blank nor a comment; its number."""
    start, line = 0, 1
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        text = data[start : min(end, start + _HEAD)].decode(errors="replace")
        if COMMENT.match(text):
            faults.add(f"{where}:{line}", comment_fault(text))
        elif text.strip():
            return start, line
        start, line = end, line + 1
    raise faults.nothing_left(where)


def _head(data: bytes, start: int) -> bytes:
    """Some whole lines from `start` on, or the beginning of a very long one."""
    end = data.rfind(b"\n", start, start + _HEAD) + 1
    if not end:
        end = data.find(b"\n", start, start + _LONGEST_LINE) + 1
    return data[start : end or start + _LONGEST_LINE]


def _first_rows(head: bytes, delimiter: str, quoted: bool) -> tuple[Row, Row]:
    """The first two rows; without fields if they are not there."""
    found = rows(normalised(head, delimiter), delimiter, quoted)
    first, second, *_ = (*itertools.islice(found, 2), Row(0, 0, []), Row(0, 0, []))
    return first, second


def _untyped(where: str, header: list[str]) -> list[str]:
    for field in header:
        if ":" not in field:
            raise ValueError(
                f"{where}: the column {shown(field)} has no type: a RecBole header is "
                "such as 'user_id:token'"
            )
    return [field.rpartition(":")[0] for field in header]


def _holds_another(table: Table) -> bool:
    fields = [table.first[i] for i in table.positions if i is not None]
    others = [each for each in _DELIMITERS if each not in (table.delimiter, " ")]
    return any(other in field for field in fields for other in others)


def _is_header(first: list[str], second: list[str], positions: Positions) -> bool:
    """Whether a line without usual names holds names: no digits, but numbers follow.

    Where ids are text, the numbers of another column tell, such as the ratings.
    """
    chosen = [position for position in positions if position is not None]
    if len(second) <= max(chosen) or re.search(
        "[0-9]", "".join(first[i] for i in chosen)
    ):
        return False
    is_time = positions.timestamp is not None and looks_like_a_time(
        second[positions.timestamp]
    )
    return is_time or any(
        _NUMBER.fullmatch(after)
        for before, after in zip(first, second)
        if _NAME.fullmatch(before) and not marks_of_missing([before])
    )
