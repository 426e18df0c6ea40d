"""What is known of the items of a log, from a file: genres, brands, categories."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from sevo_jax._messages import listed, shown
from sevo_jax.data import ids
from sevo_jax.data.formats import arrow, tables
from sevo_jax.data.formats.columns import find_one
from sevo_jax.data.formats.source import Source
from sevo_jax.data.log import InteractionLog

_Pairs: TypeAlias = tuple[ids.Numbered, Sequence[Any]]

_logger = logging.getLogger(__name__)


def read_attributes(path: str | os.PathLike, log: InteractionLog) -> dict[int, list]:
    """Reads the attributes of the items of a log.

    A table (`.csv`, `.tsv`, `.parquet`) has two columns, an item and one of its
    attributes, and a line for each pair; a header that calls the first of them an item
    is left out. A `.json` file is one object, whose keys are the items and whose values
    are lists of attributes. All but Parquet may be compressed (`.csv.gz`).

    Items are called what they are called in the log. Those that are not in it are left
    out, and a warning says how many they are.

    Args:
      path: the file.
      log: the interactions.

    Returns:
      For each item that has attributes, `0..num_items-1`, the list of them, as
      `sevo_jax.graphs.shared_attributes` takes it.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is malformed, or has no item of the log.

    Examples:
      >>> import pathlib, tempfile
      >>> from sevo_jax.data import InteractionLog, read_attributes
      >>> log = InteractionLog.from_columns(["u", "u"], ["a", "b"], name="tiny")
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "genres.csv")
      ...     _ = path.write_text("item,genre\\nb,War\\nb,Drama\\na,War\\n")
      ...     read_attributes(path, log)
      {1: ['War', 'Drama'], 0: ['War']}
    """
    source = Source(path)
    if source.ending not in _READERS:
        raise ValueError(
            f"{source.where}: attributes are read from {', '.join(_READERS)}, not from "
            f"{source.ending or 'a file without an ending'}: convert the file"
        )
    items, attributes = _READERS[source.ending](source)
    numbers = {str(item): number for number, item in enumerate(log.item_ids.tolist())}
    names = list(map(str, items.ids.tolist()))
    unknown = [name for name in names if name not in numbers]
    some = listed(list(map(shown, unknown)))
    if len(unknown) == len(names):
        raise ValueError(
            f"{source.where}: no item is in the log {log.name!r}; here they are "
            f"such as {some}, there such as {listed([*map(shown, numbers)])}: give the "
            "items as the log calls them, in the first column"
        )
    if unknown:
        _logger.warning(
            "%s: %d of %d items are not in the log %r and are left out: %s",
            *(source.where, len(unknown), len(names), log.name, some),
        )
    found = defaultdict(list)
    for code, attribute in zip(items.codes.tolist(), attributes, strict=True):
        if names[code] in numbers:
            found[numbers[names[code]]].append(attribute)
    return dict(found)


def _read_delimited(source: Source, delimiter: str) -> _Pairs:
    pairs: list[list[str]] = []
    reader = csv.reader(
        io.StringIO(_decoded(source), newline=""), delimiter=delimiter, strict=True
    )
    try:
        for row in reader:
            where = f"{source.where}:{reader.line_num}"
            if not row:
                continue
            if len(row) != 2 or not all(row):
                raise ValueError(
                    f"{where}: {shown(delimiter.join(row))} is not an item and one "
                    f"attribute: write one pair a line, separated by {delimiter!r}"
                )
            if pairs or find_one(where, row[:1], "item", None) is None:
                pairs.append(row)
    except csv.Error as error:
        raise ValueError(f"{source.where}:{reader.line_num}: {error}") from error
    return _of_tokens(source, pairs)


def _read_json(source: Source) -> _Pairs:
    try:
        # An object as a tuple, so that none of its keys is lost if it comes twice.
        table = json.loads(_decoded(source), object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source.where}: not JSON ({error})") from error
    if not isinstance(table, tuple):
        raise ValueError(
            f"{source.where}: attributes in JSON are one object, of items and lists of "
            f"their attributes, not {shown(table)}"
        )
    for item, attributes in table:
        if not isinstance(attributes, list) or not all(
            type(each) in (str, int) for each in attributes
        ):
            raise ValueError(
                f"{source.where}: the attributes of {shown(item)} are "
                f"{shown(attributes)}, not a list of texts or whole numbers"
            )
    return _of_tokens(source, [(item, each) for item, row in table for each in row])


def _read_parquet(source: Source) -> _Pairs:
    import pyarrow

    with tables.open_parquet(source.where, source.path) as parquet:
        names = parquet.schema_arrow.names
        if len(names) != 2:
            raise ValueError(
                f"{source.where}: the columns are {listed(names)}: there must be two, "
                "an item and one of its attributes"
            )
        kind = parquet.schema_arrow.field(1).type
        if pyarrow.types.is_nested(kind):
            raise ValueError(
                f"{source.where}: the column {names[1]!r} of the attributes holds "
                f"{shown(str(kind))}: write a row for each pair of an item and one of "
                "its attributes"
            )
        with tables.damaged(source.where):
            table = parquet.read()
            for column in table.columns:
                column.validate(full=True)
            attributes = table.column(1).to_pylist()
    if not table.num_rows or any(column.null_count for column in table.columns):
        raise ValueError(f"{source.where}: there are no rows, or entries are missing")
    try:
        items = arrow.number(table.column(0), "item")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source.where}: {error}") from error
    return items, attributes


def _decoded(source: Source) -> str:
    data = source.text()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{source.where}:{line}: not UTF-8 ({error.reason})") from None


def _of_tokens(source: Source, pairs: Sequence[Sequence[Any]]) -> _Pairs:
    if not pairs:
        raise ValueError(f"{source.where}: no item has an attribute")
    items, attributes = zip(*pairs, strict=True)
    try:
        return ids.number_tokens(list(items), "item"), attributes
    except ValueError as error:
        raise ValueError(f"{source.where}: {error}") from error


_READERS: dict[str, Callable[[Source], _Pairs]] = {
    ".csv": lambda source: _read_delimited(source, ","),
    ".tsv": lambda source: _read_delimited(source, "\t"),
    ".parquet": _read_parquet,
    ".json": _read_json,
}
