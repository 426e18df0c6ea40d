"""The figures that describe a log, as in Table 2 of the paper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sevo_jax.data.log import InteractionLog
from sevo_jax.data.split import leave_one_out


@dataclass(frozen=True)
class Statistics:
    """Sizes of a log and of its leave-one-out split.

    Attributes:
      num_users: the number of users.
      num_items: the number of items.
      num_interactions: the number of interactions.
      density: share of the pairs of a user and an item that interact, 0 to 1.
      repeats: share of the interactions whose user has had the item before, 0 to 1.
      mean_length: interactions of a user, on average.
      num_train: interactions in the training part.
      num_valid: users with a validation item.
      num_test: users with a test item.
      items_never_in_train: items that the training part does not contain.
    """

    num_users: int
    num_items: int
    num_interactions: int
    density: float
    repeats: float
    mean_length: float
    num_train: int
    num_valid: int
    num_test: int
    items_never_in_train: int


def statistics(log: InteractionLog) -> Statistics:
    """Counts what Table 2 of the paper lists, and the parts of the split.

    Example:
      >>> from sevo_jax.data import InteractionLog, statistics
      >>> log = InteractionLog.from_columns([1] * 4 + [2], [1, 2, 3, 4, 1], name="tiny")
      >>> figures = statistics(log)
      >>> figures.num_train, figures.num_test, figures.items_never_in_train
      (3, 1, 2)
      >>> figures.density, figures.repeats, figures.mean_length
      (0.625, 0.0, 2.5)
    """
    split = leave_one_out(log)
    num_pairs = len(log.sequences.distinct().values)
    return Statistics(
        num_users=log.num_users,
        num_items=log.num_items,
        num_interactions=log.num_interactions,
        density=num_pairs / (log.num_users * log.num_items),
        repeats=1 - num_pairs / log.num_interactions,
        mean_length=log.num_interactions / log.num_users,
        num_train=len(split.train.values),
        num_valid=int(np.count_nonzero(split.valid >= 0)),
        num_test=int(np.count_nonzero(split.test >= 0)),
        items_never_in_train=log.num_items - len(np.unique(split.train.values)),
    )
