import csv
import gzip
import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from sevo_jax.data import read
from sevo_jax.data.readers import detect_format

# One log in every format: users 3 and 12, the second's last two items on one day.
USERS = [12, 3, 12, 12, 3]
ITEMS = [100, 20, 9, 20, 100]
TIMES = [50, 20, 70, 70, 10]
EXPECTED = {3: [100, 20], 12: [100, 9, 20]}

CSV = "user_id,item_id,timestamp\n12,100,50\n3,20,20\n12,9,70\n12,20,70\n3,100,10\n"
INTER = (
    "timestamp:float\titem_id:token\trating:float\tuser_id:token\n"
    "50\t100\t5.0\t12\n20\t20\t1.0\t3\n70\t9\t2.0\t12\n70\t20\t3.0\t12\n10\t100\t0.0\t3\n"
)
MOVIELENS = "12::100::5::50\n3::20::1::20\n12::9::2::70\n12::20::3::70\n3::100::3::10\n"
AMAZON = "".join(
    json.dumps(
        {
            "reviewerID": f"A{user:02}",
            "asin": f"0{item:03}",
            "helpful": [0, 1],
            "reviewText": 'Not "great"\n, ünd {so}',
            "overall": 5.0,
            "unixReviewTime": time,
        }
    )
    + "\n"
    for user, item, time in zip(USERS, ITEMS, TIMES)
)


def as_lists(log):
    return {
        user: log.item_ids[row].tolist()
        for user, row in zip(log.user_ids.tolist(), log.sequences, strict=True)
    }


@pytest.fixture
def file(tmp_path):
    """Writes text or bytes to a file of the given name and returns its path."""

    def create(name, content):
        path = tmp_path / name
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return create


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tiny.txt", "12 100 9 20\n3 100 20\n"),
        ("tiny.csv", CSV),
        ("tiny.tsv", CSV.replace(",", "\t")),
        ("tiny.inter", INTER),
        ("tiny.dat", MOVIELENS),
    ],
)
@pytest.mark.parametrize("variant", ["plain", "gzip", "windows", "bom", "no end"])
def test_text_formats(file, name, text, variant):
    if variant == "windows":
        text = text.replace("\n", "\r\n")
    if variant == "bom":
        text = "\ufeff" + text
    if variant == "no end":
        text = text.removesuffix("\n")
    log = read(file(name + ".gz" * (variant == "gzip"), text))
    assert as_lists(log) == EXPECTED
    assert log.name == "tiny"
    assert log.user_ids.dtype == log.item_ids.dtype == np.int64
    assert log.item_ids.tolist() == [9, 20, 100]


@pytest.mark.parametrize("name", ["reviews.json", "reviews.json.gz", "reviews.jsonl"])
def test_amazon(file, name):
    log = read(file(name, AMAZON))
    assert as_lists(log) == {"A03": ["0100", "0020"], "A12": ["0100", "0009", "0020"]}
    assert log.name == "reviews"


@pytest.mark.parametrize("ids", ["numbers", "text", "categories"])
@pytest.mark.parametrize("times", ["int64", "float64", "datetime64[s]", "date"])
def test_parquet(tmp_path, ids, times):
    path = tmp_path / "tiny.parquet"
    users, items = pyarrow.array(USERS), pyarrow.array(ITEMS)
    if ids != "numbers":
        users, items = users.cast("string"), items.cast("string")
    if ids == "categories":
        users, items = users.dictionary_encode(), items.dictionary_encode()
    if times == "date":
        stamps = pyarrow.array(TIMES, pyarrow.int32()).cast(pyarrow.date32())
    else:
        stamps = pyarrow.array(np.array(TIMES).astype(times))
    table = pyarrow.table(
        {"Time": stamps, "uid": users, "rating": TIMES, "asin": items}
    )
    # Several row groups: several chunks, each with its own dictionary.
    parquet.write_table(table, path, row_group_size=2)
    found = as_lists(read(path))
    if ids == "numbers":
        assert found == EXPECTED
    else:
        # As text, "12" sorts before "3".
        assert list(found) == ["12", "3"]
        assert found == {str(u): list(map(str, row)) for u, row in EXPECTED.items()}


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_columns_by_name(file, delimiter):
    text = "when,buyer,user,thing\n2,7,1,5\n1,7,2,6\n".replace(",", delimiter)
    path = file("named.csv" if delimiter == "," else "named.tsv", text)
    log = read(path, user="Buyer", item="thing", timestamp="when")
    assert as_lists(log) == {7: [6, 5]}


def test_columns_of_parquet_and_recbole_by_name(file, tmp_path):
    table = pyarrow.table({"a": [1, 1], "b": [3, 4], "c": [9, 8], "user": [5, 6]})
    parquet.write_table(table, tmp_path / "named.parquet")
    named = {"user": "a", "item": "b", "timestamp": "c"}
    assert as_lists(read(tmp_path / "named.parquet", **named)) == {1: [4, 3]}
    path = file("named.inter", "a:token\tb:token\tc:float\n1\t3\t9\n1\t4\t8\n")
    assert as_lists(read(path, **named)) == {1: [4, 3]}


def test_columns_of_fixed_formats_cannot_be_named(file):
    with pytest.raises(ValueError, match="'user': 'buyer'.*'sequences' has fixed ones"):
        read(file("a.txt", "1 2\n"), user="buyer")


def test_ids_are_numbers_only_if_all_are_plain(file):
    text = "user,item,time\n1,007,1\n10,7,2\n9,7,3\n"
    log = read(file("zeros.csv", text))
    assert log.user_ids.tolist() == [1, 9, 10]
    assert log.item_ids.tolist() == ["007", "7"]
    log = read(file("text.txt", "10 a b\n9 b\nx a\n"))
    assert as_lists(log) == {"10": ["a", "b"], "9": ["b"], "x": ["a"]}


def test_quotes_and_delimiters_inside_ids(file):
    text = 'user,item,time\n"a,b","say ""hi""",1\n"two\nlines",c,2\n'
    log = read(file("quotes.csv", text))
    assert as_lists(log) == {"a,b": ['say "hi"'], "two\nlines": ["c"]}
    # RecBole files know no quotes.
    text = 'user_id:token\titem_id:token\ttimestamp:float\n"a\tb"\t1\n'
    assert as_lists(read(file("quotes.inter", text))) == {'"a': ['b"']}


@pytest.mark.parametrize(
    "times",
    [
        ["1.5", "1", "10"],
        ["1e3", "9", "1e4"],
        ["2014-01-02", "2014-01-01", "2014-02-01"],
        ["2014-01-02 10:00:00", "2014-01-02 09:00:00", "2014-01-03 00:00:00"],
        ["2014-01-02T10:00:00+00:00", "2014-01-02T11:00:00+02:00", "2014-01-03T00:00Z"],
        ["1400000000000000001", "1400000000000000000", "1400000000000000002"],
        ["-5", "-7", "0"],
        ["1400000000000000001 ", "1400000000000000000", "1400000000000000002"],
    ],
)
def test_kinds_of_timestamps(file, times):
    rows = zip(["second", "first", "third"], times, strict=True)
    text = "user,item,time\n" + "".join(f"u,{item},{time}\n" for item, time in rows)
    assert as_lists(read(file("times.csv", text))) == {
        "u": ["first", "second", "third"]
    }


def test_blank_lines_are_skipped(file):
    assert as_lists(read(file("a.txt", "\n12 100 9 20\n\n3 100 20\n\n"))) == EXPECTED
    assert as_lists(read(file("a.csv", CSV.replace("\n3,", "\n\n3,")))) == EXPECTED
    assert as_lists(read(file("a.dat", MOVIELENS + "\n"))) == EXPECTED
    text = AMAZON.replace("\n", "\n\n")
    assert as_lists(read(file("a.json", text)))["A03"] == ["0100", "0020"]


def test_large_files_keep_the_order_of_ties(file):
    """Several of Arrow's blocks, with float timestamps only in the last."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 500, 150_000), rng.integers(0, 10**6, 150_000)
    days = np.sort(rng.integers(0, 3, 150_000))
    rows = [f"{u},{i},{d}" for u, i, d in zip(users, items, days, strict=True)]
    rows[-1] += ".5"
    log = read(file("large.csv", "\n".join(["user,item,time", *rows])))
    order = np.argsort(users, kind="stable")
    np.testing.assert_array_equal(log.item_ids[log.sequences.values], items[order])
    np.testing.assert_array_equal(log.user_ids[log.sequences.rows], users[order])


def test_reviews_that_only_the_careful_reader_takes(file):
    text = AMAZON.replace('"overall": 5.0', '"overall": NaN')
    log = read(file("nan.json", text))
    assert as_lists(log)["A03"] == ["0100", "0020"]


@pytest.mark.parametrize("content", ["", "\n \n"])
@pytest.mark.parametrize(
    "name", ["a.txt", "a.csv", "a.tsv", "a.inter", "a.dat", "a.json", "a.json.gz"]
)
def test_empty_files(file, name, content):
    path = file(name, content)
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: the file is empty"


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [
        ("a.txt", "1 2 3\n2\n", 2, "user 2 has no items"),
        ("a.txt", "1 2\n2 3\n\n1 4\n", 4, "user 1 stands on line 1 already"),
        ("a.txt", b"1 2\n2 \xff\n", 2, "not UTF-8"),
        ("a.csv", CSV + "1,2\n", 7, "2 fields instead of 3: '1,2'"),
        ("a.csv", CSV + "1,2,3,4\n", 7, "4 fields instead of 3: '1,2,3,4'"),
        ("a.csv", CSV + ",2,3\n", 7, "the user is empty"),
        ("a.csv", CSV + "1,,3\n", 7, "the item is empty"),
        ("a.csv", CSV + "1,2,\n", 7, "the timestamp '' is not a number"),
        ("a.csv", CSV + "1,2,nan\n", 7, "the timestamp 'nan' is not a number"),
        ("a.csv", CSV + "1,2,1e400\n", 7, "the timestamp '1e400' is not a number"),
        ("a.csv", CSV + "1,2,2014-01-01\n", 7, "'2014-01-01' is not a number"),
        ("a.csv", "user,item,time\n1,2,x\n", 2, "the timestamp 'x' is not a number"),
        (
            "a.csv",
            "user,item,time\n1,2,2014-01-01\n1,3,2014-13-01\n",
            3,
            "the timestamp '2014-13-01' is not an ISO date",
        ),
        (
            "a.csv",
            'user,item,time\n"a\nb",2,1\n\n"c\nd",3,oops\n',
            6,
            "the timestamp 'oops'",
        ),
        ("a.csv", "who,item,time\n1,2,3\n", 1, "no column is named user or user_id"),
        ("a.csv", "user,item\n1,2\n", 1, "name the timestamp column with timestamp="),
        ("a.csv", "user,item,time,USER\n1,2,3,4\n", 1, "two columns are named 'user'"),
        ("a.tsv", "user\titem\ttime\n1\t2 3\n", 2, "2 fields instead of 3"),
        ("a.inter", INTER + "5\t1\t1.0\n", 7, "3 fields instead of 4"),
        ("a.inter", INTER.replace("rating:float", "rating"), 1, "'rating' has no type"),
        ("a.dat", MOVIELENS + "1::2::3\n", 6, "3 fields instead of 4: '1::2::3'"),
        ("a.dat", MOVIELENS + "1:2:3:4\n", 6, "1 fields instead of 4"),
        ("a.dat", MOVIELENS + "1::2::3::noon\n", 6, "the timestamp 'noon'"),
        ("a.json", AMAZON + "{'asin': 1}\n", 6, "not JSON"),
        ("a.json", AMAZON + "[1, 2]\n", 6, "not a JSON object: '[1, 2]'"),
        ("a.json.gz", AMAZON + '{"asin": "1"}\n', 6, "'reviewerID' is 'missing'"),
        (
            "a.json",
            AMAZON + '{"reviewerID": "A", "asin": 3, "unixReviewTime": 1}\n',
            6,
            "the field 'asin' is 3, not text",
        ),
        (
            "a.json",
            AMAZON + '{"reviewerID": "A", "asin": "B", "unixReviewTime": "1"}\n',
            6,
            "the field 'unixReviewTime' is '1', not a whole number",
        ),
        ("a.json", AMAZON.encode() + b'{"asin": "\xff"}', 6, "not UTF-8"),
    ],
)
def test_malformed_lines(file, name, content, line, message):
    path = file(name, content)
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)


def test_an_overlong_field_is_reported(file):
    path = file(
        "a.csv", "user,item,time\n1," + "x" * csv.field_size_limit() + "y,1,2\n"
    )
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:2: field larger than field limit")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_only_a_header(file, name):
    path = file(name, "user,item,time\n".replace(",", "," if "csv" in name else "\t"))
    with pytest.raises(ValueError, match="a.[ct]sv: the file has no interactions"):
        read(path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"user": [1], "item": [2]}, "no column is named timestamp or"),
        ({"user": [1, None], "item": [1, 2], "time": [1, 2]}, "row 1 of column 'user'"),
        ({"user": [1.5], "item": [1], "time": [1]}, "user ids are float64"),
        ({"user": [1], "item": [[1]], "time": [1]}, "column 'item' is list<"),
        ({"user": [1], "item": [1], "time": ["x"]}, "timestamps are"),
        ({"user": [1], "item": [1], "time": [float("nan")]}, "timestamp 0 is nan"),
        ({"user": [], "item": [], "time": []}, "the table has no rows"),
    ],
)
def test_unusable_parquet(tmp_path, table, message):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(table), path)
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_not_what_its_name_says(file):
    with pytest.raises(ValueError, match="a.parquet: not a Parquet file"):
        read(file("a.parquet", CSV))
    path = file("a.csv", CSV)
    path.rename(path.with_name("a.csv.gz"))
    with pytest.raises(ValueError, match="a.csv.gz: broken gzip file"):
        read(path.with_name("a.csv.gz"))


def test_truncated_gzip(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(CSV.encode())[:-12])
    with pytest.raises(ValueError, match="broken gzip file"):
        read(path)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.csv")


def test_formats_by_name(file):
    assert detect_format("ml-1m/ratings.dat") == "movielens"
    with pytest.raises(ValueError, match=r"ratings.xls.*'.xls' belongs to no format"):
        read("ratings.xls")
    with pytest.raises(ValueError, match="no format 'excel': choose one of sequences"):
        read("ratings.xls", format="excel")
    assert as_lists(read(file("ratings.log", CSV), format="csv")) == EXPECTED
