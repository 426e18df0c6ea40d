"""Streaming: what a file holds comes back user by user, and its faults are named."""

import re
from datetime import time
from typing import Any
from unittest import mock

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from sevo_jax.data import read_item_ids, stream, streaming
from sevo_jax.graphs import cooccurrence


def write(path, users, items, times=None, row_group_size=2, **names):
    columns = {names.get("user", "user"): users, names.get("item", "item"): items}
    if times is not None:
        columns["timestamp"] = times
    parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    return path


def rows_of(path, num_items=10, **names):
    return [row.tolist() for chunk in stream(path, num_items, **names) for row in chunk]


@given(
    rows=st.lists(
        st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=8
    ),
    row_group=st.integers(1, 12),
    batch=st.integers(1, 12),
    text=st.booleans(),
)
def test_users_come_back_whole(tmp_path_factory, rows, row_group, batch, text):
    path = tmp_path_factory.mktemp("stream") / "log.parquet"
    users = np.repeat(np.arange(len(rows)) + 5, [len(row) for row in rows])
    # As text, "10" would sort before "9".
    column = np.array([f"u{user:03}" for user in users]) if text else users
    items = np.concatenate(rows)
    write(path, column, items, np.arange(items.size), row_group)
    with mock.patch.object(streaming, "_BATCH", batch):
        chunks = list(stream(path, 10))
        graph = cooccurrence(stream(path, 10), 10)
    assert [row.tolist() for chunk in chunks for row in chunk] == rows
    expected = cooccurrence(rows, 10)
    np.testing.assert_array_equal(graph.indices, expected.indices)
    np.testing.assert_array_equal(graph.data, expected.data)


def test_a_long_file_is_read_in_parts(tmp_path):
    users = np.repeat(np.arange(1000), 7)
    path = write(tmp_path / "log.parquet", users, users % 10, row_group_size=7000)
    with mock.patch.object(streaming, "_BATCH", 100):
        sizes = [len(chunk.values) for chunk in stream(path, 10)]
    assert sum(sizes) == 7000 and len(sizes) == 71 and max(sizes) <= 105


def test_memory_is_that_of_a_row_group(tmp_path):
    """Nothing of a row group is kept when the next one is read."""
    path, size = tmp_path / "log.parquet", 50 * 10_000
    items = np.random.default_rng(0).integers(0, 2**30, size)
    write(path, np.arange(size), items, row_group_size=10_000)
    before, held = pyarrow.total_allocated_bytes(), []
    with mock.patch.object(streaming, "_BATCH", 10_000):
        for _ in stream(path, 2**30):
            held.append(pyarrow.total_allocated_bytes() - before)
    assert len(held) == 51
    # A group with its decoded columns and buffers is an eighth of the file.
    assert max(held) < path.stat().st_size / 4


@pytest.mark.parametrize(
    "times",
    [
        [1, 2, 1, 1, 3],
        [0.5, 2.0, -1.0, -1.0, 0.0],
        np.array([1, 2, 1, 1, 3], np.float32),
        np.array([1, 2, 1, 1, 3], "datetime64[s]"),
        np.array([1, 2, 1, 1, 3], "datetime64[D]"),
        None,
    ],
    ids=["integers", "floats", "float32", "moments", "dates", "none"],
)
def test_kinds_of_columns(tmp_path, times):
    users = pyarrow.array(["al", "al", "bo", "bo", "bo"]).dictionary_encode()
    items = pyarrow.array([1, 2, 3, 4, 4], pyarrow.uint8())
    path = write(tmp_path / "log.parquet", users, items, times, user="uid", item="ASIN")
    assert rows_of(path) == [[1, 2], [3, 4, 4]]


def test_named_columns(tmp_path):
    table = {
        "who": [1, 1, 2],
        "what": [0, 1, 2],
        "when": [1, 2, 0],
        "rating": [5, 5, 5],
    }
    path = tmp_path / "log.parquet"
    parquet.write_table(pyarrow.table(table), path)
    names: Any = dict(user="who", item="WHAT", timestamp="when")
    assert rows_of(path, **names) == [[0, 1], [2]]


def test_row_groups_without_rows(tmp_path):
    schema = pyarrow.schema({"user": pyarrow.int64(), "item": pyarrow.int64()})
    path = tmp_path / "log.parquet"
    with parquet.ParquetWriter(path, schema) as writer:
        for users, items in (([], []), ([1, 1], [0, 1]), ([], []), ([1], [2])):
            table = pyarrow.table({"user": users, "item": items}, schema=schema)
            writer.write_table(table)
    assert rows_of(path) == [[0, 1, 2]]


FAULTS = {
    "user comes back": (
        dict(users=[1, 1, 2, 2, 1], items=[0, 1, 2, 3, 4]),
        "row 4 has the user 1, after a larger one: sort the rows by user",
    ),
    "text user comes back": (
        dict(users=["b", "a"], items=[0, 1]),
        "row 1 has the user a, after a larger one",
    ),
    "user comes back in a later group": (
        dict(users=[1, 1, 2, 2, 1, 1], items=[0, 1, 2, 3, 4, 5], row_group_size=4),
        "row 4 has the user 1, after a larger one",
    ),
    "time goes back": (
        dict(users=[1, 2, 2, 2], items=[0, 1, 2, 3], times=[9, 5, 7, 6]),
        "row 3 has the timestamp 6, earlier than the user's row before it: sort",
    ),
    "item too large": (
        dict(users=[1, 2, 3], items=[0, 1, 10]),
        r"row 2 holds item 10, outside 0..9 \(num_items=10\)",
    ),
    "item negative": (dict(users=[1, 2], items=[0, -1]), "row 1 holds item -1"),
    "item beyond int32": (
        dict(users=[1], items=[2**32]),
        "row 0 holds item 4294967296",
    ),
    "item missing": (
        dict(users=[1, 2, 2], items=[0, 1, None]),
        "row 2 of column 'item' is None",
    ),
    "user missing": (
        dict(users=[1, 2, None], items=[0, 1, 2]),
        "row 2 of column 'user' is None",
    ),
    "time not a number": (
        dict(users=[1, 1], items=[0, 1], times=[0.0, np.nan]),
        "row 1 of column 'timestamp' is nan",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("batch", [1, 2, 2**20])
def test_faulty_rows(tmp_path, fault, batch):
    content, message = FAULTS[fault]
    path = write(tmp_path / "log.parquet", **content)
    with mock.patch.object(streaming, "_BATCH", batch):
        with pytest.raises(ValueError, match=f"log.parquet: {message}"):
            list(stream(path, 10))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            dict(users=[1], items=[0], user="u"),
            "no column is named user, user_id or .* user=...",
        ),
        (
            dict(users=[1], items=[0], item="i"),
            "no column is named item, item_id or .* item=...",
        ),
        (dict(users=[0.5], items=[0]), "'user' of the users is double, but .* text"),
        (
            dict(users=[1], items=[0.0]),
            "'item' of the items is double, but .* integers",
        ),
        (dict(users=[1], items=["a"]), "'item' of the items is string"),
        (dict(users=[1], items=[0], times=["1"]), "'timestamp' .* is string"),
        (dict(users=[1], items=[0], times=[time(1)]), "'timestamp' .* is time64"),
        (
            dict(users=[1], items=[0], times=np.ones(1, np.float16)),
            "'timestamp' .* is halffloat",
        ),
        (
            dict(users=np.zeros(0, int), items=np.zeros(0, int)),
            "the table has no rows",
        ),
    ],
)
def test_faulty_tables_are_refused_before_reading(tmp_path, content, message):
    path = write(tmp_path / "log.parquet", **content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*{message}"):
        stream(path, 10)


def test_a_timestamp_column_that_was_named_must_be_there(tmp_path):
    path = write(tmp_path / "log.parquet", [1], [0])
    with pytest.raises(ValueError, match="no column is named when"):
        stream(path, 10, timestamp="when")


def test_a_folder_is_one_log(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    # A user goes on in the next part; the tenth comes after the second.
    write(folder / "part-1.parquet", [1, 1, 2], [0, 1, 2], [1, 2, 1])
    write(folder / "part-2.parquet", [2, 2, 3], [3, 4, 5], [2, 3, 1])
    write(folder / "part-10.parquet", [3, 4], [6, 7], [2, 1])
    assert rows_of(folder) == [[0, 1], [2, 3, 4], [5, 6], [7]]
    write(folder / "part-10.parquet", [2, 4], [6, 7], [2, 1])
    with pytest.raises(
        ValueError, match="part-10.parquet: row 0 has the user 2, after"
    ):
        rows_of(folder)
    write(folder / "part-10.parquet", [3.5], [6], [2])
    with pytest.raises(ValueError, match="part-10.parquet: the column 'user'"):
        stream(folder, 10)
    write(folder / "part-10.parquet", ["3"], [6], [2])
    with pytest.raises(ValueError, match="part-10.parquet: its columns are not those"):
        stream(folder, 10)


def test_damaged_files(tmp_path):
    """Every flipped bit and every cut end: rows, or one line that names the file."""
    path = write(tmp_path / "log.parquet", ["a", "a", "b"], [0, 1, 2], [1, 2, 3])
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for trial in range(150):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged if trial % 5 else damaged[: rng.integers(len(whole))])
        try:
            rows_of(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and len(str(error)) < 600
    assert refused > 75


def test_rows_that_are_not_there(tmp_path):
    path = write(tmp_path / "log.parquet", [1] * 77, [0] * 77)
    # The number of rows in the footer, before the list of row groups.
    whole, number = path.read_bytes(), b"\x16\x9a\x01\x19"
    assert whole.count(number) == 1
    path.write_bytes(whole.replace(number, b"\x16\x9c\x01\x19"))
    with pytest.raises(ValueError, match="log.parquet: .* has 77 rows and should have"):
        rows_of(path)


@pytest.mark.parametrize("title", ["user", "item"])
def test_text_that_is_no_utf8(tmp_path, title):
    columns = {"user": ["a"], "item": ["b"]}
    columns[title] = pyarrow.array([b"\xff"]).view(pyarrow.string())
    path = tmp_path / "log.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(ValueError, match="log.parquet: .* damaged .*UTF8"):
        list(stream(path, 1, item_ids=read_item_ids(path)))


def test_what_is_no_parquet_file(tmp_path):
    path = tmp_path / "log.parquet"
    with pytest.raises(FileNotFoundError):
        stream(path, 10)
    path.write_text("user,item\n1,2\n")
    with pytest.raises(ValueError, match="log.parquet: not a Parquet file"):
        stream(path, 10)


@pytest.mark.parametrize("num_items", [0, 2**31])
def test_num_items_is_positive_and_fits(tmp_path, num_items):
    path = write(tmp_path / "log.parquet", [1], [0])
    with pytest.raises(ValueError, match=f"at least 1 and .* 2..31, not {num_items}"):
        stream(path, num_items)


def test_items_and_ids_of_another_kind(tmp_path):
    path = write(tmp_path / "log.parquet", [1, 1], ["a", ""])
    with pytest.raises(ValueError, match="log.parquet: the item id '' is empty"):
        read_item_ids(path)
    write(path, [1, 1], [4, 5])
    ids = np.array(["4", "5"], object)
    with pytest.raises(ValueError, match="log.parquet: the items are int64, those"):
        list(stream(path, 2, item_ids=ids))
    write(path, [1, 1], pyarrow.array([5, 4], pyarrow.int8()))
    assert rows_of(path, item_ids=np.array([4, 5])) == [[1, 0]]
    with pytest.raises(ValueError, match="row 1 holds item 4, .* among the 1 of item"):
        rows_of(path, item_ids=np.array([5]))
    with pytest.raises(ValueError, match="log.parquet: not all of item_ids are int8"):
        rows_of(path, item_ids=np.array([4, 5, 300]))


def test_the_number_of_a_column_may_be_its_name(tmp_path):
    path = write(tmp_path / "log.parquet", [1, 1, 2], [5, 6, 7], user="1", item="0")
    assert rows_of(path, user=1, item=0) == [[5, 6], [7]]
