"""Sequence text: one user a line, `user item item ...`, the oldest item first.

A file of `user item` pairs, in order of time, is such text too, only that users come
back.
"""

from __future__ import annotations

import codecs
import itertools
import os
import re
from typing import NamedTuple

import numpy as np

from sevo_jax._files import replacing
from sevo_jax._messages import named, shown
from sevo_jax.data import ids
from sevo_jax.data.formats import delimited
from sevo_jax.data.formats.layout import Dialect, has_header
from sevo_jax.data.formats.request import Faults, Request
from sevo_jax.data.formats.source import Source
from sevo_jax.data.log import InteractionLog

_COMMENTS = (b"#", b"//", b"%%")
_NAME = re.compile(rb"[A-Za-z][A-Za-z_-]*")
_STRAY = re.compile(rb"[\r\v\f]")
_WHOLE_NUMBER = re.compile(rb"-?[0-9]+(\.0+)?")


class _Rows(NamedTuple):
    """The lines that hold something.

    Attributes:
      numbers: of the lines, from 1.
      users: the first id of each.
      lengths: how many items each has.
      items: the items of all lines, one after the other.
    """

    numbers: list[int]
    users: list[bytes]
    lengths: list[int]
    items: list[bytes]


def read(source: Source, request: Request) -> InteractionLog:
    """Reads sequence text; or a table, if columns are given or the first line is names.

    Ids are cut by blanks and tabs. Blank lines are skipped.
    """
    data = source.text()
    if request.columns or request.delimiter is not None or has_header(data):
        return delimited.parse(source, data, request, Dialect("\t"))
    where = source.where
    rows = _rows(where, data, request.faults)
    if not rows.users:
        raise request.faults.nothing_left(where)
    _refuse_header(where, rows)
    _refuse_commas(where, rows)
    users = dict.fromkeys(rows.users)
    if len(users) == len(rows.items) > 2:
        _refuse_map(f"{where}:{rows.numbers[0]}", rows)
    if len(users) < len(rows.users) and set(rows.lengths) != {1}:
        rows = _each_once(where, rows, request.faults)
    try:
        return _log(rows, source.name)
    except ValueError:
        rows = _without_missing(where, rows, request.faults)
        if not rows.users:
            raise request.faults.nothing_left(where) from None
        return _log(rows, source.name)


def _log(rows: _Rows, name: str) -> InteractionLog:
    users, codes = ids.distinct(rows.users)
    items, item_codes = ids.distinct(rows.items)
    return InteractionLog.from_codes(
        ids.in_order_of_tokens(_decoded(users), np.repeat(codes, rows.lengths), "user"),
        ids.in_order_of_tokens(_decoded(items), item_codes, "item"),
        None,
        name=name,
    )


def write(log: InteractionLog, path: str | os.PathLike) -> None:
    """Writes sequence text.

    Raises:
      ValueError: an id contains white space, a user's begins as a comment does, or
        ids would be another's or none's when they are read again.
    """
    users = _written(path, log.user_ids, "user")
    items = _written(path, log.item_ids, "item")
    for user in users:
        if _is_comment(user.encode()) or user.startswith("\ufeff"):
            raise ValueError(
                f"{path}: the id {shown(user)} begins as a comment does, or a byte "
                "order mark: write .csv or .parquet"
            )
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for user, row in zip(users, log.sequences, strict=True):
            file.write(f"{user} {' '.join(items[row])}\n")


def _rows(where: str, data: bytes, faults: Faults) -> _Rows:
    has_stray = (
        data.count(b"\r") != data.count(b"\r\n") or b"\v" in data or b"\f" in data
    )
    has_mark = codecs.BOM_UTF8 in data
    is_utf8 = data.isascii() or _is_utf8(data)
    rows = _Rows([], [], [], [])
    for number, line in enumerate(data.split(b"\n"), start=1):
        user, *items = line.split() or (None,)
        if user is None:
            continue
        fault = ""
        if _is_comment(user):
            fault = f"the line begins as a comment does, {_shown(line)}: delete it"
        elif not items:
            fault = (
                f"user {_named(user)} has no items after blanks or tabs; in a table, "
                "give the columns, user=..., item=... (--user-column, --item-column)"
            )
        elif has_stray and _STRAY.search(line.removesuffix(b"\r")):
            fault = f"a carriage return or form feed inside the line, {_shown(line)}"
        elif has_mark and user.startswith(codecs.BOM_UTF8):
            fault = f"a byte order mark, as of files that were joined, {_shown(line)}"
        elif not (is_utf8 or _is_utf8(line)):
            fault = f"not UTF-8, {_shown(line)}"
        if fault:
            faults.add(f"{where}:{number}", fault)
            continue
        rows.numbers.append(number)
        rows.users.append(user)
        rows.lengths.append(len(items))
        rows.items.extend(items)
    return rows


def _is_comment(user: bytes) -> bool:
    return user[0] in b"#/%" and (user.startswith(_COMMENTS) or user == b"%")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _refuse_header(where: str, rows: _Rows) -> None:
    """Refuses names of columns that are not known, which are no user and items."""
    users, items, length = rows.users, rows.items, rows.lengths[0]
    first = [users[0], *items[:length]]
    if len(users) == 1 or not all(_NAME.fullmatch(token) for token in first):
        return
    columns = [users[1:]]
    if set(rows.lengths) == {length}:
        columns.append(items[length:])
    for column in columns:
        if all(_WHOLE_NUMBER.fullmatch(token) for token in column):
            raise ValueError(
                f"{where}:{rows.numbers[0]}: the line {_shown(b' '.join(first))} looks "
                "like names of columns, as numbers follow: delete it, or name the "
                "columns of a table, user=..., item=... (--user-column, --item-column)"
            )


def _refuse_commas(where: str, rows: _Rows) -> None:
    """Refuses `1, 2, 3` and `1 [2, 3]`, whose commas would be taken for ids."""
    if len(rows.users) == 1:
        return
    ends = itertools.accumulate(rows.lengths)
    if all(user.endswith(b",") for user in rows.users) or all(
        rows.items[end - length].startswith(b"[") and rows.items[end - 1].endswith(b"]")
        for length, end in zip(rows.lengths, ends)
    ):
        raise ValueError(
            f"{where}:{rows.numbers[0]}: commas or brackets about the ids, as of "
            f"{named(rows.users[0].decode())} {named(rows.items[0].decode())}: leave "
            "only blanks between them; in a table, give the columns, user=..., "
            "item=... (--user-column, --item-column)"
        )


def _refuse_map(where: str, rows: _Rows) -> None:
    """Refuses pairs whose second column numbers the first, each line the next."""
    for start in (0, 1):
        numbers = [b"%d" % i for i in range(start, start + len(rows.items))]
        if rows.items == numbers != rows.users:
            raise ValueError(
                f"{where}: this is a map that numbers ids, not a log, as each line has "
                "another id and the next number; if they are interactions, give the "
                "columns, user=..., item=... (--user-column, --item-column)"
            )


def _without_missing(where: str, rows: _Rows, faults: Faults) -> _Rows:
    """The rows without those in which a mark such as "NA" stands for an id."""
    no_users, no_items = (
        {mark.encode() for mark in ids.marks_of_missing(_decoded([*set(tokens)]))}
        for tokens in (rows.users, rows.items)
    )
    if not (no_users or no_items):
        return rows
    keep, start = [], 0
    for number, user, length in zip(rows.numbers, rows.users, rows.lengths):
        row = rows.items[start : start + length]
        marks = no_users & {user} or no_items.intersection(row)
        if marks:
            faults.add(f"{where}:{number}", f"an id is missing, {_named(min(marks))}")
        keep.append(not marks)
        start += length
    return _kept(rows, keep)


def _each_once(where: str, rows: _Rows, faults: Faults) -> _Rows:
    """The rows without those of users that have had one."""
    keep, lines = [], {}
    for number, user in zip(rows.numbers, rows.users):
        keep.append(lines.setdefault(user, number) == number)
        if not keep[-1]:
            faults.add(
                f"{where}:{number}",
                f"user {_named(user)} stands on line {lines[user]} already: put all "
                "items of a user on one line; in a table, give the columns, user=..., "
                "item=... (--user-column, --item-column)",
            )
    return _kept(rows, keep)


def _kept(rows: _Rows, keep: list[bool]) -> _Rows:
    return _Rows(
        list(itertools.compress(rows.numbers, keep)),
        list(itertools.compress(rows.users, keep)),
        list(itertools.compress(rows.lengths, keep)),
        list(itertools.compress(rows.items, np.repeat(keep, rows.lengths))),
    )


def _decoded(tokens: list[bytes]) -> list[str]:
    return [token.decode() for token in tokens]


def _shown(data: bytes) -> str:
    return shown(data[:100].decode(errors="backslashreplace").strip())


def _named(token: bytes) -> str:
    return named(token.decode(errors="backslashreplace"))


def _written(path: str | os.PathLike, column: np.ndarray, title: str) -> np.ndarray:
    """The ids as text, none of which is cut, or taken for another, in reading."""
    ids.check_written(path, column, title)
    texts = [str(entry) for entry in column.tolist()]
    for text in texts:
        if text.encode().split() != [text.encode()]:
            raise ValueError(
                f"{path}: the id {shown(text)} contains white space, which separates "
                "ids in this format: write .csv or .parquet"
            )
    return np.fromiter(texts, object, len(texts))
