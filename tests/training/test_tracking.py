"""The lines of `docs/tracking.md` for trackers, which need not be installed."""

import contextlib
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

PAGE = Path(__file__).parents[2] / "docs/tracking.md"


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the first block of the page defines."""
    monkeypatch.chdir(tmp_path)
    first = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    names = {}
    exec(first, names)
    return names


def run_with(tracker, names):
    (block,) = (
        block
        for block in re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if f"import {tracker.__name__}\n" in block
    )
    exec(block, names)


def test_weights_and_biases(names, monkeypatch):
    logged, summary, config = [], {}, {}

    @contextlib.contextmanager
    def init(project, **options):
        config.update(options["config"])
        yield SimpleNamespace(log=logged.append, summary=summary)

    wandb = ModuleType("wandb")
    monkeypatch.setattr(wandb, "init", init, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run_with(wandb, names)
    assert config["model"] == "mf-bpr"
    first, second, last = logged
    assert (first["epoch"], second["epoch"], last["epoch"]) == (0, 0, 1)
    result = names["result"]
    assert second["train/loss"] == result.losses[0]
    for told, record in zip((first, last), result.history, strict=True):
        assert told["evaluation/NDCG_10"] == record["valid"]["NDCG@10"]
    assert summary == {f"test/{k}": v for k, v in result.test.items()}


def test_mlflow(names, monkeypatch):
    logged, files = [], []
    mlflow = ModuleType("mlflow")
    for name, value in {
        "start_run": contextlib.nullcontext,
        "log_dict": lambda values, path: files.append(path),
        "log_metrics": lambda values, step=None: logged.append((step, values)),
        "log_artifact": lambda path: files.append(Path(path).exists()),
    }.items():
        monkeypatch.setattr(mlflow, name, value, raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    run_with(mlflow, names)
    assert [step for step, _ in logged] == [0, 0, 1, None]
    result = names["result"]
    assert logged[1][1]["train/loss"] == result.losses[0]
    for at, name, metrics in (
        (2, "evaluation/NDCG_10", result.history[-1]["valid"]),
        (3, "test/NDCG_10", result.test),
    ):
        assert logged[at][1][name] == metrics["NDCG@10"]
    assert files == ["recipe.json", True]
    # MLflow takes no other characters in names.
    used = "".join(name for _, values in logged for name in values)
    assert re.fullmatch(r"[\w./ :-]+", used)
