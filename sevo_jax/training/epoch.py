"""The compiled part of training: an epoch is one scan over its batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int

from sevo_jax.models import GraphVariable
from sevo_jax.training.rows import Rows


class TrainState(NamedTuple):
    """What an epoch changes; all that is checkpointed of it.

    Attributes:
      params: parameters of the model, an `nnx.State`.
      carried: its other variables (batch statistics, masks), an `nnx.State`.
      opt_state: state of the optimizer.
    """

    params: Any
    carried: Any
    opt_state: Any


class Program(NamedTuple):
    """The static part of an epoch. A new one is compiled anew: make one a trainer.

    Attributes:
      graphdef: of the model.
      update: of the optimizer, `(gradients, opt_state, params, graphs=)`.
      rows: which tables are split by their rows.
    """

    graphdef: nnx.GraphDef
    update: Any
    rows: Rows


class Graphs(NamedTuple):
    """Graphs, arguments of an epoch: what it closes over is copied into the program.

    Attributes:
      smoothing: passed on to the optimizer's `update`.
      model: those that the model propagates over, an `nnx.State`.
    """

    smoothing: Any
    model: Any


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, Any, nnx.State]:
    """Takes a model apart: structure, parameters, graphs and carried variables."""
    graphdef, params, graphs, carried = nnx.split(model, nnx.Param, GraphVariable, ...)
    return graphdef, params, graphs, carried


def _train_epoch(
    program: Program,
    state: TrainState,
    batches: Any,
    graphs: Graphs,
    seed: Int[Array, ""],
    epoch: Int[Array, ""],
) -> tuple[TrainState, dict[str, Float[Array, " steps"]]]:
    """Trains over all batches of an epoch.

    Args:
      program: static.
      state: donated.
      batches: a pytree, each leaf `[steps, ...]`.
      graphs: of the optimizer and of the model.
      seed: seed of the run.
      epoch: number of the epoch.

    Returns:
      The new state, and `"loss"` and its parts at each step, by name.
    """

    def step(state: TrainState, batch: tuple[Any, jax.Array]):
        batch, index = batch
        rng = step_key(seed, epoch, index)
        state = program.rows.keep(state)

        def model_at(params: nnx.State, carried: nnx.State) -> Any:
            # Made anew: NNX lets no variable from outside a trace be changed in it.
            params, carried = jax.tree.map(lambda leaf: leaf, (params, carried))
            params = program.rows.cut(params)
            return nnx.merge(program.graphdef, params, graphs.model, carried)

        model = model_at(state.params, state.carried)
        model.before_step()
        _, params, _, before = split_model(model)
        params = program.rows.fill(params)

        def loss_of(params: nnx.State):
            model = model_at(params, before)
            with program.rows.told():
                loss, parts = with_parts(model.loss(batch, rng=rng))
            return loss, (parts, split_model(model)[3])

        (loss, (parts, carried)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            params
        )
        updates, opt_state = program.update(
            gradients, state.opt_state, params, graphs=graphs.smoothing
        )
        params = optax.apply_updates(params, updates)
        return TrainState(params, carried, opt_state), {"loss": loss, **parts}

    num_steps = jax.tree.leaves(batches)[0].shape[0]
    return jax.lax.scan(step, state, (batches, jnp.arange(num_steps)))


def with_parts(loss: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What a model's `loss` returned, as the loss and its parts by name."""
    if not isinstance(loss, tuple):
        return loss, {}
    value, parts = loss
    if "loss" in parts:
        raise ValueError("a part of the loss is called 'loss', as the whole is")
    return value, dict(parts)


train_epoch = jax.jit(
    _train_epoch,
    static_argnames=("program",),
    donate_argnames=("state",),
)


@partial(jax.jit, static_argnames=("program",), donate_argnames=("states",))
def train_epoch_together(
    program: Program,
    states: Sequence[TrainState],
    batches: Sequence[Any],
    graphs: Graphs,
    seeds: Int[Array, " runs"],
    epoch: Int[Array, ""],
) -> tuple[list[TrainState], dict[str, Float[Array, "runs steps"]]]:
    """Trains an epoch of several runs at once, by `vmap`: `train_epoch` of each.

    Args:
      program: as in `train_epoch`.
      states: one of each run; donated.
      batches: those of each run, of the same shapes.
      graphs: as in `train_epoch`, the same for all.
      seeds: of each run.
      epoch: number of the epoch.

    Returns:
      The new states, and the loss and its parts at each step, by name.
    """

    def one(state: TrainState, batches: Any, seed: jax.Array):
        return _train_epoch(program, state, batches, graphs, seed, epoch)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    stacked, losses = jax.vmap(one)(stacked, batch, seeds)
    unstacked = [jax.tree.map(lambda x: x[i], stacked) for i in range(len(states))]
    return unstacked, losses


def step_key(
    seed: Int[ArrayLike, ""], epoch: Int[ArrayLike, ""], step: Int[ArrayLike, ""]
) -> jax.Array:
    """The key of a step's dropout.

    It depends on these three numbers alone, so that an epoch has the same result
    whether the run reached it or resumed at it.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), epoch), step)


def same_shapes(drawn: Sequence[Any]) -> Sequence[Any]:
    """Batches of several runs, filled up with zeros where one needed more room."""

    def fill(*leaves: Any) -> list[Any]:
        shape = np.max([leaf.shape for leaf in leaves], axis=0)
        return [
            leaf
            if leaf.shape == tuple(shape)
            else np.pad(leaf, [(0, more) for more in shape - leaf.shape])
            for leaf in leaves
        ]

    filled = jax.tree.map(fill, *drawn)
    treedef = jax.tree.structure(drawn[0])
    return jax.tree.transpose(treedef, None, filled)
