import json

import pytest

from sevo_jax.reports.runs import read_runs


def write(folder, **changes):
    recipe = {"model": "sasrec", "epochs": 3, "optimizer": {"name": "sevo_adamw"}}
    recipe["optimizer"]["beta"] = changes.pop("beta", 0.9)
    result = {
        "model": "sasrec",
        "optimizer": "sevo_adamw",
        "dataset": "ring",
        "seed": 0,
        "protocol": "leave-one-out",
        "best_epoch": 2,
        "seconds_per_epoch": 0.5,
        "valid": {"HR@1": 0.25},
        "test": {"HR@1": 0.125},
        "recipe": recipe,
        **changes,
    }
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))


def test_a_row_a_run_with_what_differs(tmp_path):
    write(tmp_path / "b" / "deep", beta=0.5, seed=1, test={"HR@1": 0.5, "MRR": 1.0})
    write(tmp_path / "a")
    (tmp_path / "unfinished").mkdir()
    first, second = read_runs(tmp_path)
    assert list(first) == list(second)
    assert first["run"] == "a" and second["run"] == "b/deep"
    assert [row["seed"] for row in (first, second)] == [0, 1]
    assert [row["optimizer.beta"] for row in (first, second)] == [0.9, 0.5]
    assert "epochs" not in first, "all have the same"
    assert first["valid HR@1"] == 0.25 and second["test HR@1"] == 0.5
    assert list(first)[-1] == "protocol" and first["protocol"] == "leave-one-out"
    assert first["test MRR"] is None and second["test MRR"] == 1.0


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no finished run"):
        read_runs(tmp_path)
    for text in ("{", "[]", '{"recipe": {}}', '{"recipe": {}, "test": {}}'):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(ValueError, match="result.json is no result of a run"):
            read_runs(tmp_path)


def test_a_real_run_is_read(tmp_path, monkeypatch):
    from sevo_jax.cli import main

    monkeypatch.chdir(tmp_path)
    options = "--width 4 --max-len 4 --epochs 1 --batch-size 512".split()
    assert main(["train", "--output", "one", *options]) == 0
    (row,) = read_runs(".")
    assert row["run"] == "one" and row["model"] == "sasrec"
    assert 0 <= row["test NDCG@10"] <= 1
