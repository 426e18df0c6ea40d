"""Training on every prefix of every sequence, for models that read from left to right.

A prefix `q_1..q_{k-1}` predicts `q_k`. A recurrence that passes over a sequence meets
the states of all its prefixes on the way, so `PrefixEpochs` can feed whole sequences
and take a loss at each of their cells, instead of one row a prefix.
"""

from typing import Literal, NamedTuple

import numpy as np

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences, ranges
from sevo_jax.samples.negatives import NegativeSampler
from sevo_jax.samples.packing import pack, round_up

Sampling = Literal["sequence", "prefix"]

_ROW_MULTIPLE = 4


class PrefixBatch(NamedTuple):
    """Runs of items side by side in rows, and what follows some of their cells.

    An epoch is `[steps, ...]`, one step of it without that axis. Fields are int32 but
    for `starts`; an empty cell or target is 0 in every field.

    Attributes:
      inputs: `[rows, max_len]`, rows of the item table (`item + item_offset`).
      starts: `[rows, max_len]`, whether a run begins at a cell.
      cells: `[targets]`, the cell that each target follows, counted row by row.
      targets: `[targets]`, the item that follows, as a row of the table.
      negatives: `[targets]`, an item the user has not in train, as a row of the
        table.
    """

    inputs: np.ndarray
    starts: np.ndarray
    cells: np.ndarray
    targets: np.ndarray
    negatives: np.ndarray


class PrefixEpochs:
    """The epochs of training on all prefixes, addressed by number.

    Every train item of a user but the first is the target of one prefix, once an
    epoch, with a fresh negative. The prefixes are drawn in one of two ways:

    - `"prefix"`: one by one. Each is a run of its own, the last `max_len` items before
      its target; an epoch is a fresh permutation of the prefixes.
    - `"sequence"`: all those of a user together, as one run. An epoch is a fresh
      permutation of the runs, and a run goes wholly to the step in which its last
      target falls, so that a step has about `batch_size` targets: up to a run more or
      fewer, and the last one what is left.

    A run has at most `max_len` cells. Of a user with more than `max_len` targets, the
    first run has the first `max_len` targets. Each further run takes up the next ones,
    and reads the `max_len // 2` items before the first input it has a loss at, to warm
    up. So a prefix of up to `max_len` items is read whole, as it is by itself; of a
    longer one the last `max_len // 2 + 1` to `max_len` items are read, where `"prefix"`
    reads the last `max_len`.

    Steps share one number of rows and of targets, from epoch to epoch too, except where
    a draw needs more rows, which is rare. `epochs[e]` depends on the arguments and `e`
    alone.

    Args:
      train: Train items of each user, `0..num_items-1`. Users with fewer than two
        have no target and are left out.
      num_items: How many items there are.
      max_len: Width of a row, and the most items that a prediction reads.
      batch_size: Targets of a step; of `"sequence"` at least those of each run.
      seed: Non-negative.
      sampling: How the prefixes are drawn.
      item_offset: Row of the table where item 0 stands.

    Raises:
      ValueError: If an argument is out of range or no user has two train items.

    Examples:
      >>> from sevo_jax.data.sequences import Sequences
      >>> train = Sequences.from_lists([[0, 1, 2, 3, 4]])
      >>> options = dict(max_len=6, batch_size=4, seed=0)
      >>> step = PrefixEpochs(train, 9, sampling="sequence", **options)[0]
      >>> step.inputs[0, 0].tolist(), step.targets[0, :4].tolist()
      ([1, 2, 3, 4, 0, 0], [2, 3, 4, 5])
      >>> step = PrefixEpochs(train, 9, sampling="prefix", **options)[0]
      >>> step.inputs[0, :2].tolist(), sorted(step.targets[0].tolist())
      ([[1, 2, 3, 4, 1, 2], [1, 2, 3, 1, 0, 0]], [2, 3, 4, 5])
    """

    def __init__(
        self,
        train: Sequences,
        num_items: int,
        *,
        max_len: int,
        batch_size: int,
        seed: int,
        sampling: Sampling,
        item_offset: int = 1,
    ):
        for name, value, least in (
            ("max_len", max_len, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("item_offset", item_offset, 1),
        ):
            _checks.require(value >= least, name, value, f"at least {least}")
        if sampling not in ("sequence", "prefix"):
            raise ValueError(f"sampling is {sampling!r}: choose 'sequence' or 'prefix'")
        users = np.flatnonzero(train.lengths >= 2)
        if users.size == 0:
            raise ValueError(
                f"none of the {len(train)} users has two train items: nothing to "
                "predict; give longer sequences or filter less"
            )
        # A run reads train.values[first : first + length], and has a loss at its last
        # `count` cells.
        runs = _prefixes if sampling == "prefix" else _chunks
        user, first, self._lengths, self._counts = runs(
            train.lengths[users] - 1, max_len
        )
        longest = int(self._counts.max())
        if batch_size < longest:
            raise ValueError(
                f"batch_size counts prefixes and is {batch_size}, but a sequence of "
                f"{longest} goes into one step: choose at least {longest}, or "
                "sampling='prefix'"
            )
        self._users = users[user]
        self._firsts = train.offsets[self._users] + first
        self._items = train.values + item_offset
        self.max_len = max_len
        self.batch_size = batch_size
        self.seed = seed
        self.item_offset = item_offset
        self.sampler = NegativeSampler(train, num_items)
        # No run is longer than a step, so one ends in each, and none is empty. The
        # first of a step's runs may have begun in the step before.
        total = int(self._counts.sum())
        self.num_steps = -(-total // batch_size)
        self.num_targets = min(batch_size + longest - 1, total)
        self.num_rows = self._base_rows()

    def __getitem__(self, epoch: int) -> PrefixBatch:
        """Returns the epoch: arrays `[num_steps, ...]`, at least `num_rows` rows.

        Args:
          epoch: From 0.
        """
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self._counts.size)
        users, firsts, lengths, counts = (
            each[order]
            for each in (self._users, self._firsts, self._lengths, self._counts)
        )
        ends = np.cumsum(counts)
        step = (ends - 1) // self.batch_size
        cuts = np.searchsorted(step, np.arange(self.num_steps + 1))
        steps = [slice(*cut) for cut in zip(cuts, cuts[1:], strict=False)]

        placed = [pack(lengths[runs], self.max_len) for runs in steps]
        most = max(used for _, _, used in placed)
        num_rows = (
            self.num_rows if most <= self.num_rows else round_up(most, _ROW_MULTIPLE)
        )
        starts = np.concatenate(
            [row * self.max_len + column for row, column, _ in placed]
        )
        shape = (self.num_steps, num_rows, self.max_len)
        batch = PrefixBatch(
            np.zeros(shape, np.int32),
            np.zeros(shape, np.bool_),
            *np.zeros((3, self.num_steps, self.num_targets), np.int32),
        )
        # Step by step, for there may be a hundred million cells.
        for inputs, begins, runs in zip(batch.inputs, batch.starts, steps, strict=True):
            begins.reshape(-1)[starts[runs]] = True
            cells = ranges(starts[runs], lengths[runs])
            inputs.reshape(-1)[cells] = self._items[ranges(firsts[runs], lengths[runs])]

        # The places of a step's targets follow each other from the first on.
        skipped = lengths - counts
        places = step * self.num_targets + ends - counts - (ends - counts)[cuts[step]]
        places = ranges(places, counts)
        negatives = self.sampler.sample(rng, np.repeat(users, counts))
        for field, values in (
            (batch.cells, ranges(starts + skipped, counts)),
            (batch.targets, self._items[ranges(firsts + skipped + 1, counts)]),
            (batch.negatives, negatives + self.item_offset),
        ):
            field.reshape(-1)[places] = values
        return batch

    def _base_rows(self) -> int:
        """Rows that hold nearly every step: five deviations above its mean of cells."""
        share = self._lengths.sum() / self._counts.sum()
        spread = np.std(self._lengths - share * self._counts)
        num_runs = self.num_targets / self._counts.mean()
        cells = share * self.num_targets + 5 * spread * np.sqrt(num_runs)
        return round_up(int(np.ceil(cells / self.max_len)), _ROW_MULTIPLE)


def _prefixes(num_targets: np.ndarray, max_len: int) -> tuple[np.ndarray, ...]:
    """The prefixes of users with so many targets, a run each (see `_chunks`)."""
    user = np.repeat(np.arange(num_targets.size), num_targets)
    size = ranges(1, num_targets)
    lengths = np.minimum(size, max_len)
    return user, size - lengths, lengths, np.ones_like(lengths)


def _chunks(num_targets: np.ndarray, max_len: int) -> tuple[np.ndarray, ...]:
    """The sequences of users with so many targets, long ones cut into runs.

    Returns:
      The user of each run, the index of its first input in the user's sequence, how
      many inputs it has, and at how many of the last of them it has a loss.
    """
    warm_up = max_len // 2
    fresh = max_len - warm_up
    num_runs = 1 + -(-np.maximum(num_targets - max_len, 0) // fresh)
    user = np.repeat(np.arange(num_targets.size), num_runs)
    number = ranges(0, num_runs)
    first = number * fresh
    lengths = np.minimum(num_targets[user] - first, max_len)
    return user, first, lengths, np.where(number == 0, lengths, lengths - warm_up)
