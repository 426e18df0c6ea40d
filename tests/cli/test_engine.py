"""`sevo-jax graph --engine duckdb` makes the file that it makes without."""

import sys
import zipfile

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from sevo_jax import graphs
from sevo_jax.cli import main

ibis = pytest.importorskip("ibis", reason="needs sevo-jax[engines]")


def write(folder, *, text, times=True, parts=3):
    """A log in no order, with ties in time, in parts that are not sorted as text."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 30, 400), rng.integers(0, 25, 400) * 3
    names = [f"i{item}" for item in items] if text else items
    columns = {"customer": users, "rating": rng.random(400), 'the "item"': names}
    if times:
        columns["when"] = rng.integers(0, 40, 400).astype("datetime64[s]")
    table = pyarrow.table(columns)
    folder.mkdir()
    for part, at in enumerate(np.array_split(np.arange(400), parts)):
        path = folder / f"it's part-{8 + part}.parquet"
        parquet.write_table(table.take(at), path, row_group_size=50)
    return folder


NAMES = ["--user-column", "customer", "--item-column", 'the "item"']


def sevo(*args):
    return main([str(arg) for arg in args])


@pytest.mark.parametrize("text", [True, False])
def test_the_same_graph_as_without(tmp_path, monkeypatch, capsys, text):
    log = write(tmp_path / "log", text=text)
    monkeypatch.chdir(tmp_path)
    for options in (
        ["--max-hop", 3, "--max-len", 6, "--keep", "first"],
        ["--max-len", "None", "--weighting", "frequency", "--item-offset", 0],
    ):
        args = ["graph", "--data", log, *NAMES, "--timestamp-column", "when", *options]
        assert sevo(*args, "--output", "memory.npz") == 0
        said = capsys.readouterr().out.splitlines()
        assert sevo(*args, "--output", "duckdb.npz", "--engine", "duckdb") == 0
        title, *lines = capsys.readouterr().out.splitlines()
        assert title == f"item-item graph of {log}" and lines == said[1:]
        one, two = (graphs.load(f"{name}.npz") for name in ("memory", "duckdb"))
        np.testing.assert_array_equal(one.indices, two.indices)
        np.testing.assert_array_equal(one.data, two.data)
    with zipfile.ZipFile("memory.npz") as one, zipfile.ZipFile("duckdb.npz") as two:
        assert "items.npy" in one.namelist()
        # The ids too.
        assert [f.CRC for f in one.infolist()] == [f.CRC for f in two.infolist()]
    assert {file.name for file in tmp_path.iterdir()} == {
        "log",
        "memory.npz",
        "duckdb.npz",
    }


def test_files_without_times_and_patterns(tmp_path, capsys, caplog):
    log = write(tmp_path / "log", text=True, times=False, parts=2)
    parts = [log / f"it's part-{part}.parquet" for part in (8, 9)]
    said = []
    for data in (log, f"{tmp_path}/lo*/*.parquet"):
        args = ["graph", "--data", data, *NAMES, "--engine", "duckdb"]
        assert sevo(*args, "--output", tmp_path / "duckdb.npz") == 0
        said.append(capsys.readouterr().out.splitlines()[1:])
    assert said[0] == said[1]
    whole = pyarrow.concat_tables(map(parquet.read_table, parts))
    parquet.write_table(whole, tmp_path / "log.parquet")
    data = tmp_path / "log.parquet"
    assert sevo("graph", "--data", data, *NAMES, "--output", tmp_path / "x") == 0
    asked = [record.message for record in caplog.records]
    assert len(asked) == 3 and all("the order of the file is taken" in a for a in asked)
    one, two = graphs.load(tmp_path / "x"), graphs.load(tmp_path / "duckdb.npz")
    np.testing.assert_array_equal(one.indices, two.indices)
    np.testing.assert_array_equal(one.data, two.data)


def test_the_number_of_a_column_may_be_its_name(tmp_path, capsys):
    rng = np.random.default_rng(0)
    columns = {name: rng.integers(0, 9, 60) for name in ("1", "0", "2")}
    parquet.write_table(pyarrow.table(columns), tmp_path / "log.parquet")
    for engine in ([], ["--engine", "duckdb"]):
        args = ["graph", "--data", tmp_path / "log.parquet", *engine]
        args += ["--user-column", 1, "--item-column", 0, "--timestamp-column", 2]
        assert sevo(*args, "--output", tmp_path / f"{len(engine)}.npz") == 0
    one, two = (graphs.load(tmp_path / f"{n}.npz") for n in (0, 2))
    np.testing.assert_array_equal(one.indices, two.indices)
    np.testing.assert_array_equal(one.data, two.data)


@pytest.mark.parametrize(
    ("kind", "int96", "is_cut"),
    [
        (pyarrow.timestamp("ns"), False, False),
        (pyarrow.timestamp("us", "UTC"), False, False),
        (pyarrow.timestamp("ns", "UTC"), False, True),
        (pyarrow.timestamp("ns"), True, True),
    ],
)
def test_nanoseconds_that_are_cut_are_said(tmp_path, caplog, kind, int96, is_cut):
    times = pyarrow.array([2, 1], pyarrow.int64()).cast(kind)
    table = pyarrow.table({"user": [1, 1], "item": [1, 2], "timestamp": times})
    path = tmp_path / "log.parquet"
    parquet.write_table(table, path, use_deprecated_int96_timestamps=int96)
    assert sevo("graph", "--engine", "duckdb", "--data", path) == 0
    said = [record.message for record in caplog.records]
    assert len(said) == is_cut and all("'timestamp' may have nano" in s for s in said)


FAULTS = {
    "no data": ([], "--engine needs the Parquet files of a log: add --data"),
    "no file": (["--data", "none.parquet"], "none.parquet: DuckDB fails with IO Error"),
    "no parts": (["--data", "none"], "a folder without Parquet files"),
    "other file": (["--data", "log.csv"], "log.csv: --engine reads Parquet files"),
    "damaged": (["--data", "bad.parquet"], "bad.parquet: DuckDB fails with"),
    "k-core": (["--data", "log", "--k-core", "5"], "--k-core has no effect with"),
    "kind": (["--data", "log", "--kind", "user-item"], "--kind is user-item, but"),
    "loaded": (["--data", "log", "--load", "x.npz"], "--load reads one: give one"),
    "columns": (["--data", "log"], "no column is named item"),
    "null": (["--data", "null.parquet"], "the column sku has no value in 1 rows"),
    "taken": (["--data", "taken.parquet"], "column is named 'File_Row_Number': rename"),
    "empty": (["--data", "empty.parquet"], "empty.parquet: the table has no rows"),
    "text": (["--data", "text.parquet"], "the column when of order_by is string"),
    "offset": (["--data", "ok.parquet", "--item-offset", "-1"], "item_offset must be"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    write(folder / "log", text=False)
    (folder / "none").mkdir()
    (folder / "bad.parquet").write_text("no")
    ids = pyarrow.array([1], pyarrow.int64())
    tables = {
        "null": {"user": [1, 1], "sku": [1, None]},
        "empty": {"user": ids[:0], "sku": ids[:0]},
        "taken": {"user": [1], "sku": [1], "File_Row_Number": [1]},
        "text": {"user": [1], "sku": [1], "when": ["9"]},
        "ok": {"user": [1, 1], "sku": [1, 2]},
    }
    for name, table in tables.items():
        parquet.write_table(pyarrow.table(table), folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize(("args", "message"), FAULTS.values(), ids=FAULTS)
def test_faults(files, monkeypatch, capsys, args, message):
    monkeypatch.chdir(files)
    if "text.parquet" in args:
        args = [*args, "--timestamp-column", "when"]
    assert sevo("graph", "--engine", "duckdb", *args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sevo-jax: error: ") and message in line


def test_an_address_reaches_the_database_as_it_is(monkeypatch, capsys):
    """Whatever a path would make of it."""
    asked = []

    def read(self, files):
        asked.append(files)
        raise ValueError("enough")

    monkeypatch.setattr(ibis.backends.duckdb.Backend, "read_parquet", read)
    with pytest.raises(ValueError, match="enough"):
        sevo("graph", "--engine", "duckdb", "--data", "s3://a//b/*.parquet")
    assert asked == [["s3://a//b/*.parquet"]]


def test_without_the_extra(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    monkeypatch.setitem(sys.modules, "ibis", None)
    assert sevo("graph", "--engine", "duckdb", "--data", "ok.parquet") == 2
    assert "pip install 'sevo-jax[engines]'" in capsys.readouterr().err
