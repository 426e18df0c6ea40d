"""Tables of text: one interaction a line, its columns cut by a delimiter.

Large files go through Arrow, which parses millions of lines a second but cannot
always say where a fault is. What it refuses is read again line by line, which either
finds the fault or, where Arrow was only too strict, returns the same columns.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import os
import re
from typing import Any

import numpy as np

from sevo_jax._files import replacing
from sevo_jax._messages import shown
from sevo_jax.data import ids
from sevo_jax.data.formats import arrow
from sevo_jax.data.formats.columns import Positions
from sevo_jax.data.formats.layout import Dialect, Table, find_table, skip_comments
from sevo_jax.data.formats.lines import (
    COMMENT,
    UNIT_SEPARATOR,
    character,
    normalised,
    quotes_pair,
    rows,
)
from sevo_jax.data.formats.request import Faults, Request, warn_of_order
from sevo_jax.data.formats.source import Source
from sevo_jax.data.log import InteractionLog
from sevo_jax.data.times import TimeParser, ranked

Columns = tuple[ids.Numbered, ids.Numbered, np.ndarray | None]


def read(source: Source, request: Request, dialect: Dialect) -> InteractionLog:
    """Reads a table whose columns are found by name, or have numbers."""
    return parse(source, source.text(), request, dialect)


def parse(
    source: Source, data: bytes, request: Request, dialect: Dialect
) -> InteractionLog:
    """Reads the content of `source` as `read` does."""
    where, faults = source.where, request.faults
    start, line = skip_comments(where, data, faults)
    table = find_table(f"{where}:{line}", data, start, request, dialect)
    for _ in range(table.header_lines):
        start = data.find(b"\n", start) + 1 or len(data)
    body = normalised(data[start:], table.delimiter)
    if _knows_no_quotes(body, table):
        table = table._replace(quoted=False)
    columns = arrow.quickly(_parse_with_arrow, body, table) or _scan(
        where, body, line + table.header_lines, table, faults
    )
    if table.positions.timestamp is None and len(table.first) > 2:
        names = table.first if table.header_lines else map(str, range(len(table.first)))
        warn_of_order(where, list(names))
    return InteractionLog.from_codes(*columns, name=source.name)


def write(log: InteractionLog, path: str | os.PathLike, dialect: Dialect) -> None:
    """Writes a table that `parse` reads; the time is the position in the sequence.

    Raises:
      ValueError: ids would be another's or none's when they are read again; or one
        would not come back from a RecBole file, which has no quotes.
    """
    ids.check_written(path, log.user_ids, "user")
    ids.check_written(path, log.item_ids, "item")
    users, items, positions = (column.tolist() for column in log.to_columns())
    awkward = _awkward(
        log.user_ids, r"[\t\r\n]|^\ufeff|^" + COMMENT.pattern
    ) or _awkward(log.item_ids, r"[\t\r\n]")
    header = ("user", "item", "timestamp")
    quotes: dict[str, Any] = {"quoting": csv.QUOTE_ALL} if awkward else {}
    if dialect.typed:
        if awkward:
            raise ValueError(
                f"{path}: the id {shown(awkward)} contains a tab or a line break, or "
                "begins as a comment or a byte order mark does, which this format "
                "cannot hold: write .csv or .parquet"
            )
        header = ("user_id:token", "item_id:token", "timestamp:float")
        quotes = {"quoting": csv.QUOTE_NONE, "quotechar": None}
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(
            file, delimiter=dialect.delimiter, lineterminator="\n", **quotes
        )
        writer.writerow(header)
        writer.writerows(zip(users, items, positions, strict=True))


def _awkward(entries: np.ndarray, pattern: str) -> str | None:
    """The first id that the pattern finds something in."""
    if entries.dtype.kind == "i":
        return None
    return next((entry for entry in entries if re.search(pattern, entry)), None)


def _parse_with_arrow(body: bytes, table: Table) -> Columns:
    """Parses quickly; anything unusual is a ValueError without a line."""
    import pyarrow
    import pyarrow.compute
    from pyarrow import csv as arrow_csv

    has_quotes = table.quoted and b'"' in body
    if b"\r" in body and body.count(b"\r") != body.count(b"\r\n"):
        raise ValueError("a carriage return inside a line")
    if codecs.BOM_UTF8 in body:
        raise ValueError("a byte order mark, which Arrow leaves out")
    if has_quotes and not quotes_pair(body, table.delimiter):
        raise ValueError("Arrow takes quotes where there should be none")
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
            delimiter=character(table.delimiter),
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
        compute.match_substring_regex(parsed["0"], f"^(?:{COMMENT.pattern})")
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


def _knows_no_quotes(body: bytes, table: Table) -> bool:
    """Whether quotes are only what people typed, as in most files with tabs."""
    if table.delimiter != "\t" or not table.quoted or quotes_pair(body, "\t"):
        return False
    if not any(row.fault for row in rows(body, "\t", quoted=True)):
        return False
    chosen = [at for at in table.positions if at is not None]
    return not any(
        row.fields[at].startswith('"')
        for row in rows(body, "\t", quoted=False)
        for at in chosen
        if at < len(row.fields)
    )


def _scan(
    where: str, body: bytes, first_line: int, table: Table, faults: Faults
) -> Columns:
    """Reads line by line, and names those that are malformed."""
    columns: list[list[str]] = [[], []]
    lines: list[int] = []
    times: list = []
    parse_time = TimeParser()
    user_at, item_at, time_at = table.positions
    width = len(table.first)
    for row in rows(body, table.delimiter, table.quoted):
        fields, fault = row.fields, row.fault
        if not fault and len(fields) != width:
            line = character(table.delimiter).join(fields)
            line = line.replace(UNIT_SEPARATOR, table.delimiter)
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
        line = row.line + first_line - 1
        if fault:
            faults.add(f"{where}:{line}", fault)
            continue
        lines.append(line)
        columns[0].append(fields[user_at])
        columns[1].append(fields[item_at])
    keep = np.ones(len(lines), bool)
    for title, column in zip(Positions._fields, columns):
        marks = ids.marks_of_missing(dict.fromkeys(column))
        for at, entry in enumerate(column) if marks else ():
            if entry in marks:
                faults.add(f"{where}:{lines[at]}", f"the {title} is missing, {entry}")
                keep[at] = False
    if not keep.any():
        raise faults.nothing_left(where)
    users, items = (list(itertools.compress(column, keep)) for column in columns)
    return (
        ids.number_tokens(users, "user"),
        ids.number_tokens(items, "item"),
        None if time_at is None else ranked(list(itertools.compress(times, keep))),
    )


def _id_fault(title: str, entry: str) -> str:
    if not entry:
        return f"the {title} is empty"
    if not (entry.isascii() or ids.is_utf8(entry)):
        return f"not UTF-8, the {title} {shown(entry)}"
    return ""
