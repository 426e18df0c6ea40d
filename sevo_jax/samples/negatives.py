"""Negative sampling: items that a user has not touched in training."""

from __future__ import annotations

import numpy as np

from sevo_jax.data.sequences import Sequences


class NegativeSampler:
    """Draws items uniformly among those outside a user's training items.

    All training items of the user are excluded, those later than the position that
    is trained too; validation and test items are not. Popularity plays no part.

    The result is distributed as if items were drawn from all `num_items` until one
    is outside, but takes a single draw: a number below the count of items outside
    is drawn, and the item with that rank among them looked up. So a draw costs the
    same for users with very many items, and a generator advances alike for all.

    Args:
      train: one row of training items a user, items 0..num_items-1.
      num_items: the number of items to draw from.

    Raises:
      ValueError: an item is outside 0..num_items-1, or a user's training items are
        all items there are, so that none is left to draw.

    Examples:
      >>> import numpy as np
      >>> from sevo_jax.data import Sequences
      >>> from sevo_jax.samples import NegativeSampler
      >>> sampler = NegativeSampler(Sequences.from_lists([[0, 1], [2]]), num_items=3)
      >>> sampler.sample(np.random.default_rng(0), np.array([0, 0, 0])).tolist()
      [2, 2, 2]
    """

    def __init__(self, train: Sequences, num_items: int):
        distinct = distinct_items(train, num_items)
        self._num_items = num_items
        self._num_outside = num_items - distinct.lengths
        # For each training item: how many items outside lie below it. Sorted by user
        # and never decreasing within one, so one search finds an item by its rank.
        self._starts = distinct.offsets[:-1]
        users = distinct.rows
        outside_below = distinct.values - (np.arange(len(users)) - self._starts[users])
        self._keys = users * (num_items + 1) + outside_below

    def sample(self, rng: np.random.Generator, users: np.ndarray) -> np.ndarray:
        """Draws one item for each entry of `users`.

        Args:
          rng: the generator; the same state gives the same items.
          users: integers `[m]`, the row of each user in `train`; repeats are drawn
            independently.

        Returns:
          int32 `[m]`, items outside the training items of their user.

        Raises:
          IndexError: a user is outside the rows of `train`.
        """
        users = np.asarray(users, np.int64)
        if len(users) and users.min() < 0:
            raise IndexError(f"user {users.min()}: users are rows of train, from 0")
        ranks = rng.integers(self._num_outside[users])
        inside_below = (
            np.searchsorted(self._keys, users * (self._num_items + 1) + ranks, "right")
            - self._starts[users]
        )
        return (ranks + inside_below).astype(np.int32)


def distinct_items(train: Sequences, num_items: int) -> Sequences:
    """The training items of each user in ascending order, each of them once.

    Args:
      train: one row of training items a user, items 0..num_items-1.
      num_items: the number of items to draw from.

    Raises:
      ValueError: an item is outside 0..num_items-1, or a user's training items are
        all items there are, so that no negative is left to draw.

    Examples:
      >>> from sevo_jax.data import Sequences
      >>> rows = distinct_items(Sequences.from_lists([[2, 0, 2], []]), num_items=3)
      >>> [row.tolist() for row in rows]
      [[0, 2], []]
    """
    if len(train.values) and not (
        0 <= train.values.min() and train.values.max() < num_items
    ):
        raise ValueError(
            f"training items run from {train.values.min()} to "
            f"{train.values.max()}, but must be in 0..{num_items - 1}"
        )
    distinct = train.distinct()
    if distinct.lengths.max(initial=0) == num_items:
        user = train.name(int(np.argmax(distinct.lengths)))
        raise ValueError(
            f"the training items of user {user} are all {num_items} items: no negative "
            "can be drawn; leave the user out or filter the log"
        )
    return distinct
