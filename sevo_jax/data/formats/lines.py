"""Lines of a table cut into fields."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import NamedTuple

from sevo_jax._messages import shown

COMMENT = re.compile(r"[ \t]*(#|//|%%|%[ \t]|%$)")
"""What a comment begins with; an id that does stands in quotes."""

UNIT_SEPARATOR = "\x1f"
"""Stands for a delimiter of several characters, for which parsers have no place."""


class Row(NamedTuple):
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


def normalised(data: bytes, delimiter: str) -> bytes:
    """The lines with one character between fields, `character(delimiter)`."""
    if delimiter == " ":
        return b"\n".join(b" ".join(line.split()) for line in data.split(b"\n"))
    if character(delimiter) != delimiter:
        return data.replace(delimiter.encode(), UNIT_SEPARATOR.encode())
    return data


def character(delimiter: str) -> str:
    """What stands for a delimiter in the lines that `normalised` returns."""
    return delimiter if len(delimiter.encode()) == 1 else UNIT_SEPARATOR


def may_quote(delimiter: str, typed: bool) -> bool:
    """Whether fields may stand in quotes; `typed` as in `layout.Dialect`."""
    return not typed and delimiter != " " and len(delimiter) == 1


def comment_fault(line: str) -> str:
    """What is wrong with a line that begins as a comment does."""
    return (
        f"the line begins as a comment does, {shown(line.rstrip())}: delete it, or "
        "put the id in quotes if it is one"
    )


def rows(data: bytes, delimiter: str, quoted: bool) -> Iterator[Row]:
    """The rows that are not blank, of data whose fields are cut by one character."""
    lines = _Lines(data)
    reader = csv.reader(
        lines,
        delimiter=character(delimiter),
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
            yield Row(before + 1, reader.line_num - before, [], fault)
            continue
        fault = comment_fault(lines.first) if COMMENT.match(lines.first) else ""
        if fault or len(fields) > 1 or "".join(fields).strip():
            yield Row(reader.line_num, reader.line_num - before, fields, fault)


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
