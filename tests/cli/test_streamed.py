"""`sevo-jax graph` of a log in parts, into a file or in parts, is that of the whole."""

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from sevo_jax import graphs, operators
from sevo_jax.cli import main
from sevo_jax.data import streaming


def sevo(*args):
    return main([str(arg) for arg in args])


def write(path, *, text, order=True):
    """Users of one to many interactions, ties in time; ids not from 0."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 40, 300), rng.integers(0, 25, 300) * 7 - 20
    times = rng.integers(0, 20, 300)
    if order:
        at = np.lexsort((times, users))
        users, items, times = users[at], items[at], times[at]
    names = [f"i{item}" for item in items] if text else items
    table = pyarrow.table({"user": users, "item": names, "timestamp": times})
    parquet.write_table(table, path, row_group_size=50)
    return path


@pytest.mark.parametrize("text", [True, False])
def test_the_same_graph_as_of_the_log_in_memory(tmp_path, monkeypatch, capsys, text):
    monkeypatch.setattr(streaming, "_BATCH", 20)
    log = write(tmp_path / "log.parquet", text=text)
    monkeypatch.chdir(tmp_path)
    for number, options in enumerate(
        (
            ["--max-hop", 3, "--max-len", 6, "--keep", "first"],
            ["--max-len", "None", "--weighting", "frequency", "--item-offset", 0],
        )
    ):
        args = ["graph", "--data", log, *options]
        assert sevo(*args, "--output", "memory.npz") == 0
        said = capsys.readouterr().out.splitlines()
        assert sevo(*args, "--output", "streamed.npz", "--stream") == 0
        assert capsys.readouterr().out.splitlines()[1:] == said[1:]
        whole = operators.as_csr(graphs.load("memory.npz"))
        found = [operators.as_csr(graphs.load("streamed.npz"))]
        for way in ([], ["--stream"]):
            folder = f"parts{number}{len(way)}"
            assert sevo(*args, *way, "--parts", 4, "--output", folder) == 0
            parts = graphs.GraphParts(folder)
            assert capsys.readouterr().out == f"{folder}: {parts}\n"
            found.append(parts.rows(0, parts.num_nodes))
        for each in found:
            for name in ("indptr", "indices", "data"):
                np.testing.assert_array_equal(getattr(each, name), getattr(whole, name))


FAULTS = {
    "no data": (["--stream"], "--stream needs the Parquet files of a log"),
    "k-core": (["--stream", "--data", "log.parquet", "--k-core", 5], "--k-core has no"),
    "order": (["--stream", "--data", "wild.parquet"], "sort the rows by user"),
    "kind": (["--stream", "--data", "x", "--kind", "user-item"], "builds item-item"),
    "load": (["--stream", "--load", "x.npz"], "--load reads one: give one"),
    "engine": (["--stream", "--engine", "duckdb"], "so does --stream: give one"),
    "no output": (["--parts", 2], "--parts needs a new folder"),
    "parts of a kind": (
        ["--parts", 2, "--output", "g", "--kind", "user-item"],
        "--parts builds item-item alone",
    ),
    "parts of a file": (
        ["--parts", 2, "--load", "x.npz"],
        "--parts is not for --engine or --load",
    ),
    "no parts": (["--parts", 0, "--output", "g"], "num_parts must be at least 1"),
    "there": (["--parts", 2, "--output", "log.parquet"], "is there already"),
}


@pytest.mark.parametrize(("args", "message"), FAULTS.values(), ids=FAULTS)
def test_faults(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    write("log.parquet", text=False)
    write("wild.parquet", text=False, order=False)
    assert sevo("graph", *args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sevo-jax: error: ") and message in line
    assert {path.name for path in tmp_path.iterdir()} == {"log.parquet", "wild.parquet"}


def test_ids_that_are_not_in_the_files_asked(tmp_path):
    path = write(tmp_path / "log.parquet", text=True)
    item_ids = streaming.read_item_ids(path)[:-1]
    with pytest.raises(ValueError, match="holds item i99, .* not among the 24 of"):
        list(streaming.stream(path, 24, item_ids=item_ids))
