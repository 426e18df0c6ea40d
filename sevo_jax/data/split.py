"""The leave-one-out split: the last item tests, the one before it validates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sevo_jax.data.log import InteractionLog
from sevo_jax.data.sequences import Sequences

# With fewer interactions nothing would be left to learn a transition from.
_FEWEST_FOR_HOLDOUT = 4


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """A log cut into training, validation and test parts.

    Attributes:
      train: `[num_users]` rows, the training items of each user.
      valid: int32 `[num_users]`, each user's validation item; -1 where there is none.
      test: int32 `[num_users]`, each user's test item; -1 where there is none.
      log: what was split: its ids and its name.
    """

    train: Sequences
    valid: np.ndarray
    test: np.ndarray
    log: InteractionLog

    @property
    def num_users(self) -> int:
        """The number of users."""
        return self.log.num_users

    @property
    def num_items(self) -> int:
        """The number of items."""
        return self.log.num_items


def leave_one_out(log: InteractionLog) -> LeaveOneOut:
    """Splits a log as the paper does (section 5.1).

    A user's last item is the test item, the second last the validation item and the
    rest is for training. Users with three interactions or fewer go wholly to the
    training part; after 5-core filtering there are none.

    The input for validation is the training part; the input for the test is the
    training part and the validation item: `split.train.append(split.valid)`.

    Example:
      >>> from sevo_jax.data import InteractionLog, leave_one_out
      >>> log = InteractionLog.from_columns(
      ...     [1] * 5, [10, 20, 30, 40, 50], name="tiny")
      >>> split = leave_one_out(log)
      >>> split.train[0].tolist(), split.valid.tolist(), split.test.tolist()
      ([0, 1, 2], [3], [4])
    """
    sequences = log.sequences
    held_out = _is_held_out(sequences)
    ends = sequences.offsets[1:][held_out]
    valid = np.full(log.num_users, -1, np.int32)
    test = valid.copy()
    valid[held_out] = sequences.values[ends - 2]
    test[held_out] = sequences.values[ends - 1]
    return LeaveOneOut(sequences.drop_last(2 * held_out), valid, test, log)


def training_part(sequences: Sequences) -> Sequences:
    """What `leave_one_out` trains on, of some users' whole sequences."""
    return sequences.drop_last(2 * _is_held_out(sequences))


def _is_held_out(sequences: Sequences) -> np.ndarray:
    return sequences.lengths >= _FEWEST_FOR_HOLDOUT
