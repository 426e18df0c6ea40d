import dataclasses

import optax
import pytest

import sevo_jax as sevo
from sevo_jax.training import Trainer


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    """Five steps an epoch; the warm-up ends at step 2, the schedule at step 8."""
    optimizer = dataclasses.replace(
        tiny_recipe.optimizer,
        clip_norm=0.3,
        learning_rate_warmup=0.5,
        learning_rate_schedule="cosine",
        learning_rate_epochs=1.6,
        learning_rate_end=1e-3,
        beta_schedule="linear",
        beta_epochs=1,
        beta_end=0.5,
    )
    return dataclasses.replace(tiny_recipe, optimizer=optimizer, epochs=2)


@pytest.fixture(scope="module")
def scheduled(recipe, tiny_split):
    return Trainer(recipe, tiny_split).run(progress=False)


def test_a_run_follows_the_schedules_of_its_recipe(recipe, scheduled, tiny_split):
    def by_hand(graphs):
        chain = sevo.sevo_adamw(
            optax.warmup_cosine_decay_schedule(0, 1e-2, 2, 8, 1e-3),
            graphs,
            b2=0.98,
            weight_decay=0.01,
            beta=optax.linear_schedule(0.99, 0.5, 5),
        )
        return optax.chain(optax.clip_by_global_norm(0.3), chain)

    result = Trainer(recipe, tiny_split, optimizer=by_hand).run(progress=False)
    assert result.losses == scheduled.losses
    assert result.valid == scheduled.valid


def test_a_longer_run_goes_on_from_a_shorter_one(
    recipe, scheduled, tiny_split, tmp_path
):
    short = Trainer(dataclasses.replace(recipe, epochs=1), tiny_split)
    cut = short.run(output=tmp_path / "run", progress=False)
    assert cut.losses == scheduled.losses[:1]
    whole = Trainer(recipe, tiny_split)
    resumed = whole.run(output=tmp_path / "run", resume=True, progress=False)
    assert resumed.losses == scheduled.losses and resumed.test == scheduled.test
