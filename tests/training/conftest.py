import dataclasses

import numpy as np
import pytest

from sevo_jax.data import InteractionLog, leave_one_out
from sevo_jax.models import MAERecConfig, SASRecConfig
from sevo_jax.training import GraphConfig, OptimizerConfig, Recipe, Trainer


def make_ring_log(num_users=300, seed=0):
    """Users walk a ring of 60 items from somewhere on it, and skip one now and then."""
    rng = np.random.default_rng(seed)
    rows = [
        (rng.integers(60) + np.cumsum(1 + (rng.random(length) < 0.1))) % 60
        for length in rng.integers(6, 12, size=num_users)
    ]
    users = np.repeat(np.arange(num_users), [row.size for row in rows])
    return InteractionLog.from_columns(users, np.concatenate(rows), name="ring")


@pytest.fixture(scope="session")
def ring_log():
    return make_ring_log


@pytest.fixture(scope="session")
def tiny_split():
    return leave_one_out(make_ring_log())


@pytest.fixture(scope="session")
def tiny_recipe():
    """Compiles and trains in seconds; dropout and several steps an epoch included."""
    return Recipe(
        architecture=SASRecConfig(max_len=12, width=16, num_blocks=1, dropout=0.2),
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.01, b2=0.98),
        graph=GraphConfig(max_len=12),
        batch_size=64,
        epochs=12,
        eval_every=3,
    )


@pytest.fixture(scope="session")
def masking_recipe(tiny_recipe):
    """Of MAERec, with several masks an epoch, and little to compile."""
    architecture = MAERecConfig(
        max_len=12,
        width=16,
        num_blocks=1,
        num_hops=1,
        mask_steps=2,
        mask_depth=1,
        num_seeds=5,
        num_edges=64,
    )
    return dataclasses.replace(
        tiny_recipe, model="maerec", architecture=architecture, epochs=2, eval_every=2
    )


@pytest.fixture(scope="session")
def trainer(tiny_recipe, tiny_split):
    return Trainer(tiny_recipe, tiny_split)


@pytest.fixture(scope="session")
def finished(trainer, tmp_path_factory):
    """A whole run and its directory, which tests must not change."""
    output = tmp_path_factory.mktemp("finished") / "run"
    return trainer.run(seed=3, output=output, progress=False), output


@pytest.fixture
def other_trainer(tiny_recipe, tiny_split):
    """Trainers of changed recipes: `other_trainer(epochs=2)`."""

    def make(**changes):
        return Trainer(dataclasses.replace(tiny_recipe, **changes), tiny_split)

    return make
