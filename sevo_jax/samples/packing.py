"""Lays sequences of items out in rows of one width: packed to train, padded to rank.

Sequences are short beside the width a model allows (six items of fifty in the Amazon
reviews), so padding each to the width spends nine tenths of the work on nothing.
`PackedEpochs` puts several users into one row; a cell then carries the id of its
segment, and where it would stand in the left-padded frame of its user.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences, ranges
from sevo_jax.samples.negatives import NegativeSampler

_ROW_MULTIPLE = 8


class PackedBatch(NamedTuple):
    """Cells of several users side by side in rows; all fields int32, one shape.

    An epoch is `[steps, rows, max_len]`, one step of it `[rows, max_len]`. An empty
    cell is 0 in every field.

    Attributes:
      inputs: row of the item table (`item + item_offset`).
      targets: the item that follows, as a row of the table.
      negatives: an item the user has not in train, as a row of the table.
      segments: Positive, the same for all cells of one user and different for two
        users of the same row; 0 marks an empty cell.
      positions: place in the left-padded frame of the user, `0..max_len-1`.
      num_pads: how many left pads the frame of the cell's user has.
    """

    inputs: np.ndarray
    targets: np.ndarray
    negatives: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    num_pads: np.ndarray


class PackedEpochs:
    """The epochs of next-item training, addressed by number.

    A sample is a user: inputs `q_1..q_{n-1}` and targets `q_2..q_n` of the train
    items, the last `max_len` of each. An epoch is a fresh permutation of the users cut
    into batches, the partial last one kept, with a fresh negative for each target.
    `epochs[e]` depends on the arguments and `e` alone, so a run that resumes at epoch
    `e` sees what the uninterrupted run saw.

    Steps of an epoch share one number of rows, so that a compiled step fits them all.
    It is the same from epoch to epoch except where a draw needs more (about one epoch
    in hundreds), as no user is ever left out.

    Args:
      train: train items of each user, `0..num_items-1`. Users with fewer than two
        have no target and are left out.
      num_items: how many items there are.
      max_len: width of a row, and the longest input of a user.
      batch_size: users of a step.
      seed: Non-negative.
      item_offset: row of the table where item 0 stands.
      with_negatives: whether to draw negatives; without, they are 0.

    Raises:
      ValueError: If a number is out of range or no user has two train items.

    Examples:
      >>> from sevo_jax.data.sequences import Sequences
      >>> train = Sequences.from_lists([[0, 1, 2], [3, 4]])
      >>> epochs = PackedEpochs(train, 9, max_len=4, batch_size=2, seed=0)
      >>> epochs[0].inputs.shape
      (1, 8, 4)
      >>> int((epochs[0].targets > 0).sum())
      3
    """

    def __init__(
        self,
        train: Sequences,
        num_items: int,
        *,
        max_len: int,
        batch_size: int,
        seed: int,
        item_offset: int = 1,
        with_negatives: bool = True,
    ):
        for name, value, least in (
            ("max_len", max_len, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("item_offset", item_offset, 1),
        ):
            _checks.require(value >= least, name, value, f"at least {least}")
        users = np.flatnonzero(train.lengths >= 2)
        if users.size == 0:
            raise ValueError(
                f"none of the {len(train)} users has two train items: nothing to "
                "predict; give longer sequences or filter less"
            )
        self.max_len = max_len
        self.batch_size = batch_size
        self.seed = seed
        self.item_offset = item_offset
        self.num_samples = users.size
        self.num_steps = -(-users.size // batch_size)
        self.with_negatives = with_negatives
        if with_negatives:
            self.sampler = NegativeSampler(train, num_items)

        # Everything but the order and the negatives is the same in every epoch: one
        # entry a cell, the cells of user after user.
        lengths = np.minimum(train.lengths[users] - 1, max_len)
        self._lengths = lengths
        self._users = np.repeat(users, lengths)
        self._num_pads = np.repeat(max_len - lengths, lengths)
        self._positions = ranges(max_len - lengths, lengths)
        targets = ranges(train.offsets[users + 1] - lengths, lengths)
        self._targets = train.values[targets] + item_offset
        self._inputs = train.values[targets - 1] + item_offset
        self.num_rows = base_rows(lengths, batch_size, max_len)

    def __getitem__(self, epoch: int) -> PackedBatch:
        """Returns the epoch: arrays `[num_steps, rows, max_len]`, `rows >= num_rows`.

        Args:
          epoch: from 0.
        """
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.num_samples)
        negatives = 0
        if self.with_negatives:
            negatives = self.sampler.sample(rng, self._users) + self.item_offset
        cuts = range(self.batch_size, self.num_samples, self.batch_size)
        rows = PackedRows(
            self._lengths, np.split(order, cuts), self.max_len, self.num_rows
        )
        return PackedBatch(
            inputs=rows.fill(self._inputs),
            targets=rows.fill(self._targets),
            negatives=rows.fill(negatives),
            segments=rows.fill(rows.segments),
            positions=rows.fill(self._positions),
            num_pads=rows.fill(self._num_pads),
        )


class PackedRows:
    """Where the cells of samples go that are packed, step by step, into rows.

    Args:
      lengths: `[n]`, cells of each sample, each in `1..width`.
      steps: the samples of each step; together `0..n-1`, each once.
      width: cells of a row.
      least_rows: rows of a step, unless one needs more; then all steps have as many
        as that one, rounded up to a multiple of 8.

    Attributes:
      shape: `(steps, rows, width)`.
      segments: `[lengths.sum()]`, for each cell the id of its sample within its row,
        positive.

    Examples:
      >>> rows = PackedRows(np.array([2, 1, 3]), [[1, 0], [2]], 4, least_rows=1)
      >>> rows.fill(np.array([10, 11, 20, 30, 31, 32])).tolist()
      [[[10, 11, 20, 0]], [[30, 31, 32, 0]]]
      >>> rows.fill(rows.segments).tolist()
      [[[1, 1, 3, 0]], [[1, 1, 1, 0]]]
    """

    def __init__(
        self,
        lengths: np.ndarray,
        steps: Sequence[Sequence[int] | np.ndarray],
        width: int,
        least_rows: int,
    ):
        step, row, column = (np.empty(lengths.size, np.int64) for _ in range(3))
        num_rows = least_rows
        for index, samples in enumerate(steps):
            step[samples] = index
            row[samples], column[samples], used = pack(lengths[samples], width)
            if used > num_rows:
                num_rows = round_up(used, _ROW_MULTIPLE)
        self.shape = (len(steps), num_rows, width)
        self.segments = np.repeat(column + 1, lengths)
        self._cells = ranges((step * num_rows + row) * width + column, lengths)

    def fill(self, values: np.ndarray | int) -> np.ndarray:
        """Returns `values` `[lengths.sum()]`, sample after sample, in their cells.

        int32 of `shape`; 0 in the empty cells.
        """
        field = np.zeros(self.shape, np.int32)
        field.reshape(-1)[self._cells] = values
        return field


def pack(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Places sequences into as few rows as best-fit decreasing finds.

    The longest goes first, each into the fullest row that still holds it.

    Args:
      lengths: `[n]`, each in `1..width`.
      width: cells of a row.

    Returns:
      `(row [n], first column [n], number of rows)`.

    Examples:
      >>> row, column, num_rows = pack(np.array([2, 3, 2, 1]), 4)
      >>> row.tolist(), column.tolist(), num_rows
      ([1, 0, 1, 0], [0, 0, 2, 3], 2)
    """
    # with_room[f] lists the open rows with f free cells and bit f of `rooms` says
    # whether there is one, which finds the fullest fitting row without a search.
    with_room: list[list[int]] = [[] for _ in range(width + 1)]
    rooms = 0
    num_rows = 0
    order = np.argsort(-lengths, kind="stable")
    rows, columns = [], []
    for length in lengths[order].tolist():
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = width, num_rows
            num_rows += 1
        rows.append(row)
        columns.append(width - room)
        with_room[room - length].append(row)
        rooms |= 1 << (room - length)
    row = np.empty(lengths.size, np.int64)
    column = np.empty(lengths.size, np.int64)
    row[order] = rows
    column[order] = columns
    return row, column, num_rows


def left_pad(sequences: Sequences, max_len: int, item_offset: int = 1) -> np.ndarray:
    """Returns the last `max_len` items of each row at the right end of a frame.

    Args:
      sequences: Items, `0..num_items-1`.
      max_len: width of the frame.
      item_offset: added to each item; 0 stands for the pads before them.

    Returns:
      int32 `[num_rows, max_len]`.

    Examples:
      >>> left_pad(Sequences.from_lists([[4, 5, 6], [7]]), 2).tolist()
      [[6, 7], [0, 8]]
    """
    lengths = np.minimum(sequences.lengths, max_len)
    frames = np.zeros((len(sequences), max_len), np.int32)
    filled = np.arange(max_len) >= max_len - lengths[:, None]
    frames[filled] = sequences.last(max_len).values + item_offset
    return frames


def base_rows(lengths: np.ndarray, batch_size: int, width: int) -> int:
    """Rows that hold nearly every batch: four deviations above its mean of cells."""
    if lengths.size <= batch_size:
        return round_up(pack(lengths, width)[2], _ROW_MULTIPLE)
    cells = batch_size * lengths.mean() + 4 * lengths.std() * np.sqrt(batch_size)
    return round_up(int(np.ceil(cells / width)), _ROW_MULTIPLE)


def round_up(number: int, multiple: int) -> int:
    """Returns the least multiple of `multiple` that is no less than `number`."""
    return -(-number // multiple) * multiple
