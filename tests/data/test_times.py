import itertools
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pytest

from sevo_jax.data.times import TimeParser, ranked, sortable


@pytest.mark.parametrize(
    "in_order",
    [
        ["-5", "0", "1.5", "1e3", "1588687728923456788", "1588687728923456789.0"],
        ["1e99", "1e100", "1e101"],
        ["1400000000000000000", "1400000000000000000.5", "1400000000000000001"],
        [
            "1999-12-31T23:59:59.999999999999+00:00",
            "2000-01-01",
            "2000-01-01T00:00:00.000000000000000001Z",
            "2000-01-01T00:00:00.000000000000000002Z",
            "2000-01-01T00:00:00.0000000009999999999999999999",
            "2000-01-01 00:00:00.000000001",
            "20000101T000000.000000002Z",
            "2000-01-01T00:00:00,00001Z",
            "2000-01-01 01:00 utc",
            "2000-01-01 02:00:00 GMT",
            "2000-01-01T01:30:00-02:00",
            "20000101T05",
        ],
    ],
)
def test_texts_are_exact(in_order):
    for order in (in_order, in_order[::-1]):
        parse = TimeParser()
        numbers = {text: parse(text) for text in order}
        assert sorted(in_order, key=numbers.__getitem__) == in_order
        assert len(set(numbers.values())) == len(in_order)


def test_equal_times_are_equal():
    parse = TimeParser()
    assert parse("2020-01-01T00:00:00+02:00") == parse("2019-12-31 22:00Z")
    assert parse("2019-12-31 22:00Z") == parse(" 2019-12-31T22:00:00.000 ")
    parse = TimeParser()
    assert parse("10") == parse("10.0") == parse("1e1")


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "nan", "inf", "1e999", "1_000", "\uff11", "0x10", "--5", "1 2"),
        *("01/02/2020", "2020/01/02", "02.01.2020", "2020-13-01", "Jan 2, 2020"),
        *("2020-01-01T10.5", "2020-01-01 10:30.9", "20200101T1030,9Z"),
        *("12:30", "2020-01-01T25:00", "2020-01-01 10:00 PST", "9" * 5000, "1" * 400),
    ],
)
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match="neither a number nor an ISO date") as caught:
        TimeParser()(text)
    assert len(str(caught.value)) < 300


def test_kinds_are_not_mixed():
    parse = TimeParser()
    parse("2014")
    with pytest.raises(ValueError, match="'2014-01-01' is not a number, as those be"):
        parse("2014-01-01")
    parse = TimeParser()
    # What is refused says nothing of the kind.
    with pytest.raises(ValueError):
        parse("never")
    parse("2014-01-01")
    with pytest.raises(ValueError, match="'2014' is not an ISO date, as those before"):
        parse("2014")


def test_ranks():
    times = [5, Decimal("4.9"), 5, 2**80, Decimal("5.0")]
    assert ranked(times).tolist() == [1, 0, 1, 2, 1]


IN_ORDER = [
    np.array([1, 3, 2**62], np.uint64),
    [1, 3.5, 2**70],
    [1.5, 2.5, 1e300],
    [Decimal("1.1"), Decimal("1.2"), 2],
    np.array(["2020-01-01", "2020-01-02", "2020-01-03"], "datetime64[D]"),
    [date(2020, 1, 1), date(2020, 1, 2), datetime(2020, 1, 2, 0, 0, 1)],
    [
        datetime(2020, 1, 1, 3, tzinfo=timezone(timedelta(hours=3))),
        datetime(2020, 1, 1, 2, tzinfo=UTC),
        datetime(2020, 1, 1, 2, 0, 0, 1),
    ],
    ["2020-01-01T03:00+03:00", "2020-01-01 02:00", "2020-01-01T02:00:00.1Z"],
    np.array(["2020-01-01", "2020-01-02"], object),
    [np.float32(1), np.float64(1.5), np.int64(2)],
    [1400000000000000255, 1400000000000000256.0, 1400000000000000257],
    [1, 2**63, 2**63 + 1],
]


@pytest.mark.parametrize("times", IN_ORDER, ids=str)
def test_every_type_sorts(times):
    for order in itertools.permutations(range(len(times))):
        shuffled = [times[i] for i in order]
        if isinstance(times, np.ndarray):
            shuffled = np.array(shuffled, times.dtype)
        found = [order[i] for i in np.argsort(sortable(shuffled), kind="stable")]
        assert found == list(range(len(times)))


@pytest.mark.parametrize(
    ("times", "error", "message"),
    [
        ([0.0, np.nan], ValueError, "timestamp 1 is nan"),
        ([0.0, -np.inf], ValueError, "timestamp 1 is -inf"),
        ([0, None], ValueError, "timestamp 1 is None"),
        ([True], ValueError, "timestamp 0 is True"),
        (np.array(["NaT"], "datetime64[s]"), ValueError, "timestamp 0 is NaT"),
        (["2020-01-01", "today"], ValueError, "timestamp 1: the timestamp 'today'"),
        (np.array([1j]), TypeError, "timestamps are complex128"),
        (np.array([1], "timedelta64[s]"), TypeError, "timestamps are timedelta64"),
    ],
)
def test_what_is_refused(times, error, message):
    with pytest.raises(error, match=message):
        sortable(times)
