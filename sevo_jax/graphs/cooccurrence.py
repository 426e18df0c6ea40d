"""The item graph estimated from interactions: Algorithm 4 of the paper, section 4."""

import contextlib
import itertools
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.sparse

from sevo_jax import _sparse
from sevo_jax.graphs import _checks


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
    sequences: Ragged | Iterable[Any],
    num_items: int,
    *,
    max_len: int | None = None,
    keep: str = "last",
    max_hop: int = 1,
    weighting: str = "distance",
    item_offset: int = 0,
    num_nodes: int | None = None,
) -> _sparse.BCOO:
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

    The weights are summed in float64, each number of co-occurrences exactly, and
    rounded to float32 once.

    Args:
      sequences: one sequence of item ids a user, in the order of time: any iterable
        of integer sequences, or an object with ``values`` and ``offsets`` (see
        :class:`Ragged`), which is faster. Give training interactions alone:
        what is predicted later must not be in the graph.
      num_items: number of items, at least 1; ids are ``0..num_items-1``.
      max_len: :math:`K`, how many items of a sequence count, at least 1; ``None``
        for all.
      keep: which :math:`K` items count, ``"last"`` or ``"first"``.
      max_hop: :math:`H`, the largest distance of two related items, at least 1.
      weighting: ``"distance"`` or ``"frequency"``.
      item_offset: item ``i`` is node ``i + item_offset``; 1 for a table whose row 0
        is padding.
      num_nodes: number of rows of the table; ``None`` for
        ``num_items + item_offset``.

    Returns:
      The adjacency ``[num_nodes, num_nodes]``, symmetric, float32, not normalised,
      its indices sorted by row and unique. Nodes that are no item, and items
      without a neighbour, are isolated. With nothing to connect it has no entry at
      all, and what consumes graphs refuses it.

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
      :func:`sevo_jax.graphs.shared_attributes` for prior knowledge,
      :func:`sevo_jax.graphs.bipartite` for users and items together.
    """
    num_items, item_offset, num_nodes = _checks.item_nodes(
        num_items, item_offset, num_nodes
    )
    max_hop = _checks.count("max_hop", max_hop, 1)
    if max_len is not None:
        max_len = _checks.count("max_len", max_len, 1)
    _checks.choice("keep", keep, ("last", "first"))
    _checks.choice("weighting", weighting, ("distance", "frequency"))

    values, offsets = _flatten(sequences)
    _check_range(values, offsets, num_items)
    values, rows = _truncate(values, offsets, max_len, keep)
    nodes = values.astype(np.int32) + np.int32(item_offset)
    forward = _forward(nodes, rows, num_nodes, max_hop, weighting)
    # A self-loop is its own mirror image: the sum doubles it, as Algorithm 4 does.
    return _sparse.bcoo_from_scipy(forward + forward.T)


def _flatten(sequences: Ragged | Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sequences as ``values [total]`` and ``offsets [num_rows + 1]``."""
    if isinstance(sequences, Ragged):
        values = _checks.integers("sequences.values", sequences.values)
        offsets = _checks.integers("sequences.offsets", sequences.offsets)
        _check_offsets(offsets.astype(np.int64), values.size)
        return values, offsets.astype(np.int64)
    rows = list(sequences)
    if all(isinstance(row, list | tuple) for row in rows):
        # A TypeError: the slower way below names the sequence at fault.
        with contextlib.suppress(TypeError):
            flat = list(itertools.chain.from_iterable(rows))
            return _checks.integers("sequences", flat), _offsets(map(len, rows))
    arrays = [_checks.integers(f"sequence {i}", row) for i, row in enumerate(rows)]
    return np.concatenate(arrays, dtype=np.int64), _offsets(map(len, arrays))


def _offsets(lengths: Iterable[int]) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _check_offsets(offsets: np.ndarray, total: int) -> None:
    if offsets.size == 0 or offsets[0] != 0 or offsets[-1] != total:
        ends = offsets[[0, -1]].tolist() if offsets.size else "nothing"
        raise ValueError(
            f"sequences.offsets must run from 0 to the {total} values, not {ends}"
        )
    if (np.diff(offsets) < 0).any():
        row = int(np.argmax(np.diff(offsets) < 0))
        raise ValueError(
            f"sequences.offsets must not decrease, but row {row} goes from "
            f"{offsets[row]} to {offsets[row + 1]}"
        )


def _check_range(values: np.ndarray, offsets: np.ndarray, num_items: int) -> None:
    position = _checks.first_outside(values, num_items)
    if position is not None:
        row = int(np.searchsorted(offsets, position, side="right")) - 1
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
    begins, ends = offsets[:-1], offsets[1:]
    if max_len is not None:
        window = min(max_len, values.size)
        if keep == "last":
            begins = np.maximum(begins, ends - window)
        else:
            ends = np.minimum(ends, begins + window)
    lengths = ends - begins
    rows = np.repeat(np.arange(lengths.size), lengths)
    shift = begins - (np.cumsum(lengths) - lengths)
    return values[np.arange(rows.size) + shift[rows]], rows


def _forward(
    nodes: np.ndarray, rows: np.ndarray, num_nodes: int, max_hop: int, weighting: str
) -> scipy.sparse.csr_array:
    """Sums the weights of all pairs in float64, at (earlier node, later node)."""
    shape = (num_nodes, num_nodes)
    total = scipy.sparse.csr_array(shape, dtype=np.float64)
    for hop in range(1, max_hop + 1):
        same_row = rows[hop:] == rows[:-hop]
        if not same_row.any():
            break
        earlier, later = nodes[:-hop][same_row], nodes[hop:][same_row]
        counts = scipy.sparse.csr_array(
            (np.ones(earlier.size), (earlier, later)), shape=shape
        )
        if weighting == "distance":
            # Counts are exact in float64: one rounding a hop instead of one a pair.
            counts.data /= hop
        total = total + counts
    return total
