import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sevo_jax.data import InteractionLog, leave_one_out


def test_last_is_test_and_second_last_validation():
    rng = np.random.default_rng(0)
    lengths = [4, 1, 2, 3, 9, 5, 30]
    rows = [rng.permutation(40)[:n].tolist() for n in lengths]
    users = np.repeat(np.arange(len(rows)), lengths)
    log = InteractionLog.from_columns(users, np.concatenate(rows), name="small")
    rows = [row.tolist() for row in log.sequences]

    split = leave_one_out(log)

    cut = [len(row) > 3 for row in rows]
    assert cut == [True, False, False, False, True, True, True]
    assert [row.tolist() for row in split.train] == [
        row[:-2] if c else row for row, c in zip(rows, cut, strict=True)
    ]
    expected = [row[-2] if c else -1 for row, c in zip(rows, cut, strict=True)]
    assert split.valid.tolist() == expected
    expected = [row[-1] if c else -1 for row, c in zip(rows, cut, strict=True)]
    assert split.test.tolist() == expected
    assert split.valid.dtype == split.test.dtype == np.int32
    assert (split.num_users, split.num_items) == (log.num_users, log.num_items)
    assert split.log is log


def test_the_parts_make_up_the_log():
    log = InteractionLog.from_columns(
        [1] * 5 + [2] * 2 + [3] * 4, list(range(11)), name="small"
    )
    split = leave_one_out(log)
    whole = split.train.append(split.valid).append(split.test)
    np.testing.assert_array_equal(whole.values, log.sequences.values)
    np.testing.assert_array_equal(whole.offsets, log.sequences.offsets)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1))
def test_logs_with_repeats(rows):
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    log = InteractionLog.from_columns(users, np.concatenate(rows), name="repeats")
    split = leave_one_out(log)
    for user, row in enumerate(rows):
        *train, valid, test = row if len(row) > 3 else [*row, None, None]
        assert log.item_ids[split.train[user]].tolist() == train
        for found, expected in ((split.valid, valid), (split.test, test)):
            item = None if found[user] < 0 else log.item_ids[found[user]]
            assert item == expected
