import numpy as np
import pyarrow
import pytest

from sevo_jax.data import InteractionLog, Sequences


class Series:
    """A column of a DataFrame, which has no positions."""

    def __init__(self, values):
        self._values = values

    def __len__(self):
        return len(self._values)

    def __array__(self, dtype=None, copy=None):
        return np.array(self._values, dtype or object)


def as_lists(log):
    """The original item ids of each user, by the user's original id."""
    return {
        user: log.item_ids[row].tolist()
        for user, row in zip(log.user_ids.tolist(), log.sequences, strict=True)
    }


def test_sorted_by_user_and_time():
    log = InteractionLog.from_columns(
        [10, 9, 10, 9, 10], [5, 100, 20, 5, 3], [3, 2, 1, 1, 2], name="tiny"
    )
    assert as_lists(log) == {9: [5, 100], 10: [20, 3, 5]}
    assert log.user_ids.tolist() == [9, 10]
    assert log.item_ids.tolist() == [3, 5, 20, 100]
    assert log.sequences[0].tolist() == [1, 3]
    assert log.user_ids.dtype == log.item_ids.dtype == np.int64
    assert (log.num_users, log.num_items, log.num_interactions) == (2, 4, 5)
    assert log.name == "tiny"


@pytest.mark.parametrize("times", [None, "ties", "floats", "dates"])
def test_ties_keep_the_order_of_the_columns(times):
    rng = np.random.default_rng(1)
    users, items = rng.integers(0, 20, 3000), rng.integers(0, 200, 3000)
    days = rng.integers(0, 5, 3000)
    timestamps = {
        None: None,
        "ties": days,
        "floats": days / 8,
        "dates": np.datetime64("2014-07-01") + days,
    }[times]
    log = InteractionLog.from_columns(users, items, timestamps, name="ties")
    keys = days if times else np.zeros(3000)
    expected = {}
    for _, _, user, item in sorted(
        zip(keys, range(3000), users.tolist(), items.tolist(), strict=True)
    ):
        expected.setdefault(user, []).append(item)
    assert as_lists(log) == expected


def test_text_ids_sort_as_text_and_are_kept():
    log = InteractionLog.from_columns(
        ["10", "9", "ü"], ["0439", "B00", "0439"], name="text"
    )
    assert as_lists(log) == {"10": ["0439"], "9": ["B00"], "ü": ["0439"]}
    assert log.user_ids.tolist() == ["10", "9", "ü"]
    # NumPy's own text is as wide as the longest, and has no NUL at its end.
    assert log.item_ids.dtype == object


def test_objects_and_any_width_of_integers():
    narrow = InteractionLog.from_columns(
        np.array([2, 1], np.uint8), np.array([300, -4], object), name="narrow"
    )
    assert as_lists(narrow) == {1: [-4], 2: [300]}


def test_mixed_ids_are_refused():
    with pytest.raises(TypeError, match="user id 1 is int.* all text"):
        InteractionLog.from_columns(["a", 1], [1, 2], name="mixed")
    with pytest.raises(TypeError, match="item id None is NoneType"):
        InteractionLog.from_columns([1, 1], ["a", None], name="missing")
    with pytest.raises(ValueError, match="item id 1.5 is not a whole number"):
        InteractionLog.from_columns([1, 1], [1.0, 1.5], name="floats")
    with pytest.raises(ValueError, match="user id 18446744073709551615"):
        users = np.array([2**64 - 1], np.uint64)
        InteractionLog.from_columns(users, [1], name="large")


def test_columns_must_match():
    with pytest.raises(ValueError, match="'users': 2, 'items': 1"):
        InteractionLog.from_columns([1, 2], [1], name="short")
    with pytest.raises(ValueError, match="'none' has no interactions"):
        InteractionLog.from_columns([], [], name="none")
    with pytest.raises(ValueError, match="items of 'table' have 2 dimensions"):
        InteractionLog.from_columns([1, 2], np.ones((2, 1), int), name="table")


def test_timestamps_must_be_finite_numbers():
    with pytest.raises(ValueError, match="timestamp 0: the timestamp 'today' is nei"):
        InteractionLog.from_columns([1], [1], ["today"], name="text")
    with pytest.raises(ValueError, match="timestamp 1 is nan"):
        InteractionLog.from_columns([1, 1], [1, 2], [0.0, np.nan], name="nan")
    with pytest.raises(ValueError, match="timestamp 0 is NaT"):
        times = np.array(["NaT"], "datetime64[s]")
        InteractionLog.from_columns([1], [1], times, name="nat")


def test_columns_lead_back_to_the_log():
    log = InteractionLog.from_columns(
        ["b", "a", "b", "b"], [3, 3, 1, 3], [1, 2, 0, 5], name="back"
    )
    users, items, positions = log.to_columns()
    assert users.tolist() == ["a", "b", "b", "b"]
    assert items.tolist() == [3, 1, 3, 3]
    assert positions.tolist() == [0, 0, 1, 2]
    back = InteractionLog.from_columns(*log.to_columns(), name="back")
    assert as_lists(back) == as_lists(log)


@pytest.mark.parametrize("convert", [list, tuple, np.array, pyarrow.array, Series])
def test_columns_of_any_kind(convert):
    log = InteractionLog.from_columns(
        convert(["b", "a", "b"]), convert([7.0, 7.0, 5.0]), convert([2, 3, 1]), name="x"
    )
    assert as_lists(log) == {"a": [7], "b": [5, 7]}


@pytest.mark.parametrize(
    ("rows", "num_ids", "message"),
    [
        ([[0], []], (2, 1), "user 1 has no interactions"),
        ([[0]], (2, 1), "2 user ids for 1 sequences"),
        ([[0, 3]], (1, 3), "items run from 0 to 3, but 3 item ids"),
        ([[0, -1]], (1, 3), "items run from -1"),
        ([], (0, 0), "no interactions"),
    ],
)
def test_inconsistent_logs_are_refused(rows, num_ids, message):
    users, items = map(np.arange, num_ids)
    with pytest.raises(ValueError, match=message):
        InteractionLog(Sequences.from_lists(rows), users, items, "bad")
