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
import orbax.checkpoint as ocp
import pytest

import sevo_jax
from sevo_jax.data import leave_one_out
from sevo_jax.data.writers import write
from sevo_jax.training import (
    CheckpointError,
    OptimizerConfig,
    RunFolder,
    Trainer,
    load,
)
from sevo_jax.training.checkpoint import Checkpoints
from sevo_jax.training.mesh import make_mesh
from sevo_jax.training.run_log import RunLog

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
save, told = ocp.Checkpointer.save, RunLog.train

def killed_while_saving(self, *args, **options):
    saved.append(None)
    save(self, *args, **options)
    if len(saved) == 5:  # The first of two parts of the third checkpoint.
        os.kill(os.getpid(), signal.SIGKILL)

def killed_while_training(self, epoch, loss, seconds, parts):
    told(self, epoch, loss, seconds, parts)
    if epoch == 7:
        os.kill(os.getpid(), signal.SIGKILL)

if point == "saving":
    ocp.Checkpointer.save = killed_while_saving
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
    checkpoint = RunFolder(output).last_checkpoint()
    return checkpoint.arrays(training=state, best=state.params)


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
    assert RunFolder(output).has_checkpoint
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


@pytest.mark.parametrize("left", [6, 7, 12])
def test_more_epochs_give_what_an_unbroken_run_gives(
    left, other_trainer, finished, tmp_path
):
    """Of 7 epochs the last evaluation is one that the run of 13 does not make."""
    output = tmp_path / "run"
    trainer = other_trainer(epochs=left)
    trainer.run(seed=3, output=output, progress=False)
    longer = other_trainer(epochs=13)
    expected_output = tmp_path / "unbroken"
    expected = longer.run(seed=3, output=expected_output, progress=False)
    assert expected.losses[:12] == finished[0].losses
    resumed = longer.run(seed=3, output=output, resume=True, progress=False)
    assert resumed.losses == expected.losses
    assert (resumed.best_epoch, resumed.valid, resumed.test) == (
        expected.best_epoch,
        expected.valid,
        expected.test,
    )
    assert resumed.recipe.epochs == 13 and resumed.notes == []
    assert_bitwise_equal(arrays(longer, output), arrays(longer, expected_output))
    assert without_seconds(output) == without_seconds(expected_output)
    assert load(output).recipe == longer.recipe
    with pytest.raises(CheckpointError, match="has trained 13 epochs, and 7 are"):
        other_trainer(epochs=7).run(seed=3, output=output, resume=True, progress=False)


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
        ({"batch_size": 65}, "recipe.batch_size was 64 and is 65"),
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


def test_another_split_of_the_same_log_does_not_resume(
    tiny_recipe, tiny_split, finished
):
    log = tiny_split.log
    everything = dataclasses.replace(tiny_split, train=log.sequences)
    fewer_tested = dataclasses.replace(
        tiny_split,
        test=np.where(np.arange(len(tiny_split.test)) % 2, tiny_split.test, -1),
    )
    for split in (everything, fewer_tested):
        with pytest.raises(CheckpointError, match="dataset.split was"):
            Trainer(tiny_recipe, split).run(
                seed=3, output=finished[1], resume=True, progress=False
            )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("default_prng_impl", "rbg"),
        (
            "threefry_partitionable",
            not getattr(jax.config, "jax_threefry_partitionable"),
        ),
        ("enable_x64", not getattr(jax.config, "jax_enable_x64")),
    ],
)
def test_other_settings_of_jax_do_not_resume(name, value, trainer, finished):
    before = getattr(jax.config, f"jax_{name}")
    jax.config.update(f"jax_{name}", value)
    try:
        with pytest.raises(CheckpointError, match=f"settings.{name} was {before!r}"):
            trainer.run(seed=3, output=finished[1], resume=True, progress=False)
    finally:
        jax.config.update(f"jax_{name}", before)


def test_a_change_of_mesh_or_machine_is_said(
    tiny_recipe, tiny_split, finished, tmp_path, monkeypatch, capsys
):
    copy = shutil.copytree(finished[1], tmp_path / "run")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    trainer = Trainer(tiny_recipe, tiny_split, mesh=make_mesh(1, 2))
    result = trainer.run(seed=3, output=copy, resume=True)
    (note,) = result.notes
    assert "mesh is 'width=2', not 'data=1'" in note
    assert "xla_flags is '--xla_cpu_enable_fast_math=true', not ''" in note
    assert note in capsys.readouterr().err
    assert json.loads((copy / "result.json").read_text())["notes"] == [note]


def test_two_runs_do_not_write_to_one_directory(trainer, finished, tmp_path):
    copy = shutil.copytree(finished[1], tmp_path / "run")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with RunFolder(copy).claimed(resume=True):
        for resume in (True, False):
            with pytest.raises(FileExistsError, match="run is in use by another run"):
                trainer.run(seed=3, output=copy, resume=resume, progress=False)
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("another", [False, True])
def test_a_directory_that_is_removed_ends_the_run(
    another, other_trainer, tmp_path, monkeypatch
):
    output = tmp_path / "run"
    told = RunLog.train

    def remove(self, epoch, *args):
        told(self, epoch, *args)
        shutil.rmtree(output)
        if another:
            output.mkdir()
            (output / ".lock").touch()

    monkeypatch.setattr(RunLog, "train", remove)
    with pytest.raises(FileNotFoundError, match="run has been removed while a run"):
        other_trainer(epochs=1).run(seed=3, output=output, progress=False)
    assert not (output / "checkpoints").exists()


def test_a_run_that_may_not_resume_changes_nothing(trainer, finished, tmp_path):
    copy = shutil.copytree(finished[1], tmp_path / "run")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="seed was 3 and is 5"):
        trainer.run(seed=5, output=copy, resume=True, progress=False)
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert after == before


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
    Checkpoints(directory).save(4, {"progress": {"epoch": 4}}, parts)
    return parts


def test_arrays_come_back_as_they_were(tmp_path):
    parts = small(tmp_path)
    checkpoint = Checkpoints(tmp_path).last()
    assert checkpoint.about["progress"] == {"epoch": 4}
    best = checkpoint.arrays(best=parts["best"])
    assert_bitwise_equal(best, {"best": parts["best"]})


@pytest.mark.parametrize("damage", ["truncated", "changed", "deleted"])
def test_a_damaged_file_is_noticed_whichever_it_is(tmp_path, damage):
    small(tmp_path)
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
        with pytest.raises(CheckpointError, match="corrupt: ") as error:
            Checkpoints(tmp_path).last()
        assert path.name in str(error.value) or path.name == "manifest.json"
        path.write_bytes(data)
    assert Checkpoints(tmp_path).last().about["progress"] == {"epoch": 4}


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
    with pytest.raises(CheckpointError, match="best holds other arrays"):
        Checkpoints(tmp_path).last().arrays(best=template)


def test_a_checkpoint_takes_the_place_of_the_one_before(tmp_path):
    parts = small(tmp_path)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(6, {"progress": {"epoch": 6}}, parts)
    assert checkpoints.last().about["progress"] == {"epoch": 6}
    assert [path.name for path in tmp_path.iterdir()] == ["6"]


@pytest.mark.parametrize("name", ["manifest.json", "about.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", "5", "[" * 100_000, "\udcff"])
def test_a_damaged_table_is_one_line(tmp_path, name, content):
    small(tmp_path)
    path = tmp_path / "4" / name
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(CheckpointError, match="4 is corrupt: ") as error:
        Checkpoints(tmp_path).last()
    assert name in str(error.value) and len(str(error.value)) < 400


def test_odd_names_are_no_checkpoints(tmp_path):
    small(tmp_path)
    for name in ("²", "٣", "-1", "1e9", "5.bak", "unfinished", ".7", "x"):
        (tmp_path / name).mkdir()
    (tmp_path / "99").write_text("a file")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.epochs == [4]
    assert checkpoints.last().about["progress"] == {"epoch": 4}


def test_what_a_kill_left_is_dropped(tmp_path):
    parts = small(tmp_path)
    # Killed between the renaming and the dropping, and then in the midst of a third.
    shutil.copytree(tmp_path / "4", tmp_path / "2")
    (tmp_path / "unfinished" / "best").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.clean()
    assert [path.name for path in tmp_path.iterdir()] == ["4"]
    checkpoints.save(6, {"progress": {}}, parts)
    assert [path.name for path in tmp_path.iterdir()] == ["6"]


def test_a_checkpoint_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    """Every file and directory of it, and then the directory it is renamed in."""
    synced, replaced = [], []
    fsync, replace = os.fsync, os.replace

    def record(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def rename(source, target):
        if Path(source).name == "unfinished":
            inside = [*Path(source).rglob("*"), Path(source)]
            assert {str(path) for path in inside} <= {*synced}
            replaced.append(len(synced))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "replace", rename)
    small(tmp_path)
    assert str(tmp_path) in synced[replaced[0] :]


def test_an_interrupt_waits_for_the_checkpoint(tmp_path, monkeypatch):
    save = ocp.Checkpointer.save

    def interrupted(self, *args, **options):
        signal.raise_signal(signal.SIGINT)
        save(self, *args, **options)

    monkeypatch.setattr(ocp.Checkpointer, "save", interrupted)
    # A shell has its background jobs ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert Checkpoints(tmp_path).last().about["progress"] == {"epoch": 4}


def test_a_full_disk_is_one_error_that_names_the_directory(tmp_path):
    """A file may not grow beyond a megabyte, as on a disk that is full."""
    code = """
import resource, signal, sys
import numpy as np
from sevo_jax.training.checkpoint import Checkpoints

resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
noise = {str(i): np.random.default_rng(i).random((2000, 100)) for i in range(5)}
try:
    Checkpoints(sys.argv[1]).save(1, {}, {"training": noise})
except OSError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "checkpoints"],
        capture_output=True,
        text=True,
    )
    path = tmp_path / "checkpoints"
    assert done.stdout == f"[Errno 27] File too large: {str(path)!r}\n"
    assert (done.returncode, done.stderr) == (0, "")
    assert Checkpoints(path).epochs == []
