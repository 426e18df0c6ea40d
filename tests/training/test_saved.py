import dataclasses
import json
import shutil

import numpy as np
import pytest

from sevo_jax.data import leave_one_out
from sevo_jax.evaluation import evaluate
from sevo_jax.training import CheckpointError, load
from sevo_jax.training import saved as saved_module


def test_load_gives_the_best_model_back(finished, tiny_recipe, tiny_split):
    result, output = finished
    saved = load(output)
    assert (saved.recipe, saved.seed) == (tiny_recipe, 3)
    assert (saved.epoch, saved.best_epoch) == (12, result.best_epoch)
    assert saved.result == json.loads(json.dumps(result.to_dict()))
    assert evaluate(saved.model, tiny_split, "test") == result.test
    np.testing.assert_array_equal(
        saved.model.item_embedding[...], result.trained.item_embedding[...]
    )


def test_an_unfinished_run_has_no_result(finished, tmp_path):
    _, output = finished
    copy = shutil.copytree(output, tmp_path / "run")
    (copy / "result.json").unlink()
    assert load(copy).result is None


def test_a_run_may_be_read_while_it_trains(finished, tmp_path, monkeypatch):
    """A newer checkpoint takes the place of the one that is being read."""
    folder = shutil.copytree(finished[1], tmp_path / "run") / "checkpoints"
    read, tries = saved_module._load, []

    def replaced(path):
        tries.append(path)
        if len(tries) == 1:
            (folder / "12").rename(folder / "13")
            raise CheckpointError("not as written")
        return read(path)

    monkeypatch.setattr(saved_module, "_load", replaced)
    assert load(tmp_path / "run").epoch == 12 and len(tries) == 2
    # What is broken and stays so is said.
    (folder / "13/manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is corrupt"):
        load(tmp_path / "run")
    assert len(tries) == 3


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint under"):
        load(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_other_data_are_told_apart_from_the_same_under_another_name(
    finished, tiny_split, ring_log
):
    saved = load(finished[1])
    renamed = dataclasses.replace(tiny_split.log, name="copy")
    saved.check(leave_one_out(renamed))
    with pytest.raises(CheckpointError, match="dataset.num_users was 300 and is 310"):
        saved.check(leave_one_out(ring_log(num_users=310)))
