"""Masked items to predict: packed rows in which some items are hidden."""

import itertools
from typing import Literal, NamedTuple

import numpy as np

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences, ranges
from sevo_jax.samples.packing import PackedRows, base_rows, round_up

MASK = 1
"""Row of the item table that stands in for a hidden item; row 0 is the padding."""

Sampling = Literal["users", "loaders"]

_LOADERS = {"users": 1, "loaders": 4}
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

    A sample is a user: the last `max_len` train items, each of which is hidden with
    probability `mask_prob`, independently of all others. The users are drawn in one of
    two ways:

    - `"users"`: each user once. An epoch is a fresh permutation of the users cut into
      batches, the partial last one kept.
    - `"loaders"`: as the four loading processes of the paper's authors draw them. Each
      process permutes all users by itself, takes every fourth and cuts these into
      batches, and the batches of the four take turns. An epoch has a user
      Binomial(4, 1/4) times, each time with other items hidden, and three users of ten
      not at all.

    `epochs[e]` depends on the arguments and `e` alone.

    Steps of an epoch share one number of rows and one of hidden cells, so that a
    compiled step fits them all. These are the same from epoch to epoch except where a
    draw needs more (about one epoch in hundreds), as nothing is ever left out.

    Args:
      train: train items of each user, from 0. Users without any are left out.
      max_len: width of a row, and the longest input of a user.
      batch_size: users of a step.
      mask_prob: in (0, 1].
      seed: Non-negative.
      sampling: how the users of an epoch are drawn.
      item_offset: row of the table where item 0 stands, behind the mask's.

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
        sampling: Sampling = "users",
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
        known = f"one of {', '.join(_LOADERS)}"
        _checks.require(sampling in _LOADERS, "sampling", sampling, known)
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
        self._num_loaders = _LOADERS[sampling]
        self.num_steps = sum(
            -(-len(range(first, lengths.size, self._num_loaders)) // batch_size)
            for first in range(self._num_loaders)
        )

        # One entry a cell, the cells of user after user.
        self._lengths = lengths
        self._starts = np.cumsum(lengths) - lengths
        self._items = sequences.values + item_offset
        self._positions = ranges(max_len - lengths, lengths)
        self.num_rows = base_rows(lengths, batch_size, max_len)
        self.num_masked = _base_masked(lengths, batch_size, mask_prob)

    def __getitem__(self, epoch: int) -> MaskedBatch:
        """Returns the epoch: arrays `[num_steps, rows, max_len]` and `[num_steps, m]`.

        Args:
          epoch: from 0.
        """
        rng = np.random.default_rng([self.seed, epoch])
        users, steps = self._draw(rng)
        lengths = self._lengths[users]
        cells = ranges(self._starts[users], lengths)
        hidden = rng.random(cells.size) < self.mask_prob
        items = self._items[cells]
        rows = PackedRows(lengths, steps, self.max_len, self.num_rows)
        step, cell = np.nonzero(rows.fill(hidden).reshape(self.num_steps, -1))
        counts = np.bincount(step, minlength=self.num_steps)
        column = ranges(0, counts)
        width = max(self.num_masked, round_up(counts.max(), _MASKED_MULTIPLE))
        masked, labels = np.zeros((2, self.num_steps, width), np.int32)
        masked[step, column] = cell
        labels[step, column] = rows.fill(items).reshape(self.num_steps, -1)[step, cell]
        return MaskedBatch(
            inputs=rows.fill(np.where(hidden, MASK, items)),
            segments=rows.fill(rows.segments),
            positions=rows.fill(self._positions[cells]),
            masked=masked,
            labels=labels,
        )

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
        """The user of each sample of an epoch, and the samples of each step."""
        taken = [
            rng.permutation(self.num_samples)[first :: self._num_loaders]
            for first in range(self._num_loaders)
        ]
        batches = [
            [
                users[i : i + self.batch_size]
                for i in range(0, len(users), self.batch_size)
            ]
            for users in taken
        ]
        turns = itertools.zip_longest(*batches)
        steps = [batch for turn in turns for batch in turn if batch is not None]
        if self._num_loaders == 1:
            return np.arange(self.num_samples), steps
        # Each draw of a user is a sample of its own.
        ends = np.cumsum([len(users) for users in steps])
        users = np.concatenate(steps)
        return users, np.split(np.arange(len(users)), ends[:-1])


def _base_masked(lengths: np.ndarray, batch_size: int, mask_prob: float) -> int:
    """Cells that hold nearly every draw: four deviations above its mean."""
    users = min(batch_size, lengths.size)
    mean = mask_prob * lengths.mean()
    variance = mask_prob * (1 - mask_prob) * lengths.mean()
    if users < lengths.size:
        variance += mask_prob**2 * lengths.var()
    bound = users * mean + 4 * np.sqrt(users * variance)
    return round_up(int(np.ceil(bound)), _MASKED_MULTIPLE)
