"""Several relations between the same nodes, as one operator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.sparse

from sevo_jax.operators._adjacency import (
    AdjacencyLike,
    as_csr,
    check_size,
    csr_operator,
    prepare,
    rows_of,
)
from sevo_jax.operators._operator import CSROperator


def weighted_sum(
    graphs: Sequence[AdjacencyLike], weights: Sequence[float]
) -> CSROperator:
    r"""The operator of a multiplex graph: several relations between the same nodes.

    .. math::
      \tilde A = \sum_k w_k D_k^{-1/2} A_k D_k^{-1/2},
      \qquad w_k \ge 0, \quad \sum_k w_k = 1.

    Each graph is normalised by itself, so that the weights say how much each relation
    counts whatever the scale of its edges. The sum is symmetric and its spectral radius
    at most 1, as those of its terms: all that holds of a graph's operator holds of it.
    A node that is isolated in graph :math:`k` has no part of :math:`w_k`; it is not
    made up for by the others.

    The matrices are added once on the host, in float64. A product with the sum costs
    one pass over the edges that are in any of the graphs, not a product a graph.

    Args:
      graphs: at least one, each as :func:`prepare` takes it, or the operator that it
        returned; all of the same nodes. ``num_nodes`` and ``item_offset`` of
        :mod:`sevo_jax.graphs` place the items behind the users of a bipartite graph.
      weights: for each graph its weight, 0 to 1; they add up to 1.

    Returns:
      The operator, in float32 (float64 where ``jax_enable_x64`` is on).

    Raises:
      TypeError: if one of ``graphs`` is no graph, is traced or split over devices: it
        is the sum that :func:`shard_rows` splits.
      ValueError: if a weight is out of range or they do not add up to 1, if there is
        not one a graph, if the graphs differ in their number of nodes, or as
        :func:`prepare`.

    Examples:
      >>> import sevo_jax as sevo
      >>> followed = sevo.graphs.cooccurrence([[0, 1, 2, 3]], num_items=4)
      >>> genres = [["War"], ["Drama"], ["War"], ["Drama"]]
      >>> alike = sevo.graphs.shared_attributes(genres, num_items=4)
      >>> sevo.weighted_sum([followed, alike], [0.75, 0.25])
      CSROperator(4 nodes, 10 entries)

      It takes the place of a graph, as any operator does:

      >>> both = sevo.weighted_sum([followed, alike], [0.75, 0.25])
      >>> tx = sevo.sevo_adamw(1e-3, {"item_embedding": both})
    """
    if not graphs or len(graphs) != len(weights):
        raise ValueError(
            f"there are {len(graphs)} graphs and {len(weights)} weights: give at least "
            "one graph, and one weight a graph"
        )
    for number, weight in enumerate(weights):
        if not 0 <= weight <= 1:
            raise ValueError(f"weights[{number}] is {weight}: it must be 0 to 1")
    if not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise ValueError(
            f"the weights add up to {sum(weights):.6g}: divide them by that, so that "
            "they add up to 1"
        )
    operators = [prepare(graph) for graph in graphs]
    sizes = [operator.num_nodes for operator in operators]
    for number, size in enumerate(sizes):
        if size != sizes[0]:
            raise ValueError(
                f"graphs[{number}] has {size} nodes, graphs[0] has {sizes[0]}: all "
                "must be of the same nodes, isolated ones included (num_nodes=)"
            )
    terms = (
        weight * as_csr(operator).astype(np.float64)
        for operator, weight in zip(operators, weights, strict=True)
    )
    total = sum(terms, scipy.sparse.csr_array((sizes[0], sizes[0])))
    check_size(total)
    return csr_operator(total.data, total.indices, total.indptr, rows_of(total))
