"""k-core filtering: only users and items with enough interactions stay."""

from __future__ import annotations

import numpy as np

from sevo_jax.data.log import InteractionLog
from sevo_jax.data.sequences import Sequences


def k_core(log: InteractionLog, k: int = 5) -> InteractionLog:
    """Drops users, then items, with fewer than `k` interactions, until none is left.

    Each interaction counts, also those of a user with an item that the user has had
    before.

    The users and items that stay are numbered anew, in the same order; their original
    ids, the order of their interactions and the log's name stay.

    Args:
      log: the log.
      k: the fewest interactions of a user and of an item that stays, 1 or more. The
        paper's is 5.

    Raises:
      ValueError: `k` is below 1, or nothing would stay.

    Example:
      >>> from sevo_jax.data import InteractionLog, k_core
      >>> log = InteractionLog.from_columns(
      ...     ["a", "a", "b", "b", "c"], [1, 2, 1, 2, 2], name="tiny")
      >>> core = k_core(log, 2)
      >>> core.user_ids.tolist(), core.item_ids.tolist()
      (['a', 'b'], [1, 2])
    """
    if k < 1:
        raise ValueError(f"k is {k}, but a core needs 1 interaction or more")
    users, items = log.sequences.rows, log.sequences.values
    while True:
        before = len(users)
        kept = np.bincount(users, minlength=log.num_users)[users] >= k
        users, items = users[kept], items[kept]
        kept = np.bincount(items, minlength=log.num_items)[items] >= k
        users, items = users[kept], items[kept]
        if len(users) == before:
            break
    if not before:
        raise ValueError(
            f"nothing of {log.name!r} is left: no users and items have {k} "
            "interactions each; choose a smaller k"
        )
    kept_users, lengths = np.unique(users, return_counts=True)
    kept_items, items = np.unique(items, return_inverse=True)
    return InteractionLog(
        Sequences.from_lengths(items, lengths),
        log.user_ids[kept_users],
        log.item_ids[kept_items],
        log.name,
    )
