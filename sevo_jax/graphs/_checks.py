"""Checks of what the graph builders are given: counts, ids, ragged rows."""

import operator
from typing import Any

import numpy as np

# The indices of a graph are int32.
_MAX_NODES = np.iinfo(np.int32).max


def count(name: str, value: Any, minimum: int) -> int:
    """Returns ``value`` as an int, refusing what is no integer or too small."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {number}")
    return number


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuses a ``value`` that is not among the ``allowed`` ones."""
    if value not in allowed:
        names = " or ".join(repr(each) for each in allowed)
        raise ValueError(f"{name} must be {names}, not {value!r}")


def item_nodes(num_items: Any, item_offset: Any, num_nodes: Any) -> tuple[int, ...]:
    """Returns checked ``(num_items, item_offset, num_nodes)`` of an item graph."""
    num_items = count("num_items", num_items, 1)
    item_offset = count("item_offset", item_offset, 0)
    needed = num_items + item_offset
    total = needed if num_nodes is None else count("num_nodes", num_nodes, 1)
    if total < needed:
        raise ValueError(
            f"num_nodes={total} leaves no room for {num_items} items at "
            f"item_offset={item_offset}: at least {needed} nodes are needed"
        )
    return num_items, item_offset, node_total(total)


def node_total(total: int) -> int:
    """Refuses more nodes than int32 indices can name."""
    if total > _MAX_NODES:
        raise ValueError(f"{total} nodes are more than int32 can index ({_MAX_NODES})")
    return total


def integers(name: str, values: Any) -> np.ndarray:
    """Returns ``values`` as a one-dimensional integer array."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise TypeError(f"{name} must be a flat sequence of integers") from None
    if array.ndim != 1:
        raise TypeError(
            f"{name} must be a one-dimensional sequence of integers, "
            f"not {type(values).__name__} of shape {array.shape}"
        )
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must hold integers, not {array.dtype}, e.g. {array[0]!r}: "
            "map ids to integers from 0 first"
        )
    return array


def first_outside(ids: np.ndarray, size: int) -> int | None:
    """Returns the position of the first id that is not in ``0..size-1``, if any."""
    if ids.size == 0 or (ids.min() >= 0 and ids.max() < size):
        return None
    return int(((ids < 0) | (ids >= size)).argmax())


def outside_message(holder: str, what: str, found: int, size: int, name: str) -> str:
    """Words the complaint about one id that is out of range."""
    message = f"{holder} {what} {found}, outside 0..{size - 1} ({name}={size})"
    if found == size:
        message += ": ids start at 0, subtract 1 from ids that start at 1"
    return message
