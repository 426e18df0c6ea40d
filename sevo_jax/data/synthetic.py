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
    num_items: int = 2000,
    num_groups: int = 100,
    *,
    seed: int = 0,
    mean_length: float = 8.5,
    follow: float = 0.3,
    reach: int = 4,
    skew: float = 0.4,
    groups_per_user: int = 2,
    wander: float = 0.3,
) -> InteractionLog:
    """Draws a log in which groups, neighbours, popularity and tastes are planted.

    Items form groups: the item with id `j` is in group `j % num_groups`. The items of
    a group stand on a ring. A user has a taste for a few groups. The next item is,
    with probability `follow`, a neighbour on the ring of the one before, otherwise a
    popular item of a group to the user's taste, or of any group; no user takes an item
    twice. Sequences are short, most items rare and many steps unpredictable, as in the
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
      follow: how likely a step goes to a neighbour, 0 to 0.99.
      reach: how far a step along the ring goes, to either side and each distance
        alike; at least 1, and such that the neighbours of an item are distinct.
      skew: exponent of the popularities inside a group; 0 makes them equal.
      groups_per_user: groups to a user's taste.
      wander: share of a user's other steps that goes to all groups alike, 0 to 1.

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
        reach=(reach, 1, (smallest_group - 1) // 2),
        skew=(skew, 0, math.inf),
        groups_per_user=(groups_per_user, 1, num_groups),
        wander=(wander, 0, 1),
    )
    longest = min(_LONGEST, groups_per_user * smallest_group)
    rng = np.random.default_rng(seed)
    neighbours = _draw_neighbours(rng, num_items, num_groups, reach)
    popularity = _draw_popularity(rng, num_items, num_groups, skew)
    rows, items = [], []
    for start in range(0, num_users, _BLOCK):
        size = min(_BLOCK, num_users - start)
        tastes = _draw_tastes(rng, size, num_groups, groups_per_user, wander)
        lengths = np.minimum(_draw_lengths(rng, size, mean_length), longest)
        weights = popularity * tastes[:, np.arange(num_items) % num_groups]
        for users, chosen in _walk(rng, weights, neighbours, lengths, follow):
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


def _draw_neighbours(
    rng: np.random.Generator, num_items: int, num_groups: int, reach: int
) -> np.ndarray:
    """Draws the neighbours `[num_items, 2 * reach]` of each item.

    They stand beside it on a ring through its group, so that items close on the ring
    share most of theirs.
    """
    distances = [step for d in range(1, reach + 1) for step in (d, -d)]
    neighbours = np.empty((num_items, len(distances)), np.int64)
    for group in range(num_groups):
        members = np.arange(group, num_items, num_groups)
        ring = members[np.argsort(rng.random(len(members)))]
        for column, distance in enumerate(distances):
            neighbours[ring, column] = np.roll(ring, -distance)
    return neighbours


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
    rng: np.random.Generator,
    num_users: int,
    num_groups: int,
    groups_per_user: int,
    wander: float,
) -> np.ndarray:
    """Shares `[num_users, num_groups]` of the groups in what each user likes."""
    order = np.argsort(rng.random((num_users, num_groups)), axis=1)
    tastes = np.zeros((num_users, num_groups), np.float32)
    shares = 0.2 + rng.random((num_users, groups_per_user))
    np.put_along_axis(tastes, order[:, :groups_per_user], shares, axis=1)
    tastes /= tastes.sum(axis=1, keepdims=True)
    return (1 - wander) * tastes + wander / num_groups


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
    neighbours: np.ndarray,
    lengths: np.ndarray,
    follow: float,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, step by step, the users that still take an item, and their items.

    Args:
      rng: the generator.
      weights: `[num_users, num_items]`, how much each user likes each item; rows sum
        to 1.
      neighbours: `[num_items, num_neighbours]`, all alike.
      lengths: `[num_users]`, how many items each user takes.
      follow: how likely a step goes to a neighbour.
    """
    untouched = np.ones(weights.shape, bool)
    current = np.zeros(len(weights), np.int64)
    for step in range(lengths.max()):
        users = np.flatnonzero(lengths > step)
        each = np.arange(len(users))
        chances = (1 - follow) * weights[users]
        if step:
            following = neighbours[current[users]]
            chances[each[:, None], following] += follow / neighbours.shape[1]
        totals = np.cumsum(chances * untouched[users], axis=1, dtype=np.float64)
        drawn = rng.random((len(users), 1)) * totals[:, -1:]
        current[users] = np.sum(totals <= drawn, axis=1)
        untouched[users, current[users]] = False
        yield users, current[users]
