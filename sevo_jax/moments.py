"""Moments that are corrected for idle rows, as Optax gradient transformations."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from sevo_jax._checks import check_extra_args
from sevo_jax._leaves import (
    LeafName,
    RowAxis,
    active_rows_by_leaf,
    check_row_axis,
    check_shapes,
    names_in,
    row_axes_of,
    tables_of,
)
from sevo_jax._tables import wide, widened


class ScaleByMomentCorrectedAdamState(NamedTuple):
    """State of :func:`scale_by_moment_corrected_adam`.

    Attributes:
      count: number of updates so far, int32 scalar.
      mu: bias-corrected first moments.
      nu: bias-corrected second moments.
      corrected: int32 scalar: 1, or 0 before the first update of a state that
        :func:`sevo_jax.carry_over` made of Adam's, whose moments are not corrected.
    """

    count: jax.typing.ArrayLike
    mu: optax.Updates
    nu: optax.Updates
    corrected: jax.typing.ArrayLike


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

    What precedes it must keep idle rows at exactly zero: clipping and ``zero_nans``
    do, ``centralize`` does for tables ``[n, d]``; coupled weight decay and gradient
    noise do not. Then, or if a sampled row may have a zero gradient, pass
    ``active_rows``. Under data parallelism
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
      A transformation whose state holds the *bias-corrected* moments. Its ``update``
      takes ``active_rows=``, keyword-only: a mapping from leaf names to boolean arrays
      ``[..., n]`` (or one array if the tree has a single leaf) to use in place of the
      test for zero. Inside
      ``optax.MultiSteps``, which passes on those of its last micro-batch alone, they
      have one dimension more: the rows of each micro-batch, ``[k, ..., n]``.

    Raises:
      ValueError: if ``b1`` or ``b2`` lies outside [0, 1) or is narrower than float32;
        from ``update`` if ``active_rows`` does not fit its leaf, or the state is one of
        ``optax.scale_by_adam``, which :func:`sevo_jax.carry_over` takes.

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

    def init(params: optax.Params) -> ScaleByMomentCorrectedAdamState:
        mu = jax.tree.map(corrected.init_mu, params)
        nu = jax.tree.map(corrected.init_nu, params)
        count, flag = jnp.zeros([], jnp.int32), jnp.ones([], jnp.int32)
        return ScaleByMomentCorrectedAdamState(count, mu, nu, flag)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        active_rows: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByMomentCorrectedAdamState]:
        del params
        check_extra_args(extra_args)
        _check_state(state, "scale_by_moment_corrected_adam", of_tables=False)
        count = jnp.asarray(optax.safe_increment(state.count))
        grads, treedef = jax.tree.flatten(updates)
        mus = treedef.flatten_up_to(state.mu)
        check_shapes(updates, dict(enumerate(mus)), "its moments")
        results = [
            corrected.step(count, *leaf, state.corrected)
            for leaf in zip(
                grads,
                mus,
                treedef.flatten_up_to(state.nu),
                active_rows_by_leaf(updates, active_rows),
                row_axes_of(updates, row_axis),
                strict=True,
            )
        ]
        direction, mu, nu = (
            treedef.unflatten([result[part] for result in results]) for part in range(3)
        )
        flag = jnp.ones([], jnp.int32)
        return direction, ScaleByMomentCorrectedAdamState(count, mu, nu, flag)

    return optax.GradientTransformationExtraArgs(init, update)


class AdamOfTablesState(NamedTuple):
    """State of :func:`scale_by_adam_of_tables`.

    Attributes:
      count: number of updates so far, int32 scalar.
      mu: first moments: bias-corrected those of tables, as in Adam all others.
      nu: second moments, likewise.
      corrected: for each name of a table ``{name: flag}``, int32 scalar: 1, or 0 before
        its first update as a table, where its moments are still those of Adam. One
        dictionary each: Flax restores a larger one into a smaller one without a word.
    """

    count: jax.typing.ArrayLike
    mu: optax.Updates
    nu: optax.Updates
    corrected: tuple[dict[str, jax.typing.ArrayLike], ...]


def scale_by_adam_of_tables(
    keys: Iterable[LeafName],
    b1: float,
    b2: float,
    eps: float,
    eps_root: float,
    *,
    mu_dtype: Any,
    row_axis: RowAxis,
) -> optax.GradientTransformationExtraArgs:
    """Corrected Adam for the leaves that graphs name, optax's for all others.

    As ``optax.partition`` of the two would be, but with one state, in which
    ``optax.tree.get`` finds one ``mu``, one ``nu`` and one ``count``.

    Args:
      keys: those of the graphs.
      b1: this and the rest as :func:`scale_by_moment_corrected_adam` takes them.
    """
    keys = tuple(keys)
    table_names = sorted(name for key in keys for name in names_in(key))
    corrected = CorrectedAdam(b1, b2, eps, eps_root, mu_dtype)
    plain = optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype=mu_dtype)
    check_row_axis(row_axis)

    def flags() -> tuple[dict[str, jax.typing.ArrayLike], ...]:
        return tuple({name: jnp.ones([], jnp.int32)} for name in table_names)

    def split(tree: Any) -> tuple[dict[int, tuple[str, int]], list[int]]:
        """Of each leaf of a table name and row axis, by position; and the others."""
        of_tables = {
            i: (name, axis)
            for table in tables_of(tree, keys, row_axis)
            for i, name, axis in zip(
                table.leaves, table.names, table.row_axes, strict=True
            )
        }
        size = len(jax.tree.leaves(tree))
        return of_tables, [i for i in range(size) if i not in of_tables]

    def init(params: optax.Params) -> AdamOfTablesState:
        leaves, treedef = jax.tree.flatten(params)
        of_tables, others = split(params)
        state: Any = plain.init([leaves[i] for i in others])
        mus, nus = (dict(zip(others, each)) for each in (state.mu, state.nu))
        for i in of_tables:
            mus[i], nus[i] = corrected.init_mu(leaves[i]), corrected.init_nu(leaves[i])
        mu, nu = (treedef.unflatten(map(each.get, sorted(each))) for each in (mus, nus))
        return AdamOfTablesState(state.count, mu, nu, flags())

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        active_rows: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AdamOfTablesState]:
        del params
        check_extra_args(extra_args)
        _check_state(state, "sevo_adamw", of_tables=True)
        known = dict(flag for each in state.corrected for flag in each.items())
        if sorted(known) != table_names:
            raise ValueError(
                f"the state is one of the tables {sorted(known)}, the optimizer one of "
                f"{table_names}: sevo_jax.carry_over gives it their form"
            )
        leaves, treedef = jax.tree.flatten(updates)
        mus, nus = map(treedef.flatten_up_to, (state.mu, state.nu))
        check_shapes(updates, dict(enumerate(mus)), "its moments")
        of_tables, others = split(updates)
        masks = active_rows_by_leaf(updates, active_rows, corrected=of_tables)
        moments = ([each[i] for i in others] for each in (mus, nus))
        update: Any = plain.update
        directions, after = update(
            [leaves[i] for i in others], optax.ScaleByAdamState(state.count, *moments)
        )
        for i, *results in zip(others, directions, after.mu, after.nu, strict=True):
            leaves[i], mus[i], nus[i] = results
        for i, (name, axis) in of_tables.items():
            leaves[i], mus[i], nus[i] = corrected.step(
                after.count, leaves[i], mus[i], nus[i], masks[i], axis, known[name]
            )
        direction, mu, nu = map(treedef.unflatten, (leaves, mus, nus))
        return direction, AdamOfTablesState(after.count, mu, nu, flags())

    return optax.GradientTransformationExtraArgs(init, update)


def _check_state(state: Any, name: str, *, of_tables: bool) -> None:
    """Refuses a state of other moments, which may have the same fields."""
    flags = getattr(state, "corrected", None)
    if flags is None or isinstance(flags, tuple | list) != of_tables:
        raise ValueError(
            f"the state is {type(state).__name__}, not one of {name}: "
            "sevo_jax.carry_over makes it one if it is of optax.scale_by_adam in a "
            "chain like this one; else begin with init"
        )


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
            dtype = getattr(decay, "dtype", None)
            if dtype is not None and dtype.itemsize < 4:
                # In bfloat16 0.999 is 1.
                raise ValueError(
                    f"{name} is {dtype}, which is not exact enough for a decay: give "
                    "optax.inject_hyperparams hyperparam_dtype=jnp.float32"
                )
            if not isinstance(decay, Tracer) and not 0.0 <= float(decay) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {decay}")

    def init_mu(self, leaf: Any) -> jax.Array:
        return jnp.zeros_like(leaf, dtype=self.mu_dtype or wide(leaf))

    def init_nu(self, leaf: Any) -> jax.Array:
        return jnp.zeros_like(leaf, dtype=_real(wide(leaf)))

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
        given, grad = jnp.asarray(grad), widened(grad)
        active = _active(grad, mask, row_axis)

        def moment(old: jax.Array, new: jax.Array, decay: Any) -> jax.Array:
            dtype = _real(new.dtype)
            keep, add = (
                weight.astype(new.dtype)
                for weight in _running_mean_weights(decay, count, dtype)
            )
            old = old.astype(new.dtype)
            unbias = jnp.ones([], new.dtype)
            if corrected is not None:
                before = jnp.maximum(count - 1, 1)
                unbias = _running_mean_weights(decay, before, dtype)[1] / (1 - decay)
                unbias = jnp.where(corrected == 0, unbias, 1).astype(new.dtype)
            # The scalars first: it is rounded as if there were nothing to correct.
            return jnp.where(active, (keep * unbias) * old + add * new, unbias * old)

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
