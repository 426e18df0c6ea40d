"""Every registered recommender keeps the contract; the battery sees who does not."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import newcomer
import numpy as np
import pytest
from flax import nnx

from sevo_jax import testing
from sevo_jax.data import leave_one_out, planted
from sevo_jax.models import MODELS
from sevo_jax.training.epoch import split_model, with_parts

# Little to compile, and every place of dropout.
CONFIG = {"max_len": 8, "width": 8, "hidden_width": 8}
CONFIG |= {"attention_dropout": 0.5, "propagate_mean": True}


@pytest.fixture(scope="module")
def split():
    return leave_one_out(planted(num_users=60, num_items=40, num_groups=4, seed=0))


@pytest.fixture(scope="module", params=sorted(MODELS))
def trainer(request, split):
    config = MODELS[request.param].Config()
    fields = {field.name for field in dataclasses.fields(config)}
    changes = {name: value for name, value in CONFIG.items() if name in fields}
    return testing.make_trainer(
        request.param, split, dataclasses.replace(config, **changes)
    )


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_every_recommender_keeps_the_contract(check, trainer):
    check(trainer)


def test_no_key_of_a_step_is_used_twice(trainer):
    """Layers that share one drop the same entries."""
    graphdef, state = nnx.split(trainer.new_model(0))
    batch = jax.tree.map(lambda field: field[0], trainer.epochs(0)[0])

    def loss(key):
        fresh = jax.tree.map(lambda leaf: leaf, state)
        return with_parts(nnx.merge(graphdef, fresh).loss(batch, rng=key))

    with jax.debug_key_reuse(True):
        jax.jit(loss).lower(jax.random.key(0))


# Each breaks one promise, and is caught by the check of it.


class Forgetful(newcomer.Newcomer):
    """Draws its epochs from a generator that goes on."""

    generator = np.random.default_rng(0)

    def epochs(self, train, *, batch_size, seed):
        return super().epochs(
            train, batch_size=batch_size, seed=int(self.generator.integers(2**31))
        )


class Repeating(newcomer.Newcomer):
    """Every seed has the same epochs."""

    def epochs(self, train, *, batch_size, seed):
        return super().epochs(train, batch_size=batch_size, seed=0)


class Unbounded(newcomer.Newcomer):
    """Its loss has a gradient that is not finite."""

    def loss(self, batch, *, rng):
        loss, parts = super().loss(batch, rng=rng)
        return loss + jnp.sqrt(jnp.sum(0 * self.table[...])), parts


class Vector(newcomer.Newcomer):
    """A part of its loss is no scalar."""

    def loss(self, batch, *, rng):
        loss, _ = super().loss(batch, rng=rng)
        return loss, {"rows": jnp.mean(self.table[...], axis=1)}


class Sociable(newcomer.Newcomer):
    """A score depends on who else is asked for."""

    def score(self, inputs):
        return super().score(inputs) + jnp.sum(inputs)


class Partial(newcomer.Newcomer):
    """Leaves an item without a score."""

    def score(self, inputs):
        return super().score(inputs)[:, 1:]


class Growing(newcomer.Newcomer):
    """Epochs have another number of rows each time."""

    def epochs(self, train, *, batch_size, seed):
        epochs = super().epochs(train, batch_size=batch_size, seed=seed)

        class Grown:
            num_steps = epochs.num_steps

            def __getitem__(self, epoch):
                rows = 4 + epoch
                return jax.tree.map(lambda field: field[:, :rows], epochs[epoch])

        return Grown()


@pytest.mark.parametrize(
    "broken, check, message",
    [
        (Forgetful, testing.check_epochs, "drawn again"),
        (Repeating, testing.check_epochs, "two seeds"),
        (Unbounded, testing.check_loss, "the gradient of .*table.* is not finite"),
        (Vector, testing.check_loss, "rows has shape"),
        (Sociable, testing.check_score, "alone differ from those among others"),
        (Partial, testing.check_score, r"scores are \(60, 39\), not \(60, 40\)"),
        (Growing, testing.check_training, "compiled anew"),
    ],
)
def test_the_battery_sees_a_broken_promise(broken, check, message, split, monkeypatch):
    monkeypatch.setitem(MODELS, "newcomer", broken)
    with pytest.raises(AssertionError, match=message):
        check(testing.make_trainer("newcomer", split))


class Watched(newcomer.Newcomer):
    """Has a statistic that no step changes."""

    def __init__(self, *args, rngs):
        super().__init__(*args, rngs=rngs)
        self.constant = nnx.BatchStat(jnp.ones(3))


def test_variables_are_of_three_kinds(split, monkeypatch):
    monkeypatch.setitem(MODELS, "newcomer", Watched)
    trainer = testing.make_trainer("newcomer", split)
    _, params, graphs, carried = split_model(trainer.new_model(0))
    paths = [
        {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}
        for state in (params, graphs, carried)
    ]
    assert paths == [
        {"table", "norm/scale", "norm/bias"},
        {"graph"},
        {"norm/mean", "norm/var", "steps", "constant"},
    ]
    result = trainer.run(seed=0, progress=False)
    trained: Any = result.trained
    epochs = trainer.new_model(0).epochs(split.train, batch_size=16, seed=0)
    assert 0 < trained.steps[...] == result.best_epoch * epochs.num_steps
    # Decay is 0.1, and would have moved it.
    assert trained.constant[...].tolist() == [1, 1, 1]
    assert np.abs(trained.norm.mean[...]).max() > 0
    assert set(result.parts[0]) == {"rank", "penalty"}
    sums = [sum(parts.values()) for parts in result.parts]
    np.testing.assert_allclose(sums, result.losses, rtol=1e-5)
