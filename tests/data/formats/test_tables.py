"""Parquet, folders of it, and tables that Python passes."""

import os
import random
import subprocess
import sys
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from sevo_jax.data import InteractionLog, read, write
from sevo_jax.data.formats import tables

# Of user, item and time; by user: 1 has b after a, 2 has c.
USERS, ITEMS, TIMES = [1, 2, 1], ["b", "c", "a"], [20, 5, 10]
EXPECTED = {1: ["a", "b"], 2: ["c"]}


class Frame:
    """What a DataFrame shows of itself to Arrow."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


@pytest.fixture(params=["file", "small groups", "frame"])
def read_table(request, tmp_path):
    """Reads a table from a file, or passed by itself."""

    def run(table, **options):
        if not isinstance(table, pyarrow.Table):
            table = pyarrow.table(table)
        if request.param == "frame":
            return read(Frame(table), **options)
        size = 2 if request.param == "small groups" else None
        parquet.write_table(table, tmp_path / "log.parquet", row_group_size=size)
        return read(tmp_path / "log.parquet", **options)

    return run


def array(values, kind=None):
    return pyarrow.array(values, kind)


ZONE = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    "users",
    [
        *(array(USERS, kind()) for kind in (pyarrow.int8, pyarrow.uint64)),
        array([1.0, 2.0, 1.0]),
        array([1.0, 2.0, 1.0], pyarrow.float32()),
        array([Decimal("1.00"), Decimal("2.00"), Decimal("1.00")]),
        array(np.array(USERS, np.float16)),
        array(USERS).dictionary_encode(),
    ],
    ids=lambda array: str(array.type),
)
def test_types_of_numbers(read_table, as_lists, users):
    log = read_table({"user": users, "item": ITEMS, "time": TIMES})
    assert as_lists(log) == EXPECTED
    assert log.user_ids.dtype == np.int64


@pytest.mark.parametrize(
    "items",
    [
        *(array(ITEMS, kind()) for kind in (pyarrow.string, pyarrow.large_string)),
        *(array(ITEMS, kind()) for kind in (pyarrow.string_view, pyarrow.binary)),
        array(ITEMS).dictionary_encode(),
        # A category without rows is no item.
        pyarrow.DictionaryArray.from_arrays([2, 0, 1], ["c", "a", "b", "d"]),
        pyarrow.DictionaryArray.from_arrays(
            array([2, 0, 1], pyarrow.uint32()),
            array(["c", "a", "b", "d"], pyarrow.string_view()),
        ),
    ],
    ids=lambda array: str(array.type),
)
def test_types_of_text(request, read_table, as_lists, items):
    if "string_view" in str(items.type) and "frame" not in request.node.name:
        pytest.skip("Parquet does not know it")
    log = read_table({"user": USERS, "item": items, "time": TIMES})
    assert as_lists(log) == EXPECTED
    assert log.num_items == 3


def test_text_stays_text(read_table, as_lists):
    log = read_table({"user": ["12", "3", "12"], "item": ["1.0", "1", "\0"]})
    assert as_lists(log) == {"12": ["1.0", "\0"], "3": ["1"]}


DAYS = [date(2020, 1, 20), date(2020, 1, 5), date(2020, 1, 10)]
MOMENTS = [datetime(day.year, day.month, day.day) for day in DAYS]


@pytest.mark.parametrize(
    "times",
    [
        *(array(TIMES, kind()) for kind in (pyarrow.int32, pyarrow.uint64)),
        *(array(TIMES, kind()) for kind in (pyarrow.float32, pyarrow.float64)),
        # Nanoseconds, which as float64 are one.
        array([1_400_000_000_000_000_000 + time for time in TIMES]),
        array([Decimal(time) for time in TIMES]),
        *(array(DAYS, kind()) for kind in (pyarrow.date32, pyarrow.date64)),
        *(array(MOMENTS, pyarrow.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
        array(MOMENTS, pyarrow.timestamp("us", "Asia/Tokyo")),
        array([f"{day}" for day in DAYS]),
        array([f"{day} 10:00:00" for day in DAYS], pyarrow.large_string()),
        array([f"{day}T10:00:00.123456789+02:00" for day in DAYS]),
        array(["2020-01-20", "2020-01-05T00:00Z", "2020-01-10 01:00 UTC"]),
        array([str(time) for time in TIMES]).dictionary_encode(),
    ],
    ids=lambda array: f"{array.type}-{array[1]}",
)
def test_types_of_times(read_table, as_lists, times):
    log = read_table({"user": USERS, "item": ITEMS, "time": times})
    assert as_lists(log) == EXPECTED


def test_names_and_numbers(read_table, as_lists, fails):
    table = {"a": TIMES, "b": USERS, "c": ["x"] * 3, "d": ITEMS, "user": TIMES}
    columns = {"user": "B", "item": 3, "timestamp": "0"}
    assert as_lists(read_table(table, **columns)) == EXPECTED
    # DataFrames call columns by numbers.
    table = {"2": TIMES, "0": USERS, "1": ITEMS}
    assert as_lists(read_table(table, user=0, item=1, timestamp=2)) == EXPECTED
    fails(lambda: read_table(table), "no column is named user", "--user-column")
    fails(lambda: read_table(table, user="0", item=7), "no column 7", "--item-column")
    fails(
        lambda: read_table({"user": [1], "uid": [1], "USER": [1], "item": [1]}), "two"
    )


def test_without_times(read_table, as_lists, warnings_of):
    logs = []
    table = {"user": [2, 1, 1], "item": [9, 7, 3], "when": [3, 2, 1]}
    (said,) = warnings_of(lambda: logs.append(read_table(table)))
    assert "user, item, when" in said and "--timestamp-column" in said
    assert as_lists(logs[0]) == {1: [7, 3], 2: [9]}
    del table["when"]
    assert warnings_of(lambda: read_table(table)) == []


@pytest.mark.parametrize(
    ("title", "values", "message"),
    [
        ("user", [1, None, 2], "row 1 of column 'user' is empty"),
        ("item", ["a", "", "b"], "row 1 of column 'item' is empty"),
        ("item", ["a", None, "b"], "row 1 of column 'item' is empty"),
        ("item", [1.0, np.nan, 2.0], "row 1 of column 'item' is nan"),
        ("item", [1.0, 1.5, 2.0], "row 1 of column 'item' is 1.5, neither"),
        ("item", [1.0, 2.0**53, 2.0], "row 1 of column 'item' is 9007199254740992.0"),
        ("item", [1.0, np.inf, 2.0], "row 1 of column 'item' is inf"),
        ("item", array([1, -(2**24), 2], pyarrow.float32()), "is -16777216.0, neither"),
        ("item", array(np.array([1, 2**11, 2], np.float16)), "is 2048.0, neither"),
        ("item", array([1, 2**63, 2], pyarrow.uint64()), "is 9223372036854775808"),
        (
            "item",
            array([Decimal("1"), Decimal("1.5"), Decimal("2")]),
            "is Decimal('1.5",
        ),
        ("item", array([Decimal(1), Decimal(2**63), Decimal(2)]), "is Decimal('92233"),
        ("time", [1.0, np.nan, 2.0], "row 1 of column 'time' is nan"),
        ("time", [1, None, 2], "row 1 of column 'time' is empty"),
        ("time", ["1", "x" * 10**6, "2"], "row 1 of column 'time' is 'xxx"),
        (
            "time",
            ["2020-01-01", "01/02/2020", "2020-01-02"],
            "is '01/02/2020', neither",
        ),
        ("time", ["2020-01-01", "", "2020-01-02"], "row 1 of column 'time' is empty"),
    ],
)
def test_bad_rows(read_table, fails, warnings_of, title, values, message):
    table = {"user": [1, 1, 1], "item": [5, 6, 7], "time": [1, 2, 3], title: values}
    fails(lambda: read_table(table), message, "--skip-bad")
    logs = []
    (said,) = warnings_of(lambda: logs.append(read_table(table, skip_bad=True)))
    assert logs[0].num_interactions == 2
    assert "skipped 1 " in said and message in said


def test_all_bad_rows_are_counted(read_table, as_lists, warnings_of):
    logs = []
    table = {"user": [1, 1, None, None], "item": [5, None, None, 7]}
    (said,) = warnings_of(lambda: logs.append(read_table(table, skip_bad=True)))
    assert as_lists(logs[0]) == {1: [5]}
    assert "skipped 3 " in said and "row 1 of column 'item' is empty" in said


@pytest.mark.parametrize(
    ("title", "values", "message"),
    [
        ("user", [True], "'user' of the users holds 'bool'"),
        ("item", [[1]], "'item' of the items holds 'list<"),
        ("item", [date(2020, 1, 1)], "'item' of the items holds 'date32"),
        ("item", array([b"\xff"]), "'item' is damaged, or holds bytes that are not"),
        ("item", array([b"\xff"]).view("string"), "'item' is damaged, or holds bytes"),
        ("time", [True], "'time' of the timestamps holds 'bool'"),
        ("time", [timedelta(1)], "'time' of the timestamps holds 'duration"),
        (
            "time",
            [datetime(2020, 1, 1).time()],
            "'time' of the timestamps holds 'time64",
        ),
    ],
)
def test_columns_of_other_types(read_table, fails, title, values, message):
    table = {"user": [1], "item": [5], "time": [1], title: values}
    fails(lambda: read_table(table), message)
    fails(lambda: read_table(table, skip_bad=True), message)


def test_nothing(read_table, fails):
    for table in ({"user": [], "item": []}, {"user": [], "item": [], "time": []}):
        fails(lambda: read_table(table), "no interactions")
    table = {"user": [None], "item": [1], "time": [1]}
    fails(
        lambda: read_table(table, skip_bad=True), "no interactions", "row 0 of column"
    )


def test_a_frame_is_named_by_its_type(fails):
    frame = Frame(pyarrow.table({"user": [1], "item": [None]}))
    fails(lambda: read(frame), "the Frame: row 0 of column 'item' is empty")
    assert read(pyarrow.table({"user": [1], "item": [2]})).name == "table"
    with pytest.raises(TypeError, match="__arrow_c_stream__.* not from dict"):
        read({"user": [1], "item": [2]})
    frame = Frame(pyarrow.table({"user": [1], "item": [2]}))
    fails(lambda: read(frame, format="csv"), "the Frame is a table already")
    fails(lambda: read(frame, delimiter=","), "the Frame is a table already")


@pytest.mark.parametrize("error", [OverflowError, TypeError, pyarrow.ArrowInvalid])
def test_a_frame_that_arrow_does_not_take(fails, error):
    class Mixed:
        def __arrow_c_stream__(self, requested_schema=None):
            raise error("'x' is no number\nin column user")

    fails(lambda: read(Mixed()), "the Mixed: no table of Arrow", "'x' is no number")
    column = pyarrow.chunked_array([[1, 2]])
    fails(lambda: read(column), "Array: no table of Arrow")


def test_the_index_of_a_frame_is_no_column(warnings_of):
    table = {"user": [1], "item": [2], "__index_level_0__": [7]}
    assert warnings_of(lambda: read(pyarrow.table(table))) == []
    table["other"] = [7]
    (said,) = warnings_of(lambda: read(pyarrow.table(table)))
    assert "none of user, item, other is known" in said


_READ_AND_MEASURE = """
import sys, tracemalloc
import pyarrow
from pyarrow import parquet
from sevo_jax.data import read

way, path = sys.argv[1:]

def lengths():
    given = path
    if way == "frame":
        given = parquet.read_table(path, read_dictionary=["user"])
    return map(len, read(given).user_ids.tolist())

# What the first reading imports, pandas among it, takes 24 MB.
lengths()
tracemalloc.start()
print(*lengths())
print(pyarrow.default_memory_pool().max_memory() + tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.parametrize("way", ["file", "frame"])
def test_a_long_id_is_held_once(tmp_path, way):
    size, path = 20_000, tmp_path / "log.parquet"
    users = pyarrow.DictionaryArray.from_arrays([0] * size + [1], ["x" * 10**5, "y"])
    table = pyarrow.table({"user": users, "item": range(size + 1)})
    # As if others wrote it: the file itself does not say that these are categories.
    parquet.write_table(table, path, store_schema=False)
    # Another process: its peak is of this alone, and nothing of this one is replaced.
    output = subprocess.run(
        [sys.executable, "-c", _READ_AND_MEASURE, way, str(path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    assert output.split()[:2] == [b"100000", b"1"]
    assert int(output.split()[2]) < 10e6


def test_more_rows_than_a_file_can_hold(tmp_path, fails, monkeypatch):
    monkeypatch.setattr(tables, "_ALWAYS_FIT", 2**10)
    column = array(np.ones(2**20, np.int64))
    table = pyarrow.table({"user": column, "item": column})
    parquet.write_table(table, tmp_path / "log.parquet")
    fails(lambda: read(tmp_path / "log.parquet"), "log.parquet: 1,048,576 rows in ")


# Folders


def part(path, users, items, times=None):
    path.parent.mkdir(exist_ok=True, parents=True)
    columns = {"user": users, "item": items, "time": times}
    columns = {name: column for name, column in columns.items() if column is not None}
    parquet.write_table(pyarrow.table(columns), path)


def test_a_folder_of_parts(tmp_path, as_lists):
    folder = tmp_path / "log"
    # In the order of their numbers, with what Spark leaves beside them.
    for i in range(12):
        part(folder / f"part-{i}.snappy.parquet", [1, 2], [i, 100 + i])
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / ".part-0.parquet.crc").write_bytes(b"crc")
    (folder / "_metadata.parquet").write_bytes(b"x")
    # What was not finished, and what Delta says of the files.
    part(folder / "_temporary" / "0" / "part-0.parquet", [1], [7])
    part(folder / ".spark-staging" / "part-0.parquet", [1], [7])
    part(folder / "_delta_log" / "0.checkpoint.parquet", [1], [7])
    # A folder that is called as a file, as Spark does.
    (folder / "empty.parquet").mkdir()
    log = read(folder)
    assert log.name == "log"
    assert as_lists(log) == {1: list(range(12)), 2: list(range(100, 112))}


def test_parts_of_other_types(tmp_path, as_lists, fails):
    folder = tmp_path / "log"
    big = 2**60
    part(folder / "0.parquet", [1], [5], [big + 1])
    part(
        folder / "1.PARQUET",
        array([1.0, 1.0]),
        array([6, 7], pyarrow.int8()),
        [float(big), 1.5],
    )
    part(folder / "day=1" / "2.parquet", [1], [8], array([big - 1], pyarrow.uint64()))
    # Times are compared exactly, whole or not.
    assert as_lists(read(folder)) == {1: [7, 8, 6, 5]}
    part(folder / "3.parquet", ["x"], [5], [1])
    fails(lambda: read(folder), "3.parquet: its ids are not of the type", "0.parquet")
    part(folder / "3.parquet", [1], [5])
    fails(lambda: read(folder), "3.parquet: ", "both have a column of times")
    part(folder / "3.parquet", [1], [5], ["2020-01-01"])
    fails(lambda: read(folder), "times of the parts are not of one type")
    part(folder / "3.parquet", [1], [None], [1])
    fails(lambda: read(folder), "3.parquet: row 0 of column 'item'")
    (folder / "3.parquet").write_bytes(b"PAR1")
    fails(lambda: read(folder), "3.parquet: not a Parquet file")


def test_dates_of_several_units(tmp_path, as_lists, fails):
    folder = tmp_path / "log"
    for i, unit in enumerate(("ns", "ms", "us")):
        moments = array([MOMENTS[i]], pyarrow.timestamp(unit, "UTC"))
        part(folder / f"{i}.parquet", [1], [i], moments)
    assert as_lists(read(folder)) == {1: [1, 2, 0]}
    # Nanoseconds in 64 bits end in 2262.
    far = np.array(["9999-12-31"], "datetime64[ms]")
    part(folder / "3.parquet", [1], [3], array(far))
    assert as_lists(read(folder)) == {1: [1, 2, 0, 3]}
    folder = tmp_path / "text"
    for i, text in enumerate(("2020-01-02", "2020-01-01 10:00", "2020-01-01T01:00Z")):
        part(folder / f"{i}.parquet", [1], [i], [text])
    assert as_lists(read(folder)) == {1: [2, 1, 0]}
    part(folder / "3.parquet", [1], [3], ["20"])
    fails(lambda: read(folder), f"{folder}", "'20' is not an ISO date")


# Damage


def test_damaged_files(tmp_path):
    """Every flipped bit and every cut end: a log, or one line that names the file."""
    rng = random.Random(0)
    log = InteractionLog.from_columns(
        [f"u{i % 7}" for i in range(60)], list(range(60)), name="log"
    )
    path = tmp_path / "log.parquet"
    write(log, path)
    whole = path.read_bytes()
    refused = 0
    for trial in range(400):
        damaged = bytearray(whole)
        if trial % 10:
            for _ in range(rng.choice([1, 1, 3])):
                damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(whole)) :]
        path.write_bytes(damaged)
        try:
            found = read(path)
        except ValueError as error:
            refused += 1
            message = str(error)
            assert str(path) in message and "\n" not in message and len(message) < 600
        else:
            # Pages have checksums, so nothing passes but what changes nothing.
            assert found.user_ids.tolist() == log.user_ids.tolist()
            assert found.item_ids.tolist() == log.item_ids.tolist()
            np.testing.assert_array_equal(found.sequences.values, log.sequences.values)
    assert refused > 200
