"""Masked items to predict: packed rows in which some items are hidden."""

from typing import NamedTuple

import numpy as np

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences
from sevo_jax.samples.packing import PackedRows, base_rows, round_up

MASK = 1
"""Row of the item table that stands in for a hidden item; row 0 is the padding."""

_MASKED_MULTIPLE = 32


class MaskedBatch(NamedTuple):
    """Cells of several users side by side in rows, some hidden; all fields int32.

    An epoch is `[steps, ...]`, one step of it as below.

    Attributes:
      inputs: `[rows, cells]`, row of the item table (`item + item_offset`), `MASK`
        for a hidden item, 0 in an empty cell.
      segments: `[rows, cells]`, positive, the same for all cells of one user and
        different for two users of the same row; 0 marks an empty cell.
      positions: `[rows, cells]`, place in the left-padded frame of the user,
        `0..max_len-1`.
      masked: `[masked]`, the hidden cells, as positions in the rows one after the
        other; then zeros up to the width.
      labels: `[masked]`, what is hidden there, as a row of the table; 0 where
        `masked` is only filled up.
    """

    inputs: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    masked: np.ndarray
    labels: np.ndarray


class MaskedEpochs:
    """The epochs of masked-item training, addressed by number.

    A sample is a user: the last `max_len` train items. An epoch is a fresh permutation
    of the users cut into batches, the partial last one kept, in which each item is
    hidden with probability `mask_prob`, independently of all others. `epochs[e]`
    depends on the arguments and `e` alone.

    Steps of an epoch share one number of rows and one of hidden cells, so that a
    compiled step fits them all. These are the same from epoch to epoch except where a
    draw needs more (about one epoch in hundreds), as nothing is ever left out.

    Args:
      train: Train items of each user, from 0. Users without any are left out.
      max_len: Width of a row, and the longest input of a user.
      batch_size: Users of a step.
      mask_prob: In (0, 1].
      seed: Non-negative.
      item_offset: Row of the table where item 0 stands, behind the mask's.

    Raises:
      ValueError: If a number is out of range or no user has an item.

    Examples:
      >>> from sevo_jax.data.sequences import Sequences
      >>> train = Sequences.from_lists([[0, 1, 2], [3, 4]])
      >>> epochs = MaskedEpochs(train, max_len=4, batch_size=2, mask_prob=1, seed=0)
      >>> step = MaskedBatch(*(field[0] for field in epochs[0]))
      >>> step.inputs[:3].tolist()
      [[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
      >>> step.masked[:6].tolist(), step.labels[:6].tolist()
      ([0, 1, 2, 4, 5, 0], [2, 3, 4, 5, 6, 0])
    """

    def __init__(
        self,
        train: Sequences,
        *,
        max_len: int,
        batch_size: int,
        mask_prob: float,
        seed: int,
        item_offset: int = MASK + 1,
    ):
        for name, value, least in (
            ("max_len", max_len, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("item_offset", item_offset, MASK + 1),
        ):
            _checks.require(value >= least, name, value, f"at least {least}")
        _checks.require(0 < mask_prob <= 1, "mask_prob", mask_prob, "in (0, 1]")
        sequences = train.last(max_len)
        lengths = sequences.lengths[sequences.lengths > 0]
        if lengths.size == 0:
            raise ValueError(
                f"none of the {len(train)} users has a train item: nothing to "
                "predict; give longer sequences or filter less"
            )
        self.max_len = max_len
        self.batch_size = batch_size
        self.mask_prob = mask_prob
        self.seed = seed
        self.num_samples = lengths.size
        self.num_steps = -(-lengths.size // batch_size)

        # One entry a cell, the cells of user after user.
        self._lengths = lengths
        self._items = sequences.values + item_offset
        from_end = np.repeat(np.cumsum(lengths), lengths) - np.arange(lengths.sum())
        self._positions = max_len - from_end
        self.num_rows = base_rows(lengths, batch_size, max_len)
        self.num_masked = _base_masked(lengths, batch_size, mask_prob)

    def __getitem__(self, epoch: int) -> MaskedBatch:
        """Returns the epoch: arrays `[num_steps, rows, max_len]` and `[num_steps, m]`.

        Args:
          epoch: From 0.
        """
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.num_samples)
        hidden = rng.random(self._items.size) < self.mask_prob
        cuts = range(self.batch_size, self.num_samples, self.batch_size)
        rows = PackedRows(
            self._lengths, np.split(order, cuts), self.max_len, self.num_rows
        )
        step, cell = np.nonzero(rows.fill(hidden).reshape(self.num_steps, -1))
        counts = np.bincount(step, minlength=self.num_steps)
        column = np.arange(step.size) - np.repeat(np.cumsum(counts) - counts, counts)
        width = max(self.num_masked, round_up(counts.max(), _MASKED_MULTIPLE))
        masked, labels = np.zeros((2, self.num_steps, width), np.int32)
        masked[step, column] = cell
        items = rows.fill(self._items).reshape(self.num_steps, -1)
        labels[step, column] = items[step, cell]
        return MaskedBatch(
            inputs=rows.fill(np.where(hidden, MASK, self._items)),
            segments=rows.fill(rows.segments),
            positions=rows.fill(self._positions),
            masked=masked,
            labels=labels,
        )


def _base_masked(lengths: np.ndarray, batch_size: int, mask_prob: float) -> int:
    """Cells that hold nearly every draw: four deviations above its mean."""
    users = min(batch_size, lengths.size)
    mean = mask_prob * lengths.mean()
    variance = mask_prob * (1 - mask_prob) * lengths.mean()
    if users < lengths.size:
        variance += mask_prob**2 * lengths.var()
    bound = users * mean + 4 * np.sqrt(users * variance)
    return round_up(int(np.ceil(bound)), _MASKED_MULTIPLE)
