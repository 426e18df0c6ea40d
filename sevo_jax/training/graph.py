"""The graph that a recipe asks for, built from the train interactions."""

from __future__ import annotations

import dataclasses

from jax.experimental.sparse import BCOO

from sevo_jax import graphs
from sevo_jax.data.split import LeaveOneOut
from sevo_jax.training.recipe import GraphConfig


def build_graph(config: GraphConfig, split: LeaveOneOut, item_offset: int) -> BCOO:
    """Builds the graph over the rows of the tables that SEvo smooths.

    Args:
      config: which graph.
      split: the data; only its train part enters.
      item_offset: rows of the item table in front of the items.

    Returns:
      The adjacency, its nodes the rows of the item table; of a user-item graph those
      of the user table in front of them.
    """
    if config.kind == "user-item":
        return graphs.bipartite(
            split.train.rows,
            split.train.values,
            split.num_users,
            split.num_items,
            item_offset=item_offset,
        )
    options = dataclasses.asdict(config)
    del options["kind"]
    return graphs.cooccurrence(
        split.train, split.num_items, item_offset=item_offset, **options
    )
