"""SGD, Adam and AdamW enhanced by SEvo: nothing but chains of transformations.

Every leaf that no graph names is updated exactly as :func:`optax.sgd`,
:func:`optax.adam` or :func:`optax.adamw` would, after the same weight decay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from sevo_jax._leaves import Graphs, RowAxis, prepare_graphs
from sevo_jax.moments import scale_by_adam_of_tables
from sevo_jax.transforms import Approximation, scale_by_sevo


def sevo_adamw(
    learning_rate: optax.ScalarOrSchedule,
    graphs: Graphs,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    *,
    mu_dtype: Any = None,
    weight_decay: float = 1e-4,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    beta: optax.ScalarOrSchedule = 0.99,
    num_layers: int = 3,
    approximation: Approximation = "neumann",
    rescale: bool = True,
    every: int = 1,
    row_axis: RowAxis = None,
    moment_correction: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW enhanced by SEvo, Algorithm 1 of the paper.

    .. math::
      E_t = E_{t-1} - \eta \left( \hat\psi\!\left(\frac{\hat M_t}{\sqrt{\hat V_t} +
        \epsilon}\right) + \lambda E_{t-1} \right)

    for the tables that ``graphs`` names, with moments corrected for idle rows
    (Theorem 3), and plain AdamW for every other leaf. Weight decay is decoupled and
    not smoothed; it reaches every row, idle and padding rows too. Algorithm 1 as
    printed differs from this in the decay of the second moment, the place of
    :math:`\epsilon` and its first step: see :func:`scale_by_moment_corrected_adam`.

    Args:
      learning_rate: step size :math:`\eta`, or a schedule.
      graphs: which table is smoothed over which graph; see :func:`scale_by_sevo`.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the denominator, outside the root.
      eps_root: added inside the root.
      mu_dtype: dtype of the stored first moment; by default that of the parameters,
        but at least float32 for a table with corrected moments.
      weight_decay: decoupled decay :math:`\lambda`. The paper uses up to 0.5.
      mask: which leaves decay; see :func:`optax.adamw`.
      beta: smoothing strength in [0, 1), or a schedule of it.
      num_layers: number of hops; static.
      approximation: ``"neumann"`` or ``"iterative"``.
      rescale: with ``"neumann"``, ``False`` gives equation (6) in place of (7).
      every: propagate once in so many updates; see :func:`scale_by_sevo`.
      row_axis: 1 for tables stored as ``[..., d, n]``; see :func:`scale_by_sevo`.
      moment_correction: ``False`` gives the tables plain Adam moments.

    Returns:
      The optimizer. Its ``update`` takes ``graphs=`` and ``active_rows=``,
      keyword-only; see the two transformations.

    Raises:
      ValueError, TypeError: as :func:`scale_by_sevo`.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import sevo_jax as sevo
      >>> graph = sevo.graphs.cooccurrence([[0, 1, 2], [1, 2]], num_items=3)
      >>> params = {"item_embedding": jnp.ones((3, 2)), "bias": jnp.zeros(3)}
      >>> tx = sevo.sevo_adamw(1e-3, {"item_embedding": graph}, weight_decay=0.1)
      >>> state = tx.init(params)
      >>> def loss(p):
      ...     return jnp.sum(p["item_embedding"][0] ** 2) + jnp.sum(p["bias"])
      >>> updates, state = tx.update(jax.grad(loss)(params), state, params)
      >>> params = optax.apply_updates(params, updates)

      Another optimizer for the matrices, such as Muon, and this one for the rest:

      >>> import optax.contrib
      >>> params = {"item_embedding": jnp.ones((3, 2)), "kernel": jnp.ones((2, 2))}
      >>> tx = optax.partition(
      ...     {"tables": tx, "matrices": optax.contrib.muon(0.02)},
      ...     {"item_embedding": "tables", "kernel": "matrices"})
      >>> updates, state = tx.update(params, tx.init(params), params)

    References:
      Xu et al., `Graph-enhanced Optimizers for Structure-aware Recommendation
      Embedding Evolution <https://arxiv.org/abs/2310.03032>`_, 2024

    .. seealso:: :func:`optax.adamw`
    """
    bound = prepare_graphs(graphs)
    return optax.chain(
        scale_by_adam_of_tables(
            bound if moment_correction else (),
            b1,
            b2,
            eps,
            eps_root,
            mu_dtype=mu_dtype,
            row_axis=row_axis if moment_correction else None,
        ),
        scale_by_sevo(
            bound,
            beta,
            num_layers,
            approximation=approximation,
            rescale=rescale,
            every=every,
            row_axis=row_axis,
        ),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def sevo_adam(
    learning_rate: optax.ScalarOrSchedule,
    graphs: Graphs,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    *,
    mu_dtype: Any = None,
    weight_decay: float = 0.0,
    beta: optax.ScalarOrSchedule = 0.99,
    num_layers: int = 3,
    approximation: Approximation = "neumann",
    rescale: bool = True,
    every: int = 1,
    row_axis: RowAxis = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam enhanced by SEvo, Algorithm 3 of the paper.

    Coupled weight decay (a term of the loss, which the paper leaves out and the
    authors' code has), Adam moments without correction for idle rows, then
    :math:`\hat\psi` of :math:`\hat M_t / (\sqrt{\hat V_t} + \epsilon)`.

    Args:
      learning_rate: step size, or a schedule.
      graphs: which table is smoothed over which graph; see :func:`scale_by_sevo`.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the denominator, outside the root.
      eps_root: added inside the root.
      mu_dtype: dtype of the stored first moment.
      weight_decay: coupled decay: this times the parameters is added to the gradient
        of every leaf. It enters the moments and is smoothed with them.
      beta: smoothing strength in [0, 1), or a schedule of it.
      num_layers: number of hops; static.
      approximation: ``"neumann"`` or ``"iterative"``.
      rescale: with ``"neumann"``, ``False`` gives equation (6) in place of (7).
      every: propagate once in so many updates; see :func:`scale_by_sevo`.
      row_axis: 1 for tables stored as ``[..., d, n]``; see :func:`scale_by_sevo`.

    Returns:
      The optimizer; its ``update`` takes ``graphs=``, keyword-only.

    Raises:
      ValueError, TypeError: as :func:`scale_by_sevo`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import sevo_jax as sevo
      >>> graph = sevo.graphs.cooccurrence([[0, 1, 2], [1, 2]], num_items=3)
      >>> tx = sevo.sevo_adam(1e-3, graph)
      >>> params = jnp.ones((3, 2))
      >>> updates, state = tx.update(params, tx.init(params), params)

    .. seealso:: :func:`optax.adam`, :func:`sevo_adamw`
    """
    return _without_active_rows(
        _coupled_decay(weight_decay),
        optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype=mu_dtype),
        scale_by_sevo(
            graphs,
            beta,
            num_layers,
            approximation=approximation,
            rescale=rescale,
            every=every,
            row_axis=row_axis,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )


def sevo_sgd(
    learning_rate: optax.ScalarOrSchedule,
    graphs: Graphs,
    momentum: float | None = None,
    nesterov: bool = False,
    *,
    weight_decay: float = 0.0,
    beta: optax.ScalarOrSchedule = 0.99,
    num_layers: int = 3,
    approximation: Approximation = "neumann",
    rescale: bool = True,
    every: int = 1,
    row_axis: RowAxis = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with momentum enhanced by SEvo, Algorithm 2 of the paper.

    Coupled weight decay as in :func:`sevo_adam`; the momentum buffer starts with the
    first gradient and has no dampening; :math:`\hat\psi` acts on its result.

    Args:
      learning_rate: step size, or a schedule.
      graphs: which table is smoothed over which graph; see :func:`scale_by_sevo`.
      momentum: decay of the momentum buffer; ``None`` for plain SGD.
      nesterov: whether to use Nesterov momentum.
      weight_decay: coupled decay, added to the gradient of every leaf.
      beta: smoothing strength in [0, 1), or a schedule of it.
      num_layers: number of hops; static.
      approximation: ``"neumann"`` or ``"iterative"``.
      rescale: with ``"neumann"``, ``False`` gives equation (6) in place of (7).
      every: propagate once in so many updates; see :func:`scale_by_sevo`.
      row_axis: 1 for tables stored as ``[..., d, n]``; see :func:`scale_by_sevo`.

    Returns:
      The optimizer; its ``update`` takes ``graphs=``, keyword-only.

    Raises:
      ValueError, TypeError: as :func:`scale_by_sevo`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import sevo_jax as sevo
      >>> graph = sevo.graphs.cooccurrence([[0, 1, 2], [1, 2]], num_items=3)
      >>> tx = sevo.sevo_sgd(0.1, graph, momentum=0.9)
      >>> params = jnp.ones((3, 2))
      >>> updates, state = tx.update(params, tx.init(params), params)

    .. seealso:: :func:`optax.sgd`, :func:`sevo_adamw`
    """
    return _without_active_rows(
        _coupled_decay(weight_decay),
        optax.identity() if momentum is None else optax.trace(momentum, nesterov),
        scale_by_sevo(
            graphs,
            beta,
            num_layers,
            approximation=approximation,
            rescale=rescale,
            every=every,
            row_axis=row_axis,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )


def _coupled_decay(weight_decay: Any) -> optax.GradientTransformation:
    # Without decay update needs no params, as optax.adam and optax.sgd need none.
    if isinstance(weight_decay, float | int) and weight_decay == 0:
        return optax.identity()
    return optax.add_decayed_weights(weight_decay)


def _without_active_rows(
    *transformations: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """A chain in which no moment is corrected for idle rows."""
    tx = optax.chain(*transformations)

    def update(updates, state, params=None, *, active_rows=None, **extra_args):
        if active_rows is not None:
            raise TypeError(
                "active_rows has no effect here: of the optimizers only sevo_adamw "
                "corrects the moments of idle rows"
            )
        return tx.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(tx.init, update)
