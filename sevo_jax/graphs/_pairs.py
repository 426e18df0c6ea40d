"""Counting pairs of nodes that arrive in any number and order, in bounded memory."""

import numpy as np
import scipy.sparse

# Keys that wait before they are counted, 128 MiB of them.
_PENDING = 2**24
_LOW = np.int64(2**32 - 1)


def keys_of(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """One int64 for each pair: keys in order are entries in order."""
    keys = rows.astype(np.int64)
    keys <<= 32
    keys |= columns
    return keys


def rows_of(keys: np.ndarray) -> np.ndarray:
    """The rows of which `keys_of` made these keys."""
    return keys >> 32


def columns_of(keys: np.ndarray) -> np.ndarray:
    """The columns likewise, int32."""
    return (keys & _LOW).astype(np.int32)


class PairCounts:
    """How often each ordered pair of nodes was added, exactly.

    Pairs wait in a buffer. When it is full they are sorted and counted, which makes a
    matrix in compressed sparse row form, and matrices of about the same size are
    added up: a pair takes part in logarithmically many additions, and the memory is a
    multiple of the number of *distinct* pairs.

    The counts are whole numbers in float64 and thus the same in whatever order and
    portions the pairs come, up to 2^53 of one pair.

    Args:
      num_rows: the first node of a pair is one of ``0..num_rows-1``.
      num_columns: the second likewise; both are fewer than 2^31.
    """

    def __init__(self, num_rows: int, num_columns: int):
        self._shape = (num_rows, num_columns)
        # Row pointers are as long as there are rows, so that a buffer should be too.
        self._pending = np.empty(max(_PENDING, num_rows), np.int64)
        self._filled = 0
        # From the largest to the smallest.
        self._parts: list[scipy.sparse.csr_array] = []

    def add(self, one: np.ndarray, two: np.ndarray) -> None:
        """Counts the pairs ``(one[i], two[i])``, int32 ``[pairs]`` each."""
        self.add_keys(keys_of(one, two))

    def add_keys(self, keys: np.ndarray) -> None:
        """Counts the pairs of which `keys_of` made these keys."""
        while keys.size:
            moved = keys[: self._pending.size - self._filled]
            self._pending[self._filled : self._filled + moved.size] = moved
            self._filled += moved.size
            keys = keys[moved.size :]
            if self._filled == self._pending.size:
                self._push()

    def counts(self) -> scipy.sparse.csr_array:
        """The counts, float64 ``[num_rows, num_columns]``."""
        self._push()
        self._pending = np.empty(0, np.int64)
        while len(self._parts) > 1:
            self._parts.append(self._parts.pop() + self._parts.pop())
        return self._parts.pop()

    def _push(self) -> None:
        """Counts what waits, and adds up matrices until the next is twice as large."""
        part = self._count(self._pending[: self._filled])
        self._filled = 0
        while self._parts and self._parts[-1].nnz < 2 * part.nnz:
            part = self._parts.pop() + part
        self._parts.append(part)

    def _count(self, keys: np.ndarray) -> scipy.sparse.csr_array:
        keys.sort()
        is_first = np.ones(keys.size, bool)
        np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
        first = np.flatnonzero(is_first)
        distinct = keys[first]
        row_starts = np.zeros(self._shape[0] + 1, np.int32)
        rows = rows_of(distinct)
        np.cumsum(np.bincount(rows, minlength=self._shape[0]), out=row_starts[1:])
        counts = np.diff(first, append=keys.size).astype(np.float64)
        columns = columns_of(distinct)
        return scipy.sparse.csr_array((counts, columns, row_starts), shape=self._shape)
