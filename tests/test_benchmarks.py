"""The benchmarks of speed: each script can be imported and says what it does."""

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sevo_jax as sevo

FOLDER = Path(__file__).parents[1] / "benchmarks"
# They measure PyTorch beside the library, and must be imported before it.
WITH_PYTORCH = {"backbones", "training"}
NO_SCRIPTS = {"candidates", "harness", "summary"}
SCRIPTS = {path.stem for path in FOLDER.glob("*.py")} - NO_SCRIPTS - WITH_PYTORCH


def run(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    importlib.import_module(name).main()


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_help(name, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="^0$"):
        run(name, monkeypatch, "--help")
    assert f"python benchmarks/{name}.py" in capsys.readouterr().out


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch")
@pytest.mark.parametrize("name", sorted(WITH_PYTORCH))
def test_help_beside_pytorch(name):
    command = [sys.executable, FOLDER / f"{name}.py", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"python benchmarks/{name}.py" in result.stdout


def test_a_step_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.import_module("harness"), "RESULTS", tmp_path)
    monkeypatch.setattr(importlib.import_module("optimizer_step"), "WIDTHS", (4,))
    run("optimizer_step", monkeypatch, "--sizes", "300")
    written = json.loads((tmp_path / "optimizer_step-cpu.json").read_text())
    assert written["machine"]["versions"]["jax"]
    (measured,) = written["results"]
    assert measured["nodes"] == 300 and measured["width"] == 4
    assert 0 < measured["seconds a step"]["sevo_adamw"]["min"]
    assert (tmp_path / "optimizer_step-cpu.png").exists()
    assert "300 x    4" in capsys.readouterr().out


def test_what_is_cut_short_is_no_evidence(monkeypatch, tmp_path):
    harness = importlib.import_module("harness")
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(harness, "SHORT", tmp_path / "short")
    whole = harness.save("speed", {"seconds": 1})
    short = harness.save("speed", {"seconds": 2}, short=True)
    assert short.parent == harness.SHORT and whole != short
    assert harness.earlier("speed", None) == {"seconds": 1}
    assert harness.earlier("another", {}) == {}
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    given = (([], False), (["--rounds", "3"], False), (["--rounds", "1"], True))
    for arguments, expected in given:
        assert harness.is_short(parser, parser.parse_args(arguments)) == expected


def test_the_shell_script_names_benchmarks_that_are_there():
    lines = (FOLDER / "speed.sh").read_text().splitlines()
    commands = [line.split()[1:] for line in lines if line.startswith("python ")]
    assert len(commands) == 5
    assert all((FOLDER / script).exists() for script, *_ in commands)


def test_the_log_of_ten_million_items_in_small(tmp_path):
    end_to_end = importlib.import_module("end_to_end")
    users, items = end_to_end.draw(500, 1000)
    assert (np.diff(users) >= 0).all()
    pairs = users * 1000 + items
    assert len(np.unique(pairs)) == len(pairs)

    def distinct_links(items):
        rows = [items[users == user] for user in range(500)]
        return sevo.graphs.cooccurrence(rows, num_items=1000).nse

    # Both communities of a user go on to the end, where there are two.
    users, walked = end_to_end.walk(500, 1000, np.random.default_rng(0))
    late = [walked[users == user][-8:] // end_to_end.COMMUNITY for user in range(500)]
    several = [len(np.unique(each)) for each in late]
    assert max(several) == 2 and np.mean(several) > 1.5
    # Who follows whom repeats, whatever the shuffled numbers.
    shuffled = np.random.default_rng(1).permutation(items)
    assert distinct_links(items) < 0.9 * distinct_links(shuffled)
    results = end_to_end.run(5000, tmp_path)
    assert results["interactions"] == len(end_to_end.draw(1000, 5000)[0])
    assert len(results["phases"]) == 12 and len(results["seconds a step"]) == 3
    assert 0 <= results["validation"]["NDCG@10"] <= 1
