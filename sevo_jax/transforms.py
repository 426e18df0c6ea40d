"""SEvo and the moment correction as Optax gradient transformations."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from sevo_jax import smoothing
from sevo_jax._leaves import (
    Graphs,
    RowAxis,
    active_rows_by_leaf,
    check_row_axis,
    find_tables,
    prepare_graphs,
    replace_graphs,
    row_axes_of,
)
from sevo_jax.operators import GraphOperator
from sevo_jax.smoothing import check_beta, check_every, check_num_layers

Approximation = Literal["neumann", "iterative"]


class ScaleBySevoState(NamedTuple):
    """State of :func:`scale_by_sevo`.

    Attributes:
      step: number of updates so far, int32 scalar; the time of a ``beta`` schedule.
      pending: with ``every`` above 1, what has not gone to the neighbours yet: a tree
        like the updates, :class:`optax.MaskedNode` in place of what no graph names.
        Empty otherwise.
    """

    step: jax.typing.ArrayLike
    pending: optax.Updates = ()

    # Not a field, or optax.tree.get would find two in an Adam's state. Without it
    # there would be the method of tuples.
    @property
    def count(self) -> jax.typing.ArrayLike:
        return self.step


def scale_by_sevo(
    graphs: Graphs,
    beta: optax.ScalarOrSchedule = 0.99,
    num_layers: int = 3,
    *,
    approximation: Approximation = "neumann",
    rescale: bool = True,
    every: int = 1,
    row_axis: RowAxis = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Smooths the updates of embedding tables over graphs of their rows.

    .. math::
      \Delta E \leftarrow \hat\psi(\Delta E) = \frac{1 - \beta}{1 - \beta^{L+1}}
        \sum_{l=0}^{L} \beta^l \tilde A^l \Delta E

    Place it after the transformation that makes the direction (``scale_by_adam``,
    ``trace``) and before decoupled weight decay and the learning rate, so that neither
    is smoothed. Updates that no graph names pass through untouched. It is linear:
    one NaN in an update reaches every node within ``num_layers`` hops, so screen
    updates before it (``optax.zero_nans``) or outside (``optax.apply_if_finite``).

    Args:
      graphs: which table is smoothed over which graph: a mapping from leaf names to
        adjacencies, or one adjacency if the tree has a single leaf (or
        ``optax.masked`` selects one). A name is one or more components of the leaf's
        "/"-joined path; every leaf it matches is smoothed by itself, but the whole
        path of a leaf means that leaf alone. A tuple of names is one table, stacked in
        that order: ``{("user_embedding", "item_embedding"): user_item_graph}``. A leaf
        ``[n, d]`` has a row a node; one of more dimensions, ``[..., n, d]``, is a
        stack of tables, each smoothed by itself. A leaf that ``optax.masked`` hides,
        or ``optax.partition`` freezes, is left alone.
      beta: smoothing strength in [0, 1), or a schedule of it.
      num_layers: number of hops :math:`L`; static.
      approximation: ``"neumann"`` (equations 6 and 7) or ``"iterative"`` (Zhou et
        al.), which can reverse an update once ``beta`` reaches 1/2 (Theorem 1).
      rescale: with ``"neumann"``, ``False`` gives equation (6), smaller by the factor
        :math:`1 - \beta^{L+1}`.
      every: propagate once in so many updates :math:`k`; static. The smoothing is
        linear: its local term (:math:`l = 0`) acts at every update, and what goes to
        neighbours is summed and propagated in each :math:`k`-th. Over these
        :math:`k` updates the sum is that of ``every=1``, at about :math:`1 / k` of
        the cost, for one more array the size of each table. What changes with time
        (a schedule of ``beta``, a learning rate behind it) acts on the sum at the
        time it is propagated.
      row_axis: 1 for tables that are stored as ``[..., d, n]``; by default 0. A
        mapping from leaf names sets it for some of them: ``{"output/kernel": 1}``.

    Returns:
      A transformation. Its ``update`` takes ``graphs=``, keyword-only: graphs with the
      same names that replace the bound ones for this call. Prepared with
      :func:`sevo_jax.prepare` and passed as arguments of the jitted step, they stay
      out of the compiled program, and may differ from step to step. With more nodes
      than before, give parameters and state the new rows first:
      :func:`sevo_jax.carry_over`.

    Raises:
      ValueError, TypeError: at once for a bad graph, ``beta`` or ``num_layers``; from
        ``init`` and ``update`` if a name matches no leaf or a table does not fit.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sevo_jax as sevo
      >>> graph = sevo.graphs.cooccurrence([[0, 1, 2], [1, 2]], num_items=3)
      >>> tx = optax.chain(
      ...     optax.scale_by_adam(),
      ...     sevo.scale_by_sevo({"item_embedding": graph}, beta=0.99),
      ...     optax.scale_by_learning_rate(1e-3),
      ... )
      >>> params = {"item_embedding": jnp.ones((3, 2)), "bias": jnp.zeros(3)}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)

    .. seealso:: :func:`sevo_jax.sevo_adamw`, :func:`sevo_jax.smoothing.neumann`
    """
    check_beta(beta)
    num_layers = check_num_layers(num_layers)
    if approximation not in ("neumann", "iterative"):
        raise ValueError(
            f"approximation must be 'neumann' or 'iterative', got {approximation!r}"
        )
    every = check_every(every)
    check_row_axis(row_axis)
    bound = prepare_graphs(graphs)

    def smooth(graph: GraphOperator, table: jax.Array, strength: Any) -> jax.Array:
        if approximation == "iterative":
            return smoothing.iterative(graph, table, strength, num_layers)
        return smoothing.neumann(graph, table, strength, num_layers, rescale=rescale)

    def local(strength: Any) -> Any:
        """The factor of the term that stays in place."""
        if approximation == "iterative":
            return 1.0 if num_layers == 0 else 1.0 - strength
        return smoothing.neumann_factor(strength, num_layers, rescale=rescale)

    def init(params: optax.Params) -> ScaleBySevoState:
        tables = find_tables(params, bound, row_axis)
        step = jnp.zeros([], jnp.int32)
        if every == 1:
            return ScaleBySevoState(step)
        leaves, treedef = jax.tree.flatten(params)
        pending: list[Any] = [optax.MaskedNode()] * len(leaves)
        for i in (i for table in tables for i in table.leaves):
            pending[i] = jnp.zeros_like(leaves[i])
        return ScaleBySevoState(step, treedef.unflatten(pending))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        graphs: Graphs | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleBySevoState]:
        del params
        check_extra_args(extra_args)
        operators = replace_graphs(bound, graphs)
        strength = beta(state.step) if callable(beta) else beta
        leaves, treedef = jax.tree.flatten(updates)
        tables = find_tables(updates, operators, row_axis)
        positions = [i for table in tables for i in table.leaves]
        for i in positions:
            leaves[i] = jnp.asarray(leaves[i])

        def smoothed(leaves: list[Any]) -> list[Any]:
            """The leaves, those of tables smoothed."""
            leaves = list(leaves)
            for table in tables:
                rows = smooth(operators[table.key], table.stack(leaves), strength)
                for i, leaf in table.unstack(rows, leaves).items():
                    leaves[i] = leaf
            return leaves

        step = jnp.asarray(optax.safe_increment(state.step))
        if every == 1:
            return treedef.unflatten(smoothed(leaves)), ScaleBySevoState(step)
        if isinstance(state.pending, tuple) and not state.pending:
            raise ValueError(
                f"the state has no pending updates, but every is {every}: it was made "
                "with every=1; sevo_jax.carry_over gives it their place"
            )
        due = state.step % every == every - 1
        waiting = treedef.flatten_up_to(state.pending)
        factor = local(strength)

        def propagate(sums: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
            table_sums: list[Any] = [None] * len(leaves)
            for i, each in zip(positions, sums, strict=True):
                table_sums[i] = each
            whole = smoothed(table_sums)
            gone = [
                # Of several runs under one vmap those that are due.
                jnp.where(due, whole[i] - (factor * each).astype(each.dtype), 0)
                for i, each in zip(positions, sums, strict=True)
            ]
            return gone, [jnp.where(due, 0, each) for each in sums]

        def wait(sums: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
            return [jnp.zeros_like(each) for each in sums], sums

        sums = [waiting[i] + leaves[i] for i in positions]
        gone, sums = jax.lax.cond(_any(due), propagate, wait, sums)
        for i, each, left in zip(positions, gone, sums, strict=True):
            leaves[i] = (factor * leaves[i]).astype(leaves[i].dtype) + each
            waiting[i] = left
        return treedef.unflatten(leaves), ScaleBySevoState(
            step, treedef.unflatten(waiting)
        )

    return optax.GradientTransformationExtraArgs(init, update)


@jax.custom_batching.custom_vmap
def _any(condition: jax.Array) -> jax.Array:
    """Whether a condition holds; under ``vmap``, whether it does for any.

    So a branch stays a branch, where ``vmap`` would take both.
    """
    return condition


@_any.def_vmap
def _any_of_many(axis_size: int, in_batched: list[bool], condition: jax.Array):
    del axis_size
    return _any(jnp.any(condition, axis=0) if in_batched[0] else condition), False


def scale_by_moment_corrected_adam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    *,
    mu_dtype: Any = None,
    row_axis: RowAxis = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam whose idle rows keep their last direction, Theorem 3 of the paper.

    A row whose gradient is exactly zero was not in the batch. Plain Adam shrinks its
    step at every such update (Proposition 1); here its bias-corrected moments stay as
    they are, so its direction stays constant until the row is sampled again:

    .. math::
      \hat m_t = \begin{cases}
        \dfrac{b_1 (1 - b_1^{t-1}) \hat m_{t-1} + (1 - b_1) g_t}{1 - b_1^t}
          & g_t \neq 0 \\ \hat m_{t-1} & g_t = 0 \end{cases}

    and likewise :math:`\hat v_t` with :math:`b_2` and :math:`g_t^2`; the direction is
    :math:`\hat m_t / (\sqrt{\hat v_t + \epsilon_{root}} + \epsilon)`.

    This is equations (9) and (10), written for the corrected moments: the same
    numbers in exact arithmetic, without drift in float32. The first step needs no
    :math:`1 / (1 - b^{t-1})` here, the second moment decays with :math:`b_2` (Algorithm
    1 prints :math:`b_1`), and :math:`\epsilon` stands outside the root as in the
    authors' code. A row that was never active has direction zero.

    What precedes it must keep idle rows at exactly zero: clipping, ``zero_nans`` and
    ``centralize`` do; coupled weight decay and gradient noise do not. Then, or if a
    sampled row may have a zero gradient, pass ``active_rows``. Under data parallelism
    apply it to the reduced gradient.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the denominator, outside the root.
      eps_root: added inside the root.
      mu_dtype: dtype of the stored first moment; by default float32, or the
        gradient's dtype if that is wider. The second moment always is that.
      row_axis: 1 for tables that are stored as ``[..., d, n]``; by default 0, for
        ``[..., n, d]``. A mapping from leaf names sets it for some of them. Axes
        before these two count tables; a one-dimensional leaf has one entry a row.

    Returns:
      A transformation whose state is an ``optax.ScaleByAdamState`` that holds the
      *bias-corrected* moments. Its ``update`` takes ``active_rows=``, keyword-only: a
      mapping from leaf names to boolean arrays ``[..., n]`` (or one array if the tree
      has a single leaf) to use in place of the test for zero. Inside
      ``optax.MultiSteps``, which passes on those of its last micro-batch alone, they
      have one dimension more: the rows of each micro-batch, ``[k, ..., n]``.

    Raises:
      ValueError: if ``b1`` or ``b2`` lies outside [0, 1); from ``update`` if
        ``active_rows`` does not fit its leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import sevo_jax as sevo
      >>> tx = sevo.scale_by_moment_corrected_adam(b1=0.9, b2=0.99)
      >>> state = tx.init(jnp.zeros((1, 2)))
      >>> first, state = tx.update(jnp.array([[1.0, -2.0]]), state)
      >>> idle, state = tx.update(jnp.array([[0.0, 0.0]]), state)
      >>> bool((first == idle).all())
      True

    .. seealso:: :func:`optax.scale_by_adam`, :func:`sevo_jax.sevo_adamw`
    """
    corrected = CorrectedAdam(b1, b2, eps, eps_root, mu_dtype)
    check_row_axis(row_axis)

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        mu = jax.tree.map(corrected.init_mu, params)
        nu = jax.tree.map(corrected.init_nu, params)
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=mu, nu=nu)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        active_rows: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        check_extra_args(extra_args)
        count = jnp.asarray(optax.safe_increment(state.count))
        grads, treedef = jax.tree.flatten(updates)
        results = [
            corrected.step(count, *leaf)
            for leaf in zip(
                grads,
                treedef.flatten_up_to(state.mu),
                treedef.flatten_up_to(state.nu),
                active_rows_by_leaf(updates, active_rows),
                row_axes_of(updates, row_axis),
                strict=True,
            )
        ]
        direction, mu, nu = (
            treedef.unflatten([result[part] for result in results]) for part in range(3)
        )
        return direction, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformationExtraArgs(init, update)


@dataclasses.dataclass(frozen=True)
class CorrectedAdam:
    """The arithmetic of :func:`scale_by_moment_corrected_adam`, for one leaf."""

    b1: Any
    b2: Any
    eps: Any
    eps_root: Any
    mu_dtype: Any

    def __post_init__(self) -> None:
        for name, decay in (("b1", self.b1), ("b2", self.b2)):
            if not isinstance(decay, Tracer) and not 0.0 <= float(decay) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {decay}")

    def init_mu(self, leaf: Any) -> jax.Array:
        return jnp.zeros_like(leaf, dtype=self.mu_dtype or _wide(leaf))

    def init_nu(self, leaf: Any) -> jax.Array:
        return jnp.zeros_like(leaf, dtype=_real(_wide(leaf)))

    def step(
        self,
        count: jax.Array,
        grad: Any,
        mu: jax.Array,
        nu: jax.Array,
        mask: Any,
        row_axis: int,
        corrected: Any = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Direction and new moments.

        Args:
          count: number of this update, from 1.
          grad: gradient of the leaf.
          mu: first moment, bias-corrected.
          nu: second moment, bias-corrected.
          mask: the active rows, or None for those whose gradient is not zero.
          row_axis: -2 or -1.
          corrected: 0 where the moments are still those of Adam, not bias-corrected.
        """
        given = jnp.asarray(grad)
        grad = given.astype(_wide(given))
        active = _active(grad, mask, row_axis)

        def moment(old: jax.Array, new: jax.Array, decay: Any) -> jax.Array:
            dtype = _real(new.dtype)
            keep, add = (
                weight.astype(new.dtype)
                for weight in _running_mean_weights(decay, count, dtype)
            )
            old = old.astype(new.dtype)
            if corrected is not None:
                before = jnp.maximum(count - 1, 1)
                unbias = _running_mean_weights(decay, before, dtype)[1] / (1 - decay)
                old = old * jnp.where(corrected == 0, unbias, 1).astype(new.dtype)
            return jnp.where(active, keep * old + add * new, old)

        square = grad * grad
        if jnp.iscomplexobj(grad):
            square = (grad * grad.conj()).real
        mu_hat = moment(mu, grad, self.b1)
        nu_hat = moment(nu, square, self.b2)
        root = jnp.sqrt(nu_hat + self.eps_root) + self.eps
        direction = mu_hat / root.astype(mu_hat.dtype)
        if jnp.issubdtype(given.dtype, jnp.inexact):
            direction = direction.astype(given.dtype)
        return direction, mu_hat.astype(mu.dtype), nu_hat.astype(nu.dtype)


def check_extra_args(names: Iterable[str]) -> None:
    """Refuses a misspelt argument of ``update``.

    Others that a transformation does not know are for the rest of its chain.
    """
    ours = ("graphs", "active_rows")
    for name in names:
        close = difflib.get_close_matches(name, ours, n=1, cutoff=0.8)
        if close and name not in ours:
            raise TypeError(
                f"update was given {name!r}, which would have no effect: the argument "
                f"is {close[0]!r}"
            )


def _wide(x: Any) -> np.dtype:
    """The dtype of moments: at least float32; of integers the default one."""
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.result_type(float)
    return np.promote_types(dtype, np.float32)


def _real(dtype: Any) -> np.dtype:
    return np.zeros((), dtype).real.dtype


def _active(grad: jax.Array, mask: Any, row_axis: int) -> jax.Array:
    """Which rows take part, in a shape that broadcasts against the gradient."""
    # Of a table's two axes the one that does not count rows.
    width = (-3 - row_axis,) if grad.ndim > 1 else ()
    if mask is None:
        return jnp.any(grad != 0, axis=width, keepdims=True)
    axes = range(-grad.ndim, 0)
    wanted = tuple(grad.shape[axis] for axis in axes if axis not in width)
    given = mask = jnp.asarray(mask)
    if _inside_multi_steps():
        if mask.ndim != len(wanted) + 1:
            raise ValueError(
                f"active_rows has shape {mask.shape} inside optax.MultiSteps, which "
                "passes on those of its last micro-batch alone, and the gradients of "
                "the others would be lost: give the rows of all k micro-batches of the "
                f"update, {('k', *wanted)}, or no active_rows"
            )
        mask = jnp.any(mask, axis=0)
    if mask.shape != wanted:
        raise ValueError(
            f"active_rows has shape {given.shape}, its leaf {grad.shape}: it must be "
            f"{wanted}"
        )
    return jnp.expand_dims(mask, width)


def _inside_multi_steps() -> bool:
    """Whether optax.MultiSteps calls: of what it passes on, nothing says so."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is optax.MultiSteps.update.__code__:
            return True
        frame = frame.f_back
    return False


def _running_mean_weights(decay: Any, count: jax.Array, dtype: Any):
    """Weights of the old bias-corrected moment and of the new value at step t.

    ``b (1 - b^(t-1)) / (1 - b^t)`` and ``(1 - b) / (1 - b^t)``. In float32 the
    differences lose digits at small t for b near 1; ``expm1`` does not.
    """
    if isinstance(decay, float | int):
        log_decay = math.log(decay) if decay > 0 else -math.inf
    else:
        log_decay = jnp.log(decay)
    steps = count.astype(dtype)
    total = -jnp.expm1(steps * jnp.asarray(log_decay, dtype))
    # 0 * log(0) at the first step of b = 0 would be NaN, the weight is 0 anyway.
    before = -jnp.expm1(jnp.maximum(steps - 1, 1) * jnp.asarray(log_decay, dtype))
    keep = jnp.where(count == 1, 0, decay * before / total)
    add = jnp.asarray(1 - decay, dtype) / total
    return keep.astype(dtype), add
