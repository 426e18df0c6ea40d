import dataclasses
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sevo_jax as sevo
from sevo_jax.data import InteractionLog, leave_one_out
from sevo_jax.evaluation import METRICS, EvaluationConfig, evaluate
from sevo_jax.samples import ahead
from sevo_jax.training import (
    CheckpointError,
    OptimizerConfig,
    Trainer,
    load,
    train,
)
from sevo_jax.training.epoch import train_epoch

STILL = OptimizerConfig(name="sgd", learning_rate=1e-30)


def test_training_learns(finished):
    result, _ = finished
    untrained = result.history[0]["valid"]["NDCG@10"]
    assert untrained < 0.15 and result.valid["NDCG@10"] > 0.5
    assert result.losses[-1] < 0.7 * result.losses[0]


def test_evaluated_every_third_epoch_the_first_and_the_last_included(
    finished, other_trainer
):
    result, _ = finished
    assert [record["epoch"] for record in result.history] == [0, 3, 6, 9, 12]
    assert result.history[0]["loss"] is None
    assert [record["loss"] for record in result.history[1:]] == result.losses[2::3]
    partial = other_trainer(epochs=4).run(seed=3, progress=False)
    assert [record["epoch"] for record in partial.history] == [0, 3, 4]
    assert partial.losses == result.losses[:4]


def test_the_first_best_validation_is_kept(finished, tiny_split):
    result, _ = finished
    by_epoch = {r["epoch"]: r["valid"]["NDCG@10"] for r in result.history}
    assert result.best_epoch == max(by_epoch, key=by_epoch.__getitem__)
    record = next(r for r in result.history if r["epoch"] == result.best_epoch)
    assert result.valid == record["valid"]
    assert evaluate(result.trained, tiny_split, "valid") == result.valid
    assert evaluate(result.trained, tiny_split, "test") == result.test


def test_an_equal_validation_does_not_replace_the_best(other_trainer):
    # With so small a step no rank changes.
    result = other_trainer(optimizer=STILL, epochs=3, eval_every=1).run(progress=False)
    assert len({r["valid"]["NDCG@10"] for r in result.history}) == 1
    assert result.best_epoch == 0


def test_training_stops_when_validation_gets_no_better(other_trainer, tmp_path, capsys):
    change = dict(optimizer=STILL, epochs=9, eval_every=2)
    trainer = other_trainer(**change, patience=2)
    result = trainer.run(output=tmp_path / "run")
    assert [record["epoch"] for record in result.history] == [0, 2, 4]
    assert len(result.losses) == 4 and result.best_epoch == 0
    assert "every 2 epochs, until 2 in a row are not better" in result.protocol
    (note,) = result.notes
    assert note.startswith("stopped after epoch 4: none of the last 2 validations")
    assert note in capsys.readouterr().err
    # Where it stopped it stays, unless it is given more.
    again = trainer.run(output=tmp_path / "run", resume=True, progress=False)
    assert again.losses == result.losses and again.history == result.history
    more = other_trainer(**change, patience=3)
    longer = more.run(output=tmp_path / "run", resume=True, progress=False)
    unbroken = more.run(progress=False)
    assert longer.losses == unbroken.losses and len(longer.losses) == 6
    assert longer.test == unbroken.test and longer.notes == unbroken.notes
    # With as little as before it would not have come so far.
    with pytest.raises(CheckpointError, match="with patience 2 it ends after epoch 4"):
        trainer.run(output=tmp_path / "run", resume=True, progress=False)
    endless = other_trainer(**change)
    endless.run(output=tmp_path / "run", resume=True, progress=False)
    saved = load(tmp_path / "run").result
    assert saved and saved["notes"] == []


def test_a_run_that_goes_on_has_no_result(other_trainer, tmp_path):
    small = dict(optimizer=STILL, eval_every=1)
    other_trainer(**small, epochs=2).run(output=tmp_path, progress=False)

    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        other_trainer(**small, epochs=4).run(
            output=tmp_path, resume=True, progress=False, on_record=stop
        )
    assert load(tmp_path).result is None
    # One that is through stays so.
    other_trainer(**small, epochs=2).run(output=tmp_path, resume=True, progress=False)
    assert load(tmp_path).result


def test_a_rate_that_is_injected_may_not_change(tiny_recipe, tiny_split, tmp_path):
    recipe = dataclasses.replace(tiny_recipe, epochs=1)

    def run(rate, **options):
        optimizer = optax.inject_hyperparams(optax.adam)(rate)
        trainer = Trainer(recipe, tiny_split, optimizer=optimizer)
        return trainer.run(output=tmp_path, progress=False, **options)

    run(1e-3)
    with pytest.raises(CheckpointError, match="optimizer"):
        run(1.0, resume=True)
    run(1e-3, resume=True)


def test_patience_begins_anew_with_each_better_validation(other_trainer, finished):
    result, _ = finished
    patient = other_trainer(eval_every=1, patience=2).run(seed=3, progress=False)
    best, last = patient.best_epoch, patient.history[-1]["epoch"]
    assert best > 2 and (last == best + 2 or last == 12)
    assert patient.losses == result.losses[:last]


def test_smoothness_is_the_trace_over_the_graph(finished, trainer, tiny_split):
    result, _ = finished
    table = np.asarray(result.trained.item_embedding[...], np.float64)
    weights = np.asarray(
        sevo.graphs.cooccurrence(
            tiny_split.train, tiny_split.num_items, max_len=12, item_offset=1
        ).todense(),
        np.float64,
    )
    degrees = weights.sum(1)
    scale = np.where(degrees > 0, 1 / np.sqrt(np.where(degrees > 0, degrees, 1)), 0)
    laplacian = np.eye(len(table)) - scale[:, None] * weights * scale
    expected = np.trace(table.T @ laplacian @ table)
    record = next(r for r in result.history if r["epoch"] == result.best_epoch)
    assert record["smoothness"] == pytest.approx(expected, rel=1e-4)
    relative = expected / np.square(table).sum()
    assert record["relative_smoothness"] == pytest.approx(relative, rel=1e-4)


def test_a_table_of_zeros_is_measured_and_takes_no_prize(trainer):
    model = trainer.new_model(0)
    table = model.item_embedding
    table[...] = jnp.zeros(table.shape)
    measured = trainer.measure(model)
    assert (measured["smoothness"], measured["relative_smoothness"]) == (0.0, None)
    # Every item has the same score: a rank is half of those that are left.
    assert set(measured["valid"].values()) == {0.0}


def test_the_metric_of_selection_is_measured_shown_and_chooses(
    other_trainer, tmp_path, capsys
):
    config = EvaluationConfig(["HR@3"], selection="MRR@7")  # pyright: ignore
    trainer = other_trainer(evaluation=config, epochs=6)
    result = trainer.run(output=tmp_path / "run")
    by_epoch = {r["epoch"]: r["valid"]["MRR@7"] for r in result.history}
    assert result.best_epoch == max(by_epoch, key=by_epoch.__getitem__)
    assert list(result.test) == list(result.valid) == ["HR@3", "MRR@7"]
    assert f"valid MRR@7 {by_epoch[3]:.4f}" in capsys.readouterr().err
    assert "best epoch by validation MRR@7 every 3 epochs" in result.protocol
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["recipe"]["evaluation"]["selection"] == "MRR@7"
    assert written["test"] == result.test


def test_more_metrics_do_not_make_another_run_but_another_selection_does(
    other_trainer, tmp_path
):
    first = other_trainer(epochs=3)
    first.run(output=tmp_path / "run", progress=False)
    for changed in (EvaluationConfig(selection="HR@5"), EvaluationConfig(seen="keep")):
        with pytest.raises(CheckpointError, match=r"recipe\.evaluation\."):
            other_trainer(epochs=6, evaluation=changed).run(
                output=tmp_path / "run", resume=True, progress=False
            )
    more = other_trainer(epochs=6, evaluation=EvaluationConfig(("MRR",)))
    resumed = more.run(output=tmp_path / "run", resume=True, progress=False)
    unbroken = more.run(progress=False)
    assert resumed.test == unbroken.test and resumed.losses == unbroken.losses
    assert set(resumed.test) == {"MRR", "NDCG@10"}


def test_epochs_and_seeds_share_one_program(trainer):
    size = train_epoch._cache_size()  # pyright: ignore
    first = trainer.run(seed=0, progress=False)
    # None if another test has compiled it.
    assert train_epoch._cache_size() <= size + 1  # pyright: ignore
    size = train_epoch._cache_size()  # pyright: ignore
    second = trainer.run(seed=1, progress=False)
    assert train_epoch._cache_size() == size  # pyright: ignore
    assert first.losses != second.losses


def test_a_seed_gives_the_same_run_again(trainer, finished):
    result, _ = finished
    again = trainer.run(seed=3, progress=False)
    assert (again.losses, again.test) == (result.losses, result.test)
    np.testing.assert_array_equal(
        again.trained.item_embedding[...], result.trained.item_embedding[...]
    )


def test_optimizers_start_from_the_same_model_and_batches(
    finished, tiny_recipe, tiny_split
):
    result, _ = finished
    recipe = dataclasses.replace(tiny_recipe.with_optimizer("adamw"), epochs=1)
    plain = train(recipe, tiny_split, seed=3, progress=False)
    assert plain.optimizer == "adamw"
    assert plain.history[0]["valid"] == result.history[0]["valid"]
    assert plain.history[0]["smoothness"] == result.history[0]["smoothness"]
    assert plain.losses[0] != result.losses[0]


def test_a_run_that_diverges_says_where(other_trainer, tmp_path):
    wild = OptimizerConfig(name="sgd", learning_rate=1e30)
    trainer = other_trainer(optimizer=wild, epochs=2)
    with pytest.raises(FloatingPointError, match=r"step [1-4] of epoch 0 .*1e\+30"):
        trainer.run(output=tmp_path / "run", progress=False)
    # Nothing that is not finite has reached the disk.
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["evaluation"]


def test_data_that_give_no_samples_leave_no_folder(tiny_recipe, tmp_path):
    # Before the last two every user has had every item.
    users, items = np.repeat(np.arange(3), 7), np.tile([0, 1, 2, 3, 4, 0, 1], 3)
    log = InteractionLog.from_columns(users, items, name="full")
    trainer = Trainer(tiny_recipe, leave_one_out(log))
    with pytest.raises(ValueError, match="no negative can be drawn"):
        trainer.run(output=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_result_is_json_and_in_the_directory(finished, tiny_recipe):
    result, output = finished
    written = json.loads((output / "result.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    assert written["recipe"] == tiny_recipe.to_dict()
    assert set(written["test"]) == {"HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10"}
    assert "trained" not in written
    about = json.loads((output / "run.json").read_text())
    assert about["versions"]["jax"] == jax.__version__
    assert about["protocol"] == written["protocol"]
    assert "60 items with seen ones masked" in written["protocol"]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(trainer, seed):
    with pytest.raises(ValueError, match=f"seed is {seed}"):
        trainer.run(seed=seed)


def test_resuming_needs_a_directory(trainer):
    with pytest.raises(ValueError, match="needs output"):
        trainer.run(resume=True)


def test_ahead_loads_in_order_one_while_another_is_in_use():
    loaded = [threading.Event() for _ in range(5)]

    def load(number):
        loaded[number].set()
        return number

    given = []
    for number in ahead(load, 2, 5):
        given.append(number)
        assert number == 4 or loaded[number + 1].wait(timeout=60)
    assert given == [2, 3, 4]
    assert not loaded[0].is_set()
    assert list(ahead(load, 5, 5)) == []


def test_ahead_passes_errors_on():
    def load(number):
        raise OSError(f"no epoch {number}")

    with pytest.raises(OSError, match="no epoch 1"):
        next(ahead(load, 1, 3))


@pytest.mark.parametrize("name", ["dog", "prodigy", "madgrad"])
def test_optimizers_that_keep_the_initial_parameters_train(
    name, tiny_recipe, tiny_split
):
    """What is kept has a buffer of its own: those of the parameters are donated."""
    optimizer = OptimizerConfig(name, learning_rate=0.01)
    recipe = dataclasses.replace(tiny_recipe, optimizer=optimizer, epochs=2)
    result = Trainer(recipe, tiny_split).run(progress=False)
    assert len(result.losses) == 2


def test_a_wrapper_with_the_methods_of_an_optimizer_is_one(tiny_recipe, tiny_split):
    recipe = dataclasses.replace(tiny_recipe, epochs=2)
    results = [
        Trainer(recipe, tiny_split, optimizer=optimizer).run(progress=False)
        for optimizer in (
            optax.MultiSteps(optax.adam(0.01), 2),
            optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(),
        )
    ]
    assert results[0].losses == results[1].losses


def test_what_is_no_optimizer_and_no_split_is_named(tiny_recipe, tiny_split):
    with pytest.raises(TypeError, match="optimizer is 'adamw': it must be a gradient"):
        Trainer(tiny_recipe, tiny_split, optimizer="adamw")
    with pytest.raises(TypeError, match="split is of the type InteractionLog: make"):
        Trainer(tiny_recipe, tiny_split.log)


def test_a_metric_below_zero_may_select(tiny_recipe, tiny_split, monkeypatch):
    monkeypatch.setitem(METRICS, "NegativeRank", lambda rank: -rank)
    config = EvaluationConfig(selection="NegativeRank@1000000")
    recipe = dataclasses.replace(tiny_recipe, evaluation=config)
    result = Trainer(recipe, tiny_split).run(progress=False)
    by_epoch = {r["epoch"]: r["valid"]["NegativeRank@1000000"] for r in result.history}
    assert result.best_epoch == max(by_epoch, key=by_epoch.__getitem__) > 0
    assert max(by_epoch.values()) < -1
