"""The item graph of prior knowledge: items that share an attribute (section 4)."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCOO

from sevo_jax import operators
from sevo_jax.graphs import _checks


def shared_attributes(
    attributes: Iterable[Any] | Mapping[Any, Any],
    num_items: int,
    *,
    item_offset: int = 0,
    num_nodes: int | None = None,
) -> BCOO:
    r"""Connects the items that have an attribute in common, such as a genre.

    Section 4 of the paper, "pairwise similarity based on prior knowledge":
    :math:`w_{ij} = 1` if items :math:`i \ne j` share at least one attribute, however
    many, and 0 otherwise. There are no self-loops: the relation is between two items,
    and an item whose attributes nobody shares is isolated. (The authors published no
    code for this graph.)

    The graph is as dense as the attributes are coarse: a genre that a third of the
    items have connects a ninth of all pairs.

    Args:
      attributes: for each item its attributes: an iterable of ``num_items``
        lists, item ``i`` in place ``i``, or a mapping from item ids to lists,
        where items that are absent have none. Attributes are anything hashable;
        repeats within an item do not count.
      num_items: number of items, at least 1; ids are ``0..num_items-1``.
      item_offset: item ``i`` is node ``i + item_offset``; 1 for a table whose row 0
        is padding.
      num_nodes: number of rows of the table; ``None`` for
        ``num_items + item_offset``.

    Returns:
      The adjacency ``[num_nodes, num_nodes]`` of zeros and ones, symmetric, float32,
      not normalised, its indices sorted by row and unique. Where no two items share
      an attribute it has no entry at all, and what consumes graphs refuses it.

    Raises:
      TypeError: if the attributes of an item are no collection, or not hashable, or
        a key is no integer.
      ValueError: if there are not ``num_items`` lists, or a key or a count is out
        of range.

    Examples:
      >>> import sevo_jax as sevo
      >>> genres = [["Drama", "War"], ["War"], ["Comedy"], ["Drama"]]
      >>> print(sevo.graphs.shared_attributes(genres, num_items=4).todense())
      [[0. 1. 0. 1.]
       [1. 0. 0. 0.]
       [0. 0. 0. 0.]
       [1. 0. 0. 0.]]
    """
    num_items, item_offset, num_nodes = _checks.item_nodes(
        num_items, item_offset, num_nodes
    )
    items, codes = _incidences(_rows(attributes, num_items))
    shape = (num_nodes, max(codes, default=-1) + 1)
    nodes = np.asarray(items, np.int32) + np.int32(item_offset)
    has = scipy.sparse.csr_array(
        (np.ones(len(codes), np.int32), (nodes, np.asarray(codes, np.int32))),
        shape=shape,
    )
    shared = (has @ has.T).tocoo()
    row, column = shared.coords
    others = row != column
    return operators.bcoo_from_scipy(
        scipy.sparse.csr_array(
            (
                np.ones(np.count_nonzero(others), np.float32),
                (row[others], column[others]),
            ),
            shape=shared.shape,
        )
    )


def _rows(attributes: Iterable[Any] | Mapping[Any, Any], num_items: int) -> dict:
    """Returns the attributes by item id, the ids checked."""
    if not isinstance(attributes, Mapping):
        rows = dict(enumerate(attributes))
        if len(rows) != num_items:
            raise ValueError(
                f"attributes has {len(rows)} rows, but num_items={num_items}: give one "
                "list an item, empty where an item has none"
            )
        return rows
    keys = list(attributes)
    for key in keys:
        if not isinstance(key, int | np.integer):
            raise TypeError(
                f"attributes has the key {key!r}, but keys are item ids, integers: "
                "convert those of a JSON object with int(key)"
            )
        if not 0 <= key < num_items:
            raise ValueError(
                _checks.outside_message(
                    "attributes", "has the key", int(key), num_items, "num_items"
                )
            )
    return dict(attributes)


def _incidences(rows: dict) -> tuple[list[int], list[int]]:
    """Numbers the attributes as met; returns item and attribute of each pair once."""
    items: list[int] = []
    codes: list[int] = []
    numbers: dict[Any, int] = {}
    for item, row in rows.items():
        if isinstance(row, str | bytes) or not isinstance(row, Iterable):
            raise TypeError(
                f"attributes[{item}] is {row!r}, not a list of attributes: write "
                f"[{row!r}] for a single one, [] for none"
            )
        row = list(row)
        try:
            found = {numbers.setdefault(each, len(numbers)) for each in row}
        except TypeError as error:
            raise TypeError(f"attributes[{item}] must be hashable: {error}") from None
        for each in row:
            if each is None or each == "" or each != each:
                raise ValueError(
                    f"attributes[{item}] has {each!r}, which all items without an "
                    "attribute would share: write [] for none"
                )
        items += [item] * len(found)
        codes += found
    return items, codes
