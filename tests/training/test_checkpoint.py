import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import sevo_jax
from sevo_jax.data import leave_one_out
from sevo_jax.data.writers import write
from sevo_jax.training import (
    CheckpointError,
    OptimizerConfig,
    Trainer,
    fingerprint,
    has_checkpoint,
    load,
)
from sevo_jax.training.checkpoint import Checkpoints, check_same

# Trains until the point it is told to, where it kills itself.
CHILD = """
import json, os, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv.pop()))
import orbax.checkpoint as ocp
from sevo_jax.data import leave_one_out
from sevo_jax.data.readers import read
from sevo_jax.training import Recipe, train
from sevo_jax.training.run_log import RunLog

output, data, recipe, point = sys.argv[1:]
saved = []
finish, told = ocp.StandardCheckpointer.wait_until_finished, RunLog.train

def killed_while_saving(self):
    saved.append(None)
    if len(saved) == 5:  # The first of two parts of the third checkpoint.
        os.kill(os.getpid(), signal.SIGKILL)
    finish(self)

def killed_while_training(self, epoch, loss, seconds, parts):
    told(self, epoch, loss, seconds, parts)
    if epoch == 7:
        os.kill(os.getpid(), signal.SIGKILL)

if point == "saving":
    ocp.StandardCheckpointer.wait_until_finished = killed_while_saving
else:
    RunLog.train = killed_while_training
split = leave_one_out(read(data))
train(Recipe.from_dict(json.loads(recipe)), split, seed=3, output=output)
"""


def without_seconds(output):
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": None} for line in lines]


def assert_bitwise_equal(actual, expected):
    actual, expected = (
        {
            jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (actual, expected)
    )
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].tobytes() == value.tobytes(), name


def arrays(trainer, output):
    """The arrays of the last checkpoint, with shapes from a fresh start."""
    state = trainer.start(0)
    with Checkpoints(output, create=False) as checkpoints:
        return checkpoints.arrays(training=state, best=state.params)


@pytest.mark.parametrize("point", ["training", "saving"])
def test_a_killed_run_resumes_as_if_never_stopped(point, trainer, finished, tmp_path):
    expected, expected_output = finished
    output = tmp_path / "run"
    root = Path(sevo_jax.__file__).parents[1]
    recipe = json.dumps(trainer.recipe.to_dict())
    data = tmp_path / "ring.txt"
    write(trainer.split.log, data)
    devices = str(jax.device_count())
    child = subprocess.run(
        [sys.executable, "-c", CHILD, output, data, recipe, point, devices],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert has_checkpoint(output)
    assert not (output / "result.json").exists()
    assert len(without_seconds(output)) < len(without_seconds(expected_output))

    resumed = trainer.run(seed=3, output=output, resume=True, progress=False)
    assert resumed.losses == expected.losses
    assert (resumed.best_epoch, resumed.valid, resumed.test) == (
        expected.best_epoch,
        expected.valid,
        expected.test,
    )
    assert_bitwise_equal(arrays(trainer, output), arrays(trainer, expected_output))
    assert without_seconds(output) == without_seconds(expected_output)


def test_only_the_last_checkpoint_is_kept(finished):
    _, output = finished
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["12"]


def test_a_finished_run_resumed_gives_its_result_again(trainer, finished, tmp_path):
    expected, output = finished
    copy = shutil.copytree(output, tmp_path / "run")
    again = trainer.run(seed=3, output=copy, resume=True, progress=False)
    assert (again.losses, again.history) == (expected.losses, expected.history)
    assert (again.valid, again.test) == (expected.valid, expected.test)
    assert again.seconds_per_epoch == expected.seconds_per_epoch


def test_a_directory_with_a_run_is_not_overwritten(trainer, finished):
    _, output = finished
    before = (output / "metrics.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match="holds a run already"):
        trainer.run(seed=3, output=output, progress=False)
    assert (output / "metrics.jsonl").read_bytes() == before


def test_there_must_be_a_checkpoint_to_resume(trainer, tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint under"):
        trainer.run(output=tmp_path / "run", resume=True, progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_killed_before_its_first_checkpoint_may_start_again(
    trainer, finished, tmp_path
):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"kind": "evaluation", "epoch": 0')
    trainer.run(seed=3, output=tmp_path, progress=False)
    assert without_seconds(tmp_path) == without_seconds(finished[1])


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"epochs": 13}, "recipe.epochs was 12 and is 13"),
        (
            {"optimizer": OptimizerConfig(name="adamw", learning_rate=1e-2)},
            "recipe.optimizer.name was 'sevo_adamw' and is 'adamw'",
        ),
    ],
)
def test_another_recipe_does_not_resume(other_trainer, finished, changes, difference):
    _, output = finished
    with pytest.raises(CheckpointError, match=difference):
        other_trainer(**changes).run(seed=3, output=output, resume=True, progress=False)


def test_another_seed_or_other_data_do_not_resume(
    tiny_recipe, trainer, finished, ring_log
):
    _, output = finished
    with pytest.raises(CheckpointError, match="seed was 3 and is 4"):
        trainer.run(seed=4, output=output, resume=True, progress=False)
    other = Trainer(tiny_recipe, leave_one_out(ring_log(seed=1)))
    with pytest.raises(CheckpointError, match="dataset.sha256 was"):
        other.run(seed=3, output=output, resume=True, progress=False)


def test_other_versions_do_not_resume(trainer, finished, monkeypatch):
    _, output = finished
    monkeypatch.setattr(sevo_jax, "__version__", "0.0.0")
    with pytest.raises(CheckpointError, match=r"versions.sevo_jax was .* is '0\.0\.0'"):
        trainer.run(seed=3, output=output, resume=True, progress=False)


def small(directory):
    """A checkpoint that is quick to read, and what is in it."""
    rng = np.random.default_rng(0)  # Noise does not compress: files of some size.
    parts = {
        "training": {"table": np.arange(9e4).reshape(300, 300), "count": np.int32(7)},
        "best": {
            "table": rng.random((300, 300), np.float32),
            "bias": np.ones(1, np.float32),
        },
    }
    with Checkpoints(directory, create=True) as checkpoints:
        checkpoints.save(4, **parts, about={"identity": {}, "progress": {"epoch": 4}})
    return parts


def test_arrays_come_back_as_they_were(tmp_path):
    parts = small(tmp_path)
    with Checkpoints(tmp_path, create=False) as checkpoints:
        assert checkpoints.about()["progress"] == {"epoch": 4}
        best = checkpoints.arrays(best=parts["best"])
    assert_bitwise_equal(best, {"best": parts["best"]})


@pytest.mark.parametrize("damage", ["truncated", "changed", "deleted"])
def test_a_damaged_file_is_noticed_whichever_it_is(tmp_path, damage):
    parts = small(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        data = path.read_bytes()
        if damage == "truncated":
            path.write_bytes(data[: len(data) // 2])
        elif damage == "changed":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        else:
            path.unlink()
        with Checkpoints(tmp_path, create=False) as checkpoints:
            for read in (checkpoints.about, lambda: checkpoints.arrays(**parts)):
                with pytest.raises(CheckpointError, match="corrupt: ") as error:
                    read()
        assert path.name in str(error.value) or path.name == "manifest.json"
        path.write_bytes(data)
    with Checkpoints(tmp_path, create=False) as checkpoints:
        assert checkpoints.about()["progress"] == {"epoch": 4}


def test_a_corrupt_checkpoint_does_not_resume(trainer, finished, tmp_path):
    copy = shutil.copytree(finished[1], tmp_path / "run")
    files = [p for p in (copy / "checkpoints").rglob("*") if p.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    for act in (
        lambda: trainer.run(seed=3, output=copy, resume=True, progress=False),
        lambda: load(copy),
    ):
        with pytest.raises(CheckpointError, match=f"corrupt: .*{largest.name}"):
            act()


@pytest.mark.parametrize(
    "template",
    [
        {"table": np.ones((300, 301), np.float32), "bias": np.ones(1, np.float32)},
        {"table": np.ones((300, 300), np.float32)},
        {"table": np.ones((300, 300), np.float32), "biases": np.ones(1, np.float32)},
    ],
)
def test_other_arrays_than_the_model_has_are_refused(tmp_path, template):
    small(tmp_path)
    with Checkpoints(tmp_path, create=False) as checkpoints:
        with pytest.raises(CheckpointError, match="best holds other arrays"):
            checkpoints.arrays(best=template)


def test_a_checkpoint_takes_the_place_of_the_one_before(tmp_path):
    parts = small(tmp_path)
    with Checkpoints(tmp_path, create=False) as checkpoints:
        later = {"epoch": 6}
        checkpoints.save(6, **parts, about={"identity": {}, "progress": later})
        assert checkpoints.about()["progress"] == later
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["6"]


def test_the_fingerprint_covers_counts_order_and_ids(tiny_split):
    mark = fingerprint(tiny_split)
    assert (mark["num_users"], mark["num_items"]) == (
        tiny_split.num_users,
        tiny_split.num_items,
    )
    assert mark == fingerprint(leave_one_out(tiny_split.log))
    log = tiny_split.log
    values = log.sequences.values.copy()
    values[:2] = values[1], values[0]
    swapped = dataclasses.replace(
        log, sequences=dataclasses.replace(log.sequences, values=values)
    )
    renamed = dataclasses.replace(log, item_ids=log.item_ids[::-1])
    for other in (swapped, renamed):
        assert fingerprint(leave_one_out(other))["sha256"] != mark["sha256"]


def test_check_same_names_every_difference():
    with pytest.raises(
        CheckpointError, match="a.b was 1 and is 2; c was 'x' and is None"
    ):
        check_same({"a": {"b": 1, "d": 0}, "c": "x"}, {"a": {"b": 2, "d": 0}})
