import numpy as np
import pytest

from sevo_jax.data import InteractionLog, Sequences, leave_one_out
from sevo_jax.training.known import Known, honest, take_users


def log_of(rows, name="today"):
    """A log from `{user: items}`."""
    users = [user for user, items in rows.items() for _ in items]
    items = [item for row in rows.values() for item in row]
    return InteractionLog.from_columns(users, items, name=name)


def known_of(rows):
    split = leave_one_out(log_of(rows))
    log = split.log
    return Known(log.user_ids.tolist(), log.item_ids.tolist(), split.train, "old")


def in_words(found):
    """The rows of a translated log, by the original ids."""
    log = found.log
    return {
        user: [log.item_ids[item] for item in row]
        for user, row in zip(log.user_ids.tolist(), log.sequences, strict=True)
    }


def test_another_log_in_the_numbers_of_the_run():
    known = known_of({"al": ["a", "b", "c", "d", "e"], "bo": ["b", "c"]})
    today = log_of({"al": ["c", "x", "a"], "cy": ["x", "y"], "zo": ["e", "y", "e"]})
    found = known.translate(today)
    assert in_words(found) == {"al": ["c", "a"], "zo": ["e", "e"]}
    assert found.users.tolist() == [0, -1]
    assert found.log.num_items == 5
    assert (found.unknown_items, found.skipped) == (["x", "y"], 4)
    assert found.unserved == ["cy"]
    # The last of the users is among those who are not served.
    last = known.translate(log_of({"al": ["c"], "zz": ["x"]}))
    assert in_words(last) == {"al": ["c"]} and last.unserved == ["zz"]
    only = found.take(np.array([1]))
    assert in_words(only) == {"zo": ["e", "e"]} and only.users.tolist() == [-1]


def test_ids_are_the_same_as_numbers_and_as_text():
    known = known_of({1: [10, 20, 30], 2: [20]})
    assert known.items(["20", 30, "030"]).tolist() == [1, 2, -1]
    assert known.users(["1", 2, 3]).tolist() == [0, 1, -1]
    found = known.translate(log_of({"2": ["10", "x1"]}))
    assert in_words(found) == {"2": [10]} and found.users.tolist() == [1]


def test_a_log_of_which_no_item_is_known_is_refused():
    known = known_of({"al": ["a", "b", "c", "d"]})
    with pytest.raises(ValueError, match="knows no item of 'today'.* a, b, c, .* 7"):
        known.translate(log_of({"al": [7, 8]}))


@pytest.mark.parametrize("seed", range(20))
def test_targets_that_were_trained_on_are_those_of_the_brute_force(seed):
    """Logs with repeats, cut, grown and with items inserted and removed."""
    rng = np.random.default_rng(seed)
    rows = {u: rng.integers(5, size=rng.integers(1, 9)).tolist() for u in range(12)}
    rows[0] = [0, 1, 2, 3, 4]
    known = known_of(rows)
    today = {}
    for user, row in rows.items():
        kind = rng.integers(4)
        if kind == 0:
            row = row[: rng.integers(1, len(row) + 1)]
        elif kind == 1:
            row = row + rng.integers(5, size=rng.integers(1, 4)).tolist()
        elif kind == 2:
            row = [item for item in row if rng.random() < 0.8] or [0]
        today[user + 100 * (rng.random() < 0.2)] = row
    found = known.translate(log_of(today))
    split = leave_one_out(found.log)
    left = honest(known, found.users, split)
    for part in ("valid", "test"):
        for index, target in enumerate(getattr(split, part).tolist()):
            row, expected = found.users[index], target
            inputs = split.train[index].tolist()
            if part == "test":
                inputs.append(split.valid[index])
            trained = [] if row < 0 else known.train[row].tolist()
            if target >= 0 and trained.count(target) > inputs.count(target):
                expected = -1
            assert getattr(left, part)[index] == expected
    # Whatever is asked of validation, the test has all that came before.
    before, after = (each.train.append(each.valid) for each in (split, left))
    assert [row.tolist() for row in before] == [row.tolist() for row in after]


def test_the_log_trained_on_has_no_such_targets(tiny_split):
    log = tiny_split.log
    known = Known(log.user_ids.tolist(), log.item_ids.tolist(), tiny_split.train, "")
    users = np.arange(log.num_users)
    left = honest(known, users, tiny_split)
    np.testing.assert_array_equal(left.valid, tiny_split.valid)
    np.testing.assert_array_equal(left.test, tiny_split.test)
    everything = Known(known.user_ids, known.item_ids, log.sequences, "")
    assert (honest(everything, users, tiny_split).test < 0).all()


def test_users_are_taken_in_the_given_order():
    log = log_of({"al": ["a", "b"], "bo": ["c"], "cy": ["b", "a", "a"]})
    taken = take_users(log, np.array([2, 0]))
    assert taken.user_ids.tolist() == ["cy", "al"]
    assert [row.tolist() for row in taken.sequences] == [[1, 0, 0], [0, 1]]
    assert isinstance(taken.sequences, Sequences)
