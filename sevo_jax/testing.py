"""A conformance battery for recommenders: does a model keep the contract?

For the author of a model::

  from sevo_jax import testing
  from sevo_jax.data import leave_one_out, planted

  def test_my_model_keeps_the_contract():
      split = leave_one_out(planted(num_users=100, num_items=50))
      testing.check_recommender("my-model", split, MyConfig(width=8))

Every check raises an AssertionError that says what does not hold.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sevo_jax.data.split import LeaveOneOut
from sevo_jax.evaluation import Evaluator
from sevo_jax.models import MODELS, Recommender
from sevo_jax.training import GraphConfig, OptimizerConfig, Recipe, Trainer, load
from sevo_jax.training.epoch import split_model, train_epoch, with_parts

_SEED = 3
_BATCH_SIZE = 16
_EPOCHS = 4


def check_recommender(name: str, split: LeaveOneOut, config: Any = None) -> None:
    """Runs all `CHECKS` on a registered recommender.

    Args:
      name: what the model is registered as.
      split: a small log, of some hundred interactions: the checks train on it.
      config: hyper-parameters; by default the model's own.

    Raises:
      AssertionError: if the model breaks the contract, saying where.

    Examples:
      >>> from sevo_jax.data import leave_one_out, planted
      >>> from sevo_jax.models import MFBPRConfig
      >>> log = planted(num_users=40, num_items=30, num_groups=3, seed=0)
      >>> check_recommender("mf-bpr", leave_one_out(log), MFBPRConfig(width=4))
    """
    trainer = make_trainer(name, split, config)
    for check in CHECKS:
        check(trainer)


def make_trainer(name: str, split: LeaveOneOut, config: Any = None) -> Trainer:
    """A short training of a registered recommender, which the checks take.

    Args:
      name: what the model is registered as.
      split: a small log.
      config: hyper-parameters; by default the model's own.
    """
    kind = MODELS[name]
    smoothed = next(iter(kind.smoothed), None)
    optimizer = "adamw" if smoothed is None else "sevo_adamw"
    return Trainer(
        Recipe(
            model=name,
            architecture=kind.Config() if config is None else config,
            optimizer=OptimizerConfig(optimizer, learning_rate=1e-2),
            graph=GraphConfig() if smoothed is None else GraphConfig(smoothed),
            batch_size=_BATCH_SIZE,
            epochs=_EPOCHS,
            eval_every=2,
        ),
        split,
    )


def check_epochs(trainer: Trainer) -> None:
    """Epochs are arrays `[steps, ...]`, a function of seed and number alone."""

    def draw(seed: int, epoch: int) -> Any:
        epochs = _epochs(trainer, trainer.new_model(0), seed)
        for leaf in jax.tree.leaves(epochs[epoch]):
            assert leaf.shape[0] == epochs.num_steps, (
                f"an array of an epoch has shape {leaf.shape}: its first axis is the "
                f"{epochs.num_steps} steps"
            )
        return epochs[epoch]

    first = draw(_SEED, 1)
    assert _same(first, draw(_SEED, 1)), "epochs[1] differs when it is drawn again"
    assert not _same(first, draw(_SEED, 2)), "epochs[1] and epochs[2] are the same"
    assert not _same(first, draw(_SEED + 1, 1)), "two seeds give the same epochs"


def check_loss(trainer: Trainer) -> None:
    """The loss is a finite number, its gradients are finite, its key determines it."""
    model = trainer.new_model(_SEED)
    graphdef, params, graphs, carried = split_model(model)
    batch = jax.tree.map(lambda field: field[0], _epochs(trainer, model, _SEED)[0])

    @jax.jit
    def evaluate(key: jax.Array):
        def loss_of(params: nnx.State):
            fresh = jax.tree.map(lambda leaf: leaf, carried)
            model: Any = nnx.merge(graphdef, params, graphs, fresh)
            loss, parts = with_parts(model.loss(batch, rng=key))
            return loss, (parts, split_model(model)[3])

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    (loss, (parts, after)), gradients = evaluate(jax.random.key(0))
    assert jnp.shape(loss) == (), f"the loss has shape {jnp.shape(loss)}, not ()"
    for name, value in {"the loss": loss, **parts}.items():
        assert jnp.shape(value) == (), f"{name} has shape {jnp.shape(value)}, not ()"
        assert np.isfinite(value), f"{name} is {value}"
    for path, leaf in jax.tree.leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), f"the gradient of {name} is not finite"
    same_shapes = jax.tree.map(jnp.shape, carried) == jax.tree.map(jnp.shape, after)
    assert same_shapes, "the loss changes which variables are carried, or their shapes"
    assert _same(evaluate(jax.random.key(0)), ((loss, (parts, after)), gradients))


def check_score(trainer: Trainer) -> None:
    """Every item gets a finite score that does not depend on who else is asked for."""
    model = trainer.new_model(_SEED).for_ranking()
    train = trainer.split.train
    users = np.arange(len(train))

    def scores(rows: np.ndarray) -> np.ndarray:
        inputs = model.inputs(_take(train, rows), users[rows])
        return np.asarray(model.score(jnp.asarray(inputs)))

    together = scores(users)
    expected = (len(train), trainer.split.num_items)
    assert together.shape == expected, f"scores are {together.shape}, not {expected}"
    assert np.isfinite(together).all(), "a score is not finite"
    for user in (int(np.argmin(train.lengths)), int(np.argmax(train.lengths))):
        alone = scores(users[[user]])
        assert np.allclose(alone[0], together[user], rtol=1e-4, atol=1e-5), (
            f"the scores of user {user} alone differ from those among others: pads or "
            "other rows take part"
        )


def check_ranking(trainer: Trainer) -> None:
    """The evaluator's ranks are those of sorting the scores by hand."""
    model = trainer.new_model(_SEED).for_ranking()
    split = trainer.split
    evaluator = Evaluator(model, split, "valid")
    inputs = model.inputs(_take(split.train, evaluator.users), evaluator.users)
    scores = np.asarray(model.score(jnp.asarray(inputs)))
    for user, rank, row in zip(
        evaluator.users, evaluator.ranks(model), scores, strict=True
    ):
        target = split.valid[user]
        others = np.ones(row.size, bool)
        others[split.train[user]] = False
        others[target] = False
        # Scores of two programs: what is this near may fall on either side.
        near = 1e-5 * (1 + abs(row[target]))
        least = 1 + np.sum(row[others] > row[target] + near)
        most = 1 + np.sum(row[others] > row[target] - near)
        assert least <= rank <= most, (
            f"user {user} has rank {rank}, by hand it is {least} to {most}"
        )


def check_training(trainer: Trainer) -> None:
    """Training ends with finite losses, and epochs share one program."""
    programs = train_epoch._cache_size()  # pyright: ignore
    for seed in (_SEED, _SEED + 1):
        losses = trainer.run(seed=seed, progress=False).losses
        assert np.isfinite(losses).all(), f"losses are {losses}"
    assert train_epoch._cache_size() <= programs + 1, (  # pyright: ignore
        "an epoch was compiled anew: its shapes change, or the model is rebuilt"
    )


def check_resumption(trainer: Trainer) -> None:
    """A run that goes on from a checkpoint ends as one that was never stopped."""
    half = Trainer(dataclasses.replace(trainer.recipe, epochs=2), trainer.split)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "run")
        half.run(seed=_SEED, output=output, progress=False)
        resumed = trainer.run(seed=_SEED, output=output, resume=True, progress=False)
    unbroken = trainer.run(seed=_SEED, progress=False)
    assert resumed.losses == unbroken.losses, "a resumed run has other losses"
    states = nnx.state(resumed.trained), nnx.state(unbroken.trained)
    assert _same(*states), "a resumed run has other parameters"


def check_loading(trainer: Trainer) -> None:
    """A run read back ranks as the trained model does."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "run")
        result = trainer.run(seed=_SEED, output=output, progress=False)
        loaded = load(output)
    for measured, evaluator in (
        (result.valid, Evaluator(loaded.model, trainer.split, "valid")),
        (result.test, Evaluator(loaded.model, trainer.split, "test")),
    ):
        found = evaluator(loaded.model)
        assert found == measured, f"the loaded model's metrics are {found}"


CHECKS: tuple[Callable[[Trainer], None], ...] = (
    check_epochs,
    check_loss,
    check_score,
    check_ranking,
    check_training,
    check_resumption,
    check_loading,
)
"""What `check_recommender` runs; each takes what `make_trainer` gives."""


def _epochs(trainer: Trainer, model: Recommender, seed: int) -> Any:
    return model.epochs(
        trainer.split.train, batch_size=trainer.recipe.batch_size, seed=seed
    )


def _take(sequences: Any, rows: np.ndarray) -> Any:
    return type(sequences).from_lists([sequences[row] for row in rows])


def _same(one: Any, other: Any) -> bool:
    """Whether two pytrees have the same bits."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )
