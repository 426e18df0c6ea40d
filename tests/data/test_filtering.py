from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevo_jax.data import InteractionLog, k_core


def literal_k_core(pairs, k):
    while True:
        users = Counter(user for user, _ in pairs)
        kept = [pair for pair in pairs if users[pair[0]] >= k]
        items = Counter(item for _, item in kept)
        kept = [pair for pair in kept if items[pair[1]] >= k]
        if kept == pairs:
            return pairs
        pairs = kept


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_equals_the_literal_loop(k):
    rng = np.random.default_rng(k)
    users = rng.integers(0, 120, 900)
    items = (150 * rng.random(900) ** 2).astype(int)
    log = InteractionLog.from_columns(users * 7, items * 3, name="random")
    rows = log.sequences.rows
    pairs = list(
        zip(log.user_ids[rows].tolist(), log.item_ids[log.sequences.values].tolist())
    )
    expected = literal_k_core(pairs, k)
    assert 0 < len(expected) and (len(expected) < len(pairs)) == (k > 1)

    core = k_core(log, k)

    rows = core.sequences.rows
    found = zip(
        core.user_ids[rows].tolist(), core.item_ids[core.sequences.values].tolist()
    )
    assert list(found) == expected
    assert np.bincount(core.sequences.values).min() >= k
    assert core.sequences.lengths.min() >= k
    assert len(core.item_ids) == core.sequences.values.max() + 1
    assert core.name == "random"


def test_falls_in_several_rounds():
    # Item 9 keeps user "c" alive until item 9 falls with user "d".
    users = list("aabbccd")
    items = [1, 2, 1, 2, 2, 9, 9]
    core = k_core(InteractionLog.from_columns(users, items, name="chain"), 2)
    assert core.user_ids.tolist() == ["a", "b"]
    assert core.item_ids.tolist() == [1, 2]


def test_nothing_left():
    log = InteractionLog.from_columns([1, 2], [1, 2], name="thin")
    with pytest.raises(ValueError, match="nothing of 'thin' is left.*2 interactions"):
        k_core(log, 2)


def test_k_below_one():
    log = InteractionLog.from_columns([1], [1], name="thin")
    with pytest.raises(ValueError, match="k is 0"):
        k_core(log, 0)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1),
    k=st.integers(1, 4),
)
def test_repeats_count(pairs, k):
    log = InteractionLog.from_columns(*zip(*pairs), name="repeats")
    expected = literal_k_core(pairs, k)
    if not expected:
        with pytest.raises(ValueError, match="nothing of 'repeats' is left"):
            k_core(log, k)
        return
    users, items, _ = k_core(log, k).to_columns()
    # User by user, and each user's in order.
    expected.sort(key=lambda pair: pair[0])
    assert list(zip(users.tolist(), items.tolist())) == expected
