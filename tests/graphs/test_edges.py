"""Graphs from tables of edges: what they hold, and what is refused of them."""

import re
import sys
from unittest import mock

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")

from pyarrow import parquet  # noqa: E402

from sevo_jax.graphs import _edges, cooccurrence, from_edges  # noqa: E402


def write(path, i, j, weight, **options):
    table = pa.table({"i": i, "j": j, "weight": weight})
    parquet.write_table(table, path, **options)
    return path


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_files_in_parts_in_any_order(tmp_path, batch):
    rng = np.random.default_rng(0)
    graph = cooccurrence(rng.integers(0, 9, (20, 6)), 9, max_hop=3, item_offset=2)
    rows, columns = np.asarray(graph.indices).T
    upper = rng.permutation(np.flatnonzero(rows <= columns))
    nested = tmp_path / "edges" / "hop=3"
    nested.mkdir(parents=True)
    (nested / "_SUCCESS").touch()
    (nested / "_metadata.parquet").write_text("not one of the parts")
    for part in range(3):
        of_part = upper[part::3]
        arrays = (rows[of_part] - 2, columns[of_part] - 2, graph.data[of_part])
        path = nested / f"part-{part}.parquet"
        write(path, *map(np.asarray, arrays), row_group_size=4)
    with mock.patch.object(_edges, "_BATCH", batch):
        for path in (tmp_path / "edges", f"{tmp_path}/**/part-*.parquet"):
            again = from_edges(path, 9, item_offset=2, num_nodes=12)
            np.testing.assert_array_equal(again.indices, graph.indices)
            np.testing.assert_array_equal(again.data, graph.data)
            assert again.shape == (12, 12)
            assert again.indices_sorted and again.unique_indices


def test_types_that_databases_write(tmp_path):
    kinds = [
        (pa.uint8(), pa.int16(), pa.float32()),
        (pa.decimal128(38, 0), pa.int64(), pa.decimal128(30, 4)),
        (pa.int32(), pa.uint64(), pa.int64()),
    ]
    for number, (one, two, weight) in enumerate(kinds):
        path = tmp_path / f"{number}.parquet"
        columns = [[0, 1], [2, 1], [3, 4]]
        arrays = [
            pa.array(column).cast(kind)
            for column, kind in zip(columns, (one, two, weight))
        ]
        dense = from_edges(write(path, *arrays), 3).todense()
        assert dense.tolist() == [[0, 0, 3], [0, 4, 0], [3, 0, 0]]


def test_no_edges(tmp_path):
    none = pa.array([], pa.int64())
    graph = from_edges(write(tmp_path / "x.parquet", none, none, none), 3)
    assert graph.nse == 0 and graph.shape == (3, 3)


FAULTS = {
    "too large": (([0, 1], [1, 3], [1.0, 1.0]), "row 1 has j = 3, outside 0..2"),
    "negative": (([0, -1], [1, 2], [1.0, 1.0]), "row 1 has i = -1, outside 0..2"),
    "beyond int32": (([0], [2**32], [1.0]), "row 0 has j = 4294967296, outside"),
    "order": (([0, 2], [1, 1], [1.0, 1.0]), "row 1 has i = 2 and j = 1: each pair"),
    "twice": (([0, 1, 0], [1, 2, 1], [1.0] * 3), "items 0 and 1 is there twice: group"),
    "loop twice": (([1, 1], [1, 1], [1.0] * 2), "the items 1 and 1 is there twice"),
    "negative weight": (([0], [1], [-1.0]), "row 0 has weight = -1.0: weights must"),
    "NaN": (([0, 0], [1, 2], [1.0, np.nan]), "row 1 has weight = nan: weights must"),
    "infinite": (([0], [1], [np.inf]), "row 0 has weight = inf: weights must be non"),
    "too heavy": (([0], [1], [1e39]), "row 0 has weight = 1e+39: weights must be"),
    "too light": (([0], [1], [1e-60]), "row 0 has weight = 1e-60: weights must be"),
    "null item": (([0, None], [1, 2], [1.0] * 2), "row 1 has no i: repair the table"),
    "null weight": (([0], [1], pa.array([None], pa.float32())), "row 0 has no weight"),
    "too long": (
        ([0], pa.array([10**30], pa.decimal128(38, 0)), [1.0]),
        "from row 0 on, a number of the column 'j' does not fit in int64",
    ),
    "text": ((["a"], ["b"], [1.0]), "column 'i' is string, but must hold integers"),
    "fractions": (([0.0], [1], [1.0]), "column 'i' is double, but must hold integers"),
    "words": (([0], [1], ["1"]), "column 'weight' is string, but must hold numbers"),
}


@pytest.mark.parametrize(("columns", "message"), FAULTS.values(), ids=FAULTS)
def test_faults(tmp_path, columns, message):
    path = write(tmp_path / "edges.parquet", *columns, row_group_size=1)
    with mock.patch.object(_edges, "_BATCH", 1):
        with pytest.raises((TypeError, ValueError), match=re.escape(message)) as error:
            from_edges(path, 3, item_offset=1)
    assert "edges.parquet" in str(error.value)


def test_faults_of_files(tmp_path):
    for path in (tmp_path / "none.parquet", tmp_path, f"{tmp_path}/*.parquet"):
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            from_edges(path, 3)
    file = tmp_path / "x.parquet"
    file.write_text("i,j,weight\n")
    with pytest.raises(ValueError, match="x.parquet: not a Parquet file, or a damaged"):
        from_edges(file, 3)
    parquet.write_table(pa.table({"i": [0], "b": [1]}), file)
    with pytest.raises(ValueError, match="no column 'j'; there are i, b: rename"):
        from_edges(file, 3)
    with pytest.raises(ValueError, match="num_items must be at least 1, not 0"):
        from_edges(file, 0)
    write(file, [0], [1], [1.0])
    with mock.patch.object(_edges, "_MOST", 1):
        with pytest.raises(ValueError, match="has 1 edges, more than one graph holds"):
            from_edges(file, 3)


def test_without_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", [0], [1], [1.0])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sevo-jax\[engines\]'"):
        from_edges(path, 3)
