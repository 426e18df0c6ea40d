"""Columns of Arrow as ids and times."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import Any, TypeVar

import numpy as np

from sevo_jax.data import ids

_FIRST_INEXACT = 2**53

_Parsed = TypeVar("_Parsed")


def quickly(parse: Callable[..., _Parsed], *args: Any) -> _Parsed | None:
    """Returns ``parse(*args)``, or None if Arrow or `parse` refuses the data."""
    import pyarrow

    try:
        return parse(*args)
    except (ValueError, OSError, pyarrow.ArrowException):
        return None


def is_text(kind: Any) -> bool:
    """Whether a type of Arrow is one of its strings."""
    from pyarrow import types

    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
    )


def number(column: Any, title: str, *, tokens: bool = False) -> ids.Numbered:
    """Numbers a column of ids as `sevo_jax.data.ids` does.

    Args:
      column: a `pyarrow.ChunkedArray` of numbers, text or categories, none missing.
      title: "user" or "item".
      tokens: whether it comes from a file of text, where numbers are text at first.
    """
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        return ids.in_order(*categories(column), title)
    encoded = column.dictionary_encode().combine_chunks()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    entries = encoded.dictionary.to_numpy(zero_copy_only=False)
    if tokens:
        return ids.in_order_of_tokens(entries.tolist(), codes, title)
    if entries.dtype.kind == "O":
        return ids.in_order(entries.tolist(), codes, title)
    return ids.in_order(entries, codes, title)


def categories(column: Any) -> tuple[list[str | None], np.ndarray]:
    """The distinct texts of a column of categories, and which of them each row has.

    Args:
      column: a `pyarrow.ChunkedArray` of categories that are text.
    """
    array = column.unify_dictionaries().combine_chunks()
    texts = array.dictionary.to_numpy(zero_copy_only=False).tolist()
    indices = array.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
    texts, position = ids.distinct([*texts, None])
    codes = position[indices]
    used = np.bincount(codes, minlength=len(texts)) > 0
    return list(compress(texts, used)), (np.cumsum(used) - 1)[codes]


def times_of_text(column: Any) -> np.ndarray:
    """Quickly turns text into times, all of them numbers or all ISO dates.

    Args:
      column: a `pyarrow.ChunkedArray` of strings.

    Raises:
      ValueError: they are not, or not exactly, of one of the usual forms.
        `sevo_jax.data.times.TimeParser` knows more of them.
    """
    import pyarrow
    import pyarrow.compute

    compute: Any = pyarrow.compute
    if len(column) and column[0].as_py().endswith("UTC"):
        column = compute.replace_substring_regex(column, r" *UTC$", "Z")
    for kind in (
        pyarrow.int64(),
        pyarrow.float64(),
        pyarrow.timestamp("ns"),
        pyarrow.timestamp("ns", "UTC"),
        pyarrow.timestamp("us"),
    ):
        try:
            times = column.cast(kind)
        except pyarrow.ArrowInvalid:
            continue
        if kind == pyarrow.int64() and any(
            compute.any(compute.match_substring(column, mark)).as_py() for mark in "xX"
        ):
            raise ValueError("Arrow takes 0x10 for 16")
        if kind != pyarrow.float64():
            return times.cast(pyarrow.int64()).to_numpy()
        # A NaN is not below; and of larger numbers a float64 does not have all, nor
        # all of those with more digits, but they may still differ.
        is_short = compute.max(compute.binary_length(column)).as_py() <= 16
        if (np.abs(numbers := times.to_numpy()) < _FIRST_INEXACT).all() and (
            is_short or compute.count_distinct(column) == compute.count_distinct(times)
        ):
            return numbers
    raise ValueError("timestamps are neither numbers nor dates")
