"""A built-in log with planted structure, to learn from without a download."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from sevo_jax.data.filtering import k_core
from sevo_jax.data.log import InteractionLog

# Users are drawn in blocks, because each takes memory for all items.
_BLOCK = 512
_LONGEST = 50


def planted(
    num_users: int = 2500,
    num_items: int = 1000,
    num_groups: int = 25,
    *,
    seed: int = 0,
    mean_length: float = 8.5,
    follow: float = 0.6,
    num_successors: int = 3,
    skew: float = 0.6,
    groups_per_user: int = 2,
) -> InteractionLog:
    """Draws a log in which groups, successors, popularity and tastes are planted.

    Items form groups: the item with id `j` is in group `j % num_groups`. Each item
    has a few likely successors in its own group: a sparse Markov chain. A user has a
    taste for a few groups. The next item is, with probability `follow`, a successor
    of the one before, otherwise a popular item of a group to the user's taste; no
    user takes an item twice. Sequences are short and most items rare, as in the
    Amazon data, so a model gains from what neighbours in the co-occurrence graph
    share.

    Ids are 0..num_users-1 and 0..num_items-1. The log is filtered to its 5-core, so
    some of the rarest items are missing from it. The same arguments give the same
    log.

    Args:
      num_users: users to draw.
      num_items: items to draw from.
      num_groups: groups, each of at least 5 items.
      seed: what the randomness depends on.
      mean_length: interactions of a user on average, 5.1 to 25. One has at least 5
        and at most 50, or the items of the groups to the user's taste.
      follow: how likely a step goes to a successor, 0 to 0.99.
      num_successors: successors of each item, less than the items of a group.
      skew: exponent of the popularities inside a group; 0 makes them equal.
      groups_per_user: groups to a user's taste.

    Returns:
      The log, named "synthetic".

    Raises:
      ValueError: an argument is outside its range.

    Example:
      >>> from sevo_jax.data import planted
      >>> log = planted(num_users=300, num_items=100, num_groups=5)
      >>> log.name, bool(log.sequences.lengths.min() >= 5)
      ('synthetic', True)
    """
    smallest_group = num_items // max(num_groups, 1)
    _check(
        num_users=(num_users, 1, math.inf),
        num_groups=(num_groups, 1, num_items // 5),
        mean_length=(mean_length, 5.1, _LONGEST / 2),
        follow=(follow, 0, 0.99),
        num_successors=(num_successors, 1, smallest_group - 1),
        skew=(skew, 0, math.inf),
        groups_per_user=(groups_per_user, 1, num_groups),
    )
    longest = min(_LONGEST, groups_per_user * smallest_group)
    rng = np.random.default_rng(seed)
    successors = _draw_successors(rng, num_items, num_groups, num_successors)
    popularity = _draw_popularity(rng, num_items, num_groups, skew)
    rows, items = [], []
    for start in range(0, num_users, _BLOCK):
        size = min(_BLOCK, num_users - start)
        tastes = _draw_tastes(rng, size, num_groups, groups_per_user)
        lengths = np.minimum(_draw_lengths(rng, size, mean_length), longest)
        weights = popularity * tastes[:, np.arange(num_items) % num_groups]
        for users, chosen in _walk(rng, weights, successors, lengths, follow):
            rows.append(start + users)
            items.append(chosen)
    log = InteractionLog.from_columns(
        np.concatenate(rows), np.concatenate(items), name="synthetic"
    )
    return k_core(log, 5)


def _check(**arguments: tuple[float, float, float]) -> None:
    """Raises for the first argument, given as (value, low, high), out of range."""
    for name, (value, low, high) in arguments.items():
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}, but must be from {low} to {high}")


def _draw_successors(
    rng: np.random.Generator, num_items: int, num_groups: int, num_successors: int
) -> np.ndarray:
    """Draws the successors `[num_items, num_successors]` of each item.

    They stand just behind it on a ring through its group, so that neighbours on the
    ring share most of theirs.
    """
    successors = np.empty((num_items, num_successors), np.int64)
    for group in range(num_groups):
        members = np.arange(group, num_items, num_groups)
        ring = members[np.argsort(rng.random(len(members)))]
        for column in range(num_successors):
            successors[ring, column] = np.roll(ring, -1 - column)
    return successors


def _draw_popularity(
    rng: np.random.Generator, num_items: int, num_groups: int, skew: float
) -> np.ndarray:
    """Shares `[num_items]` that sum to 1 in each group and fall as a power of rank."""
    popularity = np.empty(num_items, np.float32)
    for group in range(num_groups):
        members = np.arange(group, num_items, num_groups)
        ranks = 1 + np.argsort(rng.random(len(members)))
        shares = ranks**-skew
        popularity[members] = shares / shares.sum()
    return popularity


def _draw_tastes(
    rng: np.random.Generator, num_users: int, num_groups: int, groups_per_user: int
) -> np.ndarray:
    """Shares `[num_users, num_groups]` of the groups in what each user likes."""
    order = np.argsort(rng.random((num_users, num_groups)), axis=1)
    tastes = np.zeros((num_users, num_groups), np.float32)
    shares = 0.2 + rng.random((num_users, groups_per_user))
    np.put_along_axis(tastes, order[:, :groups_per_user], shares, axis=1)
    return tastes / tastes.sum(axis=1, keepdims=True)


def _draw_lengths(
    rng: np.random.Generator, num_users: int, mean_length: float
) -> np.ndarray:
    """Draws lengths `[num_users]` with this mean: 5 and a geometric number."""
    stop = 1 / (mean_length - 4)
    extra = np.floor(np.log1p(-rng.random(num_users)) / np.log1p(-stop))
    return 5 + extra.astype(np.int64)


def _walk(
    rng: np.random.Generator,
    weights: np.ndarray,
    successors: np.ndarray,
    lengths: np.ndarray,
    follow: float,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, step by step, the users that still take an item, and their items.

    Args:
      rng: the generator.
      weights: `[num_users, num_items]`, how much each user likes each item; rows sum
        to 1.
      successors: `[num_items, num_successors]`, the likeliest first.
      lengths: `[num_users]`, how many items each user takes.
      follow: how likely a step goes to a successor.
    """
    chances_of_successors = 0.5 ** np.arange(successors.shape[1])
    chances_of_successors *= follow / chances_of_successors.sum()
    untouched = np.ones(weights.shape, bool)
    current = np.zeros(len(weights), np.int64)
    for step in range(lengths.max()):
        users = np.flatnonzero(lengths > step)
        each = np.arange(len(users))
        chances = (1 - follow) * weights[users]
        if step:
            chances[each[:, None], successors[current[users]]] += chances_of_successors
        totals = np.cumsum(chances * untouched[users], axis=1, dtype=np.float64)
        drawn = rng.random((len(users), 1)) * totals[:, -1:]
        current[users] = np.sum(totals <= drawn, axis=1)
        untouched[users, current[users]] = False
        yield users, current[users]
