"""`sevo-jax graph`: builds, describes and saves the item graph."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import scipy.sparse
import tyro
from jax.experimental.sparse import BCOO

from sevo_jax import graphs, operators
from sevo_jax._files import check_folder
from sevo_jax.cli import _engine, _streamed
from sevo_jax.cli._options import DataOptions, option, parse
from sevo_jax.cli._plugin import PluginOption
from sevo_jax.cli._runs import preset
from sevo_jax.data.split import leave_one_out
from sevo_jax.graphs import kinds
from sevo_jax.models import MODELS
from sevo_jax.training import GraphConfig

_QUANTILES = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "max": 1.0}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Build the item graph, or load one; describe it; with --output save it.

    the graph:
      links items that follow each other in the training part of the sequences, as
      training with SEvo does; with --kind user-item users and their items, with --kind
      attributes items that have an attribute in common

    examples:
      sevo-jax graph --data beauty.txt
      sevo-jax graph --data beauty.txt --max-hop 3 --item-offset 0 --output items.npz
      sevo-jax graph --data ml-1m.txt --kind attributes --attributes genres.json
      sevo-jax graph --load items.npz --item-offset 0
      sevo-jax graph --engine duckdb --data 'log/*.parquet' --output items.npz
      sevo-jax graph --stream --data log.parquet --parts 64 --output items
    """

    recipe: Annotated[str, option("Recipe whose graph to start from.", "NAME")]
    engine: Annotated[
        Literal["duckdb"] | None,
        option(
            "Build the graph by this database, from Parquet files in any order and of "
            "any size: a file, a folder, a pattern or an address such as "
            "s3://bucket/log/*.parquet. Needs sevo-jax[engines].",
            "duckdb",
            "in memory",
        ),
    ] = None
    stream: Annotated[
        bool,
        option(
            "Read the log, a Parquet file or a folder of them, twice and a million "
            "rows at a time, so that it need not fit in the memory. It must be sorted "
            "by user and then by time (--engine takes any order); the graph is the "
            "same. Not with --k-core, which needs the whole log."
        ),
    ] = False
    parts: Annotated[
        int | None,
        option(
            "Build the graph on disk in N parts of some rows each, in the new folder "
            "of --output, for sevo_jax.graphs.GraphParts: one that is larger than the "
            "memory, or of more than 2^31 entries. Of kind item-item alone.",
            "N",
            "one graph, in memory",
        ),
    ] = None
    load: Annotated[
        Path | None,
        option(
            "Describe this graph instead; with --data in original ids.",
            "FILE.npz",
            "build one",
        ),
    ] = None
    output: Annotated[
        Path | None,
        option(
            "Save the graph, for --graph of train and compare, or to be read by "
            "sevo_jax.graphs.load.",
            "FILE.npz",
            "none",
        ),
    ] = None
    item_offset: Annotated[
        int,
        option("Rows of the embedding table before the items; 1 for padding.", "N"),
    ]
    plugin: PluginOption = None
    pairs: Annotated[int, option("How many of the heaviest pairs to list.", "N")] = 10
    data: tyro.conf.OmitArgPrefixes[DataOptions] = field(default_factory=DataOptions)
    graph: tyro.conf.OmitArgPrefixes[GraphConfig]


def graph(args: Sequence[str]) -> None:
    """Runs ``sevo-jax graph`` with `args`."""
    name, recipe = preset(args)
    offset = MODELS[recipe.model].item_offset
    default = Graph(recipe=name, item_offset=offset, graph=recipe.graph)
    options = parse(Graph, "graph", args, default)
    if options.load is None and len(options.graph.parts) > 1:
        raise ValueError(
            f"--kind is {options.graph.kind}, an operator that train and compare make "
            "of two graphs: build each of them by itself"
        )
    if options.output is not None:
        check_folder(options.output)
    if options.parts is not None:
        print(_build_parts(options, options.parts))
        return
    found = _obtain(options)
    _check_offset(options.item_offset, found)
    matrix = operators.to_scipy(found.adjacency)
    print(found.title)
    num_users = len(found.users or ())
    print(_describe(matrix, num_users, options.item_offset))
    names = found.names(options.item_offset)
    print(_heaviest(matrix, names, num_users, options.pairs))
    if options.output is not None:
        graphs.save(
            options.output, found.adjacency, items=found.items, users=found.users
        )


def _build_parts(options: Graph, num_parts: int) -> str:
    """Builds the graph in its folder; returns what it is."""
    if options.engine is not None or options.load is not None:
        raise ValueError("--parts is not for --engine or --load: leave out one of them")
    if options.output is None:
        raise ValueError("--parts needs a new folder for the parts: add --output")
    if options.graph.kind != "item-item":
        raise ValueError(
            f"--kind is {options.graph.kind}, but --parts builds item-item alone"
        )
    if options.stream:
        sequences, items = _streamed.training_sequences(options.data, options.graph)
        num_items = len(items)
    else:
        split = leave_one_out(options.data.load())
        sequences, num_items = split.train, split.num_items
    parts = graphs.cooccurrence_parts(
        options.output,
        sequences,
        num_items,
        num_parts=num_parts,
        item_offset=options.item_offset,
        **_cooccurrence_options(options.graph),
    )
    return f"{options.output}: {parts}"


def _cooccurrence_options(config: GraphConfig) -> dict[str, Any]:
    names = ("max_len", "keep", "max_hop", "weighting")
    return {name: getattr(config, name) for name in names}


class _Graph(NamedTuple):
    """A graph, what to call it, and the ids of its nodes where they are known."""

    adjacency: BCOO
    title: str
    items: list[str] | None
    users: list[str] | None = None

    def names(self, item_offset: int) -> list[str]:
        """What to call each node: the users in front, and rows that are no item."""
        if self.items is None:
            return [str(node) for node in range(self.adjacency.shape[0])]
        return [*(self.users or ()), *["-"] * item_offset, *self.items]


def _obtain(options: Graph) -> _Graph:
    if options.load is not None:
        return _load(options, options.load)
    offset = options.item_offset
    if options.engine is not None:
        if options.stream:
            raise ValueError("--engine reads the log and so does --stream: give one")
        adjacency, items = _engine.build(options.data, options.graph, offset)
        return _Graph(adjacency, f"item-item graph of {options.data.data}", items)
    if options.stream:
        sequences, items = _streamed.training_sequences(options.data, options.graph)
        adjacency = graphs.cooccurrence(
            sequences,
            len(items),
            item_offset=offset,
            **_cooccurrence_options(options.graph),
        )
        return _Graph(adjacency, f"item-item graph of {options.data.data}", items)
    log = options.data.load()
    adjacency: Any = kinds.build(options.graph, leave_one_out(log), offset)
    return _Graph(
        adjacency,
        f"{options.graph.kind} graph of {log.name}",
        _texts(log.item_ids),
        _texts(log.user_ids) if options.graph.links == "user-item" else None,
    )


def _load(options: Graph, path: Path) -> _Graph:
    """The graph in a file, with the ids of the log if there is one."""
    for given, name in ((options.engine, "--engine"), (options.stream, "--stream")):
        if given:
            raise ValueError(f"{name} builds a graph and --load reads one: give one")
    if options.output is not None:
        raise ValueError("--load describes a graph in a file: leave out --output")
    if options.data == DataOptions():
        return _Graph(graphs.load(path), f"{path}", None)
    log = options.data.load()
    adjacency = graphs.load(path, items=log.item_ids, users=log.user_ids)
    users = _texts(log.user_ids) if options.graph.links == "user-item" else None
    num_items = adjacency.shape[0] - len(users or ()) - options.item_offset
    if num_items != log.num_items:
        raise ValueError(
            f"{path} has {adjacency.shape[0]} nodes, but {log.name!r} has "
            f"{log.num_items} items and --item-offset is {options.item_offset}"
        )
    return _Graph(adjacency, f"{path}", _texts(log.item_ids), users)


def _check_offset(item_offset: int, found: _Graph) -> None:
    """Makes sure that the graph has an item behind the rows that are none."""
    num_nodes = found.adjacency.shape[0]
    most = num_nodes - len(found.users or ()) - 1
    if not 0 <= item_offset <= most:
        raise ValueError(
            f"--item-offset is {item_offset}: choose 0 to {most}, as {found.title} has "
            f"{num_nodes} nodes"
        )


def _texts(ids: np.ndarray) -> list[str]:
    return [str(name) for name in ids.tolist()]


def _describe(matrix: scipy.sparse.csr_array, num_users: int, item_offset: int) -> str:
    """Counts and quantiles, of all nodes but the `item_offset` before the items."""
    loops = np.count_nonzero(matrix.diagonal())
    upper = scipy.sparse.triu(matrix, k=1)
    num_nodes = len(matrix.indptr) - 1
    counted = np.r_[:num_users, num_users + item_offset : num_nodes]
    neighbours = np.diff(matrix.indptr)[counted]
    degrees = np.asarray(matrix.sum(axis=1))[counted]
    isolated = np.count_nonzero(neighbours == 0)
    users = f"{num_users:,} users, " if num_users else ""
    all_of = "users and items" if num_users else "items"
    heading = f"{'':<14}" + "".join(f"{name:>10}" for name in _QUANTILES) + "      mean"
    return "\n".join(
        [
            f"nodes         {num_nodes:,} ({users}{item_offset} in front of the items)",
            f"edges         {upper.nnz:,} undirected, {loops:,} self-loops",
            f"isolated      {isolated:,} {all_of} ({isolated / len(neighbours):.2%})",
            "",
            heading,
            _quantile_row("neighbours", neighbours),
            _quantile_row("degree", degrees),
            _quantile_row("edge weight", upper.data),
        ]
    )


def _quantile_row(label: str, values: np.ndarray) -> str:
    if not len(values):
        return f"{label:<14}" + f"{'-':>10}" * (len(_QUANTILES) + 1)
    cells = [*np.quantile(values, list(_QUANTILES.values())), np.mean(values)]
    return f"{label:<14}" + "".join(f"{cell:>10.4g}" for cell in cells)


def _heaviest(
    matrix: scipy.sparse.csr_array, names: Sequence[str], num_users: int, count: int
) -> str:
    """The `count` pairs of largest weight, equal weights by node."""
    upper: Any = scipy.sparse.coo_array(scipy.sparse.triu(matrix))
    first, second, weight = upper.row, upper.col, upper.data
    order = np.lexsort((second, first, -weight))[: max(count, 0)]
    rows = [("user" if num_users else "item", "item", "weight")]
    for edge in order.tolist():
        pair = names[int(first[edge])], names[int(second[edge])]
        rows.append((*pair, f"{weight[edge]:.6g}"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
    return "\n".join(["", "heaviest pairs", *lines])
