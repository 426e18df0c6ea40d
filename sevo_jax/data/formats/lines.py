"""Lines of a table cut into fields."""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sevo_jax._messages import shown

COMMENT = re.compile(r"[ \t]*(#|//|%%|%[ \t]|%$)")
"""What a comment begins with; an id that does stands in quotes."""

UNIT_SEPARATOR = "\x1f"
"""Stands for a delimiter of several characters, for which parsers have no place."""


class Row(NamedTuple):
    """A line, or several if a quoted field has line breaks.

    Attributes:
      line: the number of the first line, from 1.
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
        lines = data.replace(b"\t", b" ").split(b"\n")
        # split() alone would take a carriage return inside a line for a blank.
        fields = (filter(None, line.removesuffix(b"\r").split(b" ")) for line in lines)
        return b"\n".join(map(b" ".join, fields))
    if character(delimiter) != delimiter:
        return data.replace(delimiter.encode(), UNIT_SEPARATOR.encode())
    return data


def character(delimiter: str) -> str:
    """What stands for a delimiter in the lines that `normalised` returns."""
    return delimiter if len(delimiter.encode()) == 1 else UNIT_SEPARATOR


def may_quote(delimiter: str, typed: bool) -> bool:
    """Whether fields may stand in quotes; `typed` as in `layout.Dialect`."""
    return not typed and delimiter != " " and len(delimiter) == 1


def quotes_pair(data: bytes, delimiter: str) -> bool:
    """Whether all quotes enclose whole fields, or stand in the midst of others.

    Then all parsers agree. Lines end in a line feed, and perhaps a return before it.

    Examples:
      >>> quotes_pair(b'1,"a ""b"" c",2,3\\' tall,3\\" tall', ",")
      True
      >>> quotes_pair(b'1,"a",2\\n1,say "a",2', ",")
      True
      >>> quotes_pair(b'1,"a,2', ","), quotes_pair(b'1,"a"b,2', ",")
      (False, False)
    """
    # So that the character before the first one, at -1, is a line feed as well.
    data = data if data.endswith(b"\n") else data + b"\n"
    text = np.frombuffer(data, np.uint8)
    at = np.flatnonzero(text == ord('"'))
    # Two in a row stand for one, as if a field were closed and opened again.
    is_border = np.isin(np.arange(256), [*delimiter.encode(), *b'\r\n"'])

    def alternate(at: np.ndarray) -> bool:
        return bool(
            len(at) % 2 == 0
            and is_border[text[at[0::2] - 1]].all()
            and is_border[text[at[1::2] + 1]].all()
        )

    if alternate(at):
        return True
    before, after = text[at - 1], text[at + 1]
    is_loose = ~(is_border[before] | is_border[after])
    # Those that end a field are loose too in lines where none opens any.
    opens = is_border[before] & (before != ord('"'))
    if not opens.any():
        return True
    line = np.searchsorted(np.flatnonzero(text == ord("\n")), at)
    for loose in (is_loose, is_loose | ~np.isin(line, line[opens])):
        is_inside = np.cumsum(~loose) % 2 == 1
        if not (loose & is_inside).any() and alternate(at[~loose]):
            return True
    return False


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
        lines.of_row.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote that is not closed must not take the lines behind it.
            fault = f"{error}"
            if lines.put_back_all_but_one() or fault == "unexpected end of data":
                fault = "a quote opens a field and none closes it"
            fault = f"{fault}: {shown(lines.of_row[0].rstrip())}"
            yield Row(lines.number, 1, [], fault)
            continue
        first = lines.of_row[0]
        fault = comment_fault(first) if COMMENT.match(first) else ""
        if first.startswith("\ufeff"):
            fault = f"a byte order mark, as of files that were joined: {shown(first)}"
        if fault or len(fields) > 1 or "".join(fields).strip():
            num_lines = len(lines.of_row)
            yield Row(lines.number - num_lines + 1, num_lines, fields, fault)


class _Lines:
    """Lines of text, each with its end.

    Attributes:
      number: how many were read.
      of_row: those that were read since this was cleared.
    """

    def __init__(self, data: bytes):
        self._lines = io.TextIOWrapper(
            io.BytesIO(data), encoding="utf-8", errors="surrogateescape", newline="\n"
        )
        self._again: deque[str] = deque()
        self.number = 0
        self.of_row: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.number += 1
        self.of_row.append(line)
        return line

    def put_back_all_but_one(self) -> bool:
        """Has the lines of the row but the first read once more, if there are any."""
        again = self.of_row[1:]
        del self.of_row[1:]
        self.number -= len(again)
        self._again.extendleft(reversed(again))
        return bool(again)
