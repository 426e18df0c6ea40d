import gzip
import json
import random

import pyarrow
import pytest
from pyarrow import parquet

from sevo_jax.data import InteractionLog, read_attributes


@pytest.fixture
def log():
    items = ["i1", "i2", "i3", "i4"]
    return InteractionLog.from_columns(["u"] * 4, items, name="tiny")


@pytest.fixture
def numbered():
    return InteractionLog.from_columns(["u"] * 3, [7, 30, 200], name="numbers")


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


PAIRS = [("i2", "War"), ("i1", "Drama, slow"), ("i2", "Drama, slow"), ("i4", "War")]
FOUND = {1: ["War", "Drama, slow"], 0: ["Drama, slow"], 3: ["War"]}


@pytest.mark.parametrize(
    "header", ["", "item,genre\n", "ProductID,x\n", "movie_id,7\n"]
)
def test_pairs_of_a_table(tmp_path, log, header):
    text = header + "".join(f'{item},"{genre}"\n' for item, genre in PAIRS)
    assert read_attributes(write(tmp_path / "a.csv", text), log) == FOUND
    assert read_attributes(write(tmp_path / "b.csv", f"\ufeff{text}\n\n"), log) == FOUND
    dos = text.replace("\n", "\r\n")
    assert read_attributes(write(tmp_path / "c.CSV", dos), log) == FOUND
    tabs = "\n".join("\t".join(pair) for pair in PAIRS)
    assert read_attributes(write(tmp_path / "a.tsv", tabs), log) == FOUND
    packed = write(tmp_path / "a.csv.gz", gzip.compress(text.encode()))
    assert read_attributes(packed, log) == FOUND


def test_an_object_of_lists(tmp_path, log):
    table: dict = {}
    for item, genre in PAIRS:
        table.setdefault(item, []).append(genre)
    path = write(tmp_path / "a.json", json.dumps({**table, "i3": []}))
    assert read_attributes(path, log) == FOUND
    # What stands twice counts twice.
    path = write(tmp_path / "b.json", '{"i1": ["a"], "i2": [1], "i1": ["b"]}')
    assert read_attributes(path, log) == {0: ["a", "b"], 1: [1]}


@pytest.mark.parametrize("encoded", [False, True])
def test_a_table_of_parquet(tmp_path, log, encoded):
    items, genres = (pyarrow.array(column) for column in zip(*PAIRS))
    if encoded:
        items, genres = items.dictionary_encode(), genres.dictionary_encode()
    table = pyarrow.table({"any": items, "name": genres})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read_attributes(tmp_path / "a.parquet", log) == FOUND
    assert read_attributes(f"{tmp_path}/a.parquet", log) == FOUND


def test_numbers_are_the_log_s(tmp_path, numbered):
    expected = {0: ["a"], 2: ["a", "b"]}
    for text in ("200,a\n7,a\n200,b\n", "200.0,a\n7.0,a\n200.0,b\n"):
        path = write(tmp_path / "a.csv", text)
        assert dict(sorted(read_attributes(path, numbered).items())) == expected
    path = write(tmp_path / "a.json", '{"7": ["a"], "200": ["a", "b"]}')
    assert read_attributes(path, numbered) == expected
    for items in ([7, 200, 200], [7.0, 200.0, 200.0]):
        table = pyarrow.table({"item": items, "tag": ["a", "a", "b"]})
        parquet.write_table(table, tmp_path / "a.parquet")
        assert read_attributes(tmp_path / "a.parquet", numbered) == expected


def test_items_that_the_log_lacks_are_counted_and_named(tmp_path, log, caplog):
    path = write(tmp_path / "a.csv", "i1,a\nzz,a\ni2,a\nyy,a\nyy,b\nitem,a\n")
    assert read_attributes(path, log) == {0: ["a"], 1: ["a"]}
    (record,) = caplog.records
    message = record.getMessage()
    assert f"{path}: 3 of 5 items are not in the log 'tiny'" in message
    assert "'item', 'yy', 'zz'" in message


def test_a_file_without_an_item_of_the_log_is_refused(tmp_path, log):
    path = write(tmp_path / "a.csv", "a,i1\nb,i2\n")
    with pytest.raises(
        ValueError, match=r"a.csv: no item is .* 'a', 'b', .* 'i1', 'i2'"
    ):
        read_attributes(path, log)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "i1,a\ni2\n", "a.csv:2: 'i2' is not an item and one attribute"),
        ("a.csv", "item,genre\ni1,a,b\n", "a.csv:2: 'i1,a,b' is not an item"),
        ("a.csv", "i1,a\n\ni2,\n", "a.csv:3: 'i2,' is not an item"),
        ("a.csv", "item,genre\n", "no item has an attribute"),
        ("a.csv", 'i1,"a\n', "a.csv:1: unexpected end"),
        ("a.csv", b"i1,a\ni2,\xff\n", "a.csv:2: not UTF-8"),
        ("a.csv", "", "the file is empty"),
        ("a.csv", "7,a\nNA,b\n", "a.csv: the item id NA among numbers"),
        ("a.tsv", "i1,a\n", "'i1,a' is not an item .* separated by '.t'"),
        ("a.json", '{"i1": "a"}', "attributes of 'i1' are 'a', not a list"),
        ("a.json", '{"i1": [["a"]]}', "attributes of 'i1' are .* not a list"),
        ("a.json", '{"i1": [1.5]}', "attributes of 'i1' are .* whole numbers"),
        ("a.json", '{"i1": [true]}', "attributes of 'i1' are .* whole numbers"),
        ("a.json", '["a"]', "one object"),
        ("a.json", '{"i1": [', "not JSON"),
        ("a.json", "[" * 10**5, "not JSON"),
        ("a.json", "{}", "no item has an attribute"),
        ("a.parquet", "no", "a.parquet: not a Parquet file"),
        ("a.xlsx", "no", "from .csv, .tsv, .parquet, .json, not from .xlsx"),
        ("a", "no", "not from a file without an ending"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, log, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_attributes(write(tmp_path / name, content), log)


NO_UTF8 = pyarrow.array([b"\xff"]).view(pyarrow.string())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item": ["i1"], "genre": ["a"], "x": ["b"]}, "there must be two"),
        ({"item": NO_UTF8[:0], "genre": NO_UTF8[:0]}, "there are no rows"),
        ({"item": ["i1", None], "genre": ["a", "b"]}, "entries are missing"),
        ({"item": [1.5], "genre": ["a"]}, "not a whole number"),
        ({"item": NO_UTF8, "genre": ["a"]}, "a damaged one .*UTF8"),
        ({"item": ["i1"], "genre": NO_UTF8}, "a damaged one .*UTF8"),
        ({"item": ["i1"], "genre": [["a", "b"]]}, "holds 'list.*a row for each pair"),
    ],
)
def test_what_is_wrong_in_parquet_is_named(tmp_path, log, columns, message):
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=f"a.parquet: .*{message}"):
        read_attributes(tmp_path / "a.parquet", log)


def test_damaged_parquet_is_named(tmp_path, log):
    rng = random.Random(0)
    items, genres = [f"i{i}" for i in range(30)], [f"é{i % 3}" for i in range(30)]
    table = pyarrow.table({"item": items, "genre": genres})
    parquet.write_table(table, tmp_path / "good.parquet", compression="none")
    data, refused = (tmp_path / "good.parquet").read_bytes(), 0
    for _ in range(300):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / "a.parquet").write_bytes(flipped)
        try:
            read_attributes(tmp_path / "a.parquet", log)
        except ValueError as error:
            refused += 1
            assert f"{error}".startswith(f"{tmp_path / 'a.parquet'}: ")
    assert refused > 150


def test_a_missing_file(tmp_path, log):
    with pytest.raises(FileNotFoundError, match=r"none.csv"):
        read_attributes(tmp_path / "none.csv", log)
