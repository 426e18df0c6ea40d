"""Graphs of sessions: a node for each item of a prefix, an edge for each transition.

Where no item comes twice the graph is a path, and one round of messages tells a node
no more than its two neighbours. So the nodes of a user's prefixes are nearly all the
same: prefixes differ in their last node, which nothing follows yet, and, once they are
longer than what a model reads, in their first, which nothing precedes any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences, ranges
from sevo_jax.samples.packing import round_up
from sevo_jax.samples.prefixes import Sampling
from sevo_jax.samples.runs import Runs

# So many steps tell how much room a step needs.
_PROBED_STEPS = 64
# Where a draw needs more, it is likely to fit what an earlier one needed.
_MULTIPLE = 64


class SessionBatch(NamedTuple):
    """The graphs of the prefixes of a step; int32 but for `begins`.

    An epoch is `[steps, ...]`, one step of it as below. Node 0 is nobody's: what is
    filled up points to it. The nodes of a prefix are `first`, then those from `inner`
    on, then `last`, `sizes` in all; a node can be of several prefixes.

    Attributes:
      items: `[nodes]`, row of the item table (`item + item_offset`).
      counts: `[nodes]`, how often the item comes in the prefix.
      in_edges: `[in_edges, 2]`, a node with a message, and the node it is for, which
        comes behind it in the session.
      out_edges: `[out_edges, 2]`, the same for a node that comes before it.
      first: `[targets]`, a node, unless the prefix has but one.
      inner: `[targets]`, the second node, unless the prefix has but two.
      last: `[targets]`, the node of the last item.
      sizes: `[targets]`, how many nodes the prefix has; 0 where there is no target.
      targets: `[targets]`, the item that follows, as a row of the table.
      begins: `[pairs]`, of the nodes of all prefixes one after the other, whether one
        is the first of its prefix.
    """

    items: np.ndarray
    counts: np.ndarray
    in_edges: np.ndarray
    out_edges: np.ndarray
    first: np.ndarray
    inner: np.ndarray
    last: np.ndarray
    sizes: np.ndarray
    targets: np.ndarray
    begins: np.ndarray


class SessionEpochs:
    """The epochs of training on the graphs of all prefixes, addressed by number.

    Every train item of a user but the first is the target of one prefix, once an
    epoch: the last `max_len` items before it. The prefixes are drawn in one of two
    ways:

    - `"prefix"`: one by one. An epoch is a fresh permutation of the prefixes.
    - `"sequence"`: up to `max_len` consecutive ones of a user together. An epoch is a
      fresh permutation of these runs (`Runs.draw`).

    Prefixes of a run that have no item twice share their nodes, if `share` is true;
    every other prefix has a graph of its own, with a node for each distinct item and
    an edge for each distinct transition.

    Steps share one shape, from epoch to epoch too, except where a draw needs more
    room, which is rare. `epochs[e]` depends on the arguments and `e` alone.

    Args:
      train: train items of each user. Users with fewer than two have no target and are
        left out.
      max_len: the most items of a prefix.
      batch_size: targets of a step, up to a run more or fewer.
      seed: non-negative.
      sampling: how the prefixes are drawn.
      share: whether nodes are shared, which is exact for one round of messages.
      item_offset: row of the table where item 0 stands.

    Raises:
      ValueError: if an argument is out of range or no user has two train items.

    Examples:
      >>> from sevo_jax.data.sequences import Sequences
      >>> train = Sequences.from_lists([[4, 5, 6]])
      >>> epochs = SessionEpochs(train, max_len=9, batch_size=9, seed=0)
      >>> step = SessionBatch(*(field[0] for field in epochs[0]))
      >>> step.items[:5].tolist()  # 5, 6, and 5 with nothing behind it
      [0, 5, 6, 5]
      >>> step.last[:2].tolist(), step.sizes[:2].tolist(), step.targets[:2].tolist()
      ([3, 2], [1, 2], [6, 7])
    """

    def __init__(
        self,
        train: Sequences,
        *,
        max_len: int,
        batch_size: int,
        seed: int,
        sampling: Sampling = "sequence",
        share: bool = True,
        item_offset: int = 1,
    ):
        for name, value, least in (
            ("max_len", max_len, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("item_offset", item_offset, 1),
        ):
            _checks.require(value >= least, name, value, f"at least {least}")
        if sampling not in ("sequence", "prefix"):
            raise ValueError(f"sampling is {sampling!r}: choose 'sequence' or 'prefix'")
        if sampling == "prefix":
            self._runs = Runs.prefixes(train, max_len)
        else:
            most = min(max_len, batch_size)
            self._runs = Runs.chunks(train, first=most, fresh=most, warm_up=max_len - 1)
        self.batch_size = batch_size
        self.seed = seed
        self.num_steps = self._runs.num_steps(batch_size)
        self._items = train.values + item_offset
        # By place in the train items: where a prefix begins that ends there, and
        # whether it needs a graph of its own.
        places = np.arange(train.values.size)
        self._starts = np.maximum(places - max_len + 1, train.offsets[train.rows])
        self._alone = _last_repeats(train) >= self._starts if share else places >= 0
        self._rooms = self._measure_rooms()

    def __getitem__(self, epoch: int) -> SessionBatch:
        """Returns the epoch: arrays `[num_steps, ...]`.

        Args:
          epoch: from 0.
        """
        laid_out = self._lay_out(np.random.default_rng([self.seed, epoch]))
        fields = zip(*laid_out, strict=True)
        return SessionBatch(*map(_filled, fields, self._rooms))

    def _lay_out(
        self, rng: np.random.Generator, most: int | None = None
    ) -> list[SessionBatch]:
        """The steps of an epoch, at most so many, not yet filled up."""
        runs, steps = self._runs.draw(rng, self.batch_size)
        return [self._step(runs.take(step)) for step in steps[:most]]

    def _measure_rooms(self) -> list[int]:
        """What holds nearly every step: five deviations above the mean of some."""
        rng = np.random.default_rng(0)
        sizes = []
        while len(sizes) < _PROBED_STEPS:
            for step in self._lay_out(rng, _PROBED_STEPS):
                sizes.append([len(field) for field in step])
        rooms = np.ceil(np.mean(sizes, axis=0) + 5 * np.std(sizes, axis=0))
        return rooms.astype(int).tolist()

    def _step(self, runs: Runs) -> SessionBatch:
        """The graphs of all prefixes of some runs."""
        run = np.repeat(np.arange(runs.counts.size), runs.counts)
        ends = ranges(runs.firsts + runs.lengths - runs.counts, runs.counts)
        alone = self._alone[ends]
        paths = self._paths(runs, run[~alone], ends[~alone], 1)
        graphs = self._graphs(ends[alone], 1 + len(paths.items))
        step = SessionBatch(*map(np.concatenate, zip(paths, graphs, strict=True)))
        return step._replace(items=np.r_[0, step.items], counts=np.r_[0, step.counts])

    def _paths(
        self, runs: Runs, run: np.ndarray, ends: np.ndarray, base: int
    ) -> SessionBatch:
        """Prefixes without repeats, which share the nodes of their runs.

        Args:
          runs: of the step.
          run: of each prefix.
          ends: place of its last item.
          base: number of the first node.
        """
        used = np.bincount(run, minlength=runs.counts.size) > 0
        lengths = np.where(used, runs.lengths, 0)
        cells = ranges(runs.firsts, lengths)
        begin = base + np.cumsum(lengths) - lengths
        behind = np.delete(np.arange(base, base + cells.size), begin[used] - base)
        before = behind - 1
        sizes = ends - self._starts[ends] + 1
        last = begin[run] + ends - runs.firsts[run]
        first = last - sizes + 1
        inner = first + 1

        # Nothing is behind the last item of a prefix, as there is behind its cell, and
        # nothing before the first.
        open_end = last + 1 < begin[run] + lengths[run]
        cut = (first > begin[run]) & (sizes > 1)
        lasts = base + cells.size + np.arange(open_end.sum())
        firsts = base + cells.size + lasts.size + np.arange(cut.sum())
        longer = sizes[open_end] > 1
        into = last[open_end][longer] - 1, lasts[longer]
        out_of = inner[cut], firsts
        last[open_end], first[cut] = lasts, firsts
        items = np.r_[cells, ends[open_end], self._starts[ends[cut]]]
        return SessionBatch(
            self._items[items],
            np.ones_like(items),
            np.c_[np.r_[before, into[0]], np.r_[behind, into[1]]],
            np.c_[np.r_[behind, out_of[0]], np.r_[before, out_of[1]]],
            first,
            inner,
            last,
            sizes,
            self._items[ends + 1],
            _begins(sizes),
        )

    def _graphs(self, ends: np.ndarray, base: int) -> SessionBatch:
        """Prefixes with a graph of their own.

        Args:
          ends: place of the last item of each.
          base: number of the first node.
        """
        lengths = ends - self._starts[ends] + 1
        prefix = np.repeat(np.arange(ends.size), lengths)
        items = self._items[ranges(self._starts[ends], lengths)]
        # Sorted by prefix, the last item behind all others.
        is_last = items == self._items[ends][prefix]
        num_rows = self._items.max(initial=0) + 1
        keys, node, counts = np.unique(
            (2 * prefix + is_last) * num_rows + items,
            return_inverse=True,
            return_counts=True,
        )
        sizes = np.bincount(keys // (2 * num_rows), minlength=ends.size)
        last = base + np.cumsum(sizes) - 1
        first = last - sizes + 1
        behind = np.delete(np.arange(items.size), np.cumsum(lengths) - lengths)
        # Each transition once.
        edges = np.unique(node[behind - 1] * keys.size + node[behind])
        edges = base + np.c_[np.divmod(edges, max(keys.size, 1))]
        return SessionBatch(
            keys % num_rows,
            counts,
            edges,
            edges[:, ::-1],
            first,
            first + 1,
            last,
            sizes,
            self._items[ends + 1],
            _begins(sizes),
        )


def _last_repeats(train: Sequences) -> np.ndarray:
    """For each place, the last one up to it whose item has come again since; or -1."""
    order = np.lexsort((train.values, train.rows))
    again = np.diff(train.values[order]) == 0
    before = np.full(order.size, -1)
    before[order[1:][again]] = order[:-1][again]
    # What repeats before a sequence, or across its begin, lies before all of it.
    return np.maximum.accumulate(before)


def _begins(sizes: np.ndarray) -> np.ndarray:
    """Of so many nodes a prefix, one prefix after the other, which are the first."""
    begins = np.zeros(sizes.sum(), np.bool_)
    begins[np.cumsum(sizes) - sizes] = True
    return begins


def _filled(fields: Sequence[np.ndarray], room: int) -> np.ndarray:
    """Arrays of several steps in one, with zeros behind each."""
    most = max(map(len, fields))
    if most > room:
        room = round_up(most, _MULTIPLE)
    dtype = np.bool_ if fields[0].dtype == np.bool_ else np.int32
    filled = np.zeros((len(fields), room, *fields[0].shape[1:]), dtype)
    for row, field in zip(filled, fields, strict=True):
        row[: len(field)] = field
    return filled
