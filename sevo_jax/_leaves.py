"""What the names of leaves mean: the only place that knows.

A leaf is named by components of its "/"-joined path, so that ``"item_embedding"`` finds
``encoder/item_embedding/embedding/value`` but not ``old_item_embedding``. The whole
path of a leaf means that leaf alone. A tuple of names is one table whose rows are the
leaves' rows, stacked in that order. A leaf that is not there for now, because
``optax.masked`` hides it or it is ``None``, is found and left alone. Flax NNX hands
leaves to ``init`` in Variables, ``.../value``, and bare to ``update``: in both the
whole path is the one without ``value``.
"""

from __future__ import annotations

import collections
import operator
import weakref
from collections.abc import Collection, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse
from jax.core import Tracer

from sevo_jax._tables import LeafName, Table
from sevo_jax.operators import AdjacencyLike, GraphOperator, prepare

Graphs: TypeAlias = AdjacencyLike | Mapping[LeafName, AdjacencyLike]
RowAxis: TypeAlias = int | Mapping[Any, int] | None

_VALUE = jax.tree_util.GetAttrKey("value")

# The key of a graph that is given without a name.
WHOLE_TREE = ""

# Weak: a traced mask must not outlive its trace, and an id of one that is gone may be
# another's.
_taken: ContextVar[tuple[weakref.ref, ...]] = ContextVar("masks taken", default=())


def by_name(graphs: Graphs) -> TypeGuard[Mapping[LeafName, AdjacencyLike]]:
    """Whether graphs come by leaf name, and not as a single one."""
    # A DOK matrix of SciPy is a dict too.
    return isinstance(graphs, Mapping) and not scipy.sparse.issparse(graphs)


def prepare_graphs(graphs: Graphs) -> dict[LeafName, GraphOperator]:
    """Graphs by leaf name, each checked and converted once."""
    if not by_name(graphs):
        single: Any = graphs
        return {WHOLE_TREE: prepare(single)}
    prepared = {}
    for key, adjacency in graphs.items():
        if key != WHOLE_TREE and not (
            names_in(key)
            and all(isinstance(name, str) and name for name in names_in(key))
        ):
            raise TypeError(
                f"a key of graphs is a leaf name or a tuple of leaf names, got {key!r}"
            )
        try:
            prepared[key] = prepare(adjacency)
        except (TypeError, ValueError) as error:
            raise type(error)(f"the graph for {key!r}: {error}") from None
    return prepared


def replace_graphs(
    bound: dict[LeafName, GraphOperator], graphs: Graphs | None
) -> dict[LeafName, GraphOperator]:
    """The graphs to use in one update: those given for it, else those bound before."""
    if graphs is None:
        return bound
    given = prepare_graphs(graphs)
    if given.keys() != bound.keys():
        raise ValueError(
            f"update was given graphs for {sorted(map(str, given))}, but the "
            f"transformation is made for {sorted(map(str, bound))}: use the same names"
        )
    return given


def names_in(key: LeafName) -> tuple[str, ...]:
    """The names of leaves that a key is made of."""
    return key if isinstance(key, tuple) else (key,)


def tables_of(
    tree: Any, keys: Iterable[LeafName], row_axis: RowAxis = None
) -> list[Table]:
    """Which leaves the keys of a mapping of graphs name in a tree.

    Args:
      tree: parameters, updates, or what has their structure. A tree without leaves has
        no tables: this is how ``optax.tree.map_params`` asks an optimizer for the
        structure of its state.
      keys: leaf names and tuples of leaf names.
      row_axis: as :func:`sevo_jax.scale_by_sevo` takes it.

    Returns:
      The tables, in the order of the keys, without those that are hidden.

    Raises:
      ValueError: a name that matches nothing, or several leaves where one is needed; a
        leaf claimed twice; a joint table of which a part is hidden; a ``row_axis`` for
        a leaf of no table.

    Examples:
      >>> tree = {"encoder": {"item": jnp.ones((3, 2))}, "bias": jnp.ones(2)}
      >>> [(table.paths, table.leaves) for table in tables_of(tree, ["item"])]
      [(('encoder/item',), (1,))]
    """
    leaves = _Leaves(tree)
    if not leaves.paths and not leaves.hidden:
        return []
    axes = leaves.row_axes(row_axis)
    tables: list[Table] = []
    owner: dict[int, LeafName] = {}
    for key in keys:
        for names, positions in leaves.of_key(key):
            for position in positions:
                if position in owner:
                    message = (
                        f"{leaves.say(position)} is named by {owner[position]!r} and "
                        f"by {key!r}: a leaf can be smoothed by one graph only"
                    )
                    if key == owner[position]:
                        message += (
                            "; a tuple is a joint table, the path of one leaf would be "
                            f"{'/'.join(key)!r}"
                        )
                    raise ValueError(message)
                owner[position] = key
            tables.append(
                Table(
                    key,
                    names,
                    positions,
                    tuple(leaves.paths[i] for i in positions),
                    tuple(axes.get(i, -2) for i in positions),
                )
            )
    if isinstance(row_axis, Mapping) and (idle := axes.keys() - owner.keys()):
        raise ValueError(
            f"row_axis names {leaves.say(min(idle))}, which no graph names: it has no "
            "effect there"
        )
    return tables


def find_tables(
    tree: Any, graphs: Mapping[LeafName, GraphOperator], row_axis: RowAxis = None
) -> list[Table]:
    """As :func:`tables_of`, and checks that each table fits its graph.

    Raises:
      ValueError: also a table that does not have its graph's number of rows.
      TypeError: a named leaf that is not floating point.
    """
    tables = tables_of(tree, graphs, row_axis)
    leaves = jax.tree.leaves(tree)
    for table in tables:
        table.check_fit(graphs[table.key], leaves)
    return tables


def check_shapes(tree: Any, others: Mapping[int, Any], what: str) -> None:
    """Refuses what a state has for leaves, by position, if it is of another shape."""
    leaves = jax.tree.leaves(tree)
    for position, other in others.items():
        shape, found = jnp.shape(leaves[position]), jnp.shape(other)
        if shape != found:
            raise ValueError(
                f"{_Leaves(tree).say(position)} has shape {shape}, {what} in the state "
                f"{found}: sevo_jax.carry_over gives appended rows their place there"
            )


def is_named(path: Any, names: Iterable[str]) -> bool:
    """Whether a leaf lies below one of the names, wherever its tree hangs.

    For what holds parameters among other things, as the state of a training does.

    Args:
      path: of the leaf, a tuple of keys as JAX gives it.
      names: for example :attr:`Table.paths`.
    """
    return any(_matches(name, _joined(path)) for name in names)


def check_row_axis(row_axis: RowAxis) -> None:
    """Refuses an axis that is traced, or none of a table's two."""
    for axis in row_axis.values() if isinstance(row_axis, Mapping) else (row_axis,):
        _normal_axis(axis)


def row_axes_of(tree: Any, row_axis: RowAxis) -> list[int]:
    """For each leaf of ``tree`` the axis along which its rows lie, -2 or -1."""
    leaves = _Leaves(tree)
    axes = leaves.row_axes(row_axis)
    return [axes.get(i, -2) for i in range(len(leaves.paths))]


def active_rows_by_leaf(
    tree: Any, active_rows: Any, corrected: Collection[int] | None = None
) -> list[jax.Array | np.ndarray | None]:
    """For each leaf of ``tree`` its given mask of active rows, or ``None``.

    Args:
      tree: updates.
      active_rows: ``None``, a boolean array (the tree has one leaf), or a mapping from
        leaf names to boolean arrays.
      corrected: positions of the leaves that a mask has an effect on; all by default.
    """
    leaves = _Leaves(tree)
    masks: list[jax.Array | np.ndarray | None] = [None] * len(leaves.paths)
    if active_rows is None:
        return masks
    for name, mask in _masks_by_name(active_rows).items():
        if not isinstance(name, str):
            raise TypeError(
                f"a key of active_rows is the name of one leaf, got {name!r}: give "
                "each leaf of a joint table its own mask"
            )
        positions = leaves.find(name)
        is_array = isinstance(mask, (np.ndarray, jax.Array))
        if not is_array or mask.dtype != jnp.bool_:
            got = mask.dtype if is_array else type(mask).__name__
            raise TypeError(
                f"active_rows for {name or 'the only leaf'} must be a boolean array, "
                f"got {got}"
            )
        for position in positions:
            if corrected is not None and position not in corrected:
                raise ValueError(
                    f"active_rows names {leaves.say(position)}, but its moments are "
                    "not corrected for idle rows, because no graph names it or "
                    "moment_correction is False: it has no effect there, leave it out"
                )
            masks[position] = mask
    _taken.set(tuple(map(weakref.ref, _masks_by_name(active_rows).values())))
    return masks


def _masks_by_name(active_rows: Any) -> Mapping[str, Any]:
    if not isinstance(active_rows, Mapping):
        return {WHOLE_TREE: active_rows}
    # Those that optax.masked hides with their leaves.
    return {name: mask for name, mask in active_rows.items() if not _is_hidden(mask)}


def check_taken(active_rows: Any) -> None:
    """Refuses active rows that no moments before in the chain were corrected by.

    Optax gives extra arguments to all of a chain, and who takes one is not said: so the
    last that were taken are remembered. What another optimizer took, and is given again
    while it lives, passes.
    """
    if active_rows is None:
        return
    taken = [reference() for reference in _taken.get()]
    given = list(_masks_by_name(active_rows).values())
    if [*map(id, given)] != [*map(id, taken)]:
        raise ValueError(
            "active_rows has no effect here: nothing before scale_by_sevo takes it; "
            "put scale_by_moment_corrected_adam there, or leave it out"
        )


class _Leaves:
    """The paths of a tree's leaves, and of those that are hidden."""

    def __init__(self, tree: Any):
        pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_hidden)
        self.paths: list[str] = []
        self.hidden: list[str] = []
        # Those of leaves and of hidden ones, by what is their whole path in `update`.
        self.bare: dict[str, str] = {}
        below = collections.Counter(path[:-1] for path, _ in pairs)
        for path, leaf in pairs:
            joined = _joined(path)
            (self.hidden if _is_hidden(leaf) else self.paths).append(joined)
            in_variable = path[-1:] == (_VALUE,) and below[path[:-1]] == 1
            self.bare[_joined(path[:-1]) if in_variable else joined] = joined

    def say(self, position: int) -> str:
        return self.paths[position] or "the only leaf"

    def find(self, name: str) -> list[int]:
        """Positions of the leaves that a name means, none if they are hidden."""
        if name == WHOLE_TREE:
            if len(self.paths) > 1:
                raise ValueError(
                    f"one array or graph was given without a name, but the tree has "
                    f"{len(self.paths)} leaves: name the leaf it belongs to, "
                    f"{{name: ...}}; there are {self.paths}"
                )
            return [*range(len(self.paths))]
        stripped = name.strip("/")
        whole = self.bare.get(stripped, stripped)
        if whole in self.paths:
            return [self.paths.index(whole)]
        if whole in self.hidden:
            return []
        found = [i for i, path in enumerate(self.paths) if _matches(stripped, path)]
        if not found and not any(_may_hide(path, stripped) for path in self.hidden):
            raise ValueError(self._no_leaf(name))
        return found

    def of_key(self, key: LeafName) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
        """Names and positions of the leaves of each table that a key stands for."""
        if not isinstance(key, tuple):
            return [((key,), (position,)) for position in self.find(key)]
        found = [self.find(name) for name in key]
        for name, positions in zip(key, found, strict=True):
            if len(positions) > 1:
                raise ValueError(
                    f"{name!r} in the joint table {key} matches several leaves, "
                    f"{[self.paths[i] for i in positions]}: write more of the path"
                )
        if not any(found):
            return []
        if not all(found):
            hidden = [name for name, found in zip(key, found, strict=True) if not found]
            raise ValueError(
                f"{hidden} of the joint table {key} is hidden from the transformation, "
                "by optax.masked or the like, and the rest is not: hide all of its "
                "leaves or none"
            )
        return [(key, tuple(positions[0] for positions in found))]

    def row_axes(self, row_axis: RowAxis) -> dict[int, int]:
        """The axis of the rows of each leaf that ``row_axis`` speaks of."""
        if not isinstance(row_axis, Mapping):
            return dict.fromkeys(range(len(self.paths)), _normal_axis(row_axis))
        return {
            position: _normal_axis(axis)
            for key, axis in row_axis.items()
            for name in names_in(key)
            for position in self.find(name)
        }

    def _no_leaf(self, name: str) -> str:
        leaves = [bare for bare, path in self.bare.items() if path in self.paths]
        message = f"no leaf has {name!r} in its path; the leaves are {leaves}"
        if self.hidden:
            message += (
                f", hidden are {self.hidden}: if it lies below one of these, write its "
                "path from there"
            )
        return message


def _is_hidden(node: Any) -> bool:
    return node is None or isinstance(node, optax.MaskedNode)


def _joined(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _matches(name: str, path: str) -> bool:
    return f"/{name}/" in f"/{path}/"


def _may_hide(hidden: str, name: str) -> bool:
    """Whether a hidden leaf, or subtree, has the name or the beginning of one."""
    parts = name.split("/")
    return _matches(name, hidden) or any(
        f"/{hidden}".endswith("/" + "/".join(parts[:end]))
        for end in range(1, len(parts))
    )


def _normal_axis(axis: Any) -> int:
    if axis is None:
        return -2
    if isinstance(axis, Tracer):
        raise TypeError(
            "row_axis is traced, but the axis of the rows shapes the program: pass a "
            "Python int (with optax.inject_hyperparams list 'row_axis' in static_args)"
        )
    axis = operator.index(axis)
    if axis not in (-2, -1, 0, 1):
        raise ValueError(
            f"row_axis must be 0, for tables [..., n, d], or 1, for tables "
            f"[..., d, n], got {axis}"
        )
    return axis - 2 if axis >= 0 else axis
