"""What all formats have in common; `formats/` has the tests of each."""

import csv
import gzip
import json
import tracemalloc
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from sevo_jax.data import InteractionLog, read
from sevo_jax.data.formats import of_ending

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
JSON = "".join(
    json.dumps({"reviewerID": user, "asin": item, "overall": 5.0, "time": time}) + "\n"
    for user, item, time in zip(USERS, ITEMS, TIMES)
)
TEXTS = {
    "tiny.txt": "12 100 9 20\n3 100 20\n",
    "tiny.csv": CSV,
    "tiny.tsv": CSV.replace(",", "\t"),
    "tiny.inter": INTER,
    "tiny.dat": MOVIELENS,
    "tiny.data": MOVIELENS.replace("::", "\t"),
    "tiny.json": JSON,
    "tiny.jsonl": JSON,
}


def as_lists(log):
    return {
        user: log.item_ids[row].tolist()
        for user, row in zip(log.user_ids.tolist(), log.sequences, strict=True)
    }


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    "variant", ["plain", "gzip", "windows", "old mac", "bom", "no end", "blank lines"]
)
def test_text_formats(tmp_path, name, variant):
    text = TEXTS[name]
    if variant == "windows":
        text = text.replace("\n", "\r\n")
    if variant == "old mac":
        text = text.replace("\n", "\r")
    if variant == "bom":
        text = "\ufeff" + text
    if variant == "no end":
        text = text.removesuffix("\n")
    if variant == "blank lines":
        text = "\n" + text.replace("\n", "\n\n")
    data = text.encode()
    if variant == "gzip":
        name, data = name + ".gz", gzip.compress(data)
    (tmp_path / name).write_bytes(data)
    log = read(tmp_path / name)
    assert as_lists(log) == EXPECTED
    assert log.name == "tiny"
    assert log.user_ids.dtype == log.item_ids.dtype == np.int64
    assert log.item_ids.tolist() == [9, 20, 100]


def test_formats_by_name(tmp_path):
    assert of_ending("ml-1m/ratings.dat", ".dat") == "movielens"
    with pytest.raises(ValueError, match=r"ratings.xls.*'.xls' belongs to no format"):
        read("ratings.xls")
    with pytest.raises(ValueError, match="no format 'excel': choose one of sequences"):
        read("ratings.xls", format="excel")
    (tmp_path / "ratings.log").write_text(CSV)
    assert as_lists(read(tmp_path / "ratings.log", format="csv")) == EXPECTED


@pytest.mark.parametrize("name", ["log.json", "log.parquet"])
def test_a_delimiter_where_there_is_none(name):
    with pytest.raises(ValueError, match=f"{name}: .* has no delimiter.*--delimiter"):
        read(name, delimiter=";")


@pytest.mark.parametrize("length", [5_000, 100_000])
@pytest.mark.parametrize("name", ["log.txt", "log.csv", "log.json"])
def test_a_long_id_costs_its_own_length(tmp_path, name, length):
    ids = ["x" * length, *(f"u{i}" for i in range(20_000))]
    line = {
        "log.txt": "{} a\n",
        "log.csv": "{},a\n",
        "log.json": '{{"user": "{}", "item": "a"}}\n',
    }[name]
    text = "".join(line.format(each) for each in ids)
    (tmp_path / name).write_text(("user,item\n" if "csv" in name else "") + text)
    tracemalloc.start()
    log = read(tmp_path / name)
    copy = InteractionLog.from_columns(ids, ["a"] * len(ids), name="copy")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sorted(log.user_ids.tolist()) == sorted(ids) == copy.user_ids.tolist()
    assert peak < 40e6


# Random logs, written in every format


def text_of(alphabet):
    """Ids with a letter in front, which makes them neither numbers nor comments."""
    return st.text(alphabet, max_size=4).map(lambda text: f"i{text}")


def characters(without=""):
    return st.characters(exclude_categories=["Cs"], exclude_characters=without)


WHOLE = st.one_of(st.integers(-9, 9), st.integers(-(2**63), 2**63 - 1))
ISO = st.builds(
    lambda seconds, zone, digits: (
        (
            datetime(2020, 1, 1, tzinfo=timezone(timedelta(minutes=zone)))
            + timedelta(seconds=seconds)
        ).isoformat()
        + digits
    ),
    st.integers(0, 5),
    st.sampled_from([0, 90, -720]),
    st.just(""),
)
FRACTIONS = st.integers(-30, 30).map(lambda n: f"{n // 10}.{n % 10}")
NANOSECONDS = st.integers(0, 3).map(lambda n: f"{1588687728_000000000 + n}")


def write_delimited(path, rows, delimiter, header="user,item,x,time", quoting=True):
    with open(path, "w", newline="", encoding="utf-8") as file:
        if quoting:
            writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
            writer.writerow(header.split(","))
            writer.writerows((user, item, "5", time) for user, item, time in rows)
            return
        if header:
            file.write(header.replace(",", delimiter) + "\n")
        for user, item, time in rows:
            file.write(delimiter.join([str(user), str(item), "5", time]) + "\n")


def write_json(path, rows, dump=json.dumps):
    def number(time):
        return time if "T" in time else float(time) if "." in time else int(time)

    lines = [
        dump({"user_id": user, "x": [1], "asin": item, "date": number(time)})
        for user, item, time in rows
    ]
    path.write_text("\n".join(lines), encoding="utf-8", newline="")


def table_of(rows):
    users, items, times = zip(*rows)
    return pyarrow.table({"uid": users, "sku": items, "event_time": times})


def write_parts(path, rows):
    path.mkdir()
    for i, row in enumerate(rows):
        parquet.write_table(table_of([row]), path / f"part-{i}.parquet")


def write_pairs(path, rows):
    lines = [f"{user} {item}" for user, item, _ in rows]
    path.write_text("\n".join(lines), encoding="utf-8", newline="")


# The file's name, the characters that ids may have, how it is written and read.
FORMATS = {
    "csv": ("log.csv", "", lambda p, r: write_delimited(p, r, ","), {}),
    "semicolons": ("log.csv", "", lambda p, r: write_delimited(p, r, ";"), {}),
    "bars": ("log.txt", "", lambda p, r: write_delimited(p, r, "|"), {}),
    "tsv": ("log.tsv", "", lambda p, r: write_delimited(p, r, "\t"), {}),
    "no header": (
        "log.csv",
        '\n\r",\t;|:',
        lambda p, r: write_delimited(p, r, ",", "", quoting=False),
        {"user": 0, "item": 1, "timestamp": 3},
    ),
    "movielens": (
        "log.dat",
        "\n\r,\t;|:\x1f",
        lambda p, r: write_delimited(p, r, "::", "", quoting=False),
        {},
    ),
    "u.data": (
        "u.data",
        '\n\r",\t;|:',
        lambda p, r: write_delimited(p, r, "\t", "", quoting=False),
        {},
    ),
    "recbole": (
        "log.inter",
        "\n\r\t",
        lambda p, r: write_delimited(
            p, r, "\t", "user_id:token,item_id:token,x:float,date:float", quoting=False
        ),
        {},
    ),
    "json": ("log.json", "", write_json, {}),
    "parquet": (
        "log.parquet",
        "",
        lambda p, r: parquet.write_table(table_of(r), p, row_group_size=3),
        {},
    ),
    "folder": ("log", "", write_parts, {}),
    "pairs": ("log.txt", "\n\r\t \x0b\x0c", write_pairs, {}),
}


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15)
@given(data=st.data())
def test_random_logs_in_every_format(tmp_path_factory, name, data):
    file, without, write, options = FORMATS[name]
    path = tmp_path_factory.mktemp("log") / file
    ids = data.draw(st.sampled_from([WHOLE, text_of(characters(without))]))
    times = data.draw(st.sampled_from([WHOLE.map(str), ISO, FRACTIONS, NANOSECONDS]))
    columns = st.tuples(ids, ids, times)
    rows = data.draw(st.lists(columns, min_size=1, max_size=12))
    write(path, rows)
    if name == "pairs":
        rows = [(user, item, "0") for user, item, _ in rows]

    log = read(path, **options)

    moments = [
        datetime.fromisoformat(time).timestamp()
        if "T" in time
        else (float(time) if "." in time else int(time))
        for *_, time in rows
    ]
    expected = {}
    for index in sorted(range(len(rows)), key=moments.__getitem__):
        expected.setdefault(rows[index][0], []).append(rows[index][1])
    assert as_lists(log) == expected
    assert log.user_ids.tolist() == sorted(expected)


@given(
    text=st.text(
        st.one_of(
            st.sampled_from("\n\n ,,;\t|:\"'{}[]#%0123456789.-eTZuseritm"),
            st.characters(),
        ),
        max_size=80,
    ),
    skip_bad=st.booleans(),
)
@settings(max_examples=120)
def test_whatever_is_in_a_file_the_outcome_is_a_log_or_one_line(
    tmp_path_factory, text, skip_bad
):
    folder = tmp_path_factory.mktemp("any")
    for name in ("any.txt", "any.csv", "any.inter", "any.dat", "any.json"):
        path = folder / name
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        for user, item in ((None, None), (0, 1)):
            try:
                log = read(path, user=user, item=item, skip_bad=skip_bad)
            except ValueError as error:
                assert str(error).startswith(str(path))
                assert len(str(error)) < 1000
            else:
                assert log.num_interactions
