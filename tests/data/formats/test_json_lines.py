"""Reviews, one object a line: published forms, odd values, both parsers."""

import json
from unittest import mock

import pytest

from sevo_jax.data import read
from sevo_jax.data.formats import json_lines


@pytest.fixture(params=["quick", "careful"], autouse=True)
def parser(request, monkeypatch):
    """Each test reads with Arrow where it can, and line by line."""
    if request.param == "careful":
        refuse = mock.Mock(side_effect=ValueError("unusual"))
        monkeypatch.setattr(json_lines, "_parse_with_arrow", refuse)


def lines(*objects):
    return "".join(json.dumps(each) + "\n" for each in objects)


@pytest.mark.parametrize(
    ("user", "item", "time", "times"),
    [
        ("reviewerID", "asin", "unixReviewTime", (50, 20, 70)),
        ("user_id", "parent_asin", "timestamp", (1588687728923, 1, 1588687728924)),
        ("user_id", "business_id", "date", ("2014-02-13 15:45:18", "2013", "2015")),
        ("username", "product_id", "date", ("2017-12-17", "2017-12-16", "2018-01-01")),
        ("user_id", "gmap_id", "time", (1.5, 1.25, 2.0)),
    ],
)
def test_published_reviews(file, as_lists, user, item, time, times):
    times = [f"{t}-01-01 00:00:00" if t in ("2013", "2015") else t for t in times]
    rows = zip(["A", "B", "A"], ["0439886341", "x", "y"], times)
    text = lines(
        *(
            {
                "text": 'Not "great"\n, ünd {so}',
                user: u,
                item: i,
                "rating": 5.0,
                time: t,
            }
            for u, i, t in rows
        )
    )
    for name in ("reviews.json", "reviews.JSONL", "reviews.ndjson"):
        log = read(file(name, text))
        assert as_lists(log) == {"A": ["0439886341", "y"], "B": ["x"]}


def test_amazon_2023_has_a_parent_for_variants(file, as_lists):
    text = lines(
        {"asin": "B07", "parent_asin": "B08", "user_id": "A", "timestamp": 2},
        {"asin": "B06", "parent_asin": "B09", "user_id": "A", "timestamp": 1},
    )
    assert as_lists(read(file("a.jsonl", text))) == {"A": ["B09", "B08"]}
    log = read(file("a.jsonl", text), item="asin")
    assert as_lists(log) == {"A": ["B06", "B07"]}


def test_literals_of_python(file, as_lists):
    text = (
        "{u'username': u'Al', u'hours': 0.1, u'product_id': u'72'"
        ", u'date': u'2017-12-17', u'early': False, u'text': u\"it's a \\d\"}\n"
        "{u'username': u'Al', u'product_id': u'71', u'date': u'2017-12-16'}\n"
    )
    assert as_lists(read(file("steam.json", text))) == {"Al": ["71", "72"]}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([7, 123], [7, 123]),
        ([123.0, 7], [7, 123]),
        (["123", "7"], ["123", "7"]),
        (["a\0", "a"], ["a", "a\0"]),
        (["x" * 5000, "a\nb"], ["a\nb", "x" * 5000]),
        ([2**63 - 1, -(2**63)], [-(2**63), 2**63 - 1]),
    ],
)
def test_ids_are_kept_as_they_are(file, ids, expected):
    text = lines(*({"user": 1, "item": each} for each in ids))
    assert read(file("a.json", text)).item_ids.tolist() == expected


def test_ids_and_times_are_exact(file, as_lists):
    numbers = [1_400_000_000_000_000_000 - i for i in range(5)]
    text = lines(*({"user": 1, "item": n, "ts": n} for n in numbers))
    text = text.replace(f"{numbers[2]}", f"{numbers[2]}.0")
    assert as_lists(read(file("a.json", text))) == {1: numbers[::-1]}


def test_without_times(file, as_lists, warnings_of):
    text = lines({"user": 1, "item": 5, "at": 2}, {"user": 1, "item": 3, "at": 1})
    logs = []
    (said,) = warnings_of(lambda: logs.append(read(file("a.json", text))))
    assert as_lists(logs[0]) == {1: [5, 3]}
    assert "user, item, at" in said and "--timestamp-column" in said


def test_bytes_in_fields_that_are_not_read(file, as_lists):
    text = lines(
        {"user": 1, "text": "é", "item": 5}, {"user": 1, "text": "", "item": 3}
    )
    path = file("a.json", text.replace("\\u00e9", "é").encode("latin-1"))
    assert as_lists(read(path)) == {1: [5, 3]}


GOOD = {"user_id": "A", "asin": "B", "timestamp": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2]", "not a JSON object: the format is one object a line"),
        ("7", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{", "not JSON"),
        ("user,item", "not JSON"),
        ("# comment", "not JSON"),
        ('{"user_id": "A"', "not JSON"),
        (b'{"user_id": "\xff", "asin": "B", "timestamp": 1}', "not text that can be"),
        (lines(GOOD).rstrip() + lines(GOOD), "not JSON"),
        (lines(GOOD).rstrip() + ",", "not a JSON object"),
        (lines({"user_id": "A", "timestamp": 1}), "the field 'asin' is missing"),
        (lines({**GOOD, "asin": None}), "the field 'asin' is missing"),
        (lines({**GOOD, "asin": ""}), "the field 'asin' is ''"),
        (lines({**GOOD, "asin": 3}), "the field 'asin' is 3, not text"),
        (lines({**GOOD, "asin": ["B"]}), "the field 'asin' is ['B'], neither text nor"),
        (lines({**GOOD, "asin": True}), "the field 'asin' is True"),
        (lines({**GOOD, "timestamp": "noon"}), "the timestamp 'noon' is not a number"),
        (lines({**GOOD, "timestamp": False}), "the field 'timestamp' is False"),
        (lines({**GOOD, "timestamp": [1]}), "the field 'timestamp' is [1]"),
        ('{"user_id": "\\ud800", "asin": "B", "timestamp": 1}', "not text that can be"),
        ('{"user_id": "A", "asin": "B", "timestamp": ' + "9" * 5000 + "}", "a.json:3"),
        ('{"user_id": "A", "asin": "B", "timestamp": NaN}', "is nan, not a time"),
        ('{"user_id": "A", "x": ' + "[" * 10**5 + "}", "not JSON"),
        ("{" * 10**5, "not JSON"),
        ("{'user_id': " + "-" * 10**5 + "1}", "not JSON"),
        ("x" * 10**6, "not JSON"),
        ("x" * (2**24 + 1), "16,777,218 bytes"),
    ],
)
def test_bad_lines(file, as_lists, fails, warnings_of, line, message):
    data = line if isinstance(line, bytes) else line.encode()
    good = lines(GOOD).encode()
    path = file("a.json", good + b"\n" + data.rstrip() + b"\n" + good)
    fails(lambda: read(path), "a.json:3: ", message, "--skip-bad")
    logs = []
    (said,) = warnings_of(lambda: logs.append(read(path, skip_bad=True)))
    assert as_lists(logs[0]) == {"A": ["B", "B"]}
    assert "skipped 1 " in said and "a.json:3: " in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # A map of ids, users with lists of items, one array, one object in many lines.
        ('{"B00": 0, "B01": 1}', "no column is named user"),
        (lines({"user_id": 1, "items": [{"item_id": 3}]}), "no column is named item"),
        ('[{"user": 1, "item": 2}]\n', "as jq -c . makes of objects"),
        ('[\n{"user": 1, "item": 2}\n]\n', "and jq -c '.[]' of a list"),
        ('{\n"user": 1,\n"item": 2\n}\n', "as jq -c . makes of objects"),
        (lines({"user": {"id": 1}, "item": 2}), "{'id': 1}, neither text nor"),
        (lines({"user": 1, "item": 2**63}), "neither text nor a whole number of 64"),
        (lines({"user": 1, "item": -(2**63) - 1}), "nor a whole number of 64 bits"),
        ('{"user": 1, "item": 1e9999}', "'item' is inf, neither text nor"),
        (lines({"user": 1, "item": 1.5}), "1.5"),
    ],
)
def test_json_of_another_kind(file, fails, text, message):
    path = file("a.json", text)
    fails(lambda: read(path), "a.json:1: ", message)


def test_fields_have_no_numbers(file, as_lists, fails):
    path = file("a.json", lines({"who": 1, "what": 2}))
    fails(lambda: read(path, user=0, item=1), "no column is named 0; there are who")
    assert as_lists(read(path, user="who", item="WHAT")) == {1: [2]}
    assert as_lists(read(file("a.json", lines({"0": 1, "1": 2})), user=0, item=1)) == {
        1: [2]
    }


def test_nothing(file, fails):
    for content in ("", "\ufeff", "\n \n"):
        path = file("a.json", content)
        fails(lambda: read(path), f"{path}: the file is empty")
    path = file("a.json", "x\ny\n")
    fails(lambda: read(path, skip_bad=True), "no interactions", "a.json:1: not JSON")


def test_fields_that_the_first_objects_lack(file, as_lists, fails, warnings_of):
    bare = {"user_id": "A", "asin": "C"}
    visit = {"asin": "C", "timestamp": None}
    later = lines({**GOOD, "timestamp": 9}, {**GOOD, "asin": "D", "timestamp": 2})
    path = file("a.json", lines(bare, bare, visit) + later)
    fails(lambda: read(path), "a.json:1: ", "the field 'timestamp' is missing")
    logs = []
    (said,) = warnings_of(lambda: logs.append(read(path, skip_bad=True)))
    assert as_lists(logs[0]) == {"A": ["D", "B"]}
    assert "skipped 3 " in said and "a.json:1: " in said


@pytest.mark.parametrize("parser", ["quick"], indirect=True)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_what_is_usual_is_read_quickly(file, as_lists, monkeypatch, end):
    monkeypatch.setattr(json_lines, "_scan", mock.Mock(side_effect=AssertionError))
    text = lines(GOOD, {**GOOD, "asin": "C", "timestamp": 0}).rstrip() + end
    assert as_lists(read(file("a.json", text))) == {"A": ["C", "B"]}


def test_objects_that_are_not_one_a_line(file, fails, monkeypatch):
    """Behind the first ones, which tell the fields, and so that Arrow takes them."""
    monkeypatch.setattr(json_lines, "_FIRST_OBJECTS", 0)
    one = lines(GOOD).rstrip()
    path = file("a.json", f"{one}\n{one}{one}\n{one}\n")
    fails(lambda: read(path), "a.json:2: not JSON")
    path = file("a.json", one + "\n" + one.replace(", ", ",\n") + "\n")
    fails(lambda: read(path), "a.json:2: not JSON")
