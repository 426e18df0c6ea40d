"""The formats of interaction logs: who adds one writes a module and a line here.

A module has `read(source, request)`, which returns an `InteractionLog`, and perhaps
`write(log, path)`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from sevo_jax.data.formats import delimited, json_lines, sequences, tables
from sevo_jax.data.formats.layout import Dialect
from sevo_jax.data.formats.request import Request
from sevo_jax.data.formats.source import Source
from sevo_jax.data.log import InteractionLog


class Format(NamedTuple):
    """How logs of one format are read and written.

    Attributes:
      endings: of the names of such files, in lower case.
      read: reads one.
      write: writes one, in those that can be written.
      has_delimiter: whether its columns are cut by a delimiter.
    """

    endings: tuple[str, ...]
    read: Callable[[Source, Request], InteractionLog]
    write: Callable[[InteractionLog, str | os.PathLike], None] | None = None
    has_delimiter: bool = False


def _table(*endings: str, dialect: Dialect, written: bool = True) -> Format:
    read = partial(delimited.read, dialect=dialect)
    write = partial(delimited.write, dialect=dialect) if written else None
    return Format(endings, read, write, has_delimiter=True)


_MOVIELENS = Dialect("::", {"user": 0, "item": 1, "timestamp": 3})

FORMATS = {
    "sequences": Format((".txt",), sequences.read, sequences.write, has_delimiter=True),
    "csv": _table(".csv", dialect=Dialect(",")),
    "tsv": _table(".tsv", dialect=Dialect("\t")),
    "parquet": Format((".parquet",), tables.read_parquet, tables.write),
    "recbole": _table(".inter", dialect=Dialect("\t", typed=True)),
    "movielens": _table(".dat", ".data", dialect=_MOVIELENS, written=False),
    "json": Format((".json", ".jsonl", ".ndjson"), json_lines.read),
}


def of_ending(where: str, ending: str) -> str:
    """Returns the name of the format that an ending belongs to.

    Raises:
      ValueError: it belongs to none.

    Examples:
      >>> of_ending("ratings.CSV", ".csv")
      'csv'
    """
    for name, format in FORMATS.items():
        if ending in format.endings:
            return name
    known = [ending for format in FORMATS.values() for ending in format.endings]
    raise ValueError(
        f"{where}: the ending {ending!r} belongs to no format ({', '.join(known)} do): "
        f"say which of {', '.join(FORMATS)} it is, format=... (--format)"
    )
