"""Graphs over the rows of an embedding table, built once on the host.

Every builder returns an adjacency that is symmetric (unless it is asked for a directed
one), non-negative and **not** normalised: a float32 ``jax.experimental.sparse.BCOO``
whose int32 indices are sorted by row, unique and flagged so. What consumes a graph
(``sevo_jax.prepare``, the optimizers) normalises it.
"""

from sevo_jax.graphs._archive import load, save
from sevo_jax.graphs._attributes import shared_attributes
from sevo_jax.graphs._bipartite import bipartite
from sevo_jax.graphs._build_parts import cooccurrence_parts, from_edges_parts
from sevo_jax.graphs._cooccurrence import cooccurrence
from sevo_jax.graphs._directed import from_directed
from sevo_jax.graphs._edges import from_edges
from sevo_jax.graphs._parts import GraphParts
from sevo_jax.graphs._sql import cooccurrence_sql, number_items_sql

__all__ = [
    "GraphParts",
    "bipartite",
    "cooccurrence",
    "cooccurrence_parts",
    "cooccurrence_sql",
    "from_directed",
    "from_edges",
    "from_edges_parts",
    "load",
    "number_items_sql",
    "save",
    "shared_attributes",
]
