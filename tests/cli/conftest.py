import numpy as np
import pytest

from sevo_jax.cli import main
from sevo_jax.data import InteractionLog, planted, write


@pytest.fixture(scope="session")
def log():
    """Interactions with text for ids, some of them of other alphabets."""
    log = planted(num_users=80, num_items=40, num_groups=4, seed=1)
    return InteractionLog(
        log.sequences,
        np.array([f"u{user}" for user in log.user_ids], object),
        np.array([f"ü{item}" for item in log.item_ids], object),
        "tiny",
    )


@pytest.fixture(scope="session")
def path(log, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tiny.txt"
    write(log, path)
    return path


def _train(model, path, output):
    args = "--width 8 --batch-size 64 --epochs 2 --eval-every 1 --seed 3".split()
    if model == "sasrec":
        args += ["--max-len", "6"]
    command = ["train", "--model", model, "--data", f"{path}", "--output", f"{output}"]
    assert main([*command, *args]) == 0
    return output


@pytest.fixture(scope="session")
def run(path, tmp_path_factory):
    """The folder of a run of SASRec."""
    return _train("sasrec", path, tmp_path_factory.mktemp("runs") / "sasrec")


@pytest.fixture(scope="session")
def run_of_users(path, tmp_path_factory):
    """That of a run of MF-BPR, which has a table of users."""
    return _train("mf-bpr", path, tmp_path_factory.mktemp("runs") / "mf-bpr")


@pytest.fixture
def fails(capsys):
    """Runs a command that is to fail with one line that holds `parts`."""

    def check(args, *parts, status=2):
        capsys.readouterr()
        assert main([str(arg) for arg in args]) == status
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("sevo-jax: error: ")
        for part in parts:
            assert str(part) in line

    return check
