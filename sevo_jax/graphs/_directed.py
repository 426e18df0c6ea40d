"""A graph of directed edges as a symmetric one: the flow of a random walk."""

from typing import Any

import numpy as np
from jax.experimental.sparse import BCOO
from scipy.sparse import csgraph

from sevo_jax import operators
from sevo_jax._checks import require

# Of the distribution, in the sum of all nodes; and when to give up.
_TOLERANCE = 1e-12
_MOST_STEPS = 20_000


def from_directed(weights: operators.Adjacency, *, teleport: float = 0.15) -> BCOO:
    r"""Connects nodes by how often a random walk goes from one to the other.

    An edge that the walk often takes weighs more than one of the same weight at a node
    that it seldom comes to, in which :math:`A + A^\top` makes no difference. With the
    walk's :math:`P = D_{out}^{-1} A` and its stationary distribution :math:`\varphi`,
    :math:`\Phi = \operatorname{diag}(\varphi)`,

    .. math::
      W = \tfrac{n}{2} \left( \Phi P + P^\top \Phi \right).

    The degrees of :math:`W` are :math:`n \varphi`, so that its normalised operator is
    that of Chung's Laplacian of a directed graph,

    .. math::
      \tilde A = \tfrac12 \left( \Phi^{1/2} P \Phi^{-1/2}
      + \Phi^{-1/2} P^\top \Phi^{1/2} \right) = I - L:

    symmetric, with a spectral radius of 1.

    Few graphs let a walk come from every node to every other. With teleport
    :math:`\alpha > 0` it jumps, in a share :math:`\alpha` of its steps and wherever no
    edge leads on, to any of the :math:`n` nodes that have an edge; :math:`\varphi`,
    found by power iteration, counts the jumps, :math:`W` only the steps along edges.
    Normalised by its own degrees, the operator is then near Chung's, not equal to it;
    as any graph's it is symmetric and its spectral radius at most 1.

    Args:
      weights: non-negative weights ``[n, n]`` of edges from row to column, in any form
        that :func:`sevo_jax.prepare` takes but prepared; only the ratios of the
        weights that leave a node matter. ``cooccurrence(..., directed=True)`` makes
        such a graph of sequences.
      teleport: :math:`\alpha`, in [0, 1). 0 is Chung's operator, for a graph that is
        strongly connected but for isolated nodes.

    Returns:
      The adjacency :math:`W`, symmetric, float32, not normalised, its indices sorted by
      row and unique. Nodes without an edge stay isolated.

    Raises:
      TypeError: if ``weights`` is no graph, is traced, or has been prepared.
      ValueError: if it is not square, has no edges, an index out of range, or a
        negative or non-finite weight; if ``teleport`` is out of range, or too small for
        the walk to settle; or if it is 0 and the graph not strongly connected.

    Examples:
      Node 1 leads to node 0 twice as often as to node 2:

      >>> import numpy as np
      >>> import sevo_jax as sevo
      >>> edges = np.array([[0.0, 1.0, 0.0], [2.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
      >>> graph = sevo.graphs.from_directed(edges, teleport=0)
      >>> print(np.asarray(graph.todense()).round(4))
      [[0.     1.0714 0.2143]
       [1.0714 0.     0.2143]
       [0.2143 0.2143 0.    ]]

    References:
      Fan Chung, Laplacians and the Cheeger inequality for directed graphs, Annals of
      Combinatorics 9, 2005.

    See also:
      :func:`sevo_jax.graphs.cooccurrence`
    """
    require(0 <= teleport < 1, "teleport", teleport, "in [0, 1)")
    if isinstance(weights, operators.GraphOperator):
        raise TypeError(
            f"{weights!r} is prepared, and so without directions: give the directed "
            "graph itself"
        )
    edges = operators.checked_csr(weights).astype(np.float64)
    degrees = np.diff(edges.indptr)
    linked = degrees + np.bincount(edges.indices, minlength=len(degrees)) > 0
    if teleport == 0:
        _check_connected(edges, linked)
    # The edges become the steps of the walk, and those how often they are taken.
    edges.data /= np.repeat(np.asarray(edges.sum(axis=1)).reshape(-1), degrees)
    visits = _stationary(edges, linked, teleport)
    edges.data *= np.repeat(visits * np.count_nonzero(linked) / 2, degrees)
    return operators.bcoo_from_scipy(edges + edges.T)


def _check_connected(edges: Any, linked: np.ndarray) -> None:
    _, parts = csgraph.connected_components(edges, connection="strong")
    count = len(np.unique(parts[linked]))
    if count > 1:
        raise ValueError(
            f"a walk cannot come from every node to every other, as the graph has "
            f"{count} strongly connected parts: give a teleport above 0, such as 0.15"
        )


def _stationary(steps: Any, linked: np.ndarray, teleport: float) -> np.ndarray:
    """The share of its time that the walk spends at each node, by power iteration."""
    anywhere = linked / np.count_nonzero(linked)
    stuck = linked & (np.diff(steps.indptr) == 0)
    back = steps.T.tocsr()
    # Without jumps the walk may go round in periods. It rests in half of its steps
    # then, which does not change where it spends its time.
    rest = 0.0 if teleport else 0.5
    visits = anywhere
    for _ in range(_MOST_STEPS):
        walked = back @ visits + visits[stuck].sum() * anywhere
        moved = (1 - teleport) * walked + teleport * anywhere
        after = rest * visits + (1 - rest) * moved
        if np.abs(after - visits).sum() < _TOLERANCE:
            return after
        visits = after
    raise ValueError(
        f"teleport is {teleport}: the walk does not settle within {_MOST_STEPS} steps, "
        "give a larger one, such as 0.15"
    )
