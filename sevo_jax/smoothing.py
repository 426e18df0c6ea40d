r"""Smoothing of a table over a graph, as pure functions.

:math:`\tilde A = D^{-1/2} A D^{-1/2}` throughout; ``n`` nodes, ``d`` columns. Several
tables ``[..., n, d]`` are smoothed each by itself. Every function takes a weighted
adjacency or an operator made by :func:`sevo_jax.prepare`. An adjacency is checked and
normalised again at each call: prepare it once where speed matters, and always before
passing it through :func:`jax.jit`.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

from sevo_jax.operators import (
    AdjacencyLike,
    GraphOperator,
    checked_table,
    keep_sharding,
    prepare,
)

__all__ = [
    "Effect",
    "effect",
    "exact",
    "iterative",
    "neumann",
    "smoothness",
]


def neumann(
    adjacency: AdjacencyLike,
    x: Float[Array, "*tables n d"],
    beta: float | Scalar,
    num_layers: int,
    *,
    rescale: bool = True,
) -> Float[Array, "*tables n d"]:
    r"""The rescaled Neumann series approximation, equation (7) of the paper.

    .. math::
      \hat\psi(X) = \frac{1 - \beta}{1 - \beta^{L+1}}
        \sum_{l=0}^{L} \beta^l \tilde A^l X

    It is structure-aware and direction-aware for every :math:`\beta \in [0, 1)`
    (Theorem 1). The factor is computed as :math:`1 / \sum_l \beta^l`, which is the
    same number without the quotient's loss of digits near :math:`\beta = 1`. An
    isolated node is only multiplied by that factor: 0.254 at :math:`\beta = 0.99`,
    :math:`L = 3`.

    Args:
      adjacency: the graph over the rows of ``x``.
      x: tables ``[..., n, d]``, floating point. bfloat16 and float16 are computed in
        float32.
      beta: smoothing strength in [0, 1). May be traced, then its range is not checked.
      num_layers: number of hops :math:`L \ge 0`; static.
      rescale: ``False`` gives equation (6): the factor :math:`1 - \beta` alone.

    Returns:
      The smoothed table, shape and dtype of ``x``.

    Raises:
      ValueError: if ``beta`` or ``num_layers`` is out of range, or the number of rows
        is not the number of nodes.
      TypeError: if ``x`` is not floating point or ``num_layers`` not a Python int.

    Examples:
      >>> import jax.numpy as jnp, scipy.sparse
      >>> import sevo_jax as sevo
      >>> pair = scipy.sparse.csr_array([[0.0, 1.0], [1.0, 0.0]])
      >>> sevo.smoothing.neumann(pair, jnp.array([[3.0], [0.0]]), 0.5, num_layers=1)
      Array([[2.],
             [1.]], dtype=float32)
    """
    graph, table, dtype = _checked(adjacency, x, beta)
    beta = _strength(beta, table.dtype)
    num_layers = check_num_layers(num_layers)
    if num_layers == 0 or (isinstance(beta, float) and beta == 0):
        # One term of the series: exactly the identity times its factor.
        return x if rescale else ((1 - beta) * table).astype(dtype)
    out = table
    for _ in range(num_layers):  # Horner's rule: one accumulator, no powers of beta
        out = table + beta * (graph @ out)
    factor = neumann_factor(beta, num_layers, rescale=rescale)
    return (factor * out).astype(dtype)


def neumann_factor(
    beta: float | Scalar, num_layers: int, *, rescale: bool = True
) -> float | Scalar:
    r"""The factor of the series in :func:`neumann`: of equation (7), or of (6).

    Args:
      beta: smoothing strength in [0, 1).
      num_layers: number of hops; static.
      rescale: ``False`` gives :math:`1 - \beta`.

    Returns:
      :math:`1 / \sum_{l=0}^{L} \beta^l`, or :math:`1 - \beta`.
    """
    if not rescale:
        return 1.0 - beta
    series = 1.0
    for _ in range(num_layers):
        series = 1.0 + beta * series
    return 1.0 / series


def iterative(
    adjacency: AdjacencyLike,
    x: Float[Array, "*tables n d"],
    beta: float | Scalar,
    num_layers: int,
) -> Float[Array, "*tables n d"]:
    r"""The iterative approximation of Zhou et al., for comparison.

    .. math::
      \hat\psi_l = \beta \tilde A \hat\psi_{l-1} + (1 - \beta) X, \qquad \hat\psi_0 = X

    Direction-aware for all graphs only if :math:`\beta < 1/2` (Theorem 1): beyond that
    an update can point against the gradient.

    Args:
      adjacency: the graph over the rows of ``x``.
      x: tables ``[..., n, d]``, floating point.
      beta: smoothing strength in [0, 1).
      num_layers: number of iterations :math:`L \ge 0`; static.

    Returns:
      The smoothed table, shape and dtype of ``x``.

    Raises:
      ValueError, TypeError: as :func:`neumann`.

    Examples:
      >>> import jax.numpy as jnp, scipy.sparse
      >>> import sevo_jax as sevo
      >>> pair = scipy.sparse.csr_array([[0.0, 1.0], [1.0, 0.0]])
      >>> sevo.smoothing.iterative(pair, jnp.array([[2.0], [0.0]]), 0.5, num_layers=1)
      Array([[1.],
             [1.]], dtype=float32)

    References:
      Zhou et al., `Learning with local and global consistency
      <https://proceedings.neurips.cc/paper/2003/hash/87682805257e619d49b8e0dfdc14affa-Abstract.html>`_,
      2003
    """
    graph, table, dtype = _checked(adjacency, x, beta)
    beta = _strength(beta, table.dtype)
    out = table
    for _ in range(check_num_layers(num_layers)):
        out = beta * (graph @ out) + (1 - beta) * table
    return out.astype(dtype)


def exact(
    adjacency: AdjacencyLike,
    x: Float[Array, "*tables n d"],
    beta: float | Scalar,
    *,
    tol: float | None = None,
) -> Float[Array, "*tables n d"]:
    r"""The minimiser of equation (5), which :func:`neumann` approximates.

    .. math::
      \psi^*(X) = (1 - \beta) (I - \beta \tilde A)^{-1} X

    (The paper prints :math:`A` for :math:`\tilde A` here.) Solved for all columns at
    once by conjugate gradients: the eigenvalues of the system lie in
    :math:`[1 - \beta, 1 + \beta]`. Differentiable in ``x`` and ``beta``.

    Args:
      adjacency: the graph over the rows of ``x``.
      x: tables ``[..., n, d]``, floating point.
      beta: smoothing strength in [0, 1).
      tol: residual of the linear system, relative to its right-hand side, to stop at;
        the result may be off by up to ``tol / (1 - beta)``. Default: ten units of
        rounding of the dtype that is computed in (1.2e-6 in float32).

    Returns:
      The smoothed table, shape and dtype of ``x``.

    Raises:
      ValueError, TypeError: as :func:`neumann`, and for a negative ``tol``.

    Examples:
      >>> import jax.numpy as jnp, scipy.sparse
      >>> import sevo_jax as sevo
      >>> pair = scipy.sparse.csr_array([[0.0, 1.0], [1.0, 0.0]])
      >>> sevo.smoothing.exact(pair, jnp.array([[3.0], [0.0]]), beta=0.5).round(4)
      Array([[2.],
             [1.]], dtype=float32)
    """
    graph, table, dtype = _checked(adjacency, x, beta)
    beta = _strength(beta, table.dtype)
    tol = 10 * float(jnp.finfo(table.dtype).eps) if tol is None else tol
    if not isinstance(tol, Tracer) and not tol >= 0:
        raise ValueError(f"tol must be at least 0, got {tol}")

    # Operands, so that one program serves all calls; the rest of 1 in full precision.
    return keep_sharding(_solve, graph, beta, 1 - beta, tol, table).astype(dtype)


@jax.jit
def _solve(
    graph: GraphOperator, beta: Any, rest: Any, tol: Any, table: jax.Array
) -> jax.Array:
    r"""Conjugate gradients on :math:`(I - \beta \tilde A) Y = (1 - \beta) X`."""
    # sqrt(condition) * log(2 / tol) / 2 iterations suffice in exact arithmetic; the
    # bound, doubled, keeps rounding from running the loop for ever.
    condition = (1 + beta) / rest
    most = 10 + jnp.sqrt(condition) * jnp.log(2 / tol)
    solution, _ = jax.scipy.sparse.linalg.cg(
        lambda y: y - beta * (graph @ y),
        rest * table,
        x0=table,
        tol=tol,
        maxiter=jax.lax.stop_gradient(most),
    )
    return solution


def smoothness(
    adjacency: AdjacencyLike, x: Float[Array, "*tables n d"]
) -> Float[Array, ""]:
    r"""The smoothness measure of equation (1); smaller is smoother.

    .. math::
      J(X) = \operatorname{Tr}(X^T (I - \tilde A) X)

    The paper equates it with a sum over pairs of nodes; that sum over ordered pairs is
    twice the trace, and leaves out the :math:`|x_i|^2` that an isolated node adds to
    the trace. This library measures the trace.

    Args:
      adjacency: the graph over the rows of ``x``.
      x: tables ``[..., n, d]``, floating point.

    Returns:
      A scalar, the sum over all tables, in float32 or wider; not negative but for
      rounding.

    Raises:
      ValueError, TypeError: if the table does not fit the graph.

    Examples:
      >>> import jax.numpy as jnp, scipy.sparse
      >>> import sevo_jax as sevo
      >>> pair = scipy.sparse.csr_array([[0.0, 1.0], [1.0, 0.0]])
      >>> float(sevo.smoothing.smoothness(pair, jnp.array([[1.0], [3.0]])))
      4.0
    """
    graph, table, _ = _checked(adjacency, x)
    return jnp.sum(table * (table - graph @ table))


class Effect(NamedTuple):
    """What smoothing did to a variation; see :func:`effect`. All scalars.

    Attributes:
      smoothness_before: :func:`smoothness` of the variation.
      smoothness_after: :func:`smoothness` of its smoothed form.
      cosine: cosine of the angle between the two, over all entries.
      norm_ratio: Frobenius norm of the smoothed form over that of the variation.
    """

    smoothness_before: Float[Array, ""]
    smoothness_after: Float[Array, ""]
    cosine: Float[Array, ""]
    norm_ratio: Float[Array, ""]


def effect(
    adjacency: AdjacencyLike,
    before: Float[Array, "*tables n d"],
    after: Float[Array, "*tables n d"],
) -> Effect:
    """Measures a variation beside its smoothed form (Figure 4b of the paper).

    The smoothed form is structure-aware if ``smoothness_after <= smoothness_before``
    (Definition 1) and direction-aware if ``cosine > 0`` (Definition 2).

    Args:
      adjacency: the graph over the rows of the tables.
      before: the variation ``[..., n, d]``, for example an Adam direction.
      after: its smoothed form, the same shape.

    Returns:
      A :class:`Effect`. With an all-zero table, ``cosine`` and ``norm_ratio`` are
      NaN.

    Raises:
      ValueError, TypeError: if a table does not fit the graph.

    Examples:
      >>> import jax.numpy as jnp, scipy.sparse
      >>> import sevo_jax as sevo
      >>> pair = scipy.sparse.csr_array([[0.0, 1.0], [1.0, 0.0]])
      >>> variation = jnp.array([[3.0], [0.0]])
      >>> smoothed = sevo.smoothing.neumann(pair, variation, beta=0.5, num_layers=1)
      >>> report = sevo.smoothing.effect(pair, variation, smoothed)
      >>> float(report.smoothness_before), float(report.smoothness_after)
      (9.0, 1.0)
    """
    graph = prepare(adjacency)
    (_, first, _), (_, second, _) = _checked(graph, before), _checked(graph, after)
    norm_before, norm_after = jnp.linalg.norm(first), jnp.linalg.norm(second)
    return Effect(
        smoothness_before=smoothness(graph, first),
        smoothness_after=smoothness(graph, second),
        cosine=jnp.sum(first * second) / (norm_before * norm_after),
        norm_ratio=norm_after / norm_before,
    )


def _checked(
    adjacency: AdjacencyLike, x: jax.Array, beta: float | Scalar = 0.0
) -> tuple[GraphOperator, jax.Array, jnp.dtype]:
    """The prepared graph, the table in the dtype to compute in, and its own dtype."""
    check_beta(beta)
    graph = prepare(adjacency)
    return graph, *checked_table(x, graph.num_nodes)


def _strength(beta: Any, dtype: jnp.dtype) -> Any:
    """A Python number as it is, which is exact; an array in the dtype of the table."""
    return float(beta) if isinstance(beta, float | int) else jnp.asarray(beta, dtype)


def check_beta(beta: Any) -> None:
    """Refuses a smoothing strength outside [0, 1), unless it is only known later."""
    if isinstance(beta, Tracer) or callable(beta):
        return
    if isinstance(beta, str) or np.ndim(beta) or beta is None:
        raise TypeError(f"beta must be a number or a schedule, got {beta!r}")
    if not 0.0 <= float(beta) < 1.0:
        raise ValueError(
            f"beta must lie in [0, 1), got {beta}: 0 is no smoothing, 0.99 the paper's"
        )


def check_num_layers(num_layers: Any) -> int:
    """Refuses a number of hops that is traced, fractional or negative."""
    if isinstance(num_layers, Tracer):
        raise TypeError(
            "num_layers is traced, but the number of hops shapes the program: pass a "
            "Python int (with optax.inject_hyperparams list 'num_layers' in "
            "static_args)"
        )
    try:
        value = operator.index(num_layers)
    except TypeError:
        raise TypeError(
            f"num_layers must be a Python int, got {num_layers!r}"
        ) from None
    if value < 0:
        raise ValueError(f"num_layers must be at least 0, got {value}")
    return value


def check_every(every: Any) -> int:
    """Refuses a period that is traced, fractional or below 1."""
    try:
        value = operator.index(every)
    except TypeError:
        raise TypeError(
            f"every must be a Python int, got {every!r}: it shapes the program (with "
            "optax.inject_hyperparams list 'every' in static_args)"
        ) from None
    if value < 1:
        raise ValueError(f"every must be at least 1, got {value}")
    return value
