"""A newcomer's recommender, a file outside of the package, with every command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NEWCOMER = Path(__file__).parents[1] / "models" / "newcomer.py"
ADDITIONS = Path(__file__).with_name("additions.py")
OPTIONS = "--model newcomer --width 8 --batch-size 16 --eval-every 1".split()


@pytest.fixture
def command(tmp_path, path):
    def run(name, *args, status=0):
        done = subprocess.run(
            [sys.executable, "-m", "sevo_jax", name, *map(str, args)],
            capture_output=True,
            cwd=tmp_path,
            text=True,
            encoding="utf-8",
        )
        assert done.returncode == status, done.stderr
        return done

    return run


def test_a_newcomer_has_every_command(command, path, tmp_path):
    plugin = ["--plugin", NEWCOMER]
    train = [*plugin, *OPTIONS, "--data", path, "--output", "run"]
    command("train", *train, "--epochs", 2)
    resumed = command("train", *train, "--epochs", 4, "--resume").stdout
    command(
        "train", *plugin, *OPTIONS, "--data", path, "--output", "whole", "--epochs", 4
    )
    results = [
        json.loads((tmp_path / name / "result.json").read_text())
        for name in ("run", "whole")
    ]
    assert results[0]["losses"] == results[1]["losses"]
    assert results[0]["test"] == results[1]["test"]
    assert set(results[0]["parts"][0]) == {"rank", "penalty"}
    evaluated = command("evaluate", "run", *plugin).stdout
    assert resumed.splitlines()[-1] == evaluated.splitlines()[-1]
    table = command("recommend", "run", *plugin, "--top", 3).stdout.splitlines()
    assert table[0] == "user,item,rank,score" and len(table) > 3 * 50
    compared = command(
        "compare",
        *plugin,
        *OPTIONS,
        "--data",
        path,
        "--epochs",
        1,
        "--seeds",
        0,
        "--output",
        "compared",
    ).stdout
    assert "newcomer on tiny" in compared


def test_a_metric_a_graph_an_optimizer_and_a_format_are_a_line_each(
    command, path, tmp_path
):
    plugin = ["--plugin", ADDITIONS]
    walks = tmp_path / "tiny.walks"
    command("data", "--data", path, *plugin, "--output", walks)
    written, given = (each.read_text().splitlines() for each in (walks, path))
    assert sorted(written) == sorted(given)
    shown = command("graph", "--data", walks, *plugin, "--kind", "ring").stdout
    assert "ring graph of tiny" in shown
    args = "--model sasrec --width 8 --max-len 6 --epochs 2 --eval-every 1".split()
    args += "--optimizer sevo_lion --graph.kind ring".split()
    args += "--metrics Reciprocal@10 HR@10 --selection Reciprocal@10".split()
    command("train", "--data", walks, *plugin, *args, "--output", "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["optimizer"] == "sevo_lion"
    assert set(result["test"]) == {"Reciprocal@10", "HR@10"}
    assert result["test"]["Reciprocal@10"] > 0
    assert "Reciprocal@10" in command("evaluate", "run", *plugin).stdout


def test_without_the_plugin_the_model_is_unknown(command, path):
    failed = command("train", *OPTIONS, "--data", path, status=2)
    assert "newcomer" in failed.stderr and "Traceback" not in failed.stderr
    failed = command("train", "--plugin", "nowhere.py", *OPTIONS, status=2)
    (line,) = failed.stderr.splitlines()
    assert "--plugin nowhere.py cannot be imported" in line
