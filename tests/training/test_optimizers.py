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


def steps(optimizer, count=3, **extra) -> Any:
    """Parameters after some steps on fixed gradients, some rows idle."""
    rng = np.random.default_rng(0)
    params = {
        "table": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32),
        "bias": jnp.ones(3),
    }
    state = optimizer.init(params)
    for step in range(count):
        gradients = jax.tree.map(
            lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params
        )
        gradients["table"] = gradients["table"].at[step % 5].set(0.0)
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


def test_ours_get_what_the_iterative_form_has_not(graphs):
    """Of that form a rescaling changes nothing."""
    changes: Any = dict(approximation="neumann", rescale=False, every=2)
    smoothing: Any = dict(beta=0.6, num_layers=2, **changes)
    moments: Any = dict(b1=0.8, b2=0.95, weight_decay=0.05)
    expected = {
        "sevo_adamw": sevo.sevo_adamw(
            0.02, graphs, **moments, **smoothing, moment_correction=False
        ),
        "sevo_adam": sevo.sevo_adam(0.02, graphs, **moments, **smoothing),
        "sevo_sgd": sevo.sevo_sgd(0.02, graphs, 0.7, weight_decay=0.05, **smoothing),
    }
    for name, optimizer in expected.items():
        ours = make_optimizer(config(name, **changes), graphs)
        assert_same(steps(ours), steps(optimizer))


def test_those_of_optax_get_what_they_share_with_all(graphs):
    expected = {
        "adamw": optax.adamw(0.02, b1=0.8, b2=0.95, weight_decay=0.05),
        "adam": optax.adam(0.02, b1=0.8, b2=0.95),
        "adam_l2": sevo.sevo_adam(
            0.02, graphs, b1=0.8, b2=0.95, weight_decay=0.05, num_layers=0
        ),
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


# Two steps an epoch: warm-up up to the second, the end at the sixth.
CURVE = dict(warmup=1.0, epochs=3.0)
CURVES = {
    "warm-up": (dict(warmup=1.5), lambda peak: optax.linear_schedule(0, peak, 3)),
    "linear": (
        dict(schedule="linear", epochs=2, end=0.1),
        lambda peak: optax.linear_schedule(peak, 0.1, 4),
    ),
    "linear after a warm-up": (
        dict(schedule="linear", **CURVE),
        lambda peak: optax.join_schedules(
            [optax.linear_schedule(0, peak, 2), optax.linear_schedule(peak, 0, 4)], [2]
        ),
    ),
    "cosine": (
        dict(schedule="cosine", epochs=2.5),
        lambda peak: optax.cosine_decay_schedule(peak, 5),
    ),
    "cosine after a warm-up": (
        dict(schedule="cosine", end=0.01, **CURVE),
        lambda peak: optax.warmup_cosine_decay_schedule(0, peak, 2, 6, 0.01),
    ),
    "both ends in one step": (
        dict(schedule="cosine", warmup=1.0, epochs=1.2),
        lambda peak: optax.warmup_cosine_decay_schedule(0, peak, 2, 3),
    ),
}


@pytest.mark.parametrize("curve", CURVES)
def test_schedules_equal_those_of_optax(graphs, curve):
    def named(name):
        return {f"{name}_{part}": value for part, value in CURVES[curve][0].items()}

    schedule = CURVES[curve][1]
    smoothing: Any = dict(num_layers=2, approximation="iterative")
    moments: Any = dict(b1=0.8, b2=0.95, weight_decay=0.05, moment_correction=False)
    expected = {
        ("adamw", "learning_rate"): optax.adamw(
            schedule(0.02), b1=0.8, b2=0.95, weight_decay=0.05
        ),
        ("sevo_adamw", "learning_rate"): sevo.sevo_adamw(
            schedule(0.02), graphs, beta=0.6, **moments, **smoothing
        ),
        ("sevo_adamw", "beta"): sevo.sevo_adamw(
            0.02, graphs, beta=schedule(0.6), **moments, **smoothing
        ),
    }
    for (name, field), optimizer in expected.items():
        mine = make_optimizer(config(name, **named(field)), graphs, steps_per_epoch=2)
        assert_same(steps(mine, 8), steps(optimizer, 8))
        constant = make_optimizer(config(name), graphs)
        assert not np.array_equal(steps(mine, 8)["table"], steps(constant, 8)["table"])


def test_a_schedule_needs_the_steps_of_an_epoch(graphs):
    scheduled = config("adamw", learning_rate_warmup=1)
    with pytest.raises(ValueError, match="learning_rate follows .* steps_per_epoch"):
        make_optimizer(scheduled, graphs)
    # Beta does not apply to it.
    make_optimizer(config("adamw", beta_warmup=1), graphs)


def test_gradients_are_clipped_before_the_moments(graphs):
    for name, optimizer in {
        "sgd": optax.sgd(0.02, momentum=0.7),
        "sevo_sgd": sevo.sevo_sgd(
            0.02,
            graphs,
            0.7,
            weight_decay=0.05,
            beta=0.6,
            num_layers=2,
            approximation="iterative",
        ),
    }.items():
        clipped = optax.chain(optax.clip_by_global_norm(0.5), optimizer)
        mine = make_optimizer(config(name, clip_norm=0.5), graphs)
        assert_same(steps(mine), steps(clipped))
        assert not np.array_equal(steps(mine)["table"], steps(optimizer)["table"])


@pytest.mark.parametrize("name", ["sm3", "rprop"])
def test_one_that_follows_no_schedule_is_refused(graphs, name):
    scheduled = config(name, learning_rate_warmup=1)
    with pytest.raises(ValueError, match=f"'{name}' may follow no schedule"):
        make_optimizer(scheduled, graphs, steps_per_epoch=2)


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
