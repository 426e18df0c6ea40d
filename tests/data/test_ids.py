import numpy as np
import pytest

from sevo_jax.data import ids


def numbered(column):
    found = ids.number(column, "user")
    assert found.ids.dtype in (np.int64, object)
    return found.ids.tolist(), found.codes.tolist()


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([10, 9, 10], ([9, 10], [1, 0, 1])),
        (np.array([300, 2], np.uint16), ([2, 300], [1, 0])),
        (np.array([300, 2], np.int16), ([2, 300], [1, 0])),
        (list(np.array([300, 2])), ([2, 300], [1, 0])),
        ([-(2**63), 2**63 - 1], ([-(2**63), 2**63 - 1], [0, 1])),
        ([2.0**53 - 1, np.float32(2**24 - 1)], ([2**24 - 1, 2**53 - 1], [1, 0])),
        (["10", "9"], (["10", "9"], [0, 1])),
        (np.array(["b", "a"]), (["a", "b"], [1, 0])),
        ([123.0, 123, 7.0], ([7, 123], [1, 1, 0])),
        (np.array([-0.0, 0.0, 5.0]), ([0, 5], [0, 0, 1])),
        ([2**53 + 1, 1.0, 2**53], ([1, 2**53, 2**53 + 1], [2, 0, 1])),
        (["a\0", "a", "\0", "a\0"], (["\0", "a", "a\0"], [2, 1, 0, 2])),
        (["\U0001f600", "\ufb00", "z"], (["z", "\ufb00", "\U0001f600"], [2, 1, 0])),
    ],
)
def test_ids_are_sorted_and_kept(column, expected):
    assert numbered(column) == expected


def test_a_long_id_costs_its_own_length():
    column = ["x" * 10**6, *map(str, range(10_000))]
    found = ids.number(column, "user")
    assert found.ids.itemsize == 8
    assert found.ids[-1] == column[0]
    assert found.ids[found.codes].tolist() == column


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        (["a", 1], TypeError, "user id 1 is int.* all text"),
        ([1, "a"], TypeError, "user id 'a' is str.* all integers"),
        (["a", None], TypeError, "user id None is NoneType"),
        ([None], TypeError, "user id None is NoneType"),
        ([True, False], TypeError, "user id True is bool"),
        (np.array([True]), TypeError, "user ids are bool"),
        ([1.5], ValueError, "user id 1.5 is not a whole number"),
        ([float("nan")], ValueError, "user id nan is not a whole number"),
        (np.array([1.0, 2.0**53]), ValueError, "below 2\\*\\*53"),
        ([-(2.0**53)], ValueError, "below 2\\*\\*53"),
        # Where two integers are one float, they would be one user.
        (np.array([1, 2**24], np.float32), ValueError, "below 2\\*\\*24"),
        ([np.float16(2**11)], ValueError, "below 2\\*\\*11"),
        ([2**63], ValueError, "9223372036854775808 does not fit in 64"),
        ([-(2**63) - 1], ValueError, "-9223372036854775809 does not fit in 64"),
        (np.array([2**64 - 1], np.uint64), ValueError, "18446744073709551615 does"),
        (["a", ""], ValueError, "user id '' is empty"),
        (["\udcff"], ValueError, "cannot be written as UTF-8"),
    ],
)
def test_what_is_no_id(column, error, message):
    with pytest.raises(error, match=message):
        ids.number(column, "user")


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["10", "9", "-3"], [-3, 9, 10]),
        (["123.0", "123", "7.00"], [7, 123]),
        ([f"{2**63 - 1}.0", f"{2**53 + 1}.0", "1"], [1, 2**53 + 1, 2**63 - 1]),
        ([" 1", "1", "2 "], [1, 2]),
        (["x ", "x"], ["x", "x "]),
        (["9223372036854775807", "-9223372036854775808"], [-(2**63), 2**63 - 1]),
        # Anything else would not come back as it was.
        (["007", "7"], ["007", "7"]),
        (["+7", "7"], ["+7", "7"]),
        (["7.5", "7"], ["7", "7.5"]),
        (["-0", "0"], ["-0", "0"]),
        (["1_0", "10"], ["10", "1_0"]),
        (["\uff11", "1"], ["1", "\uff11"]),
        (["9223372036854775808", "1"], ["1", "9223372036854775808"]),
        (["-9223372036854775809", "1"], ["-9223372036854775809", "1"]),
        (["9" * 5000, "1"], ["1", "9" * 5000]),
        (["1e5", "1"], ["1", "1e5"]),
    ],
)
def test_tokens_are_numbers_only_if_all_are_plain(tokens, expected):
    found = ids.number_tokens(tokens, "item")
    assert found.ids.tolist() == expected
    assert len(found.codes) == len(tokens)


def test_marks_of_missing_ids():
    others = ["N/A", "#N/A", "<NA>", "-nan", "NaT", "None", "nil"]
    others += ["\\N", "undefined", "-", "?"]
    for column in (["NA"], ["1", "NA", "nan"], ["1.0", "NULL", "NA"], ["1", *others]):
        marks = ids.marks_of_missing(column)
        assert marks == {each for each in column if not each[0].isdigit()}
    for column in (["NA", "x"], ["1", "NaNa"], ["1", "2"], ["NA", "007"]):
        assert ids.marks_of_missing(column) == set()
