"""A model that knows its users, through training, checkpoints and serving."""

import dataclasses

import jax
import numpy as np
import pytest

import sevo_jax as sevo
from sevo_jax.data import Sequences
from sevo_jax.evaluation import evaluate, recommend
from sevo_jax.models import MFBPRConfig
from sevo_jax.training import GraphConfig, OptimizerConfig, Recipe, Trainer, load
from sevo_jax.training.run_log import RunLog

TABLES = ("user_embedding", "item_embedding")


@pytest.fixture(scope="module", params=["item-item", "user-item"])
def mf_trainer(request, tiny_split):
    recipe = Recipe(
        model="mf-bpr",
        architecture=MFBPRConfig(width=16),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        graph=GraphConfig(request.param, max_len=12),
        batch_size=256,
        epochs=12,
        eval_every=6,
    )
    return Trainer(recipe, tiny_split)


@pytest.fixture(scope="module")
def mf_finished(mf_trainer, tmp_path_factory):
    output = tmp_path_factory.mktemp("mf") / "run"
    return mf_trainer.run(seed=3, output=output, progress=False), output


def test_it_learns(mf_finished):
    result, _ = mf_finished
    assert result.losses[0] == pytest.approx(np.log(2), abs=1e-2)
    assert result.losses[-1] < 0.5 * result.losses[0]
    assert result.history[0]["valid"]["NDCG@10"] < 0.15
    assert result.test["NDCG@10"] > 0.3


def test_smoothness_is_the_trace_over_the_graph_of_the_recipe(
    mf_finished, mf_trainer, tiny_split, oracle
):
    result, _ = mf_finished
    tables = [np.asarray(getattr(result.trained, name)[...]) for name in TABLES]
    if mf_trainer.recipe.graph.kind == "user-item":
        assert set(mf_trainer.smoothing) == {TABLES}
        num_nodes = tiny_split.num_users + tiny_split.num_items
        weights = np.zeros((num_nodes, num_nodes))
        items = tiny_split.num_users + tiny_split.train.values
        weights[tiny_split.train.rows, items] = 1
        weights = np.maximum(weights, weights.T)
        table = np.concatenate(tables)
    else:
        assert set(mf_trainer.smoothing) == {"item_embedding"}
        weights = sevo.graphs.cooccurrence(
            tiny_split.train, tiny_split.num_items, max_len=12
        ).todense()
        weights = np.asarray(weights, np.float64)
        table = tables[1]
    laplacian = np.eye(len(table)) - oracle.normalised(weights)
    expected = np.trace(table.T @ laplacian @ table)
    record = next(r for r in result.history if r["epoch"] == result.best_epoch)
    assert record["smoothness"] == pytest.approx(expected, rel=1e-4)


def test_users_that_were_not_drawn_move_over_a_graph_of_users_alone(
    mf_trainer, tiny_split
):
    still = dataclasses.replace(mf_trainer.recipe.optimizer, weight_decay=0)
    trainer = Trainer(
        dataclasses.replace(mf_trainer.recipe, optimizer=still), tiny_split
    )
    state = trainer.start(0)
    before = np.array(state.params["user_embedding"][...])
    epochs = trainer.new_model(0).epochs(tiny_split.train, batch_size=16, seed=0)
    first_step = jax.tree.map(lambda field: field[:1], epochs[0])
    state, _ = trainer.train_epoch(state, first_step, seed=0, epoch=0)
    after = np.array(state.params["user_embedding"][...])
    moved = np.flatnonzero(np.any(after != before, axis=1))
    drawn = np.unique(first_step.users)
    if mf_trainer.recipe.graph.kind == "user-item":
        assert set(drawn) < set(moved)
    else:
        np.testing.assert_array_equal(moved, drawn)


def test_a_stopped_run_resumes_as_if_never_stopped(
    mf_finished, mf_trainer, tmp_path, monkeypatch
):
    expected, _ = mf_finished

    def stop(self, epoch, loss, seconds, parts):
        if epoch == 7:
            raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(RunLog, "train", stop)
        mf_trainer.run(seed=3, output=tmp_path / "run", progress=False)
    resumed = mf_trainer.run(
        seed=3, output=tmp_path / "run", resume=True, progress=False
    )
    assert resumed.losses == expected.losses
    assert (resumed.best_epoch, resumed.test) == (expected.best_epoch, expected.test)
    for name in TABLES:
        np.testing.assert_array_equal(
            getattr(resumed.trained, name)[...], getattr(expected.trained, name)[...]
        )


def test_load_gives_a_model_that_recommends_to_its_users(mf_finished, tiny_split):
    result, output = mf_finished
    saved = load(output)
    model = saved.model
    assert (model.num_users, model.num_items) == (300, 60)
    for name in TABLES:
        np.testing.assert_array_equal(
            getattr(model, name)[...], getattr(result.trained, name)[...]
        )
    assert evaluate(model, tiny_split, "test") == result.test

    users = np.array([250, 3, 250])
    histories = Sequences.from_lists(tiny_split.log.sequences[user] for user in users)
    items, scores = recommend(model, histories, 5, users=users)
    expected = np.array(model.user_embedding[...] @ model.item_embedding[...].T)[users]
    for row, history in enumerate(histories):
        expected[row, history] = -np.inf
    np.testing.assert_array_equal(items, np.argsort(-expected, axis=1)[:, :5])
    best = np.take_along_axis(expected, items, axis=1)
    np.testing.assert_allclose(scores, best, rtol=1e-5)
    np.testing.assert_array_equal(items[0], items[2])
