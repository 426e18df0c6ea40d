"""SEvo as an Optax gradient transformation."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sevo_jax import smoothing
from sevo_jax._checks import check_extra_args
from sevo_jax._leaves import (
    Graphs,
    RowAxis,
    check_row_axis,
    check_shapes,
    check_taken,
    find_tables,
    prepare_graphs,
    replace_graphs,
)
from sevo_jax._tables import wide, widened
from sevo_jax.operators import GraphOperator
from sevo_jax.smoothing import check_beta, check_every, check_num_layers

Approximation = Literal["neumann", "iterative"]


class ScaleBySevoState(NamedTuple):
    """State of :func:`scale_by_sevo`.

    Attributes:
      step: number of updates so far, int32 scalar; the time of a ``beta`` schedule.
        It does not pass the largest one, but stays within a window of it.
      pending: with ``every`` above 1, what has acted in place and has not gone to the
        neighbours yet: a tree like the updates, :class:`optax.MaskedNode` in place of
        what no graph names. Empty otherwise.
    """

    step: jax.typing.ArrayLike
    pending: optax.Updates = ()

    # Not a field, or optax.tree.get would find two in an Adam's state. Without it
    # there would be the method of tuples.
    @property
    def count(self) -> jax.typing.ArrayLike:
        """The same as ``step``."""
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
      every: propagate once in so many updates :math:`k`; static. See below.
      row_axis: 1 for tables that are stored as ``[..., d, n]``; by default 0. A
        mapping from leaf names sets it for some of them: ``{"output/kernel": 1}``.

    Returns:
      A transformation. Its ``update`` takes ``graphs=``, keyword-only: graphs with the
      same names that replace the bound ones for this call. Prepared with
      :func:`sevo_jax.prepare` and passed as arguments of the jitted step, they stay
      out of the compiled program, and may differ from step to step. With more nodes
      than before, give parameters and state the new rows first:
      :func:`sevo_jax.carry_over`. It also takes ``flush=``, a boolean that may be
      traced: whether to propagate what is pending in this update already. What is
      active (``active_rows=``) a transformation before this one must take.

    Raises:
      ValueError, TypeError: at once for a bad graph, ``beta``, ``num_layers`` or
        ``every``; from ``init`` and ``update`` if a name matches no leaf or a table
        does not fit, or only one of the state's ``every`` and this one is 1 (from one
        window to another, what is pending stays so); from ``update`` if nothing takes
        ``active_rows``.

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

    **Propagation once in k updates.** The series is linear. Its local term
    (:math:`l = 0`, the factor :math:`c` of the identity, 0.254 by default) acts in each
    update, and what goes to neighbours is summed and propagated in each
    :math:`k`-th: over a window the updates have the same sum as with ``every=1``, and
    so the properties of Theorem 1, for :math:`1 / k` of the sparse products and one
    more array the size of each table. What changes within a window is the gradient,
    which does not see the neighbours' part yet. If its Lipschitz constant is
    :math:`C`, a quadratic loss decreases over each window of gradient steps of size
    :math:`\eta`

    * whose Hessian commutes with :math:`\tilde A` (rows curved alike) if and only if
      :math:`1 - (1 - \eta c C)^k < 2 c`. For this :math:`k \eta C < 2` is enough, as
      for one step of :math:`k \eta`; with :math:`\eta = 1 / C` of Theorem 2 and the
      default :math:`c` it allows two updates, with :math:`1 / (4 C)` ten.
    * of any Hessian if :math:`\frac{1}{2} k \eta C (1 + \rho)^2 + \rho < 1`, where
      :math:`\rho = \frac{1}{2} (k - 1) \eta c C \sqrt{(1 + \beta) / (1 - \beta)}`
      bounds how far the gradients of a window are from its first, measured in
      :math:`\hat\psi`.

    A learning rate behind it acts on the neighbours' part at the time of the
    propagation, and so does a schedule of ``beta``. The end of a training needs no
    ``flush``: fewer than :math:`k` updates of the neighbours' part are missing. Under
    ``vmap`` over several runs the branch stays a branch, taken if any run needs it.

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

    def local(strength: Any, dtype: Any) -> Any:
        """The factor of the term that stays in place."""
        if not isinstance(strength, float | int):
            strength = jnp.asarray(strength, dtype)
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
        flush: Any = False,
        active_rows: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleBySevoState]:
        del params
        check_extra_args(extra_args)
        check_taken(active_rows)
        if not hasattr(state, "pending"):
            raise ValueError(
                f"the state is {type(state).__name__}, not one of scale_by_sevo: it "
                "was made by another chain, begin with init of this one"
            )
        operators = replace_graphs(bound, graphs)
        strength = beta(state.step) if callable(beta) else beta
        leaves, treedef = jax.tree.flatten(updates)
        tables = find_tables(updates, operators, row_axis)
        step = jnp.asarray(state.step)
        last = jnp.iinfo(step.dtype).max
        # What follows the largest is the number that is as far from the next window.
        step = jnp.where(step < last, step, step - every) + 1
        has_pending = not isinstance(state.pending, tuple) or bool(state.pending)
        if has_pending != (every > 1):
            raise ValueError(
                "the state has pending updates, but every is 1: propagate them in an "
                "update with flush=True; sevo_jax.carry_over then drops their place"
                if has_pending
                else f"the state has no pending updates, but every is {every}: it was "
                "made with every=1; sevo_jax.carry_over gives it their place"
            )
        if every == 1:
            for table in tables:
                graph = operators[table.key]
                rows = smooth(graph, table.stack(leaves, graph), strength)
                for i, leaf in table.unstack(rows, leaves, graph).items():
                    leaves[i] = leaf
            return treedef.unflatten(leaves), ScaleBySevoState(step)
        due = (state.step % every == every - 1) | flush
        waiting = treedef.flatten_up_to(state.pending)
        positions = [i for table in tables for i in table.leaves]
        before = {i: waiting[i] for i in positions}
        check_shapes(updates, before, "what is pending of it")
        here = {}
        for i in positions:
            x = widened(leaves[i])
            here[i] = (local(strength, x.dtype) * x).astype(leaves[i].dtype)

        def propagate(here: dict[int, Any], before: dict[int, Any]) -> dict[int, Any]:
            sums = {i: before[i].astype(wide(x)) + widened(x) for i, x in here.items()}
            here = dict(here)
            for table in tables:
                graph = operators[table.key]
                rows = table.stack(sums, graph)
                whole = smooth(graph, rows, strength)
                beyond = whole / local(strength, rows.dtype) - rows
                for i, leaf in table.unstack(beyond, here, graph).items():
                    # Of several runs under one vmap, those that are due.
                    here[i] = here[i] + jnp.where(due, leaf, 0)
            return here

        # What is pending is not changed in the branch, which would copy it, but after.
        here = jax.lax.cond(_any(due), propagate, lambda here, _: here, here, before)
        for i in positions:
            leaves[i] = here[i]
            total = waiting[i] + here[i].astype(waiting[i].dtype)
            waiting[i] = jnp.where(due, 0, total)
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
