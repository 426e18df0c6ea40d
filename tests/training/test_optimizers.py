import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sevo_jax as sevo
from sevo_jax.training import OptimizerConfig, make_optimizer, optimizer_names

CONFIG = OptimizerConfig(
    learning_rate=0.02,
    weight_decay=0.05,
    b1=0.8,
    b2=0.95,
    momentum=0.7,
    beta=0.6,
    num_layers=2,
    approximation="iterative",
    moment_correction=False,
)


def config(name, **changes):
    return OptimizerConfig(**{**vars(CONFIG), "name": name, **changes})


@pytest.fixture(scope="module")
def graphs() -> Any:
    adjacency = sevo.graphs.cooccurrence([[0, 1, 2], [1, 3]], num_items=5)
    return {"table": sevo.prepare(adjacency)}


def steps(optimizer, **extra) -> Any:
    """Parameters after three steps on fixed gradients, some rows idle."""
    rng = np.random.default_rng(0)
    params = {
        "table": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32),
        "bias": jnp.ones(3),
    }
    state = optimizer.init(params)
    for step in range(3):
        gradients = jax.tree.map(
            lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params
        )
        gradients["table"] = gradients["table"].at[step].set(0.0)
        updates, state = optimizer.update(gradients, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_ours_get_all_that_their_signatures_have(graphs):
    smoothing: Any = dict(
        beta=0.6, num_layers=2, approximation="iterative", rescale=True
    )
    moments: Any = dict(b1=0.8, b2=0.95)
    decay: Any = dict(weight_decay=0.05)
    expected = {
        "sevo_adamw": sevo.sevo_adamw(
            0.02, graphs, **moments, **decay, **smoothing, moment_correction=False
        ),
        "sevo_adam": sevo.sevo_adam(0.02, graphs, **moments, **decay, **smoothing),
        "sevo_sgd": sevo.sevo_sgd(0.02, graphs, 0.7, **decay, **smoothing),
    }
    for name, optimizer in expected.items():
        assert_same(steps(make_optimizer(config(name), graphs)), steps(optimizer))


def test_those_of_optax_get_what_they_share_with_all(graphs):
    expected = {
        "adamw": optax.adamw(0.02, b1=0.8, b2=0.95, weight_decay=0.05),
        "adam": optax.adam(0.02, b1=0.8, b2=0.95),
        "sgd": optax.sgd(0.02, momentum=0.7),
        "lion": optax.lion(0.02, b1=0.8, b2=0.95, weight_decay=0.05),
    }
    for name, optimizer in expected.items():
        assert_same(steps(make_optimizer(config(name), graphs)), steps(optimizer))


def test_smoothing_strength_is_not_taken_for_a_momentum(graphs):
    # Of muon, `beta` is the decay of the momentum.
    assert "beta" in inspect.signature(optax.contrib.muon).parameters
    assert_same(
        steps(make_optimizer(config("muon", beta=0.1), graphs)),
        steps(make_optimizer(config("muon", beta=0.9), graphs)),
    )


def test_no_momentum_leaves_an_optimizer_its_default(graphs):
    assert_same(
        steps(make_optimizer(config("sm3", momentum=None), graphs)),
        steps(optax.sm3(0.02)),
    )


@pytest.mark.parametrize("name", ["sevo_adamw", "sevo_adam", "sevo_sgd", "adamw"])
def test_graphs_may_be_given_with_each_update(graphs, name):
    optimizer = make_optimizer(config(name), graphs)
    other = sevo.prepare(sevo.graphs.cooccurrence([[3, 4, 0]], num_items=5))
    plain, swapped = steps(optimizer), steps(optimizer, graphs={"table": other})
    changed = bool(jnp.any(plain["table"] != swapped["table"]))
    assert changed == name.startswith("sevo")
    np.testing.assert_array_equal(plain["bias"], swapped["bias"])


def test_an_unknown_name_lists_the_like_ones(graphs):
    with pytest.raises(ValueError, match="'adamww': .* adamw"):
        make_optimizer(config("adamww"), graphs)


def test_one_that_needs_more_than_gradients_is_refused(graphs):
    with pytest.raises(ValueError, match="'lbfgs' needs more for an update"):
        make_optimizer(config("lbfgs"), graphs)


def test_names_are_all_of_ours_and_the_usable_ones_of_optax():
    names = optimizer_names()
    assert names[:3] == ["sevo_adamw", "sevo_adam", "sevo_sgd"]
    assert {"adam", "adamw", "sgd", "lion", "muon", "rmsprop"} <= set(names)
    # They need more arguments, or evaluate other parameters than they train.
    assert not {"dpsgd", "schedule_free_adamw", "adam_like"} & set(names)
