"""Adam for a whole tree, with moments corrected where a graph names a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sevo_jax._leaves import (
    LeafName,
    RowAxis,
    active_rows_by_leaf,
    check_row_axis,
    names_in,
    tables_of,
)
from sevo_jax.transforms import CorrectedAdam, check_extra_args


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
        known = dict(flag for each in state.corrected for flag in each.items())
        if sorted(known) != table_names:
            raise ValueError(
                f"the state is one of the tables {sorted(known)}, the optimizer one of "
                f"{table_names}: sevo_jax.carry_over gives it their form"
            )
        leaves, treedef = jax.tree.flatten(updates)
        mus, nus = map(treedef.flatten_up_to, (state.mu, state.nu))
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
