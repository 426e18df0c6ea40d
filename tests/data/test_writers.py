import errno

import numpy as np
import pytest

from sevo_jax.data import InteractionLog, read, write

ENDINGS = ["txt", "csv", "tsv", "parquet", "inter"]


@pytest.fixture
def numbers():
    rng = np.random.default_rng(0)
    users, items = 3 * rng.integers(0, 40, 500) + 5, 7 * rng.integers(0, 90, 500)
    return InteractionLog.from_columns(users, items, name="log")


@pytest.fixture
def text():
    users = ["AÜ", "b", "AÜ", "b", "c", "AÜ"]
    items = ["0439", "B00X", "B00X", "0439", "z", "B00X"]
    return InteractionLog.from_columns(users, items, name="log")


def assert_same(first, second):
    np.testing.assert_array_equal(first.sequences.values, second.sequences.values)
    np.testing.assert_array_equal(first.sequences.offsets, second.sequences.offsets)
    assert first.user_ids.tolist() == second.user_ids.tolist()
    assert first.item_ids.tolist() == second.item_ids.tolist()
    assert first.name == second.name


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", ["numbers", "text"])
def test_round_trip(tmp_path, request, kind, ending):
    log = request.getfixturevalue(kind)
    path = tmp_path / f"log.{ending}"
    write(log, path)
    assert_same(read(path), log)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_round_trip_of_awkward_ids(tmp_path, ending):
    users = ["a b", "tab\there", 'say "hi"', "com,ma"]
    log = InteractionLog.from_columns(users, ["x y", "x y", "z", "z"], name="log")
    path = tmp_path / f"log.{ending}"
    write(log, path)
    assert_same(read(path), log)


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("txt", "b 10 2\nc 2\n"),
        ("csv", "user,item,timestamp\nb,10,0\nb,2,1\nc,2,0\n"),
        ("tsv", "user\titem\ttimestamp\nb\t10\t0\nb\t2\t1\nc\t2\t0\n"),
        (
            "inter",
            "user_id:token\titem_id:token\ttimestamp:float\nb\t10\t0\nb\t2\t1\nc\t2\t0\n",
        ),
    ],
)
def test_what_is_written(tmp_path, ending, expected):
    log = InteractionLog.from_columns(["b", "c", "b"], [10, 2, 2], name="log")
    path = tmp_path / f"log.{ending}"
    write(log, path)
    assert path.read_bytes().decode() == expected


def test_an_existing_file_survives_a_failure(tmp_path, numbers, monkeypatch):
    path = tmp_path / "log.csv"
    path.write_text("precious")

    def fail(*_):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(numbers, path)
    assert path.read_text() == "precious"
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.csv"]


def test_an_existing_file_is_replaced(tmp_path, text):
    path = tmp_path / "log.txt"
    path.write_text("9 9\n")
    write(text, path)
    assert_same(read(path), text)


@pytest.mark.parametrize("column", ["users", "items"])
@pytest.mark.parametrize(
    ("ending", "bad", "what"),
    [
        ("txt", "a b", "white space"),
        ("inter", "a\tb", "a tab or a line break"),
        ("inter", "a\nb", "a tab or a line break"),
    ],
)
def test_ids_that_would_not_come_back(tmp_path, column, ending, bad, what):
    columns = {"users": ["u", "u"], "items": ["i", "j"]}
    columns[column] = [bad, "fine"]
    log = InteractionLog.from_columns(**columns, name="log")
    with pytest.raises(ValueError, match=f"contains {what}.*write .csv or .parquet"):
        write(log, tmp_path / f"log.{ending}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["log.json", "log.dat", "log.csv.gz", "log.csv.zip", "log.x", "log"]
)
def test_formats_that_are_only_read(tmp_path, numbers, name):
    with pytest.raises(ValueError, match="written as .txt, .csv, .tsv, .parquet, .i"):
        write(numbers, tmp_path / name)


@pytest.mark.parametrize("ending", ["txt", "csv", "tsv", "inter"])
@pytest.mark.parametrize("column", ["users", "items"])
def test_ids_that_would_be_another_s_or_none_s(tmp_path, column, ending):
    def log(*entries):
        columns = {"users": ["u"] * 3, "items": ["i"] * 3, column: entries}
        return InteractionLog.from_columns(**columns, name="log")

    title = column.removesuffix("s")
    with pytest.raises(ValueError, match=f"{title} ids '7', '7.0' would .* .parquet"):
        write(log("8", "7", "7.0"), tmp_path / f"log.{ending}")
    with pytest.raises(ValueError, match=f"{title} id NA .* or write .parquet"):
        write(log("8", "7", "NA"), tmp_path / f"log.{ending}")
    assert list(tmp_path.iterdir()) == []
    write(log("x", "7.0", "NA"), path := tmp_path / f"log.{ending}")
    assert_same(read(path), log("x", "7.0", "NA"))
    write(log("8", "7", "7.0"), path := tmp_path / "log.parquet")
    assert_same(read(path), log("8", "7", "7.0"))


def test_a_folder_that_is_not_there(tmp_path, numbers):
    with pytest.raises(FileNotFoundError, match="there is no folder .*none, create"):
        write(numbers, tmp_path / "none" / "log.csv")
