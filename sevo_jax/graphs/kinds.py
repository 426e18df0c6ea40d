"""The graphs that a recipe can name, and how each is built from a split log.

A further kind is a function and a line of `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jax.experimental.sparse import BCOO

from sevo_jax import _checks, graphs
from sevo_jax.data.split import LeaveOneOut


@dataclass(frozen=True)
class GraphConfig:
    """The graph of the train interactions: of items that occur together (section 4),
    or of users and their items; the other fields are about the first."""

    kind: str = "item-item"
    """What the edges link: items that follow each other (item-item), or users and
    their items (user-item)."""
    max_len: int | None = 50
    """Items of a sequence that count (the paper's K); None for all of them."""
    keep: Literal["first", "last"] = "last"
    """Which end of a longer sequence counts."""
    max_hop: int = 1
    """Largest distance of two items in a sequence that links them (H), at least 1."""
    weighting: Literal["frequency", "distance"] = "distance"
    """Weight of a pair: 1, or 1 / distance; the same where max_hop is 1."""

    def __post_init__(self):
        _checks.one_of(self, "kind", tuple(KINDS))
        enough = self.max_len is None or self.max_len >= 2
        what = "at least 2, or None for all items"
        _checks.require_field(self, "max_len", enough, what)
        _checks.at_least(self, 1, "max_hop")
        _checks.one_of(self, "keep", ("first", "last"))
        _checks.one_of(self, "weighting", ("frequency", "distance"))

    @property
    def links(self) -> str:
        """What the edges link: "item-item" or "user-item"."""
        return KINDS[self.kind].links


def build(config: GraphConfig, split: LeaveOneOut, item_offset: int) -> BCOO:
    """Builds a graph of a split log; only its train part enters.

    Args:
      config: which graph.
      split: the data.
      item_offset: rows of the item table in front of the items.

    Returns:
      The adjacency, not normalised. Its nodes are the rows of the item table; of a
      user-item graph those of the user table in front of them.
    """
    return KINDS[config.kind].build(config, split, item_offset)


def _cooccurrence(config: GraphConfig, split: LeaveOneOut, item_offset: int) -> BCOO:
    return graphs.cooccurrence(
        split.train,
        split.num_items,
        max_len=config.max_len,
        keep=config.keep,
        max_hop=config.max_hop,
        weighting=config.weighting,
        item_offset=item_offset,
    )


def _bipartite(config: GraphConfig, split: LeaveOneOut, item_offset: int) -> BCOO:
    del config
    return graphs.bipartite(
        split.train.rows,
        split.train.values,
        split.num_users,
        split.num_items,
        item_offset=item_offset,
    )


class Kind(NamedTuple):
    """A kind of graph.

    Attributes:
      links: what its edges link, as the key in a model's `smoothed`: "item-item" or
        "user-item". It says what the nodes are: the items, or the users and the items.
      build: makes it, with the arguments and the result of `build` above.
    """

    links: str
    build: Callable[[GraphConfig, LeaveOneOut, int], BCOO]


KINDS: dict[str, Kind] = {
    "item-item": Kind("item-item", _cooccurrence),
    "user-item": Kind("user-item", _bipartite),
}
"""The kinds of graphs by the name that a recipe calls them."""
