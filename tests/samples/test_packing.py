"""Packed epochs, the packing itself and padded frames, against literal loops."""

from typing import Any

import numpy as np
import pytest

from sevo_jax.data import Sequences
from sevo_jax.samples.packing import PackedEpochs, left_pad, pack

NUM_ITEMS = 300
MAX_LEN = 12


def naive_best_fit(lengths, width):
    """Best-fit decreasing by looking at every row: the number of rows it opens."""
    free = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in free if room >= length]
        if fitting:
            free[free.index(min(fitting))] -= length
        else:
            free.append(width - length)
    return len(free)


def random_sequences(seed, num_users, shortest=0, longest=30):
    rng = np.random.default_rng(seed)
    lengths = np.minimum(shortest + rng.geometric(0.2, num_users) - 1, longest)
    return Sequences.from_lists(
        rng.choice(NUM_ITEMS, length, replace=False) for length in lengths
    )


def users_of(step):
    """Each packed user's cells: a list of dicts, field name to array."""
    users = []
    for row in range(step.segments.shape[0]):
        for segment in np.unique(step.segments[row][step.segments[row] > 0]):
            cells = step.segments[row] == segment
            users.append({k: v[row][cells] for k, v in step._asdict().items()})
    return users


def steps_of(epoch):
    return [type(epoch)(*fields) for fields in zip(*epoch, strict=True)]


def make(seed=0, train=None, **kwargs):
    if train is None:
        train = random_sequences(0, 203)
    options: dict[str, Any] = {
        "max_len": MAX_LEN,
        "batch_size": 64,
        "seed": seed,
    } | kwargs
    return train, PackedEpochs(train, NUM_ITEMS, **options)


@pytest.mark.parametrize("seed", range(20))
def test_pack_places_all_without_overlap_as_best_fit_decreasing_does(seed):
    rng = np.random.default_rng(seed)
    width = int(rng.integers(1, 60))
    lengths = rng.integers(1, width + 1, rng.integers(1, 200))
    row, column, num_rows = pack(lengths, width)

    taken = np.zeros((num_rows, width), int)
    for r, c, length in zip(row, column, lengths, strict=True):
        assert 0 <= c <= width - length
        taken[r, c : c + length] += 1
    assert taken.max() == 1
    assert taken.sum() == lengths.sum()
    assert taken.any(axis=1).all()
    assert num_rows == naive_best_fit(lengths.tolist(), width)


def test_an_epoch_holds_each_user_once_with_its_last_items_and_its_frame():
    train, epochs = make()
    expected = {}
    for user in train:
        if len(user) >= 2:
            inputs, targets = user[:-1][-MAX_LEN:], user[1:][-MAX_LEN:]
            expected[tuple(inputs + 1), tuple(targets + 1)] = set(user + 1)
    assert 0 < len(expected) < len(train), "some users are too short to train on"
    assert max(train.lengths) > MAX_LEN + 1, "some users are cut"

    seen = []
    for step in steps_of(epochs[3]):
        for user in users_of(step):
            n = len(user["inputs"])
            items = tuple(user["inputs"]), tuple(user["targets"])
            seen.append(items)
            assert not expected[items] & set(user["negatives"])
            assert user["positions"].tolist() == list(range(MAX_LEN - n, MAX_LEN))
            assert user["num_pads"].tolist() == [MAX_LEN - n] * n
        negatives = step.negatives[step.segments > 0]
        assert 1 <= negatives.min() and negatives.max() <= NUM_ITEMS
        for field in step:
            assert field.dtype == np.int32
            assert not field[step.segments == 0].any()
    assert sorted(seen) == sorted(expected)
    assert epochs.num_samples == len(expected)


def test_cells_of_a_user_stand_side_by_side_in_order():
    # Causal attention takes the order of the cells for the order of the items.
    _, epochs = make()
    for step in steps_of(epochs[0]):
        for segments, positions in zip(step.segments, step.positions, strict=True):
            for segment in np.unique(segments[segments > 0]):
                cells = np.flatnonzero(segments == segment)
                assert (np.diff(cells) == 1).all()
                assert (np.diff(positions[cells]) == 1).all()


def test_batches_are_full_but_the_last_and_users_change_batches():
    train, epochs = make(train=random_sequences(0, 203, shortest=2))
    assert epochs.num_steps == 4
    batches = []
    for epoch in range(2):
        steps = [users_of(step) for step in steps_of(epochs[epoch])]
        assert [len(users) for users in steps] == [64, 64, 64, 11]
        batches.append([{tuple(user["inputs"]) for user in users} for users in steps])
    # A first batch drawn anew shares 64 * 64 / 203 users with the old one on average.
    assert 8 <= len(batches[0][0] & batches[1][0]) <= 36


def test_an_epoch_is_a_function_of_seed_and_number():
    _, epochs = make()
    ahead = epochs[5]
    _ = epochs[2]
    for again in (epochs[5], make()[1][5]):
        for field, other in zip(ahead, again, strict=True):
            np.testing.assert_array_equal(field, other)
    _, next_seed = make(seed=1)
    for other in (epochs[6], next_seed[5], next_seed[4]):
        assert not np.array_equal(ahead.inputs, other.inputs)


def test_negatives_are_redrawn_every_epoch_and_uniform():
    train, epochs = make(train=Sequences.from_lists([np.arange(0, 200)] * 8))
    counts = np.zeros(NUM_ITEMS + 1)
    drawn = [epochs[e].negatives for e in range(50)]
    for negatives in drawn:
        counts += np.bincount(negatives[negatives > 0], minlength=NUM_ITEMS + 1)
    assert not counts[:201].any()
    assert counts[201:].sum() == 50 * 8 * MAX_LEN
    expected = 50 * 8 * MAX_LEN / 100
    chi_squared = ((counts[201:] - expected) ** 2 / expected).sum()
    # 99 degrees of freedom: mean 99, deviation 14.
    assert 50 < chi_squared < 160
    kept = [(drawn[0] == other).mean() for other in drawn[1:]]
    assert max(kept) < 0.1 + (drawn[0] == 0).mean()


def test_rows_are_a_multiple_of_eight_shared_by_nearly_all_epochs():
    _, epochs = make(train=random_sequences(1, 600, shortest=2), batch_size=50)
    shapes = {epochs[e].inputs.shape for e in range(30)}
    assert shapes == {(12, epochs.num_rows, MAX_LEN)}
    assert epochs.num_rows % 8 == 0
    used = max((step.segments > 0).any(axis=1).sum() for step in steps_of(epochs[0]))
    assert used <= epochs.num_rows <= 2 * used


def test_rows_grow_where_a_draw_needs_more():
    # Every other user fills a row, so a batch of 32 needs some 16 rows, not 8.
    train = Sequences.from_lists(
        [np.arange(40)] * 130 + [np.arange(i, i + 2) for i in range(130)]
    )
    epochs = PackedEpochs(train, NUM_ITEMS, max_len=39, batch_size=32, seed=0)
    epochs.num_rows = 8
    for e in range(10):
        assert epochs[e].inputs.shape[1] in (16, 24, 32)
        assert (epochs[e].segments > 0).sum() == 130 * 39 + 130


def test_one_batch_that_holds_all_users_gets_the_rows_it_needs():
    train = Sequences.from_lists([np.arange(10)] * 17)
    epochs = PackedEpochs(train, NUM_ITEMS, max_len=9, batch_size=100, seed=0)
    assert epochs[0].inputs.shape == (1, 24, 9)


def test_item_offset_moves_all_items():
    _, epochs = make()
    _, moved = make(item_offset=2)
    valid = epochs[0].segments > 0
    for name in ("inputs", "targets", "negatives"):
        field = getattr(epochs[0], name)
        np.testing.assert_array_equal(getattr(moved[0], name), field + valid)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"max_len": 0}, "max_len is 0: it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"item_offset": 0}, "item_offset is 0: it must be at least 1"),
        ({"train": Sequences.from_lists([[3], []])}, "none of the 2 users"),
    ],
)
def test_bad_input_is_named(option, message):
    with pytest.raises(ValueError, match=message):
        make(**option)


@pytest.mark.parametrize("offset", [1, 2])
def test_left_pad_equals_the_loop(offset):
    sequences = random_sequences(2, 50)
    frames = left_pad(sequences, MAX_LEN, offset)
    assert frames.dtype == np.int32 and frames.shape == (50, MAX_LEN)
    for frame, items in zip(frames, sequences, strict=True):
        kept = (items[-MAX_LEN:] + offset).tolist()
        assert frame.tolist() == [0] * (MAX_LEN - len(kept)) + kept
    assert {0, MAX_LEN} < set(np.minimum(sequences.lengths, MAX_LEN))
