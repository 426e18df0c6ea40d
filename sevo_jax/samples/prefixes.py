"""Training on every prefix of every sequence, for models that read from left to right.

A prefix `q_1..q_{k-1}` predicts `q_k`. A recurrence that passes over a sequence meets
the states of all its prefixes on the way, so `PrefixEpochs` can feed whole sequences
and take a loss at each of their cells, instead of one row a prefix.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences, ranges
from sevo_jax.samples.negatives import NegativeSampler
from sevo_jax.samples.packing import pack, round_up
from sevo_jax.samples.runs import Runs

Sampling = Literal["sequence", "prefix"]

_ROW_MULTIPLE = 4


class RunBatch(NamedTuple):
    """Runs of items side by side in rows, and what follows some of their cells.

    An epoch is `[steps, ...]`, one step of it without that axis. Fields are int32 but
    for `starts`; an empty cell or target is 0 in every field.

    Attributes:
      inputs: `[rows, max_len]`, rows of the item table (`item + item_offset`).
      starts: `[rows, max_len]`, whether a run begins at a cell.
      cells: `[targets]`, the cell that each target follows, counted row by row.
      targets: `[targets]`, the item that follows, as a row of the table.
    """

    inputs: np.ndarray
    starts: np.ndarray
    cells: np.ndarray
    targets: np.ndarray


class RunEpochs:
    """The epochs of training on runs of items, addressed by number.

    An epoch is a fresh permutation of the runs (`Runs.draw`), side by side in rows.
    Steps share one number of rows and of targets, from epoch to epoch too, except where
    a draw needs more rows, which is rare. `epochs[e]` depends on the arguments and `e`
    alone.

    Args:
      train: train items of each user.
      runs: of these items.
      max_len: width of a row, and the most items of a run.
      batch_size: targets of a step, at least those of each run.
      seed: non-negative.
      item_offset: row of the table where item 0 stands.

    Raises:
      ValueError: if an argument is out of range.

    Examples:
      >>> train = Sequences.from_lists([[0, 1, 2, 3, 4]])
      >>> runs = Runs.shared(train, 3, most=4)
      >>> epochs = RunEpochs(train, runs, max_len=3, batch_size=4, seed=0)
      >>> step = RunBatch(*(field[0] for field in epochs[0]))
      >>> step.inputs[:2].tolist(), sorted(step.targets.tolist())
      ([[1, 2, 3], [2, 3, 4]], [2, 3, 4, 5])
    """

    def __init__(
        self,
        train: Sequences,
        runs: Runs,
        *,
        max_len: int,
        batch_size: int,
        seed: int,
        item_offset: int = 1,
    ):
        for name, value, least in (
            ("max_len", max_len, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("item_offset", item_offset, 1),
        ):
            _checks.require(value >= least, name, value, f"at least {least}")
        longest = int(runs.counts.max())
        if batch_size < longest:
            raise ValueError(
                f"batch_size counts prefixes and is {batch_size}, but a sequence of "
                f"{longest} goes into one step: choose at least {longest}, or "
                "sampling='prefix'"
            )
        self._runs = runs
        self._items = train.values + item_offset
        self.max_len = max_len
        self.batch_size = batch_size
        self.seed = seed
        self.item_offset = item_offset
        self.num_steps = runs.num_steps(batch_size)
        self.num_targets = runs.most_targets(batch_size)
        cells = runs.room(runs.lengths, batch_size)
        self.num_rows = round_up(-(-cells // max_len), _ROW_MULTIPLE)

    def __getitem__(self, epoch: int) -> RunBatch:
        """Returns the epoch: arrays `[num_steps, ...]`, at least `num_rows` rows.

        Args:
          epoch: from 0.
        """
        return self._draw(np.random.default_rng([self.seed, epoch]))[0]

    def _draw(
        self, rng: np.random.Generator
    ) -> tuple[RunBatch, Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
        """An epoch; of all its targets the users, and the places in its arrays."""
        drawn, steps = self._runs.draw(rng, self.batch_size)
        firsts, lengths, counts = drawn.firsts, drawn.lengths, drawn.counts
        placed = [pack(lengths[runs], self.max_len) for runs in steps]
        most = max(used for _, _, used in placed)
        num_rows = (
            self.num_rows if most <= self.num_rows else round_up(most, _ROW_MULTIPLE)
        )
        starts = np.concatenate(
            [row * self.max_len + column for row, column, _ in placed]
        )
        shape = (self.num_steps, num_rows, self.max_len)
        batch = RunBatch(
            np.zeros(shape, np.int32),
            np.zeros(shape, np.bool_),
            *np.zeros((2, self.num_steps, self.num_targets), np.int32),
        )
        # Step by step, for there may be a hundred million cells.
        for inputs, begins, runs in zip(batch.inputs, batch.starts, steps, strict=True):
            begins.reshape(-1)[starts[runs]] = True
            cells = ranges(starts[runs], lengths[runs])
            inputs.reshape(-1)[cells] = self._items[ranges(firsts[runs], lengths[runs])]

        # The places of a step's targets follow each other from the first on.
        skipped = lengths - counts
        sizes = np.array([counts[runs].sum() for runs in steps])
        places = ranges(self.num_targets * np.arange(self.num_steps), sizes)
        for field, values in (
            (batch.cells, ranges(starts + skipped, counts)),
            (batch.targets, self._items[ranges(firsts + skipped + 1, counts)]),
        ):
            field.reshape(-1)[places] = values
        return batch, np.repeat(drawn.users, counts), places


class PrefixBatch(NamedTuple):
    """A `RunBatch` whose targets have negatives.

    Attributes:
      inputs: as in `RunBatch`, and so the next three.
      negatives: `[targets]`, an item the user has not in train, as a row of the
        table.
    """

    inputs: np.ndarray
    starts: np.ndarray
    cells: np.ndarray
    targets: np.ndarray
    negatives: np.ndarray


class PrefixEpochs(RunEpochs):
    """The epochs of training on all prefixes with negatives, addressed by number.

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

    Args:
      train: train items of each user, `0..num_items-1`. Users with fewer than two
        have no target and are left out.
      num_items: how many items there are.
      max_len: width of a row, and the most items that a prediction reads.
      batch_size: targets of a step; of `"sequence"` at least those of each run.
      seed: non-negative.
      sampling: how the prefixes are drawn.
      item_offset: row of the table where item 0 stands.
      with_negatives: whether to draw negatives; without, they are 0.

    Raises:
      ValueError: if an argument is out of range or no user has two train items.

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
        with_negatives: bool = True,
    ):
        if sampling not in ("sequence", "prefix"):
            raise ValueError(f"sampling is {sampling!r}: choose 'sequence' or 'prefix'")
        _checks.require(max_len >= 1, "max_len", max_len, "at least 1")
        if sampling == "prefix":
            runs = Runs.prefixes(train, max_len)
        else:
            warm_up = max_len // 2
            runs = Runs.chunks(
                train, first=max_len, fresh=max_len - warm_up, warm_up=warm_up
            )
        super().__init__(
            train,
            runs,
            max_len=max_len,
            batch_size=batch_size,
            seed=seed,
            item_offset=item_offset,
        )
        self.with_negatives = with_negatives
        if with_negatives:
            self.sampler = NegativeSampler(train, num_items)

    def __getitem__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, epoch: int
    ) -> PrefixBatch:
        rng = np.random.default_rng([self.seed, epoch])
        batch, users, places = self._draw(rng)
        negatives = np.zeros_like(batch.targets)
        if self.with_negatives:
            drawn = self.sampler.sample(rng, users)
            negatives.reshape(-1)[places] = drawn + self.item_offset
        return PrefixBatch(*batch, negatives)
