from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import sevo_jax as sevo
from sevo_jax.models import Recommender
from sevo_jax.training.epoch import (
    Graphs,
    Program,
    TrainState,
    split_model,
    step_key,
    train_epoch,
)
from sevo_jax.training.mesh import make_mesh
from sevo_jax.training.rows import Rows


class Model(nnx.Module):
    """Does nothing ahead of a step, as most recommenders."""

    before_step = Recommender.before_step


class Regression(Model):
    """Fits rows of a table to targets; the key adds noise to the targets."""

    def __init__(self):
        self.table = nnx.Param(jnp.linspace(-1.0, 1.0, 12).reshape(4, 3))

    def loss(self, batch, *, rng):
        rows, targets = batch
        noise = 0.1 * jax.random.normal(rng, targets.shape)
        return jnp.mean(jnp.square(self.table[...][rows] - targets - noise))


class Bounded(Regression):
    """Keeps its table in bounds, and counts how often."""

    def __init__(self):
        super().__init__()
        self.count = nnx.BatchStat(jnp.zeros([], jnp.int32))

    def before_step(self):
        self.count[...] += 1
        self.table[...] = jnp.clip(self.table[...], -0.3, 0.3)


class Noise(Model):
    """Its loss is the random number of the step."""

    def __init__(self):
        self.unused = nnx.Param(jnp.zeros(1))

    def loss(self, batch, *, rng):
        return jax.random.uniform(rng) + 0 * jnp.sum(self.unused[...])


def num_programs():
    return train_epoch._cache_size()  # pyright: ignore


def start(model, optimizer) -> tuple[Program, TrainState]:
    graphdef, params, _, carried = split_model(model)
    state = TrainState(params, carried, optimizer.init(params))
    rows = Rows(make_mesh(), (), ())
    return Program(graphdef, optimizer.update, rows), state


def over(smoothing) -> Graphs:
    return Graphs(smoothing, nnx.State({}))


def batches(num_steps):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 3, size=(num_steps, 5))  # Row 3 is idle throughout.
    return rows, rng.normal(size=(num_steps, 5, 3)).astype(np.float32)


def graph_of(*sequences) -> Any:
    return {"table": sevo.prepare(sevo.graphs.cooccurrence(sequences, num_items=4))}


def test_an_epoch_is_its_steps_one_after_the_other():
    graphs = graph_of([0, 1, 2, 3])
    optimizer = sevo.sevo_adamw(0.1, graphs, weight_decay=0.1)
    program, state = start(Regression(), optimizer)
    rows, targets = batches(num_steps=4)

    params: Any = nnx.split(Regression())[1]
    opt_state = optimizer.init(params)
    expected_losses = []
    for step in range(4):
        key = step_key(7, 2, step)
        batch = rows[step], targets[step]
        loss, gradients = jax.value_and_grad(
            lambda p, rng: nnx.merge(program.graphdef, p).loss(batch, rng=rng)
        )(params, key)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        expected_losses.append(float(loss))

    state, losses = train_epoch(
        program, state, (rows, targets), over(graphs), np.uint32(7), np.int32(2)
    )
    np.testing.assert_allclose(losses["loss"], expected_losses, rtol=1e-5)
    np.testing.assert_allclose(
        state.params["table"][...], params["table"][...], rtol=1e-5, atol=1e-6
    )


def test_what_changes_ahead_of_a_step_is_outside_its_gradient():
    optimizer = optax.with_extra_args_support(optax.sgd(0.5))
    program, state = start(Bounded(), optimizer)
    rows, targets = batches(num_steps=3)
    table = np.asarray(state.params["table"][...])
    assert np.abs(table).max() > 0.3
    for step in range(3):
        bounded = np.clip(table, -0.3, 0.3)
        noise = 0.1 * jax.random.normal(step_key(7, 2, step), (5, 3))
        slope = 2 / 15 * (bounded[rows[step]] - targets[step] - noise)
        table = bounded.copy()
        np.subtract.at(table, rows[step], 0.5 * slope)
    state, _ = train_epoch(
        program, state, (rows, targets), over({}), np.uint32(7), np.int32(2)
    )
    np.testing.assert_allclose(state.params["table"][...], table, rtol=1e-5, atol=1e-6)
    assert state.carried["count"][...] == 3


def test_randomness_depends_on_seed_epoch_and_step_alone():
    optimizer = optax.with_extra_args_support(optax.sgd(0.1))

    def losses(seed, epoch, num_steps):
        program, state = start(Noise(), optimizer)
        arguments = np.zeros(num_steps), over({}), np.uint32(seed), np.int32(epoch)
        return train_epoch(program, state, *arguments)[1]["loss"].tolist()

    assert losses(0, 0, 3) == losses(0, 0, 5)[:3]
    draws = losses(0, 0, 5) + losses(0, 1, 5) + losses(1, 0, 5)
    assert len(set(draws)) == 15


def test_graphs_are_arguments_of_one_program():
    optimizer = sevo.sevo_sgd(0.1, graph_of([0, 1, 2, 3]))
    before = num_programs()
    tables = []
    state: Any = None
    for graphs in (graph_of([0, 1, 2, 3]), graph_of([3, 1, 0, 2])):
        for epoch in range(2):
            program, state = start(Regression(), optimizer)
            arguments = batches(2), over(graphs), np.uint32(0), np.int32(epoch)
            state, _ = train_epoch(program, state, *arguments)
        tables.append(np.asarray(state.params["table"][...]))
    assert num_programs() == before + 1
    assert np.abs(tables[0] - tables[1]).max() > 1e-3


def test_the_state_is_given_up():
    optimizer = optax.with_extra_args_support(optax.adam(0.1))
    program, state = start(Regression(), optimizer)
    arguments = batches(2), over({}), np.uint32(0), np.int32(0)
    train_epoch(program, state, *arguments)
    assert state.params["table"][...].is_deleted()
