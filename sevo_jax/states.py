"""What becomes of an optimizer's state when its tables or graphs change."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

_FLAG = jax.tree_util.GetAttrKey("corrected")


def carry_over(
    optimizer: optax.GradientTransformation, state: Any, params: optax.Params
) -> Any:
    """Carries a state over to other parameters, or to another optimizer.

    For rows that are appended to a table (new items), and for what an optimizer of this
    library is given in a running job: a graph for one more table, or another ``every``.
    The new rows have what ``optimizer.init`` gives them, such as moments of zero; the
    moments of a leaf that becomes a table go on where they are. So do hyper-parameters
    that the state holds (``optax.inject_hyperparams``): set those that are to change.

    Args:
      optimizer: the one to go on with: any optax transformation.
      state: of the one before, which is wrapped and chained alike.
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
    old = {_place(path): leaf for path, leaf in leaves}

    def carried(path: Any, new: jax.Array) -> jax.Array:
        place = _place(path)
        if place not in old:
            # Moments that the old state does not call corrected are those of Adam.
            return jnp.zeros_like(new) if _is_flag(path) else new
        leaf = jnp.asarray(old.pop(place), new.dtype)
        before = leaf.shape
        if before == new.shape:
            return leaf
        if len(before) != new.ndim or any(a > b for a, b in zip(before, new.shape)):
            raise ValueError(
                f"{jax.tree_util.keystr(path)} of the state has shape {before}, which "
                f"does not fit into {new.shape}: rows are appended, none removed"
            )
        return new.at[tuple(map(slice, before))].set(leaf)

    new = jax.tree_util.tree_map_with_path(carried, optimizer.init(params))
    for path, leaf in old.items():
        if np.any(leaf):
            remedy = ""
            if any(getattr(key, "name", None) == "pending" for key in path):
                remedy = ": propagate it before, in an update with flush=True"
            raise ValueError(
                f"{jax.tree_util.keystr(path)} of the state has no place in that of "
                f"the new optimizer{remedy}"
            )
    return new


def _place(path: Any) -> Any:
    """The path of a leaf; flags of tables are told by their names, not their number."""
    of_table = _is_flag(path) and path[-1] != _FLAG
    return (*path[:-2], path[-1]) if of_table else path


def _is_flag(path: Any) -> bool:
    """Whether a leaf says that moments are corrected: all, or those of a table."""
    return path[-1:] == (_FLAG,) or (len(path) > 2 and path[-3] == _FLAG)
