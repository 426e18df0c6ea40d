"""Runs of a user's items with a loss at their last cells, and drawing them into steps.

A prefix `q_1..q_{k-1}` predicts `q_k`. Prefixes of a user that a model reads in one
pass make a run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sevo_jax.data.sequences import Sequences, ranges


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of items; each has a loss at one or more of its last cells.

    Attributes:
      users: `[runs]`, row in the train items.
      firsts: `[runs]`, where the items of a run begin in the values of the train items.
      lengths: `[runs]`, how many items a run reads.
      counts: `[runs]`, at how many of the last of them it has a loss, at least 1.
    """

    users: np.ndarray
    firsts: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray

    @classmethod
    def prefixes(cls, train: Sequences, max_len: int) -> Runs:
        """Each prefix by itself: the last `max_len` items before its target.

        Args:
          train: train items of each user; users with fewer than two have no target.
          max_len: the most items of a run.

        Raises:
          ValueError: if no user has two train items.

        Examples:
          >>> runs = Runs.prefixes(Sequences.from_lists([[0, 1, 2, 3]]), max_len=2)
          >>> runs.firsts.tolist(), runs.lengths.tolist(), runs.counts.tolist()
          ([0, 0, 1], [1, 2, 2], [1, 1, 1])
        """
        users, num_targets = _with_targets(train)
        user = np.repeat(users, num_targets)
        size = ranges(1, num_targets)
        lengths = np.minimum(size, max_len)
        firsts = train.offsets[user] + size - lengths
        return cls(user, firsts, lengths, np.ones_like(lengths))

    @classmethod
    def chunks(cls, train: Sequences, *, first: int, fresh: int, warm_up: int) -> Runs:
        """All prefixes of a user together, those of a long sequence in several runs.

        A run begins `warm_up` items before the first input it has a loss at, or where
        the sequence does. So with a `warm_up` of `max_len - 1` it has the last
        `max_len` items before each of its targets, or all there are.

        Args:
          train: train items of each user; users with fewer than two have no target.
          first: the most targets of a user's first run.
          fresh: the most targets of each further one.
          warm_up: how many items the further ones read without a loss, at most.

        Raises:
          ValueError: if no user has two train items.

        Examples:
          >>> train = Sequences.from_lists([[0, 1, 2, 3, 4, 5]])
          >>> runs = Runs.chunks(train, first=2, fresh=2, warm_up=1)
          >>> runs.firsts.tolist(), runs.lengths.tolist(), runs.counts.tolist()
          ([0, 1, 3], [2, 3, 2], [2, 2, 1])
        """
        users, num_targets = _with_targets(train)
        num_runs = 1 + -(-np.maximum(num_targets - first, 0) // fresh)
        number = ranges(0, num_runs)
        user = np.repeat(users, num_runs)
        # The first target of a run, and the first behind its last.
        start = np.where(number == 0, 0, first + (number - 1) * fresh)
        stop = np.minimum(first + number * fresh, np.repeat(num_targets, num_runs))
        begin = np.maximum(start - warm_up, 0)
        return cls(user, train.offsets[user] + begin, stop - begin, stop - start)

    @classmethod
    def shared(cls, train: Sequences, max_len: int, *, most: int) -> Runs:
        """Prefixes of a user together where each is read as it is by itself.

        Those of up to `max_len` items, the first `most` of them, are a run, unless an
        item of the user's comes twice. Each other prefix is a run of its own.

        Args:
          train: train items of each user; users with fewer than two have no target.
          max_len: the most items of a run.
          most: the most targets of a run.

        Raises:
          ValueError: if no user has two train items.

        Examples:
          >>> train = Sequences.from_lists([[0, 1, 2, 3], [4, 5, 4]])
          >>> runs = Runs.shared(train, 2, most=9)
          >>> runs.firsts.tolist(), runs.lengths.tolist(), runs.counts.tolist()
          ([0, 1, 4, 4], [2, 2, 1, 2], [2, 1, 1, 1])
        """
        together = cls.chunks(
            train, first=min(max_len, most), fresh=1, warm_up=max_len - 1
        )
        repeats = train.distinct().lengths < train.lengths
        if not repeats.any():
            return together
        alone = cls.prefixes(train, max_len)
        parts = (
            together.take(~repeats[together.users]),
            alone.take(repeats[alone.users]),
        )
        fields = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*map(np.concatenate, fields))

    def num_steps(self, batch_size: int) -> int:
        """Steps of an epoch."""
        return -(-int(self.counts.sum()) // batch_size)

    def most_targets(self, batch_size: int) -> int:
        """The most targets that a step can have.

        The first run of a step may have begun in the step before.
        """
        return min(batch_size + int(self.counts.max()) - 1, int(self.counts.sum()))

    def room(self, amounts: np.ndarray, batch_size: int) -> int:
        """How much nearly every step needs of something, such as cells.

        Five deviations above the mean of a step.

        Args:
          amounts: `[runs]`, how much each run needs.
          batch_size: targets of a step.
        """
        share = amounts.sum() / self.counts.sum()
        spread = np.std(amounts - share * self.counts)
        num_targets = self.most_targets(batch_size)
        num_runs = num_targets / self.counts.mean()
        return int(np.ceil(share * num_targets + 5 * spread * np.sqrt(num_runs)))

    def take(self, runs: np.ndarray | slice) -> Runs:
        """Picks runs, in the order given."""
        return Runs(
            self.users[runs], self.firsts[runs], self.lengths[runs], self.counts[runs]
        )

    def draw(
        self, rng: np.random.Generator, batch_size: int
    ) -> tuple[Runs, list[slice]]:
        """Draws an epoch: a permutation of the runs, cut into steps.

        A run goes wholly to the step in which its last target falls, so that a step
        has about `batch_size` targets: up to a run more or fewer, and the last one
        what is left. No step is empty if no run has more targets than `batch_size`.

        Args:
          rng: source of the permutation.
          batch_size: targets of a step.

        Returns:
          The runs as drawn, and those of each step.
        """
        drawn = self.take(rng.permutation(self.counts.size))
        step = (np.cumsum(drawn.counts) - 1) // batch_size
        cuts = np.searchsorted(step, np.arange(self.num_steps(batch_size) + 1))
        return drawn, [slice(*cut) for cut in zip(cuts, cuts[1:], strict=False)]


def _with_targets(train: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """The users with two train items or more, and how many targets each has."""
    users = np.flatnonzero(train.lengths >= 2)
    if users.size == 0:
        raise ValueError(
            f"none of the {len(train)} users has two train items: nothing to "
            "predict; give longer sequences or filter less"
        )
    return users, train.lengths[users] - 1
