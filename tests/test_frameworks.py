"""The same training problem in Flax NNX, Linen, Equinox and plain dicts."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
from flax import nnx
from flax.training.train_state import TrainState

import sevo_jax as sevo

NUM_ITEMS, WIDTH, NUM_OUTPUTS, NUM_STEPS = 12, 4, 3, 8


def _start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "table": rng.normal(size=(NUM_ITEMS, WIDTH)).astype(np.float32),
        "kernel": rng.normal(size=(WIDTH, NUM_OUTPUTS)).astype(np.float32),
        "bias": rng.normal(size=NUM_OUTPUTS).astype(np.float32),
    }


def _batches() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(1)
    items = rng.integers(0, NUM_ITEMS, (NUM_STEPS, 5))
    targets = rng.normal(size=(NUM_STEPS, 5, NUM_OUTPUTS))
    return jnp.asarray(items), jnp.asarray(targets, jnp.float32)


def _adjacency() -> scipy.sparse.csr_array:
    ring = scipy.sparse.diags_array([1.0] * (NUM_ITEMS - 1), offsets=1)
    ring = ring + scipy.sparse.csr_array(
        ([2.0], ([0], [NUM_ITEMS - 1])), shape=ring.shape
    )
    return scipy.sparse.csr_array(ring + ring.T)


START, BATCHES = _start(), _batches()
NAMES: Any = {"item_embedding": _adjacency()}
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adamw": lambda graphs: sevo.sevo_adamw(0.05, graphs, weight_decay=0.1),
    "adam": lambda graphs: sevo.sevo_adam(0.05, graphs, weight_decay=0.1),
    "sgd": lambda graphs: sevo.sevo_sgd(0.05, graphs, momentum=0.9, nesterov=True),
    "wrapped": lambda graphs: optax.apply_if_finite(
        optax.inject_hyperparams(sevo.sevo_adamw, static_args=("num_layers", "every"))(
            0.05, graphs
        ),
        max_consecutive_errors=2,
    ),
}


def mean_squared_error(predictions, targets):
    return jnp.mean(jnp.square(predictions - targets))


# Each trainer returns the table and the kernel [WIDTH, NUM_OUTPUTS] after every step.


def train_dict(tx):
    params = {
        "item_embedding": jnp.asarray(START["table"]),
        "output": {
            "kernel": jnp.asarray(START["kernel"]),
            "bias": jnp.asarray(START["bias"]),
        },
    }

    def loss(params, items, targets):
        hidden = params["item_embedding"][items]
        outputs = hidden @ params["output"]["kernel"] + params["output"]["bias"]
        return mean_squared_error(outputs, targets)

    @jax.jit
    def step(params, state, items, targets):
        grads = jax.grad(loss)(params, items, targets)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, trajectory = tx.init(params), []
    for items, targets in zip(*BATCHES, strict=True):
        params, state = step(params, state, items, targets)
        trajectory.append((params["item_embedding"], params["output"]["kernel"]))
    return trajectory


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.item_embedding = nnx.Embed(NUM_ITEMS, WIDTH, rngs=rngs)
        self.output = nnx.Linear(WIDTH, NUM_OUTPUTS, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.item_embedding.embedding[...] = jnp.asarray(START["table"])
        self.output.kernel[...] = jnp.asarray(START["kernel"])
        assert self.output.bias is not None
        self.output.bias[...] = jnp.asarray(START["bias"])

    def __call__(self, items):
        self.calls[...] += 1
        return self.output(self.item_embedding(items))


def train_nnx(tx, **extra_args):
    model = NnxModel(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, items, targets, extra_args):
        grads = nnx.grad(lambda model: mean_squared_error(model(items), targets))(model)
        optimizer.update(model, grads, **extra_args)

    trajectory = []
    for items, targets in zip(*BATCHES, strict=True):
        step(model, optimizer, items, targets, extra_args)
        trajectory.append(
            (model.item_embedding.embedding[...], model.output.kernel[...])
        )
    assert int(model.calls[...]) == NUM_STEPS
    return trajectory


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, items):
        hidden = nn.Embed(NUM_ITEMS, WIDTH, name="item_embedding")(items)
        return nn.Dense(NUM_OUTPUTS, name="output")(hidden)


def train_linen(tx):
    model = LinenModel()
    params = {
        "item_embedding": {"embedding": jnp.asarray(START["table"])},
        "output": {
            "kernel": jnp.asarray(START["kernel"]),
            "bias": jnp.asarray(START["bias"]),
        },
    }
    shapes = jax.eval_shape(model.init, jax.random.key(0), BATCHES[0][0])["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, shapes)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    @jax.jit
    def step(state, items, targets):
        def loss(params):
            return mean_squared_error(
                state.apply_fn({"params": params}, items), targets
            )

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    trajectory = []
    for items, targets in zip(*BATCHES, strict=True):
        state = step(state, items, targets)
        trajectory.append(
            (
                state.params["item_embedding"]["embedding"],
                state.params["output"]["kernel"],
            )
        )
    return trajectory


class EquinoxModel(eqx.Module):
    item_embedding: eqx.nn.Embedding
    output: eqx.nn.Linear
    activation: Callable[[jax.Array], jax.Array] = jax.nn.identity
    name: str = "a leaf that is no array"

    def __call__(self, item):
        return self.activation(self.output(self.item_embedding(item)))


def _equinox_model():
    model = EquinoxModel(
        eqx.nn.Embedding(weight=jnp.asarray(START["table"])),
        eqx.nn.Linear(WIDTH, NUM_OUTPUTS, key=jax.random.key(0)),
    )
    return eqx.tree_at(
        lambda m: (m.output.weight, m.output.bias),
        model,
        (jnp.asarray(START["kernel"].T), jnp.asarray(START["bias"])),
    )


def _equinox_loss(model, items, targets):
    return mean_squared_error(jax.vmap(model)(items), targets)


def train_equinox(tx):
    model = _equinox_model()
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, items, targets):
        grads = eqx.filter_grad(_equinox_loss)(model, items, targets)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(model, updates), state

    trajectory = []
    for items, targets in zip(*BATCHES, strict=True):
        model, state = step(model, state, items, targets)
        trajectory.append((model.item_embedding.weight, model.output.weight.T))
    return trajectory


def train_equinox_partition(tx):
    params, static = eqx.partition(_equinox_model(), eqx.is_inexact_array)

    @jax.jit
    def step(params, state, items, targets):
        grads = jax.grad(
            lambda params: _equinox_loss(eqx.combine(params, static), items, targets)
        )(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, trajectory = tx.init(params), []
    for items, targets in zip(*BATCHES, strict=True):
        params, state = step(params, state, items, targets)
        trajectory.append((params.item_embedding.weight, params.output.weight.T))
    return trajectory


TRAINERS = {
    "nnx": train_nnx,
    "linen": train_linen,
    "equinox": train_equinox,
    "equinox_partition": train_equinox_partition,
}


@functools.cache
def trajectory_of_dict(optimizer):
    return train_dict(OPTIMIZERS[optimizer](NAMES))


def assert_same_trajectory(actual, expected):
    assert len(actual) == len(expected) == NUM_STEPS
    for pair, wanted in zip(actual, expected, strict=True):
        for leaf, wanted_leaf in zip(pair, wanted, strict=True):
            np.testing.assert_allclose(leaf, wanted_leaf, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_plain_dict_trains_and_smooths(optimizer):
    trajectory = trajectory_of_dict(optimizer)
    first = np.abs(trajectory[0][0] - START["table"]).min(axis=1)
    # Five draws reach at most five rows; smoothing carries the first step to others.
    assert (first > 1e-4).sum() > 5
    assert np.abs(trajectory[-1][0] - START["table"]).max() > 0.05


@pytest.mark.parametrize("framework", TRAINERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_trajectory_is_that_of_the_plain_dict(framework, optimizer):
    trajectory = TRAINERS[framework](OPTIMIZERS[optimizer](NAMES))
    assert_same_trajectory(trajectory, trajectory_of_dict(optimizer))


def test_nnx_optimizer_passes_graphs_and_active_rows_on():
    graphs = {name: sevo.prepare(graph) for name, graph in NAMES.items()}
    empty = scipy.sparse.eye_array(NUM_ITEMS, format="csr")
    tx = OPTIMIZERS["adamw"]({"item_embedding": empty})
    trajectory = train_nnx(tx, graphs=graphs)
    assert_same_trajectory(trajectory, trajectory_of_dict("adamw"))
    active = {"item_embedding": jnp.zeros(NUM_ITEMS, bool)}
    idle = train_nnx(sevo.sevo_adamw(0.05, NAMES, weight_decay=0.0), active_rows=active)
    np.testing.assert_array_equal(idle[-1][0], START["table"])


def test_nnx_optimizer_state_holds_no_graph():
    model = NnxModel(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, OPTIMIZERS["adamw"](NAMES), wrt=nnx.Param)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    counts = sum(
        leaf.size for leaf in jax.tree.leaves(nnx.state(optimizer)) if leaf.ndim == 0
    )
    total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(optimizer)))
    assert total == 2 * num_params + counts


@pytest.mark.parametrize(
    "name",
    ["item_embedding", "item_embedding/embedding", "encoder/item_embedding"],
)
def test_names_resolve_in_a_nested_nnx_model(name):
    class Outer(nnx.Module):
        def __init__(self, rngs):
            self.encoder = NnxModel(rngs)
            self.old_item_embedding = nnx.Embed(7, WIDTH, rngs=rngs)

    model = Outer(nnx.Rngs(0))
    tx: Any = sevo.scale_by_sevo({name: NAMES["item_embedding"]})
    params: Any = nnx.state(model, nnx.Param)
    updates, _ = tx.update(params, tx.init(params))
    before, after = (
        tree["encoder"]["item_embedding"]["embedding"][...]
        for tree in (params, updates)
    )
    expected = sevo.smoothing.neumann(NAMES["item_embedding"], before, 0.99, 3)
    np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(
        updates["old_item_embedding"]["embedding"][...],
        params["old_item_embedding"]["embedding"][...],
    )


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_an_ensemble_of_nnx_models_trains_as_its_members_do(name):
    """`nnx.vmap` stacks parameters: tables are [models, n, d]."""
    num_models = 3

    @nnx.split_rngs(splits=num_models)
    @nnx.vmap(in_axes=0, out_axes=0)
    def ensemble(rngs):
        return nnx.Embed(NUM_ITEMS, WIDTH, rngs=rngs)

    class Model(nnx.Module):
        def __init__(self):
            self.item_embedding = ensemble(nnx.Rngs(0))

    model, tx = Model(), OPTIMIZERS[name](NAMES)
    start = model.item_embedding.embedding[...]
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    gradients = np.random.default_rng(3).normal(size=(4, *start.shape))
    # Half of the rows idle, others in each model.
    gradients *= np.random.default_rng(4).random((4, *start.shape[:2], 1)) < 0.5
    gradients = jnp.asarray(gradients, jnp.float32)
    for each in gradients:
        state = nnx.state(model, nnx.Param)
        optimizer.update(model, jax.tree.map(lambda _, each=each: each, state))
    for i in range(num_models):
        params: Any = {"item_embedding": start[i]}
        state = tx.init(params)
        for each in gradients:
            updates, state = tx.update({"item_embedding": each[i]}, state, params)
            params = optax.apply_updates(params, updates)
        actual = model.item_embedding.embedding[...][i]
        np.testing.assert_allclose(
            actual, params["item_embedding"], rtol=1e-5, atol=1e-6
        )


def test_transposed_tables_of_each_framework():
    """An output layer over the items: [d, n] in Flax, [n, d] in Equinox."""
    graph: Any = {"output": NAMES["item_embedding"]}
    table = START["table"]
    expected = sevo.smoothing.neumann(
        NAMES["item_embedding"], jnp.asarray(table), 0.99, 3
    )
    linear = nnx.Linear(WIDTH, NUM_ITEMS, use_bias=False, rngs=nnx.Rngs(0))
    linear.kernel[...] = jnp.asarray(table.T)
    flax_updates = {"output": nnx.state(linear, nnx.Param)}
    layer = eqx.nn.Linear(WIDTH, NUM_ITEMS, use_bias=False, key=jax.random.key(0))
    layer = eqx.tree_at(lambda m: m.weight, layer, jnp.asarray(table))
    equinox_updates = {"output": eqx.filter(layer, eqx.is_inexact_array)}

    tx: Any = sevo.scale_by_sevo(graph, row_axis=1)
    smoothed, _ = tx.update(flax_updates, tx.init(flax_updates))
    result = smoothed["output"]["kernel"][...]
    np.testing.assert_allclose(result.T, expected, rtol=1e-6, atol=1e-6)
    tx = sevo.scale_by_sevo(graph)
    smoothed, _ = tx.update(equinox_updates, tx.init(equinox_updates))
    np.testing.assert_allclose(
        smoothed["output"].weight, expected, rtol=1e-6, atol=1e-6
    )


def test_a_bias_beside_the_named_table_needs_a_longer_name():
    """A layer with a bias: its name alone would also mean the bias."""
    params = {"output": {"kernel": jnp.ones((WIDTH, NUM_ITEMS)), "bias": jnp.ones(3)}}
    graph = NAMES["item_embedding"]
    with pytest.raises(ValueError, match=r"output/bias has shape \(3,\)"):
        sevo.scale_by_sevo({"output": graph}).init(params)
    sevo.scale_by_sevo({"output/kernel": graph}, row_axis=1).init(params)
