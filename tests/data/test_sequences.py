import numpy as np
import pytest

from sevo_jax.data import InteractionLog, Sequences
from sevo_jax.data.sequences import ranges


@pytest.fixture
def lists():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 50, size).tolist() for size in [3, 0, 7, 1, 0, 0, 12, 2, 0]]


def as_lists(sequences):
    return [row.tolist() for row in sequences]


def test_from_lists_keeps_every_row(lists):
    sequences = Sequences.from_lists(lists)
    assert as_lists(sequences) == lists
    assert len(sequences) == len(lists)
    assert sequences.values.dtype == np.int32
    assert sequences.offsets.dtype == np.int64
    assert sequences.lengths.tolist() == [len(row) for row in lists]


def test_rows_names_the_row_of_each_value(lists):
    expected = [index for index, row in enumerate(lists) for _ in row]
    assert Sequences.from_lists(lists).rows.tolist() == expected


def test_indexing(lists):
    sequences = Sequences.from_lists(lists)
    assert sequences[-3].tolist() == lists[-3]
    assert np.shares_memory(sequences[2], sequences.values)
    for row in (len(lists), -len(lists) - 1):
        with pytest.raises(IndexError, match=f"row {row} of 9"):
            sequences[row]


@pytest.mark.parametrize("k", [0, 1, 2, 5, 100])
def test_last(lists, k):
    kept = Sequences.from_lists(lists).last(k)
    assert as_lists(kept) == [row[len(row) - min(k, len(row)) :] for row in lists]


def test_last_refuses_a_negative_number(lists):
    with pytest.raises(ValueError, match="last -1 items"):
        Sequences.from_lists(lists).last(-1)


def test_drop_last(lists):
    sequences = Sequences.from_lists(lists)
    assert as_lists(sequences.drop_last(2)) == [row[:-2] for row in lists]
    counts = np.arange(len(lists))
    expected = [row[: max(0, len(row) - n)] for row, n in zip(lists, counts)]
    assert as_lists(sequences.drop_last(counts)) == expected


def test_append(lists):
    column = np.array([9, 8, -1, 7, -1, 6, 5, -1, 4], np.int32)
    expected = [row + [x] * (x >= 0) for row, x in zip(lists, column.tolist())]
    longer = Sequences.from_lists(lists).append(column)
    assert as_lists(longer) == expected
    assert longer.values.dtype == np.int32


def test_append_needs_one_entry_for_each_row(lists):
    with pytest.raises(ValueError, match=r"shape \(2,\).* 9 sequences"):
        Sequences.from_lists(lists).append(np.array([1, 2]))


def test_no_rows():
    empty = Sequences.from_lists([])
    assert len(empty) == 0
    assert as_lists(empty.last(3)) == as_lists(empty.append(np.zeros(0))) == []


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([1, 3], "go from 1 to 3"),
        ([0, 2], "number of values, 3"),
        ([0, 3, 2, 3], "decrease at row 1"),
        ([], "at least the offset 0"),
    ],
)
def test_malformed_offsets(offsets, message):
    with pytest.raises(ValueError, match=message):
        Sequences(np.arange(3, dtype=np.int32), np.array(offsets, np.int64))


def test_wrong_dtypes():
    with pytest.raises(TypeError, match="int32 values and int64 offsets, not int64"):
        Sequences(np.arange(3), np.array([0, 3]))


def test_ranges(rng):
    starts, lengths = rng.integers(-9, 9, 20), rng.integers(0, 4, 20)
    for first in (starts, 3):
        expected = [
            number
            for start, length in zip(np.broadcast_to(first, 20), lengths)
            for number in range(start, start + length)
        ]
        assert ranges(first, lengths).tolist() == expected
    assert ranges(0, np.zeros(0, np.int32)).tolist() == []


def test_rows_keep_their_names():
    log = InteractionLog.from_columns(
        ["ann", "bob", "bob", "x" * 999], [7, 7, 8, 9], name="names"
    )
    rows = log.sequences
    for each in (
        rows,
        rows.last(1),
        rows.drop_last(1),
        rows.append(np.array([1, -1, 0])),
    ):
        assert [each.name(i) for i in range(2)] == ["ann", "bob"]
        assert len(each.name(2)) == 60
    assert Sequences.from_lists([[1], [2]]).last(1).name(1) == "1"


def test_rows_that_are_taken_keep_their_names():
    rows = Sequences(
        np.array([3, 1, 3, 5], np.int32), np.array([0, 3, 4]), np.array(["bo", "al"])
    )
    for some in (rows, rows.distinct(), rows.last(1), rows.append(np.array([-1, 2]))):
        assert [some.name(row) for row in range(2)] == ["bo", "al"]
    taken = rows.take(np.array([1, 1, 0]))
    assert [row.tolist() for row in taken] == [[5], [5], [3, 1, 3]]
    assert [taken.name(row) for row in range(3)] == ["al", "al", "bo"]


def test_items_are_not_changed_in_silence():
    rows = Sequences.from_lists([[1], [2]])
    large = np.array([2**32 + 3])
    for make in (
        lambda: Sequences.from_lists([large]),
        lambda: Sequences.from_lengths(large, np.array([1])),
        lambda: rows.take(np.array([0])).append(large),
    ):
        with pytest.raises(ValueError, match="run from 4294967299 to 4294967299"):
            make()
    for make in (
        lambda: Sequences.from_lists([[1.9, 2.2]]),  # pyright: ignore
        lambda: Sequences.from_lists(["12"]),  # pyright: ignore
        lambda: rows.append(np.array([0.5, 1.0])),
    ):
        with pytest.raises(TypeError, match="items are integers from 0, not"):
            make()
    assert Sequences.from_lists([[], np.array([7], np.uint8)])[1].tolist() == [7]


def test_rows_are_taken_from_the_end_too():
    rows = Sequences.from_lists([[1], [2, 3], [4]])
    assert [row.tolist() for row in rows.take(np.array([-2, 0]))] == [[2, 3], [1]]
    with pytest.raises(IndexError, match="out of bounds"):
        rows.take(np.array([3]))
    with pytest.raises(IndexError, match="row -4 is out of bounds of 3 rows"):
        rows.take(np.array([0, -4]))
