"""The item graph estimated from interactions: Algorithm 4 of the paper, section 4."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCOO

from sevo_jax import operators
from sevo_jax.graphs import _checks
from sevo_jax.graphs._pairs import PairCounts

# Interactions that are worked on at once, and sequences that are read at once.
_BLOCK, _ROWS = 2**20, 2**16


@runtime_checkable
class Ragged(Protocol):
    """Sequences in one flat array: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``.

    Attributes:
      values: integers, ``[total]``.
      offsets: non-decreasing integers, ``[num_rows + 1]``, from 0 to ``total``.
    """

    @property
    def values(self) -> Any: ...

    @property
    def offsets(self) -> Any: ...


def cooccurrence(
    sequences: Ragged | Iterable[Ragged] | Iterable[Any],
    num_items: int,
    *,
    max_len: int | None = None,
    keep: str = "last",
    max_hop: int = 1,
    weighting: str = "distance",
    directed: bool = False,
    item_offset: int = 0,
    num_nodes: int | None = None,
) -> BCOO:
    r"""Connects the items that stand close to each other in users' sequences.

    Algorithm 4 of the paper, with its four factors (section 4 a to d): of each
    sequence :math:`q_1, q_2, \ldots` the first or last :math:`K` items count, and
    every two of them that are at most :math:`H` places apart add to both of their
    entries:

    .. math::

        A_{q_i q_j} \mathrel{+}= w_{j-i}, \quad A_{q_j q_i} \mathrel{+}= w_{j-i},
        \qquad 1 \le j - i \le H,

    where :math:`w_h = 1` by frequency and :math:`w_h = 1 / h` by distance. At
    :math:`H = 1` the two are the same count of neighbourhoods. An item followed by
    itself therefore gets a self-loop of weight 2, as the algorithm reads.

    Paper and authors' code differ: the paper names frequency as the default, the code
    offers distance and the last :math:`K` items only. The defaults here are the
    code's, but without a limit :math:`K` (the experiments use 10 to 200).

    Co-occurrences are counted exactly, hop by hop; the counts, each times its weight,
    are summed in float64 and rounded to float32 once. The result is therefore bit for
    bit the same in whatever form and chunks the sequences come. Memory grows with the
    number of distinct pairs (times :math:`H` by distance), not of interactions.

    Args:
      sequences: one sequence of item ids a user, in the order of time: any iterable
        of integer sequences, or an object with ``values`` and ``offsets`` (see
        :class:`Ragged`), which is faster, or an iterable of such objects, each a
        chunk of whole users, which need not fit in memory together (as
        ``sevo_jax.data.stream`` reads them). Give training interactions alone: what
        is predicted later must not be in the graph.
      num_items: number of items, at least 1; ids are ``0..num_items-1``.
      max_len: :math:`K`, how many items of a sequence count, at least 1; ``None``
        for all.
      keep: which :math:`K` items count, ``"last"`` or ``"first"``.
      max_hop: :math:`H`, the largest distance of two related items, at least 1.
      weighting: ``"distance"`` or ``"frequency"``.
      directed: whether to add to :math:`A_{q_i q_j}` alone, from the earlier item to
        the later one, for :func:`sevo_jax.graphs.from_directed`.
      item_offset: item ``i`` is node ``i + item_offset``; 1 for a table whose row 0
        is padding.
      num_nodes: number of rows of the table; ``None`` for
        ``num_items + item_offset``.

    Returns:
      The adjacency ``[num_nodes, num_nodes]``, symmetric unless ``directed``, float32,
      not normalised, its indices sorted by row and unique. Nodes that are no item, and
      items without a neighbour, are isolated. With nothing to connect it has no entry
      at all, and what consumes graphs refuses it.

    Raises:
      TypeError: if a sequence holds anything but integers, or a count is no
        integer.
      ValueError: if an id or a count is out of range, or ``keep`` or ``weighting``
        is unknown.

    Examples:
      >>> import sevo_jax as sevo
      >>> graph = sevo.graphs.cooccurrence([[0, 1, 2], [2, 1]], num_items=4)
      >>> print(graph.todense())
      [[0. 1. 0. 0.]
       [1. 0. 2. 0.]
       [0. 2. 0. 0.]
       [0. 0. 0. 0.]]

      Two hops, and a table with a padding row in front:

      >>> graph = sevo.graphs.cooccurrence(
      ...     [[0, 1, 2]], num_items=3, max_hop=2, item_offset=1
      ... )
      >>> print(graph.todense())
      [[0.  0.  0.  0. ]
       [0.  0.  1.  0.5]
       [0.  1.  0.  1. ]
       [0.  0.5 1.  0. ]]

    See also:
      :func:`sevo_jax.graphs.cooccurrence_parts` for a graph that is larger than the
      memory, :func:`sevo_jax.graphs.shared_attributes` for prior knowledge,
      :func:`sevo_jax.graphs.bipartite` for users and items together.
    """
    num_items, item_offset, num_nodes = _checks.item_nodes(
        num_items, item_offset, num_nodes
    )
    related = related_pairs(
        sequences, num_items, item_offset, max_len, keep, max_hop, weighting
    )
    # One a divisor: counts are exact, and a weight is rounded once, not once a pair.
    counted: dict[int, PairCounts] = {}
    for divisor, one, two in related:
        if divisor not in counted:
            counted[divisor] = PairCounts(num_nodes, num_nodes)
        if not directed:
            # Half of the entries do to count: the others are their mirror images.
            one, two = np.minimum(one, two), np.maximum(one, two)
        counted[divisor].add(one, two)
    pairs = weighted_sum(
        # Each is let go of as soon as it is added.
        ((divisor, counted.pop(divisor).counts()) for divisor in sorted(counted)),
        (num_nodes, num_nodes),
    )
    # A self-loop is its own mirror image: the sum doubles it, as Algorithm 4 does.
    return operators.bcoo_from_scipy(pairs if directed else pairs + pairs.T)


def related_pairs(
    sequences: Ragged | Iterable[Any],
    num_items: int,
    item_offset: int,
    max_len: int | None,
    keep: str,
    max_hop: int,
    weighting: str,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The nodes of related items, the earlier first, and by what to divide their count.

    The options are those of :func:`cooccurrence`, which are checked at once; sequences
    are checked as they are read.
    """
    max_hop = _checks.count("max_hop", max_hop, 1)
    if max_len is not None:
        max_len = _checks.count("max_len", max_len, 1)
    _checks.choice("keep", keep, ("last", "first"))
    _checks.choice("weighting", weighting, ("distance", "frequency"))

    def pairs() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for values, offsets in _blocks(sequences, num_items):
            values, rows = _truncate(values, offsets, max_len, keep)
            nodes = values.astype(np.int32) + np.int32(item_offset)
            for hop in range(1, max_hop + 1):
                same_row = rows[hop:] == rows[:-hop]
                if not same_row.any():
                    break
                divisor = hop if weighting == "distance" else 1
                yield divisor, nodes[:-hop][same_row], nodes[hop:][same_row]

    return pairs()


def weighted_sum(
    counts_by_divisor: Iterable[tuple[int, scipy.sparse.csr_array]],
    shape: tuple[int, int],
) -> scipy.sparse.csr_array:
    """The sum of counts, each divided by its divisor, in float32.

    Divisors ascend, as float64 sums depend on the order. Counts are written to.
    """
    total: Any = None
    for divisor, counts in counts_by_divisor:
        counts.data /= divisor
        total = counts if total is None else total + counts
    if total is None:
        return scipy.sparse.csr_array(shape, dtype=np.float32)
    return total.astype(np.float32)


def _blocks(
    sequences: Ragged | Iterable[Any], num_items: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cuts the checked sequences into blocks of whole rows, ``values, offsets``.

    What is computed for each item is then small however much there is in all.
    """
    first_row = 0
    for values, offsets in _chunks(sequences):
        _check_range(values, offsets, num_items, first_row)
        num_rows = offsets.size - 1
        begin = 0
        while begin < num_rows:
            whole = np.searchsorted(offsets, offsets[begin] + _BLOCK, side="right") - 1
            end = max(begin + 1, int(whole))
            low, high = offsets[begin], offsets[end]
            yield values[low:high], offsets[begin : end + 1] - low
            begin = end
        first_row += num_rows


def _chunks(
    sequences: Ragged | Iterable[Any],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The sequences as ``values [total]`` and ``offsets [num_rows + 1]``, in parts."""
    if isinstance(sequences, Ragged):
        yield _checked(sequences, "sequences")
        return
    iterator = iter(sequences)
    head = list(itertools.islice(iterator, 1))
    in_chunks = bool(head) and isinstance(head[0], Ragged)
    # An iterator lets go of what it has given: the first chunk must not stay either.
    everything = itertools.chain(iter(head), iterator)
    del head
    if in_chunks:
        for number, chunk in enumerate(everything):
            if not isinstance(chunk, Ragged):
                raise TypeError(
                    f"chunk {number} of sequences is {type(chunk).__name__} without "
                    "`values` and `offsets`, which chunk 0 has: give all in one form"
                )
            yield _checked(chunk, f"chunk {number} of sequences")
        return
    first_row = 0
    while rows := list(itertools.islice(everything, _ROWS)):
        yield _flatten(rows, first_row)
        first_row += len(rows)


def _checked(ragged: Ragged, name: str) -> tuple[np.ndarray, np.ndarray]:
    values = _checks.integers(f"{name}.values", ragged.values)
    offsets = _checks.integers(f"{name}.offsets", ragged.offsets).astype(np.int64)
    _check_offsets(offsets, values.size, name)
    return values, offsets


def _flatten(rows: list[Any], first_row: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts rows one after the other; the first of them is sequence `first_row`."""
    if all(isinstance(row, list | tuple) for row in rows):
        # A TypeError: the slower way below names the sequence at fault.
        with contextlib.suppress(TypeError):
            flat = list(itertools.chain.from_iterable(rows))
            return _checks.integers("sequences", flat), _offsets(map(len, rows))
    arrays = [
        _checks.integers(f"sequence {number}", row)
        for number, row in enumerate(rows, start=first_row)
    ]
    return np.concatenate(arrays, dtype=np.int64), _offsets(map(len, arrays))


def _offsets(lengths: Iterable[int]) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _check_offsets(offsets: np.ndarray, total: int, name: str) -> None:
    if offsets.size == 0 or offsets[0] != 0 or offsets[-1] != total:
        ends = offsets[[0, -1]].tolist() if offsets.size else "nothing"
        raise ValueError(
            f"{name}.offsets must run from 0 to the {total} values, not {ends}"
        )
    if (np.diff(offsets) < 0).any():
        row = int(np.argmax(np.diff(offsets) < 0))
        raise ValueError(
            f"{name}.offsets must not decrease, but row {row} goes from "
            f"{offsets[row]} to {offsets[row + 1]}"
        )


def _check_range(
    values: np.ndarray, offsets: np.ndarray, num_items: int, first_row: int
) -> None:
    position = _checks.first_outside(values, num_items)
    if position is not None:
        row = first_row + int(np.searchsorted(offsets, position, side="right")) - 1
        found = int(values[position])
        raise ValueError(
            _checks.outside_message(
                f"sequence {row}", "holds item", found, num_items, "num_items"
            )
        )


def _truncate(
    values: np.ndarray, offsets: np.ndarray, max_len: int | None, keep: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the items that count, ``[kept]``, and the row each comes from."""
    lengths = np.diff(offsets)
    rows = np.repeat(np.arange(lengths.size, dtype=np.int32), lengths)
    if max_len is None or lengths.max(initial=0) <= max_len:
        return values, rows
    place = np.arange(values.size) - offsets[rows]
    if keep == "last":
        place = lengths[rows] - 1 - place
    kept = place < max_len
    return values[kept], rows[kept]
