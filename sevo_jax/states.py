"""What becomes of an optimizer's state when its tables or graphs change."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from sevo_jax.moments import AdamOfTablesState, ScaleByMomentCorrectedAdamState

# Moments of Adam, whose decay and whose tables may differ.
_MOMENTS = (
    optax.ScaleByAdamState,
    AdamOfTablesState,
    ScaleByMomentCorrectedAdamState,
)
_FLAG = GetAttrKey("corrected")


def carry_over(
    optimizer: optax.GradientTransformation, state: Any, params: optax.Params
) -> Any:
    """Carries a state over to other parameters, or to another optimizer.

    For rows that are appended to a table (new items); for a running job that goes on
    from ``optax.adamw`` with :func:`sevo_adamw`; and for what an optimizer of this
    library is given there: a graph for one more table, or another ``every``.
    The new rows have what ``optimizer.init`` gives them, such as moments of zero; the
    moments of a leaf that becomes a table go on where they are. So do hyper-parameters
    that the state holds (``optax.inject_hyperparams``): set those that are to change.

    Args:
      optimizer: the one to go on with: any optax transformation.
      state: of the one before, which is wrapped alike. The states of a chain are told
        by their types and their order, so that one may be new, or be left out if it
        holds nothing.
      params: the parameters to go on with, new rows at the end of their axis.

    Returns:
      A state of ``optimizer`` for ``params``.

    Raises:
      ValueError: if the state has what is not zero and has no place in the new one;
        what is pending of an ``every`` has one after ``update(..., flush=True)``.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sevo_jax as sevo
      >>> graph = sevo.graphs.cooccurrence([[0, 1, 2], [1, 2]], num_items=3)
      >>> tx = sevo.sevo_adamw(1e-3, {"item": graph})
      >>> params = {"item": jnp.ones((3, 2))}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)

      One more item, and a graph that knows it:

      >>> graph = sevo.graphs.cooccurrence([[0, 1, 2], [1, 2, 3]], num_items=4)
      >>> tx = sevo.sevo_adamw(1e-3, {"item": graph})
      >>> params = {"item": jnp.ones((4, 2))}
      >>> state = sevo.carry_over(tx, state, params)
      >>> int(optax.tree.get(state, "count")), optax.tree.get(state, "mu")["item"].shape
      (1, (4, 2))

    .. note:: A schedule goes on at the step where it was. Outside of :func:`jax.jit`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    old = {_place(state, path): (path, leaf) for path, leaf in leaves}
    start = optimizer.init(params)

    def carried(path: Any, new: jax.Array) -> jax.Array:
        place = _place(start, path)
        if place not in old:
            # Moments that the old state does not call corrected are those of Adam.
            return jnp.zeros_like(new) if _is_flag(path) else new
        leaf = jnp.asarray(old.pop(place)[1], new.dtype)
        before = leaf.shape
        if before == new.shape:
            return leaf
        if len(before) != new.ndim or any(a > b for a, b in zip(before, new.shape)):
            raise ValueError(
                f"{jax.tree_util.keystr(path)} of the state has shape {before}, which "
                f"does not fit into {new.shape}: rows are appended, none removed"
            )
        return new.at[tuple(map(slice, before))].set(leaf)

    new = jax.tree_util.tree_map_with_path(carried, start)
    for path, leaf in old.values():
        if np.any(leaf):
            remedy = ""
            if any(getattr(key, "name", None) == "pending" for key in path):
                remedy = ": propagate it before, in an update with flush=True"
            raise ValueError(
                f"{jax.tree_util.keystr(path)} of the state has no place in that of "
                f"the new optimizer{remedy}"
            )
    return new


def _place(state: Any, path: Any) -> Any:
    """What tells a leaf of a state from the others in that of another optimizer.

    Its path, but for a state in a chain its type and the how many-th of it, and for the
    flag of a table its name, not its number.
    """
    if _is_flag(path) and path[-1] != _FLAG:
        path = (*path[:-2], path[-1])
    place, node = [], state
    for key in path:
        chain, node = node, _below(node, key)
        if hasattr(node, "_fields") and isinstance(key, SequenceKey):
            before = map(_kind, chain[: key.idx])
            key = _kind(node), sum(kind == _kind(node) for kind in before)
        place.append(key)
    return tuple(place)


def _below(node: Any, key: Any) -> Any:
    """The part of a tree at a key; None where it cannot be told."""
    if isinstance(key, GetAttrKey):
        return getattr(node, key.name, None)
    if isinstance(key, SequenceKey) and isinstance(node, tuple | list):
        return node[key.idx]
    return (
        node.get(key.key) if isinstance(key, DictKey) and hasattr(node, "get") else None
    )


def _kind(state: Any) -> type:
    return optax.ScaleByAdamState if isinstance(state, _MOMENTS) else type(state)


def _is_flag(path: Any) -> bool:
    """Whether a leaf says that moments are corrected: all, or those of a table."""
    return path[-1:] == (_FLAG,) or (len(path) > 2 and path[-3] == _FLAG)
