"""Runs of items and their draws, against literal loops."""

import numpy as np
import pytest

from sevo_jax.data import Sequences
from sevo_jax.samples.runs import Runs


def random_train(longest=30):
    """The values count up, so that an item tells its place."""
    lengths = np.random.default_rng(0).integers(0, longest, 60)
    return Sequences.from_lengths(np.arange(lengths.sum()), lengths)


def samples_of(runs):
    """`{target: its run's items up to it}`, each target once."""
    samples = {}
    for first, length, count in zip(
        runs.firsts, runs.lengths, runs.counts, strict=True
    ):
        assert 1 <= count <= length
        for k in range(length - count + 1, length + 1):
            target = int(first + k)
            assert target not in samples
            samples[target] = list(range(first, first + k))
    return samples


def prefixes_of(train):
    """`{target: (user, all items before it)}`."""
    return {
        int(items[k]): (user, items[:k].tolist())
        for user, items in enumerate(train)
        for k in range(1, len(items))
    }


@pytest.mark.parametrize("max_len", [1, 2, 7, 50])
def test_prefixes_are_the_last_items_before_each_target(max_len):
    train = random_train()
    runs = Runs.prefixes(train, max_len)
    prefixes = prefixes_of(train)
    assert samples_of(runs) == {
        target: items[-max_len:] for target, (_, items) in prefixes.items()
    }
    targets = runs.firsts + runs.lengths
    assert runs.users.tolist() == [prefixes[target][0] for target in targets]


@pytest.mark.parametrize(
    "first, fresh, warm_up", [(1, 1, 0), (7, 1, 6), (5, 3, 6), (4, 4, 9), (50, 50, 49)]
)
def test_chunks_have_each_target_once_and_enough_items_before_it(first, fresh, warm_up):
    train = random_train()
    runs = Runs.chunks(train, first=first, fresh=fresh, warm_up=warm_up)
    prefixes = prefixes_of(train)
    samples = samples_of(runs)
    assert samples.keys() == prefixes.keys()
    for target, items in samples.items():
        before = prefixes[target][1]
        assert items == before[-len(items) :]
        assert len(items) == len(before) or len(items) > warm_up
    assert runs.counts.max() <= max(first, fresh)
    begins = np.isin(runs.firsts, train.offsets[:-1])
    assert ((runs.lengths - runs.counts)[~begins] == warm_up).all()
    for user, begin in zip(runs.users, runs.firsts, strict=True):
        assert train.offsets[user] <= begin < train.offsets[user + 1]


@pytest.mark.parametrize("max_len, most", [(1, 9), (7, 50), (7, 3), (50, 50)])
def test_shared_runs_read_each_prefix_as_it_is_by_itself(max_len, most):
    train = random_train()
    runs = Runs.shared(train, max_len, most=most)
    prefixes = prefixes_of(train)
    assert samples_of(runs) == {
        target: items[-max_len:] for target, (_, items) in prefixes.items()
    }
    together = min(max_len, most)
    num_targets = train.lengths[train.lengths >= 2] - 1
    assert runs.counts.max() == min(together, num_targets.max())
    alone = np.maximum(num_targets - together, 0).sum()
    assert runs.counts.size == num_targets.size + alone


def test_a_user_with_repeats_has_a_run_for_each_prefix():
    rows = [[0, 1, 2], [3, 4, 5, 3, 6], [7, 8, 9, 10], [2, 2]]
    runs = Runs.shared(Sequences.from_lists(rows), 3, most=9)
    whole = zip(runs.users, runs.firsts, runs.lengths, runs.counts, strict=True)
    assert sorted(tuple(map(int, run)) for run in whole) == [
        (0, 0, 2, 2),
        (1, 3, 1, 1),
        (1, 3, 2, 1),
        (1, 3, 3, 1),
        (1, 4, 3, 1),
        (2, 8, 3, 3),
        (3, 12, 1, 1),
    ]


@pytest.mark.parametrize("batch_size", [8, 20, 10_000])
def test_a_draw_has_every_run_once_in_steps_of_about_the_batch_size(batch_size):
    runs = Runs.chunks(random_train(), first=8, fresh=4, warm_up=3)
    drawn, steps = runs.draw(np.random.default_rng(1), batch_size)
    again, _ = runs.draw(np.random.default_rng(1), batch_size)
    other, _ = runs.draw(np.random.default_rng(2), batch_size)
    assert drawn.firsts.tolist() == again.firsts.tolist() != other.firsts.tolist()
    assert sorted(zip(drawn.firsts, drawn.lengths, strict=True)) == sorted(
        zip(runs.firsts, runs.lengths, strict=True)
    )
    assert len(steps) == runs.num_steps(batch_size)
    runs_of_steps = [np.arange(runs.counts.size)[step] for step in steps]
    assert np.concatenate(runs_of_steps).tolist() == list(range(runs.counts.size))
    sizes = [drawn.counts[step].sum() for step in steps]
    assert min(sizes) > 0 and max(sizes) <= runs.most_targets(batch_size)
    ends = np.cumsum(sizes)[:-1]
    whole = batch_size * np.arange(1, len(steps))
    assert ((whole - ends >= 0) & (whole - ends < 8)).all()


def test_room_holds_nearly_every_step():
    runs = Runs.chunks(random_train(), first=8, fresh=4, warm_up=3)
    amounts = runs.lengths**2
    room = runs.room(amounts, 20)
    needed = []
    for seed in range(200):
        drawn, steps = runs.draw(np.random.default_rng(seed), 20)
        needed += [(drawn.lengths[step] ** 2).sum() for step in steps]
    assert np.mean(needed) < max(needed) <= room < 2.5 * np.mean(needed)


def test_users_without_a_target_are_no_runs():
    train = Sequences.from_lists([[], [3], [4, 5]])
    assert Runs.prefixes(train, 5).users.tolist() == [2]
    with pytest.raises(ValueError, match="none of the 2 users has two train items"):
        Runs.prefixes(Sequences.from_lists([[], [1]]), 5)
