"""The graphs that a recipe can name, and how each is built from a split log.

A further kind is a function and a line of `KINDS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import scipy.sparse
from jax.experimental.sparse import BCOO

from sevo_jax import _checks, graphs, operators
from sevo_jax.data.attributes import read_attributes
from sevo_jax.data.split import LeaveOneOut


@dataclass(frozen=True)
class GraphConfig:
    """A graph of a log: of items that occur together in the train interactions
    (section 4), of users and their items, or of items that share an attribute; or the
    weighted sum of two of them."""

    kind: str = "item-item"
    """What the edges link: items that follow each other (item-item, to which the
    fields from max_len on belong; item-item-binary, the same with all weights 1 and a
    loop at each row of the item table; item-item-directed, the flow of a walk from each
    to those that follow it), users and their items (user-item), or items that have an
    attribute in common (attributes). Two kinds joined by + are the weighted sum of
    both, each normalised by itself: item-item+attributes, user-item+item-item."""
    share: float | None = None
    """Weight of the second graph of two, 0 to 1; the first has the rest. None for a
    kind of one graph."""
    max_len: int | None = 50
    """Items of a sequence that count (the paper's K); None for all of them."""
    keep: Literal["first", "last"] = "last"
    """Which end of a longer sequence counts."""
    max_hop: int = 1
    """Largest distance of two items in a sequence that links them (H), at least 1."""
    weighting: Literal["frequency", "distance"] = "distance"
    """Weight of a pair: 1, or 1 / distance; the same where max_hop is 1."""
    attributes: str | None = None
    """File of the attributes, for the kind of this name, alone or in a sum: .csv, .tsv
    or .parquet with an item and one of its attributes a line, or .json, {item:
    [attribute, ...]}."""

    def __post_init__(self):
        known = len(self.parts) <= 2 and all(part in KINDS for part in self.parts)
        what = (
            f"one of {', '.join(KINDS)}, or two of them joined by +; or import the "
            "module that adds it (--plugin MODULE)"
        )
        _checks.require_field(self, "kind", known, what)
        for name, given in (
            ("attributes", "attributes" in self.parts),
            ("share", len(self.parts) == 2),
        ):
            right = (getattr(self, name) is not None) == given
            needed = {"attributes": "a file", "share": "0 to 1"}[name]
            what = f"{needed if given else None}, as the kind is {self.kind}"
            _checks.require_field(self, name, right, what)
        in_range = self.share is None or 0 <= self.share <= 1
        _checks.require_field(self, "share", in_range, "0 to 1")
        enough = self.max_len is None or self.max_len >= 2
        what = "at least 2, or None for all items"
        _checks.require_field(self, "max_len", enough, what)
        _checks.at_least(self, 1, "max_hop")
        _checks.one_of(self, "keep", ("first", "last"))
        _checks.one_of(self, "weighting", ("frequency", "distance"))

    @property
    def parts(self) -> tuple[str, ...]:
        """The kinds that are summed, or the one that it is."""
        return tuple(self.kind.split("+"))

    @property
    def links(self) -> str:
        """What the edges link: "item-item" or "user-item", where any does."""
        linked = [KINDS[part].links for part in self.parts]
        return "user-item" if "user-item" in linked else "item-item"


def build(
    config: GraphConfig, split: LeaveOneOut, item_offset: int
) -> BCOO | operators.GraphOperator:
    """Builds a graph of a split log; only its train part enters.

    Args:
      config: which graph.
      split: the data.
      item_offset: rows of the item table in front of the items.

    Returns:
      The adjacency, not normalised; of a sum, the operator. Its nodes are the rows of
      the item table; of a user-item graph those of the user table in front of them.
    """
    kinds = [KINDS[part] for part in config.parts]
    built = [kind.build(config, split, item_offset) for kind in kinds]
    if config.share is None:
        return built[0]
    terms = [
        graph if kind.links == config.links else _behind_users(graph, split.num_users)
        for kind, graph in zip(kinds, built, strict=True)
    ]
    return operators.weighted_sum(terms, [1 - config.share, config.share])


def _behind_users(graph: BCOO, num_users: int) -> operators.Adjacency:
    """An item graph with the users as isolated nodes in front."""
    users = scipy.sparse.csr_array((num_users, num_users))
    return scipy.sparse.block_diag([users, operators.as_csr(graph)], format="csr")


def checksum(config: GraphConfig) -> str | None:
    """The SHA-256 of the file that a graph is made from; None if there is none."""
    if config.attributes is None:
        return None
    return hashlib.sha256(Path(config.attributes).read_bytes()).hexdigest()


def _cooccurrence(
    config: GraphConfig,
    split: LeaveOneOut,
    item_offset: int,
    *,
    directed: bool = False,
) -> BCOO:
    return graphs.cooccurrence(
        split.train,
        split.num_items,
        max_len=config.max_len,
        keep=config.keep,
        max_hop=config.max_hop,
        weighting=config.weighting,
        directed=directed,
        item_offset=item_offset,
    )


def _binary(config: GraphConfig, split: LeaveOneOut, item_offset: int) -> BCOO:
    links = operators.as_csr(_cooccurrence(config, split, item_offset))
    links = links + scipy.sparse.eye_array(links.shape[0], format="csr")
    links.data[:] = 1
    return operators.bcoo_from_scipy(links)


def _directed(config: GraphConfig, split: LeaveOneOut, item_offset: int) -> BCOO:
    edges = _cooccurrence(config, split, item_offset, directed=True)
    return graphs.from_directed(edges)


def _bipartite(config: GraphConfig, split: LeaveOneOut, item_offset: int) -> BCOO:
    del config
    return graphs.bipartite(
        split.train.rows,
        split.train.values,
        split.num_users,
        split.num_items,
        item_offset=item_offset,
    )


def _shared_attributes(
    config: GraphConfig, split: LeaveOneOut, item_offset: int
) -> BCOO:
    assert config.attributes is not None
    return graphs.shared_attributes(
        read_attributes(config.attributes, split.log),
        split.num_items,
        item_offset=item_offset,
    )


class Kind(NamedTuple):
    """A kind of graph.

    Attributes:
      links: what its edges link, as the key in a model's `smoothed`: "item-item" or
        "user-item". It says what the nodes are: the items, or the users and the items.
      build: makes its adjacency, with the arguments of `build` above.
    """

    links: str
    build: Callable[[GraphConfig, LeaveOneOut, int], BCOO]


KINDS: dict[str, Kind] = {
    "item-item": Kind("item-item", _cooccurrence),
    "item-item-binary": Kind("item-item", _binary),
    "item-item-directed": Kind("item-item", _directed),
    "user-item": Kind("user-item", _bipartite),
    "attributes": Kind("item-item", _shared_attributes),
}
"""The kinds of graphs by the name that a recipe calls them."""
