"""Reading interaction logs, each fault reported by file and line."""

from __future__ import annotations

import os
from typing import Any

from sevo_jax._messages import shown
from sevo_jax.data.formats import FORMATS, of_ending, tables
from sevo_jax.data.formats.request import Faults, Request
from sevo_jax.data.formats.source import Source
from sevo_jax.data.log import InteractionLog


def read(
    source: str | os.PathLike | Any,
    *,
    format: str | None = None,
    user: str | int | None = None,
    item: str | int | None = None,
    timestamp: str | int | None = None,
    delimiter: str | None = None,
    skip_bad: bool = False,
) -> InteractionLog:
    r"""Reads an interaction log.

    ============== ======================== =======================================
    format         known by its name        content
    ============== ======================== =======================================
    `"sequences"`  `*.txt`                  `user item item ...`, oldest item first;
                                            or `user item` pairs
    `"csv"`        `*.csv`                  table
    `"tsv"`        `*.tsv`                  table
    `"parquet"`    `*.parquet`, a folder    table, in one file or several
    `"recbole"`    `*.inter`                table with a typed header
    `"movielens"`  `*.dat`, `*.data`        `user::item::rating::time`, or with tabs
    `"json"`       `*.json`, `*.jsonl`      one object a line: reviews of Amazon (2014
                                            to 2023), Yelp, Steam and the like
    ============== ======================== =======================================

    All of them may be compressed: `.gz`, `.bz2`, `.xz`, `.zst`, or `.zip` with one
    file. Every interaction counts, whatever its rating. The log is named after the
    file.

    In tables the columns are found by usual names, such as `user_id`, `sku` and
    `event_time`, and so is the delimiter. A table without header needs `user` and
    `item`, perhaps `timestamp`, as numbers from 0. Without times the order of the file
    is taken as that of time. Where reviews have `parent_asin`, it is the item.

    In text, ids that are all plain numbers become int64 and are numbered by value, and
    `123.0` is 123; other ids are text. Times are numbers of any unit, or ISO 8601;
    those without a zone are in UTC.

    Args:
      source: the path of a file or of a folder of Parquet files; "-" for standard
        input; or a table that has the Arrow interface `__arrow_c_stream__`, such as a
        DataFrame of pandas or Polars.
      format: one of the names above, where the file's name does not tell.
      user: the column of users: its name, or its number from 0. Case does not matter.
      item: likewise for the items.
      timestamp: likewise for the times.
      delimiter: what cuts a line of a table into columns, where it is not found out.
      skip_bad: whether to leave out lines that cannot be read. How many they are is
        logged as a warning, with the first of them.

    Returns:
      The log, sorted by user and time; equal times keep the order of the file.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: it cannot be read.
      TypeError: `source` is neither a path nor a table.
      ValueError: the format is not known, or the file is empty, damaged or malformed;
        the message begins with the file and, where one line is at fault, its number.

    Example:
      >>> import pathlib, tempfile
      >>> from sevo_jax.data import read
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "tiny.csv")
      ...     _ = path.write_text("user,item,time\nbo,7,30\nal,9,20\nal,7,10\n")
      ...     log = read(path)
      >>> log.name, log.user_ids.tolist(), [row.tolist() for row in log.sequences]
      ('tiny', ['al', 'bo'], [[0, 1], [0]])
    """
    given = {"user": user, "item": item, "timestamp": timestamp}
    columns = {
        title: int(column) if isinstance(column, str) and column.isdecimal() else column
        for title, column in given.items()
        if column is not None
    }
    request = Request(columns, _checked_delimiter(delimiter), Faults(skip_bad))
    if hasattr(source, "__arrow_c_stream__"):
        if format is not None or delimiter is not None:
            raise ValueError(
                f"the {type(source).__name__} is a table already: leave out format= "
                "and delimiter=, which say how to read a file"
            )
        log = tables.read_table(source, request)
        request.faults.report(log.name)
        return log
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"a log is read from a path or from what has __arrow_c_stream__, such as a "
            f"DataFrame, not from {type(source).__name__}"
        )
    file = Source(source)
    if format is None:
        format = (
            "parquet" if os.path.isdir(source) else of_ending(file.where, file.ending)
        )
    if format not in FORMATS:
        raise ValueError(
            f"there is no format {shown(format)}: choose one of {', '.join(FORMATS)}"
        )
    if delimiter is not None and not FORMATS[format].has_delimiter:
        raise ValueError(
            f"{file.where}: the format {format!r} has no delimiter: leave out "
            "delimiter= (--delimiter)"
        )
    log = FORMATS[format].read(file, request)
    request.faults.report(file.where)
    return log


def _checked_delimiter(delimiter: str | None) -> str | None:
    # A tab is hard to type in a shell.
    delimiter = "\t" if delimiter == "\\t" else delimiter
    if delimiter is not None and (not delimiter or set(delimiter) & set('\r\n"')):
        raise ValueError(
            f"the delimiter is {delimiter!r}: choose a character that is no quote and "
            "no line break"
        )
    return delimiter
