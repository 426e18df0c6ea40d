"""Which leaves of a parameter tree are smoothed by which graph.

A leaf is named by components of its "/"-joined path, so that ``"item_embedding"`` finds
``encoder/item_embedding/embedding/value`` but not ``old_item_embedding``. A tuple of
names is one table whose rows are the leaves' rows, stacked in that order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from sevo_jax.operators import AdjacencyLike, GraphOperator, prepare

LeafName: TypeAlias = str | tuple[str, ...]
Graphs: TypeAlias = AdjacencyLike | Mapping[LeafName, AdjacencyLike]

# The key of a graph that is given without a name.
WHOLE_TREE = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Leaves that together are the rows of one graph.

    Attributes:
      key: the key of the graph.
      leaves: positions in the flattened tree, in the order of the graph's nodes.
      transposed: whether the leaves are stored as ``[d, n]``.
    """

    key: LeafName
    leaves: tuple[int, ...]
    transposed: bool


def prepare_graphs(graphs: Graphs) -> dict[LeafName, GraphOperator]:
    """Graphs by leaf name, each checked and converted once."""
    if not isinstance(graphs, Mapping):
        return {WHOLE_TREE: prepare(graphs)}
    prepared = {}
    for key, adjacency in graphs.items():
        names = key if isinstance(key, tuple) else (key,)
        if key != WHOLE_TREE and not (
            names and all(isinstance(name, str) and name for name in names)
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


def find_tables(tree: Any, graphs: Mapping[LeafName, GraphOperator]) -> list[Table]:
    """Finds every table that a graph names, and checks that it fits.

    Args:
      tree: parameters or updates. A tree without leaves has no tables: this is how
        ``optax.tree.map_params`` asks an optimizer for the structure of its state.
      graphs: operators by leaf name, as :func:`prepare_graphs` makes them.

    Raises:
      ValueError: a name that matches no leaf, or several where one is needed; a leaf
        claimed twice; a table that does not have its graph's number of rows.
      TypeError: a named leaf that is not floating point.
    """
    paths, leaves = _named_leaves(tree)
    if not leaves:
        return []
    tables: list[Table] = []
    owner: dict[int, LeafName] = {}
    for key, graph in graphs.items():
        for positions in _positions(key, paths):
            for position in positions:
                if position in owner:
                    raise ValueError(
                        f"{_say(paths[position])} is named by {owner[position]!r} and "
                        f"by {key!r}: a leaf can be smoothed by one graph only"
                    )
                owner[position] = key
            tables.append(_checked_table(key, graph, positions, paths, leaves))
    return tables


def active_rows_by_leaf(tree: Any, active_rows: Any) -> list[jax.Array | None]:
    """For each leaf of ``tree`` its given mask of active rows, or ``None``.

    Args:
      tree: updates.
      active_rows: ``None``, a boolean array (the tree has one leaf), or a mapping from
        leaf names to boolean arrays. Names of leaves that ``optax.masked`` hides match.
    """
    paths, leaves = _named_leaves(tree)
    masks: list[jax.Array | None] = [None] * len(leaves)
    if active_rows is None:
        return masks
    if not isinstance(active_rows, Mapping):
        active_rows = {WHOLE_TREE: active_rows}
    hidden = _named_leaves(tree, hidden=True)[0]
    for name, mask in active_rows.items():
        if not isinstance(name, str):
            raise TypeError(
                f"a key of active_rows is the name of one leaf, got {name!r}: give "
                "each leaf of a joint table its own mask"
            )
        visible = any(_matches(name, path) for path in paths)
        if not visible and any(_matches(name, path) for path in hidden):
            continue
        for (position,) in _positions(name, paths if visible else paths + hidden):
            dtype = getattr(mask, "dtype", type(mask).__name__)
            if dtype != jnp.bool_:
                raise TypeError(
                    f"active_rows for {_say(paths[position])} must be a boolean array, "
                    f"got {dtype}"
                )
            masks[position] = mask
    return masks


def _named_leaves(tree: Any, hidden: bool = False) -> tuple[list[str], list[Any]]:
    def is_masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_masked)
    pairs = [(path, leaf) for path, leaf in pairs if is_masked(leaf) == hidden]
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in pairs
    ]
    return paths, [leaf for _, leaf in pairs]


def _matches(name: str, path: str) -> bool:
    return name == WHOLE_TREE or f"/{name.strip('/')}/" in f"/{path}/"


def _say(path: str) -> str:
    return path or "the only leaf"


def _positions(key: LeafName, paths: Sequence[str]) -> list[tuple[int, ...]]:
    """Positions of the leaves of each table that a key stands for."""
    if key == WHOLE_TREE:
        if len(paths) != 1:
            raise ValueError(
                f"one array or graph was given without a name, but the tree has "
                f"{len(paths)} leaves: name the leaf it belongs to, {{name: ...}}; "
                f"there are {list(paths)}"
            )
        return [(0,)]
    names = key if isinstance(key, tuple) else (key,)
    found = [
        [i for i, path in enumerate(paths) if _matches(name, path)] for name in names
    ]
    for name, positions in zip(names, found, strict=True):
        if not positions:
            raise ValueError(
                f"no leaf has {name!r} in its path; the leaves are {list(paths)}"
            )
        if isinstance(key, tuple) and len(positions) > 1:
            raise ValueError(
                f"{name!r} in the joint table {key} matches several leaves, "
                f"{[paths[i] for i in positions]}: write more of the path"
            )
    if isinstance(key, tuple):
        return [tuple(positions[0] for positions in found)]
    return [(position,) for position in found[0]]


def _checked_table(
    key: LeafName,
    graph: GraphOperator,
    positions: tuple[int, ...],
    paths: Sequence[str],
    leaves: Sequence[Any],
) -> Table:
    name = " + ".join(_say(paths[i]) for i in positions)
    shapes = [tuple(jnp.shape(leaves[i])) for i in positions]
    for position, shape in zip(positions, shapes, strict=True):
        dtype = jnp.result_type(leaves[position])
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{_say(paths[position])} is {dtype}: only a floating-point table can "
                "be smoothed"
            )
        if len(shape) != 2:
            raise ValueError(
                f"{_say(paths[position])} has shape {shape}: a table has two "
                "dimensions, [nodes, width]"
            )
    for axis in (0, 1):
        widths = {shape[1 - axis] for shape in shapes}
        rows = sum(shape[axis] for shape in shapes)
        if rows == graph.num_nodes and len(widths) == 1:
            return Table(key, positions, transposed=axis == 1)
    rows = sum(shape[0] for shape in shapes)
    remedy = (
        "the leaves of a joint table need one width"
        if rows == graph.num_nodes
        else "build the graph with item_offset=1 if row 0 is padding, or with "
        "num_nodes= the number of rows"
    )
    raise ValueError(
        f"{name} has {rows} rows (shape {', '.join(map(str, shapes))}), its graph has "
        f"{graph.num_nodes} nodes: {remedy}"
    )
