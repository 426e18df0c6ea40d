import dataclasses

import pytest

from sevo_jax.data import leave_one_out
from sevo_jax.data.synthetic import planted
from sevo_jax.models import SASRecConfig
from sevo_jax.training import GraphConfig, OptimizerConfig, Recipe, Trainer


@pytest.fixture(scope="session")
def tiny_split():
    return leave_one_out(planted(num_users=300, num_items=100, num_groups=5))


@pytest.fixture(scope="session")
def tiny_recipe():
    """Compiles and trains in seconds; dropout and several steps an epoch included."""
    return Recipe(
        architecture=SASRecConfig(max_len=12, width=16, num_blocks=1, dropout=0.2),
        optimizer=OptimizerConfig(learning_rate=5e-3, weight_decay=0.01, b2=0.98),
        graph=GraphConfig(max_len=12),
        batch_size=64,
        epochs=12,
        eval_every=3,
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
