"""The compiled part of training: an epoch is one scan over its batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int


class TrainState(NamedTuple):
    """What an epoch changes.

    Attributes:
      params: parameters of the model, an `nnx.State`.
      opt_state: state of the optimizer.
    """

    params: Any
    opt_state: Any


def _train_epoch(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformationExtraArgs,
    state: TrainState,
    batches: Any,
    graphs: Any,
    seed: Int[Array, ""],
    epoch: Int[Array, ""],
) -> tuple[TrainState, Float[Array, " steps"]]:
    """Trains over all batches of an epoch.

    Args:
      graphdef: of the model, which has a method `loss(batch, rng=key)`. Static.
      optimizer: static; made once a run, as every new one is compiled anew.
      state: donated.
      batches: a pytree, each leaf `[steps, ...]`.
      graphs: passed on to the optimizer's `update`. An argument, for a graph that is
        closed over is copied into the program.
      seed: seed of the run.
      epoch: number of the epoch.

    Returns:
      The new state and the loss of each step.
    """

    def step(state: TrainState, batch: tuple[Any, jax.Array]):
        batch, index = batch
        rng = step_key(seed, epoch, index)

        def loss_of(params: nnx.State):
            return nnx.merge(graphdef, params).loss(batch, rng=rng)

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        updates, opt_state = optimizer.update(
            gradients, state.opt_state, state.params, graphs=graphs
        )
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state), loss

    num_steps = jax.tree.leaves(batches)[0].shape[0]
    return jax.lax.scan(step, state, (batches, jnp.arange(num_steps)))


train_epoch = jax.jit(
    _train_epoch,
    static_argnames=("graphdef", "optimizer"),
    donate_argnames=("state",),
)


@partial(
    jax.jit, static_argnames=("graphdef", "optimizer"), donate_argnames=("states",)
)
def train_epoch_together(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformationExtraArgs,
    states: Sequence[TrainState],
    batches: Sequence[Any],
    graphs: Any,
    seeds: Int[Array, " runs"],
    epoch: Int[Array, ""],
) -> tuple[list[TrainState], Float[Array, "runs steps"]]:
    """Trains an epoch of several runs at once, by `vmap`: `train_epoch` of each.

    Args:
      graphdef: as in `train_epoch`.
      optimizer: as in `train_epoch`.
      states: one of each run; donated.
      batches: those of each run, of the same shapes.
      graphs: as in `train_epoch`, the same for all.
      seeds: of each run.
      epoch: number of the epoch.

    Returns:
      The new states and the losses of each step.
    """

    def one(state: TrainState, batches: Any, seed: jax.Array):
        return _train_epoch(graphdef, optimizer, state, batches, graphs, seed, epoch)

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
