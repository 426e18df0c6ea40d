"""Co-occurrence by a database against co-occurrence in memory, bit for bit."""

import importlib
import importlib.util
import itertools
import re
import sys
from typing import Any

import numpy as np
import pytest

ibis = pytest.importorskip("ibis", reason="needs sevo-jax[engines]")
pa = pytest.importorskip("pyarrow")


from sevo_jax.data import InteractionLog, leave_one_out  # noqa: E402
from sevo_jax.graphs import (  # noqa: E402
    cooccurrence,
    cooccurrence_sql,
    from_edges,
    number_items_sql,
)

IN_ORDER = ("timestamp", "row")


def columns(seed, text=False):
    """A log in no order, with ties in time and items that repeat."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 120))
    users = rng.integers(0, rng.integers(1, 12), size)
    items = rng.integers(0, rng.integers(1, 9), size) * 7 - 10
    times = rng.integers(0, rng.integers(1, 30), size)
    ids = [f"é{item}" for item in items] if text else items
    return {"user": users, "item": ids, "timestamp": times, "row": np.arange(size)}


def log_of(found):
    return InteractionLog.from_columns(
        found["user"], found["item"], found["timestamp"], name="random"
    )


class DuckDB:
    cases = 9

    def __init__(self):
        self.connection = ibis.duckdb.connect()

    def table(self, found):
        return ibis.memtable(pa.table(found))

    def write(self, edges, folder):
        self.connection.to_parquet(edges, folder / "edges.parquet")


class Spark:
    cases = 1

    def __init__(self):
        # By name, for where it is not installed.
        builder = importlib.import_module("pyspark.sql").SparkSession.builder
        self.session = (
            builder.master("local[2]")
            .config("spark.sql.shuffle.partitions", 2)
            .config("spark.ui.enabled", False)
            .getOrCreate()
        )
        self.connection = ibis.pyspark.connect(self.session)
        self.count = itertools.count()

    def table(self, found):
        name = f"log{next(self.count)}"
        rows = list(zip(*(np.asarray(each).tolist() for each in found.values())))
        frame = self.session.createDataFrame(rows, list(found))
        frame.createOrReplaceTempView(name)
        return self.connection.table(name)

    def write(self, edges, folder):
        query = str(self.connection.compile(edges))
        self.session.sql(query).write.parquet(f"{folder / 'edges'}")


@pytest.fixture(
    scope="module",
    params=[
        "duckdb",
        pytest.param(
            "pyspark",
            marks=[
                pytest.mark.skipif(
                    not importlib.util.find_spec("pyspark"), reason="needs pyspark"
                ),
                pytest.mark.filterwarnings("ignore"),
            ],
        ),
    ],
)
def engine(request):
    return {"duckdb": DuckDB, "pyspark": Spark}[request.param]()


def built(engine, folder, found, num_items, **options):
    folder.mkdir(exist_ok=True)
    engine.write(cooccurrence_sql(engine.table(found), **options), folder)
    return from_edges(folder, num_items)


def assert_equal(one, two):
    np.testing.assert_array_equal(one.indices, two.indices)
    np.testing.assert_array_equal(one.data, two.data)
    assert one.shape == two.shape and one.data.dtype == two.data.dtype


FACTORS = list(
    itertools.product(
        ("last", "first"), (1, 2, 3, 4, 5), ("distance", "frequency"), (False, True)
    )
)


@pytest.mark.parametrize("case", range(0, len(FACTORS), 9))
def test_equals_what_is_counted_in_memory(engine, case, tmp_path):
    # A query of Spark takes long to begin.
    for seed in range(case, min(case + engine.cases, len(FACTORS))):
        keep, max_hop, weighting, held_out = FACTORS[seed]
        found = columns(seed, text=seed % 3 == 0)
        factors: dict[str, Any] = dict(
            max_len=(None, 1, 4, 9)[seed % 4],
            keep=keep,
            max_hop=max_hop,
            weighting=weighting,
        )
        log = log_of(found)
        sequences = leave_one_out(log).train if held_out else log.sequences
        expected = cooccurrence(sequences, log.num_items, **factors)
        graph = built(
            engine,
            tmp_path / f"{seed}",
            found,
            log.num_items,
            items=number_items_sql(engine.table(found)),
            order_by=IN_ORDER,
            leave_one_out=held_out,
            **factors,
        )
        assert_equal(graph, expected)


def test_what_times_leave_open_is_in_the_order_of_items(engine, tmp_path):
    found = columns(1)
    order = np.lexsort((found["item"], found["timestamp"]))
    log = log_of({name: np.asarray(each)[order] for name, each in found.items()})
    assert len(np.unique(found["timestamp"])) < len(order)
    items = number_items_sql(engine.table(found))
    graph = built(engine, tmp_path, found, log.num_items, items=items, max_hop=2)
    assert_equal(graph, cooccurrence(log.sequences, log.num_items, max_hop=2))


@pytest.fixture(scope="module")
def duckdb():
    return DuckDB()


def test_items_as_log_numbers_them(duckdb):
    for text in (True, False):
        found = columns(5, text)
        items = number_items_sql(duckdb.table(found)).order_by("number").to_pyarrow()
        assert items["item"].to_pylist() == log_of(found).item_ids.tolist()
        assert items["number"].to_pylist() == list(range(len(items)))
        assert items["number"].type == pa.int32()


def test_numbers_of_ones_own_and_other_names(duckdb, tmp_path):
    """Items that have no number are as if they were not in the log."""
    found = {"who": ["a"] * 4, "what": [9, 5, 7, 9], "when": [0.5, 1.5, 2.5, 3.5]}
    items = ibis.memtable(pa.table({"item": [9, 7], "number": [0, 2]}))
    names = dict(user="who", item="what", order_by="when")
    graph = built(duckdb, tmp_path, found, 3, items=items, **names)
    assert_equal(graph, cooccurrence([[0, 2, 0]], 3))
    # Numbered from 0 already; dates.
    found["what"] = [0, 1, 1, 2]
    found["when"] = np.array([2, 1, 3, 4], "datetime64[us]")
    graph = built(duckdb, tmp_path, found, 3, **names)
    assert_equal(graph, cooccurrence([[1, 0, 1, 2]], 3))


def test_an_example_in_ids(duckdb):
    found = {"user": [1, 1, 1], "item": ["b", "a", "a"], "timestamp": [1, 2, 3]}
    edges = cooccurrence_sql(duckdb.table(found), max_hop=2).order_by("i", "j")
    assert edges.to_pyarrow().to_pylist() == [
        {"i": "a", "j": "a", "weight": 2.0},
        {"i": "a", "j": "b", "weight": 1.5},
    ]


def test_windows_and_no_self_join(duckdb):
    table = duckdb.table(columns(0))
    query = f"{ibis.to_sql(cooccurrence_sql(table, max_len=3, max_hop=4))}"
    assert "JOIN" not in query and query.count("OVER (") == 6


GOOD = {"user": [1, 1], "item": [0, 1], "timestamp": [1, 2]}
FAULTS = {
    "no such column": (
        dict(user="customer"),
        {},
        ValueError,
        "table has no column customer; there are user, item, timestamp: give",
    ),
    "no such time": (dict(order_by="when"), {}, ValueError, "no column when; there"),
    "no order": (dict(order_by=()), {}, ValueError, "order_by is empty: name"),
    "user missing": ({}, {"user": [1, None]}, ValueError, "user has no value in 1 row"),
    "item missing": ({}, {"item": [None, None]}, TypeError, "item of the items is"),
    "null item": ({}, {"item": [None, 1]}, ValueError, "item has no value in 1 rows"),
    "empty item": ({}, {"item": ["", "b"]}, ValueError, "item has no value in 1 rows"),
    "time missing": ({}, {"timestamp": [1, None]}, ValueError, "timestamp has no val"),
    "time NaN": ({}, {"timestamp": [1, np.nan]}, ValueError, "timestamp has no value"),
    "no end": ({}, {"timestamp": [1, np.inf]}, ValueError, "timestamp has no value"),
    "fractions": ({}, {"item": [0.5, 1]}, TypeError, "the items is float64, but must"),
    "text for times": ({}, {"timestamp": ["9", "10"]}, TypeError, "the text '9' comes"),
    "max_hop": (dict(max_hop=0), {}, ValueError, "max_hop must be at least 1, not 0"),
    "max_len": (dict(max_len=0), {}, ValueError, "max_len must be at least 1, not 0"),
    "hops of 1.5": (dict(max_hop=1.5), {}, TypeError, "max_hop must be an integer"),
    "keep": (dict(keep="best"), {}, ValueError, "keep must be 'last' or 'first', not"),
    "weighting": (
        dict(weighting="log"),
        {},
        ValueError,
        "weighting must be 'distance'",
    ),
}


@pytest.mark.parametrize(
    ("options", "changed", "error", "message"), FAULTS.values(), ids=FAULTS
)
def test_faults(duckdb, options, changed, error, message):
    table = duckdb.table(GOOD | changed)
    with pytest.raises(error, match=re.escape(message)):
        cooccurrence_sql(table, **options)


ITEMS = {
    "no number": ({"item": [0, 1]}, "items has no column number"),
    "fractions": ({"item": [0, 1], "number": [0.0, 1.0]}, "number is float64: it must"),
    "other ids": ({"item": ["0", "1"], "number": [0, 1]}, "are int64, those of items"),
    "twice": ({"item": [0, 0], "number": [0, 1]}, "2 rows, with 1 different items"),
    "one number": ({"item": [0, 1], "number": [0, 0]}, "items and 1 different numbers"),
}


@pytest.mark.parametrize(("items", "message"), ITEMS.values(), ids=ITEMS)
def test_faults_of_the_numbers(duckdb, items, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        cooccurrence_sql(duckdb.table(GOOD), items=duckdb.table(items))


def test_what_is_no_table_of_ibis():
    wrong: Any = pa.table(GOOD)
    for build in (cooccurrence_sql, number_items_sql):
        with pytest.raises(TypeError, match="Table, not a table of Ibis: take one"):
            build(wrong)


def test_without_the_extra(monkeypatch):
    wrong: Any = None
    monkeypatch.setitem(sys.modules, "ibis", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sevo-jax\[engines\]'"):
        cooccurrence_sql(wrong)
