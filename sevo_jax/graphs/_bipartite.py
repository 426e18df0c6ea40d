"""The graph of users and items: an edge for each interaction."""

from typing import Any

import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCOO

from sevo_jax import operators
from sevo_jax.graphs import _checks


def bipartite(
    users: Any,
    items: Any,
    num_users: int,
    num_items: int,
    *,
    item_offset: int = 0,
) -> BCOO:
    r"""Connects each user with the items of the user's interactions.

    The graph of collaborative filtering, over the user table and the item table
    stacked: users are nodes ``0..num_users-1``, item ``i`` is node
    ``num_users + item_offset + i``. Every weight is 1, however often an interaction
    repeats. Name the leaves in the same order to smooth them together:
    ``{("user_embedding", "item_embedding"): graph}``.

    Args:
      users: user of each interaction, integers ``[num_interactions]`` in
        ``0..num_users-1``. Give training interactions alone.
      items: item of each interaction, integers ``[num_interactions]`` in
        ``0..num_items-1``.
      num_users: number of users, at least 1.
      num_items: number of items, at least 1.
      item_offset: rows of the item table in front of item 0, such as padding; they
        are isolated nodes.

    Returns:
      The adjacency ``[n, n]`` of zeros and ones,
      ``n = num_users + item_offset + num_items``, symmetric, float32, not
      normalised, its indices sorted by row and unique. Without an interaction it
      has no entry at all, and what consumes graphs refuses it.

    Raises:
      TypeError: if ids or counts are no integers, or ids are not one-dimensional.
      ValueError: if ``users`` and ``items`` differ in length, or an id or a count
        is out of range.

    Examples:
      Two users, two items:

      >>> import sevo_jax as sevo
      >>> graph = sevo.graphs.bipartite([0, 1, 1], [0, 0, 1], 2, 2)
      >>> print(graph.todense())
      [[0. 0. 1. 0.]
       [0. 0. 1. 1.]
       [1. 1. 0. 0.]
       [0. 1. 0. 0.]]
    """
    num_users = _checks.count("num_users", num_users, 1)
    num_items = _checks.count("num_items", num_items, 1)
    first_item = num_users + _checks.count("item_offset", item_offset, 0)
    num_nodes = _checks.node_total(first_item + num_items)
    users = _nodes("users", "user", users, num_users, "num_users")
    items = _nodes("items", "item", items, num_items, "num_items")
    if users.size != items.size:
        raise ValueError(
            f"users has {users.size} entries, items has {items.size}: give one user "
            "and one item an interaction"
        )
    forward = scipy.sparse.csr_array(
        (np.ones(users.size, np.float32), (users, items + np.int32(first_item))),
        shape=(num_nodes, num_nodes),
    )
    # Repeated interactions were added up: the graph is binary.
    forward.data[:] = 1
    return operators.bcoo_from_scipy(forward + forward.T)


def _nodes(name: str, kind: str, values: Any, size: int, size_name: str) -> np.ndarray:
    """Returns the checked ids as int32."""
    ids = _checks.integers(name, values)
    position = _checks.first_outside(ids, size)
    if position is not None:
        raise ValueError(
            _checks.outside_message(
                f"{name}[{position}]", f"is {kind}", int(ids[position]), size, size_name
            )
        )
    return ids.astype(np.int32)
