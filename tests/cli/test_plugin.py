"""A newcomer's recommender, a file outside of the package, with every command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NEWCOMER = Path(__file__).parents[1] / "models" / "newcomer.py"
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


def test_without_the_plugin_the_model_is_unknown(command, path):
    failed = command("train", *OPTIONS, "--data", path, status=2)
    assert "newcomer" in failed.stderr and "Traceback" not in failed.stderr
    failed = command("train", "--plugin", "nowhere.py", *OPTIONS, status=2)
    (line,) = failed.stderr.splitlines()
    assert "--plugin nowhere.py cannot be imported" in line
