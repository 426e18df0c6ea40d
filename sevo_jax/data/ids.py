"""Ids of users and items: whole numbers or text, numbered in their order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sevo_jax._messages import listed, shown

# What comes back from int() as it is but for blanks, perhaps with a float's ".0".
_WHOLE_NUMBER = re.compile(r"[ \t]*(?:0|-?[1-9][0-9]{0,18})(?:\.0+)?[ \t]*")
# How files of text write that there is no value.
_MISSING = {"na", "n/a", "#n/a", "<na>", "nan", "-nan", "nat", "null", "none", "nil"}
_MISSING |= {"\\n", "undefined", "-", "?"}


class Numbered(NamedTuple):
    """A column of ids.

    Attributes:
      ids: `[num_ids]`, the distinct ids in their order: int64, or objects of type str.
      codes: int64 `[num_interactions]`, the position of each entry in `ids`.
    """

    ids: np.ndarray
    codes: np.ndarray


def number(column: Sequence | np.ndarray, title: str) -> Numbered:
    """Sorts the distinct ids, numbers by value and text by code point.

    Text is kept as Python strings, because NumPy's own are all as wide as the longest
    and lose a NUL at the end.

    Args:
      column: ids, all of them whole numbers or all text. A float that is a whole
        number, such as 123.0, is that number.
      title: whose ids they are, for messages: "user" or "item".

    Raises:
      TypeError: an id is neither a number nor text, or some are each.
      ValueError: a number is not whole, has more than 64 bits, or is so large that as
        a float it is not exact; a text is empty or cannot be written as UTF-8.

    Examples:
      >>> ids, codes = number(["b", "a", "b"], "user")
      >>> ids.tolist(), codes.tolist()
      (['a', 'b'], [1, 0, 1])
      >>> number([123.0, 7.0, 123], "item").ids.tolist()
      [7, 123]
    """
    if not isinstance(column, np.ndarray):
        to_array = np.asarray if hasattr(column, "__array__") else _objects
        column = to_array(column)
    if column.dtype.kind in "iuf":
        return in_order(*np.unique(column, return_inverse=True), title)
    if column.dtype.kind not in "UTO":
        raise TypeError(
            f"{title} ids are {column.dtype}, but must be integers or text: convert "
            "them"
        )
    return in_order(*distinct(column.tolist()), title)


def number_tokens(tokens: Sequence[str], title: str) -> Numbered:
    """Numbers ids that come from a text file; see `in_order_of_tokens`."""
    return in_order_of_tokens(*distinct(tokens), title)


def in_order_of_tokens(
    tokens: Sequence[str], codes: np.ndarray, title: str
) -> Numbered:
    """Numbers ids that come from a text file, where numbers are text at first.

    They are numbers if all of them are plain ones: without a plus sign or a leading
    zero, at most with the ".0" that a float has, and in 64 bits.

    Args:
      tokens: the ids, none twice, in any order.
      codes: the position in `tokens` of each interaction's id.
      title: as in `number`.

    Raises:
      ValueError: one of them stands for no id, as `marks_of_missing` finds; or as in
        `number`.
    """
    numbers = _plain_numbers(tokens)
    if numbers is None and (marks := marks_of_missing(tokens)):
        raise ValueError(
            f"the {title} id {min(marks)} among numbers stands for none: leave such "
            "interactions out"
        )
    if numbers and -(2**63) <= min(numbers) and max(numbers) < 2**63:
        return in_order(np.array(numbers, np.int64), codes, title)
    return in_order(tokens, codes, title)


def marks_of_missing(tokens: Iterable[str]) -> set[str]:
    """Returns those of the ids of a column that stand for no id.

    In a column of numbers these are "NA", "NULL" and the like; in one of text they may
    be ids.

    Examples:
      >>> marks_of_missing(["7", "NA"]), marks_of_missing(["x", "NA"])
      ({'NA'}, set())
    """
    marks = set()
    for token in tokens:
        if not _WHOLE_NUMBER.fullmatch(token):
            if token.strip().lower() not in _MISSING:
                return set()
            marks.add(token)
    return marks


def check_written(path: object, column: np.ndarray, title: str) -> None:
    """Refuses ids that a file of text would not hold apart from each other.

    Raises:
      ValueError: two of them, such as "7" and "7.0", or one that stands for no id.
    """
    if column.dtype.kind == "i":
        return
    texts = column.tolist()
    try:
        found = number_tokens(texts, title)
    except ValueError as error:
        raise ValueError(f"{path}: {error}, or write .parquet") from error
    if len(found.ids) < len(texts):
        times = np.bincount(found.codes)[found.codes]
        same = [shown(text) for text, count in zip(texts, times) if count > 1]
        raise ValueError(
            f"{path}: the {title} ids {listed(same)} would be the same number in "
            "this format: write .parquet"
        )


def _plain_numbers(tokens: Sequence[str]) -> list[int] | None:
    try:
        numbers = list(map(int, tokens))
    except ValueError:
        pass
    else:
        # Ten times as fast as matching, and the same but for what int() forgives.
        if list(map(str, numbers)) == tokens:
            return numbers
    if not all(map(_WHOLE_NUMBER.fullmatch, tokens)):
        return None
    return [int(token.partition(".")[0]) for token in tokens]


def in_order(entries: Sequence | np.ndarray, codes: np.ndarray, title: str) -> Numbered:
    """Sorts distinct ids as `number` does.

    Args:
      entries: the ids, none twice, in any order: a sequence, or an array of numbers.
      codes: the position in `entries` of each interaction's id.
      title: as in `number`.
    """
    if isinstance(entries, np.ndarray) or not isinstance(entries[0], str):
        ids, position = np.unique(_whole_numbers(entries, title), return_inverse=True)
        return Numbered(ids, position[codes])
    _check_text(entries, title)
    order = sorted(range(len(entries)), key=entries.__getitem__)
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    return Numbered(_objects([entries[i] for i in order]), position[codes])


def distinct(column: Sequence) -> tuple[list, np.ndarray]:
    """Returns the distinct entries as they appear, and the position of each entry.

    Examples:
      >>> entries, codes = distinct(["b", "a", "b"])
      >>> entries, codes.tolist()
      (['b', 'a'], [0, 1, 0])
    """
    # Many times faster than sorting all of the column.
    first_seen: dict = {}
    codes = np.fromiter(
        (first_seen.setdefault(entry, len(first_seen)) for entry in column),
        np.int64,
        len(column),
    )
    return list(first_seen), codes


def _objects(values: Sequence) -> np.ndarray:
    return np.fromiter(values, object, len(values))


def _check_text(entries: Sequence, title: str) -> None:
    for entry in entries:
        if not isinstance(entry, str):
            raise _mixed(entry, title)
        if not entry:
            raise ValueError(f"the {title} id '' is empty: leave such interactions out")
        if not (entry.isascii() or is_utf8(entry)):
            raise ValueError(
                f"the {title} id {shown(entry)} cannot be written as UTF-8: repair it"
            )


def is_utf8(text: str) -> bool:
    """Whether text has no lone surrogates, which stand for bytes that are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def exact_bits(kind: Any) -> int:
    """How many bits a whole number may have that a float of this type always holds."""
    return int(np.finfo(kind).nmant) + 1


def _whole_numbers(entries: Sequence | np.ndarray, title: str) -> np.ndarray:
    kind = None
    if isinstance(entries, np.ndarray):
        if entries.dtype.kind == "i":
            return entries.astype(np.int64)
        kind, entries = entries.dtype, entries.tolist()
    numbers = []
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(
            entry, int | float | np.integer | np.floating
        ):
            raise _mixed(entry, title)
        if isinstance(entry, float | np.floating):
            bits = exact_bits(kind or type(entry))
            if not (entry.is_integer() and abs(entry) < 2**bits):
                raise ValueError(
                    f"the {title} id {entry} is not a whole number below 2**{bits}, "
                    "and as a float not exact: pass the ids as integers or text"
                )
        if not -(2**63) <= entry < 2**63:
            raise ValueError(
                f"the {title} id {shown(int(entry))} does not fit in 64 signed bits: "
                "pass the ids as text"
            )
        numbers.append(int(entry))
    return np.array(numbers, np.int64)


def _mixed(entry: object, title: str) -> TypeError:
    return TypeError(
        f"the {title} id {shown(entry)} is {type(entry).__name__}, but ids must be all "
        "integers or all text: convert them"
    )
