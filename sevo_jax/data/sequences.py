"""Ragged sequences of item ids: many short rows in two flat arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sevo_jax._messages import named


@dataclass(frozen=True, eq=False)
class Sequences:
    """Rows of item ids of unequal length, in compressed (CSR) form.

    Row `i` is `values[offsets[i]:offsets[i + 1]]`, the oldest item first.

    Attributes:
      values: int32 `[total]`, the items of all rows one after the other.
      offsets: int64 `[num_rows + 1]`, where each row begins, and the total last.
      names: `[num_rows]`, what messages call the rows: the ids of the users in a log.
        None stands for the numbers of the rows.

    Raises:
      TypeError: a dtype is not the one above.
      ValueError: the offsets do not start at 0, decrease, or do not end at the
        number of values.

    Example:
      >>> from sevo_jax.data import Sequences
      >>> rows = Sequences.from_lists([[3, 1, 4], [], [1, 5]])
      >>> len(rows), rows[2].tolist(), rows.lengths.tolist()
      (3, [1, 5], [3, 0, 2])
    """

    values: np.ndarray
    offsets: np.ndarray
    names: np.ndarray | None = None

    def __post_init__(self):
        if self.values.dtype != np.int32 or self.offsets.dtype != np.int64:
            raise TypeError(
                "Sequences needs int32 values and int64 offsets, not "
                f"{self.values.dtype} and {self.offsets.dtype}: convert them first"
            )
        if self.values.ndim != 1 or self.offsets.ndim != 1 or not len(self.offsets):
            raise ValueError(
                "Sequences needs one-dimensional values and offsets, and at least "
                f"the offset 0; their shapes are {self.values.shape} and "
                f"{self.offsets.shape}"
            )
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise ValueError(
                f"offsets go from {self.offsets[0]} to {self.offsets[-1]}, but must "
                f"go from 0 to the number of values, {len(self.values)}"
            )
        if np.any(np.diff(self.offsets) < 0):
            row = int(np.argmax(np.diff(self.offsets) < 0))
            raise ValueError(f"offsets decrease at row {row}: no row can end before it")

    @classmethod
    def from_lists(cls, lists: Iterable[Iterable[int]]) -> Sequences:
        """Builds the ragged array from one iterable of item ids a row."""
        rows = [_items(list(row)) for row in lists]
        values = np.concatenate(rows) if rows else np.zeros(0, np.int32)
        return cls.from_lengths(values, np.array([len(row) for row in rows], np.int64))

    @classmethod
    def from_lengths(
        cls, values: np.ndarray, lengths: np.ndarray, names: np.ndarray | None = None
    ) -> Sequences:
        """Cuts `values` `[total]` into rows of the given `lengths` `[num_rows]`."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(_items(values), offsets, names)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """The items of one row, as a view; negative rows count from the end."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} sequences")
        row %= len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """int64 `[num_rows]`: the number of items of each row."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """int64 `[total]`: the row that each value belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def name(self, row: int) -> str:
        """What a message calls a row.

        Examples:
          >>> from sevo_jax.data import InteractionLog
          >>> log = InteractionLog.from_columns(["ann", "bob"], [5, 5], name="tiny")
          >>> log.sequences.name(1), Sequences.from_lists([[], []]).name(1)
          ('bob', '1')
        """
        return f"{row}" if self.names is None else named(self.names[row])

    def last(self, k: int) -> Sequences:
        """Keeps the last `k` items of each row (all, where a row has fewer).

        Raises:
          ValueError: `k` is negative.

        Example:
          >>> from sevo_jax.data import Sequences
          >>> [row.tolist() for row in Sequences.from_lists([[1, 2, 3], [4]]).last(2)]
          [[2, 3], [4]]
        """
        if k < 0:
            raise ValueError(f"cannot keep the last {k} items: k must be 0 or more")
        lengths = np.minimum(self.lengths, k)
        return self._gather(self.offsets[1:] - lengths, lengths)

    def drop_last(self, counts: int | np.ndarray) -> Sequences:
        """Drops the last `counts` items of each row (an int, or one for each row).

        A row that has fewer items becomes empty.
        """
        return self._gather(self.offsets[:-1], np.maximum(self.lengths - counts, 0))

    def append(self, column: np.ndarray) -> Sequences:
        """Adds one more item at the end of each row.

        Args:
          column: integers `[num_rows]`; -1 leaves its row as it is.

        Raises:
          ValueError: there is not one entry for each row.

        Example:
          >>> from sevo_jax.data import Sequences
          >>> rows = Sequences.from_lists([[1, 2], [3]])
          >>> [row.tolist() for row in rows.append(np.array([7, -1]))]
          [[1, 2, 7], [3]]
        """
        column = _items(column)
        if column.shape != (len(self),):
            raise ValueError(
                f"a column of shape {column.shape} cannot be appended to {len(self)} "
                "sequences: it needs one item for each (-1 for none)"
            )
        added = column >= 0
        values = np.insert(self.values, self.offsets[1:][added], column[added])
        return Sequences.from_lengths(values, self.lengths + added, self.names)

    def take(self, rows: np.ndarray) -> Sequences:
        """Picks rows, in the order of the integers `rows`; negative ones from the end.

        Example:
          >>> from sevo_jax.data import Sequences
          >>> rows = Sequences.from_lists([[3, 1], [], [5]])
          >>> [row.tolist() for row in rows.take(np.array([2, 0, 2]))]
          [[5], [3, 1], [5]]
        """
        rows = np.asarray(rows)
        if np.any(rows < -len(self)):
            raise IndexError(f"row {rows.min()} is out of bounds of {len(self)} rows")
        rows = np.where(rows < 0, rows + len(self), rows)
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        names = None if self.names is None else self.names[rows]
        return Sequences.from_lengths(
            self.values[ranges(starts, lengths)], lengths, names
        )

    def distinct(self) -> Sequences:
        """The items of each row in ascending order, each of them once.

        Example:
          >>> from sevo_jax.data import Sequences
          >>> rows = Sequences.from_lists([[2, 0, 2], [], [1]])
          >>> [row.tolist() for row in rows.distinct()]
          [[0, 2], [], [1]]
        """
        if not len(self.values):
            return self
        num_items = int(self.values.max()) + 1
        rows, values = np.divmod(
            np.unique(self.rows * num_items + self.values), num_items
        )
        lengths = np.bincount(rows, minlength=len(self))
        return Sequences.from_lengths(values, lengths, self.names)

    def _gather(self, starts: np.ndarray, lengths: np.ndarray) -> Sequences:
        """Rows `values[starts[i]:starts[i] + lengths[i]]`."""
        values = self.values[ranges(starts, lengths)]
        return Sequences.from_lengths(values, lengths, self.names)


def _items(values: Any) -> np.ndarray:
    """Item ids as int32, none of them changed."""
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(
            f"items are integers from 0, not {array.dtype}, e.g. {array.flat[0]!r}: "
            "number them first, as InteractionLog.from_columns does"
        )
    if array.size and array.dtype != np.int32:
        least, most = array.min(), array.max()
        if least < np.iinfo(np.int32).min or most > np.iinfo(np.int32).max:
            raise ValueError(
                f"items run from {least} to {most}, which int32 does not hold: number "
                "them from 0 first, as InteractionLog.from_columns does"
            )
    return array.astype(np.int32, copy=False)


def check_items(sequences: Sequences, num_items: int) -> None:
    """Makes sure that the items are those a model is made for.

    Raises:
      ValueError: if an item is out of range.
    """
    if sequences.values.size:
        least, most = sequences.values.min(), sequences.values.max()
        if least < 0 or most >= num_items:
            raise ValueError(
                f"items run from {least} to {most}, the model knows "
                f"0..{num_items - 1}: map them as its training data was"
            )


def ranges(starts: int | np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Numbers that run up from each of `starts`, one run after the other.

    Args:
      starts: integers `[num_runs]`, or one for all: the first number of each run.
      lengths: integers `[num_runs]`, 0 or more: how many numbers each run has.

    Returns:
      int64 `[lengths.sum()]`.

    Examples:
      >>> ranges(np.array([5, 0, 2]), np.array([3, 0, 2])).tolist()
      [5, 6, 7, 2, 3]
      >>> ranges(0, np.array([2, 3])).tolist()
      [0, 1, 0, 1, 2]
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    shifts = np.repeat(starts - (ends - lengths), lengths)
    return np.arange(len(shifts)) + shifts
