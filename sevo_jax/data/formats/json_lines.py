"""JSON lines: one object an interaction, such as the reviews of Amazon, Yelp and Steam.

Large files go through Arrow, as `sevo_jax.data.formats.delimited` says.
"""

from __future__ import annotations

import ast
import io
import itertools
import json
import warnings
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from sevo_jax._messages import shown
from sevo_jax.data import ids
from sevo_jax.data.formats import arrow
from sevo_jax.data.formats.columns import find
from sevo_jax.data.formats.request import Faults, Request, warn_of_order
from sevo_jax.data.formats.source import Source
from sevo_jax.data.log import InteractionLog
from sevo_jax.data.times import TimeParser, ranked

_LONGEST_LINE = 2**24
# In one alone a field may be missing.
_FIRST_OBJECTS = 1000
_ONE_A_LINE = (
    "the format is one object a line, as jq -c . makes of objects that take several "
    "and jq -c '.[]' of a list"
)


class _Fields(NamedTuple):
    """The names of the fields that hold the user, the item and perhaps the time."""

    user: str
    item: str
    timestamp: str | None


def read(source: Source, request: Request) -> InteractionLog:
    """Reads one JSON object a line; or one of Python, as in the reviews of Steam.

    The fields are found in the first lines. Ids that are text stay text, because an
    `asin` such as `0439886341` would lose its first digit as a number.
    """
    data, where = source.text(), source.where
    number, first = _first_values(where, data, request.faults.skip)
    names = list(first)
    columns = {title: str(name) for title, name in request.columns.items()}
    positions = find(f"{where}:{number}", names, columns)
    user, item, timestamp = positions
    time = None if timestamp is None else names[timestamp]
    fields = _Fields(names[user], names[item], time)
    parsed = arrow.quickly(_parse_with_arrow, data, fields, first) or _scan(
        where, data, fields, request.faults
    )
    if fields.timestamp is None and len(names) > 2:
        warn_of_order(where, names)
    return InteractionLog.from_codes(*parsed, name=source.name)


def _first_values(where: str, data: bytes, skip: bool) -> tuple[int, dict[str, Any]]:
    """The first line, and the first value of each field that the first objects have."""
    # What cannot be read is said, and counted, when all is read.
    objects = _objects(where, data, Faults(skip))
    number, first = next(objects)
    for _, entry in itertools.islice(objects, _FIRST_OBJECTS):
        for name, value in entry.items():
            if first.get(name) is None:
                first[name] = value
    return number, first


def _parse_with_arrow(
    data: bytes, fields: _Fields, first: dict[str, Any]
) -> tuple[ids.Numbered, ids.Numbered, np.ndarray | None]:
    """Parses quickly; anything unusual is a ValueError without a line."""
    import pyarrow
    from pyarrow import json as arrow_json

    kinds = {str: pyarrow.string(), int: pyarrow.int64()}
    wanted = [name for name in fields if name is not None]
    if not all(type(first[name]) in kinds for name in wanted):
        raise ValueError("fields that are neither text nor whole numbers")
    table = arrow_json.read_json(
        pyarrow.py_buffer(data),
        parse_options=arrow_json.ParseOptions(
            explicit_schema=pyarrow.schema(
                [(name, kinds[type(first[name])]) for name in wanted]
            ),
            unexpected_field_behavior="ignore",
        ),
    )
    if any(table[name].null_count for name in wanted):
        raise ValueError("objects without all fields")
    has_blank_lines = b"\n\n" in data or b"\n\r\n" in data
    if has_blank_lines or table.num_rows != data.rstrip().count(b"\n") + 1:
        raise ValueError("perhaps not one object a line")
    times = None
    if fields.timestamp is not None:
        column = table[fields.timestamp]
        is_text = pyarrow.types.is_string(column.type)
        times = arrow.times_of_text(column) if is_text else column.to_numpy()
    return (
        arrow.number(table[fields.user], "user"),
        arrow.number(table[fields.item], "item"),
        times,
    )


def _scan(
    where: str, data: bytes, fields: _Fields, faults: Faults
) -> tuple[ids.Numbered, ids.Numbered, np.ndarray | None]:
    """Reads line by line, and names those that are malformed."""
    users, items, times = _Ids(fields.user), _Ids(fields.item), []
    parse_time = TimeParser()
    for number, entry in _objects(where, data, faults):
        try:
            user, item = users.check(entry), items.check(entry)
            if fields.timestamp is not None:
                times.append(parse_time(_time(entry, fields.timestamp)))
        except ValueError as error:
            faults.add(f"{where}:{number}", f"{error}")
            continue
        users.entries.append(user)
        items.entries.append(item)
    if not users.entries:
        raise faults.nothing_left(where)
    return (
        ids.number(users.entries, "user"),
        ids.number(items.entries, "item"),
        None if fields.timestamp is None else ranked(times),
    )


class _Ids:
    """The ids in one field, which are all text or all numbers."""

    def __init__(self, field: str):
        self._field = field
        self.entries: list = []

    def check(self, entry: dict[str, Any]) -> Any:
        """Returns the id in `entry`.

        Raises:
          ValueError: there is none, or it is no id.
        """
        value = _value(entry, self._field)
        if isinstance(value, Decimal) and abs(value) < 2**63 and value == int(value):
            value = int(value)
        fault = ""
        if isinstance(value, str):
            fault = "" if value and ids.is_utf8(value) else "not text that can be kept"
        elif type(value) is not int or not -(2**63) <= value < 2**63:
            fault = "neither text nor a whole number of 64 bits"
        if self.entries and not fault and type(value) is not type(self.entries[0]):
            kind = "text" if isinstance(self.entries[0], str) else "a number"
            fault = f"not {kind}, as those before it are"
        if fault:
            value = value if not isinstance(value, Decimal) else float(value)
            raise ValueError(f"the field {self._field!r} is {shown(value)}, {fault}")
        return value


def _time(entry: dict[str, Any], field: str) -> str:
    value = _value(entry, field)
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise ValueError(f"the field {field!r} is {shown(value)}, not a time")
    return str(value)


def _value(entry: dict[str, Any], field: str) -> Any:
    if entry.get(field) is None:
        raise ValueError(f"the field {field!r} is missing")
    return entry[field]


def _objects(
    where: str, data: bytes, faults: Faults
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects, each with the number of its line."""
    none = True
    for number, line in enumerate(io.BytesIO(data), start=1):
        if not line.strip():
            continue
        try:
            entry = _parsed(line)
        except ValueError as error:
            faults.add(f"{where}:{number}", f"{error}")
            continue
        none = False
        yield number, entry
    if none:
        raise faults.nothing_left(where)


def _parsed(line: bytes) -> dict[str, Any]:
    if len(line) > _LONGEST_LINE:
        raise ValueError(
            f"not JSON lines, of {len(line):,} bytes: {_ONE_A_LINE}, not "
            f"{shown(line[:100].decode(errors='backslashreplace'))}"
        )
    # Bytes that are no text do no harm in fields that are not read.
    text = line.decode(errors="surrogateescape").strip()
    try:
        entry = json.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        try:
            entry = _literal(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise ValueError(
                f"not JSON ({shown(str(error))}): {_ONE_A_LINE}, not {shown(text)}"
            ) from error
    if not isinstance(entry, dict):
        raise ValueError(f"not a JSON object: {_ONE_A_LINE}, not {shown(text)}")
    return entry


def _literal(text: str) -> Any:
    """A dictionary as Python writes it, which some data are published as."""
    with warnings.catch_warnings():
        # Of backslashes in the text of reviews.
        warnings.simplefilter("ignore")
        return ast.literal_eval(text)
