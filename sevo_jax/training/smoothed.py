"""What SEvo smooths in a run, and over which graphs: as they are, or from files."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, TypeGuard

import jax

from sevo_jax import GraphOperator, graphs
from sevo_jax._leaves import LeafName, prepare_graphs, tables_of
from sevo_jax._tables import Table
from sevo_jax.data.log import InteractionLog
from sevo_jax.operators import AdjacencyLike

Path: TypeAlias = str | os.PathLike[str]
Graph: TypeAlias = AdjacencyLike | Path
"""An adjacency, or the path of a file that `sevo_jax.graphs.save` wrote."""
GivenGraphs: TypeAlias = Graph | Mapping[Any, Graph]
"""One, or several by leaf name."""


def read_graphs(
    given: Mapping[LeafName, Graph], log: InteractionLog
) -> OrderedDict[LeafName, GraphOperator]:
    """Makes the operators of graphs by leaf name; what has several names, once.

    Args:
      given: the graphs.
      log: what those of files must be of, where the file tells.

    Returns:
      A pytree. The keys of a dict JAX would sort, which names and tuples of names
      cannot be.

    Raises:
      OSError: if a file cannot be read.
      TypeError, ValueError: if a key is no leaf name, or a graph is none.
    """
    operators: dict[int, GraphOperator] = {}
    ids = {"items": log.item_ids, "users": log.user_ids}
    for key, graph in given.items():
        if id(graph) not in operators:
            read: Any = graph
            if _is_file(graph):
                read = graphs.load(graph, mmap=True, **ids)
            with _naming(graph):
                (operators[id(graph)],) = prepare_graphs({key: read}).values()
    return OrderedDict((key, operators[id(graph)]) for key, graph in given.items())


def find_smoothed(
    params: Any,
    operators: Mapping[LeafName, GraphOperator],
    given: Mapping[LeafName, Graph],
) -> list[Table]:
    """Finds the tables that the graphs name, each of which must fit its graph.

    Args:
      params: parameters of the model.
      operators: what `read_graphs` returned.
      given: what it was given.

    Raises:
      TypeError, ValueError: as `sevo_jax.scale_by_sevo`; what is from a file, the
        message names it.
    """
    tables = tables_of(params, operators)
    for table in tables:
        with _naming(given[table.key]):
            table.check_fit(operators[table.key], jax.tree.leaves(params))
    return tables


def _is_file(graph: Graph) -> TypeGuard[Path]:
    return isinstance(graph, str | os.PathLike)


@contextlib.contextmanager
def _naming(graph: Graph) -> Iterator[None]:
    """Errors of the block begin with the file of the graph, if it is from one."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if not _is_file(graph):
            raise
        raise type(error)(f"{os.fspath(graph)}: {error}") from None
