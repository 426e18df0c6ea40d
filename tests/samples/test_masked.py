"""Masked packed epochs: what stands in the cells, and how the hidden ones are drawn."""

import numpy as np
import pytest

from sevo_jax.data import Sequences
from sevo_jax.samples.masked import MASK, MaskedBatch, MaskedEpochs

NUM_ITEMS = 300
MAX_LEN = 12


def random_sequences(seed, num_users, longest=30):
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(0.2, num_users) - 1, longest)
    return Sequences.from_lists(
        rng.choice(NUM_ITEMS, length, replace=False) for length in lengths
    )


def make(seed=0, train=None, **kwargs):
    if train is None:
        train = random_sequences(0, 203)
    options = {
        "max_len": MAX_LEN,
        "batch_size": 64,
        "mask_prob": 0.4,
        "seed": seed,
    } | kwargs
    return train, MaskedEpochs(train, **options)


def steps_of(epoch):
    return [MaskedBatch(*fields) for fields in zip(*epoch, strict=True)]


def uncover(step):
    """The rows with every hidden item back in its cell."""
    rows = step.inputs.copy()
    num_masked = (step.labels > 0).sum()
    assert not step.labels[num_masked:].any() and not step.masked[num_masked:].any()
    cells = step.masked[:num_masked]
    assert len(np.unique(cells)) == num_masked
    assert (rows.reshape(-1)[cells] == MASK).all()
    rows.reshape(-1)[cells] = step.labels[:num_masked]
    return rows


def users_of(step):
    """Each user's items (rows of the table) and positions, from the packed rows."""
    users = []
    for items, segments, positions in zip(
        uncover(step), step.segments, step.positions, strict=True
    ):
        for segment in np.unique(segments[segments > 0]):
            cells = segments == segment
            users.append((tuple(items[cells]), positions[cells].tolist()))
    return users


def test_an_epoch_holds_each_user_once_and_nothing_hidden_is_lost():
    train, epochs = make()
    expected = sorted(tuple(user[-MAX_LEN:] + 2) for user in train if len(user))
    assert 0 < len(expected) < len(train), "some users have no item"
    assert max(train.lengths) > MAX_LEN and 1 in train.lengths
    for number in (0, 3):
        seen = []
        for step in steps_of(epochs[number]):
            for items, positions in users_of(step):
                seen.append(items)
                assert positions == list(range(MAX_LEN - len(items), MAX_LEN))
            for field in step:
                assert field.dtype == np.int32
            for field in (step.inputs, step.positions):
                assert not field[step.segments == 0].any()
            assert (step.inputs > 0).sum() == (step.segments > 0).sum()
        assert sorted(seen) == expected
    assert epochs.num_samples == len(expected)


def test_loaders_draw_a_user_a_binomial_number_of_times():
    # Users with an item of their own each, by which they are known.
    num_users, num_epochs = 403, 30
    train = Sequences.from_lists([[user, user] for user in range(num_users)])
    _, epochs = make(train=train, batch_size=20, sampling="loaders")
    counts = []
    for epoch in range(num_epochs):
        steps = steps_of(epochs[epoch])
        # Four loaders with 101, 101, 101 and 100 users.
        assert len(steps) == epochs.num_steps == 6 + 6 + 6 + 5
        drawn = [[items[0] - 2 for items, _ in users_of(step)] for step in steps]
        assert all(len(set(users)) == len(users) for users in drawn)
        # They take turns: full batches first, and then what each has left.
        assert [len(users) for users in drawn] == [20] * 20 + [1] * 3
        counts.append(np.bincount(np.concatenate(drawn), minlength=num_users))
    counts = np.array(counts)
    assert (counts.sum(axis=1) == num_users).all()
    shares = np.bincount(counts.ravel(), minlength=5) / counts.size
    binomial = np.array([81, 108, 54, 12, 1]) / 256
    errors = np.sqrt(binomial * (1 - binomial) / counts.size)
    assert (np.abs(shares - binomial) < 5 * errors).all()


def test_each_draw_of_a_user_hides_items_of_its_own():
    train = Sequences.from_lists(np.arange(40).reshape(4, 10))
    _, epochs = make(train=train, mask_prob=0.5, sampling="loaders", batch_size=1)
    draws, twice = [], 0
    for epoch in range(20):
        for step in steps_of(epochs[epoch]):
            user = uncover(step)[0, 0]
            draws.append((epoch, user, tuple(step.inputs[0] == MASK)))
        twice += len({user for when, user, _ in draws if when == epoch}) < 4
    assert twice > 10
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize("num_users", [1, 3, 4, 5])
def test_no_step_is_empty_however_few_the_users(num_users):
    train = Sequences.from_lists([[1, 2, 3]] * num_users)
    _, epochs = make(train=train, sampling="loaders", batch_size=1, mask_prob=1.0)
    assert epochs.num_steps == num_users == len(epochs[0].inputs)
    assert (epochs[0].labels > 0).any(axis=1).all()


def test_each_item_is_hidden_at_the_rate_and_by_itself():
    # Users alike in length, so that a cell's neighbour is the user's next item.
    train = Sequences.from_lists([np.arange(10)] * 400)
    _, epochs = make(train=train, mask_prob=0.3, max_len=10, batch_size=400)
    hidden = np.concatenate(
        [epochs[e].inputs[epochs[e].segments > 0] == MASK for e in range(20)]
    )
    assert hidden.size == 80_000
    # Five standard errors.
    assert abs(hidden.mean() - 0.3) < 5 * np.sqrt(0.21 / hidden.size)
    pairs = (hidden[1:] & hidden[:-1]).mean()
    assert abs(pairs - 0.09) < 5 * np.sqrt(0.09 * 0.91 / hidden.size) * 1.6
    by_place = hidden.reshape(-1, 10).mean(axis=0)
    assert np.abs(by_place - 0.3).max() < 5 * np.sqrt(0.21 / 8000)
    # No user is made to have a hidden item: 0.7 ** 10 have none.
    none = (~hidden.reshape(-1, 10)).all(axis=1).mean()
    assert abs(none - 0.7**10) < 5 * np.sqrt(0.7**10 / 8000)


def test_what_is_hidden_and_who_meets_is_drawn_anew_every_epoch():
    _, epochs = make()
    first, second = epochs[0], epochs[1]
    users = [{items for items, _ in users_of(steps_of(e)[0])} for e in (first, second)]
    assert 8 <= len(users[0] & users[1]) <= 40
    _, alone = make(train=Sequences.from_lists([np.arange(10)]))
    draws = {tuple(alone[e].inputs[0, 0]) for e in range(20)}
    assert len(draws) > 10


@pytest.mark.parametrize("sampling", ["users", "loaders"])
def test_an_epoch_is_a_function_of_seed_and_number(sampling):
    _, epochs = make(sampling=sampling)
    ahead = epochs[5]
    _ = epochs[2]
    for again in (epochs[5], make(sampling=sampling)[1][5]):
        for field, other in zip(ahead, again, strict=True):
            np.testing.assert_array_equal(field, other)
    _, next_seed = make(seed=1, sampling=sampling)
    for other in (epochs[6], next_seed[5], next_seed[4]):
        assert not np.array_equal(ahead.inputs, other.inputs)


@pytest.mark.parametrize("batch_size", [50, 1000])
def test_nearly_all_epochs_have_one_shape(batch_size):
    train = random_sequences(1, 600)
    _, epochs = make(train=train, batch_size=batch_size)
    shapes = {tuple(field.shape for field in epochs[e]) for e in range(40)}
    steps, rows, masked = epochs.num_steps, epochs.num_rows, epochs.num_masked
    assert steps == -(-np.count_nonzero(train.lengths) // batch_size)
    assert shapes == {((steps, rows, MAX_LEN),) * 3 + ((steps, masked),) * 2}
    assert rows % 8 == 0 and masked % 32 == 0
    used = max((step.labels > 0).sum() for step in steps_of(epochs[0]))
    assert used <= masked <= 2 * used


def test_the_hidden_cells_grow_where_a_draw_needs_more():
    train, epochs = make()
    epochs.num_masked = 32
    for e in range(5):
        epoch = epochs[e]
        used = max((step.labels > 0).sum() for step in steps_of(epoch))
        assert epoch.masked.shape[1] == -(-used // 32) * 32 > 32
        for step in steps_of(epoch):
            uncover(step)
            assert (step.inputs == MASK).sum() == (step.labels > 0).sum()


def test_all_may_be_hidden_and_a_step_may_have_nothing_hidden():
    train, epochs = make(mask_prob=1.0)
    for step in steps_of(epochs[0]):
        assert (step.inputs[step.segments > 0] == MASK).all()
        assert (step.labels > 0).sum() == (step.segments > 0).sum()
    _, epochs = make(train=Sequences.from_lists([[7]]), mask_prob=0.1)
    nothing = [e for e in range(10) if not epochs[e].labels.any()]
    assert nothing and epochs[nothing[0]].inputs[0, 0, 0] == 9


def test_item_offset_moves_all_items():
    _, epochs = make()
    _, moved = make(item_offset=5)
    before, after = epochs[0], moved[0]
    np.testing.assert_array_equal(after.inputs, before.inputs + 3 * (before.inputs > 1))
    np.testing.assert_array_equal(after.labels, before.labels + 3 * (before.labels > 0))
    np.testing.assert_array_equal(after.masked, before.masked)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"max_len": 0}, "max_len is 0: it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"item_offset": 1}, "item_offset is 1: it must be at least 2"),
        ({"sampling": "user"}, "sampling is 'user': it must be one of users, loaders"),
        ({"mask_prob": 0}, r"mask_prob is 0: it must be in \(0, 1\]"),
        ({"mask_prob": 1.5}, r"mask_prob is 1.5: it must be in \(0, 1\]"),
        ({"train": Sequences.from_lists([[], []])}, "none of the 2 users"),
    ],
)
def test_bad_input_is_named(option, message):
    with pytest.raises(ValueError, match=message):
        make(**option)
