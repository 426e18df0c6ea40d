"""Epochs of all prefixes, drawn by user or one by one, against literal loops."""

from typing import Any

import numpy as np
import pytest

from sevo_jax.data import Sequences
from sevo_jax.samples.prefixes import PrefixBatch, PrefixEpochs

MAX_LEN = 12
MODES = ["sequence", "prefix"]


def random_train(seed, num_users, shortest=0, longest=45):
    """Sequences no two of which have an item in common, so an item tells its user."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(shortest + rng.geometric(0.1, num_users) - 1, longest)
    return Sequences.from_lengths(rng.permutation(lengths.sum()), lengths)


def make(sampling, train=None, num_more=30, **kwargs):
    """Epochs of `train`, and of `num_more` items that nobody has."""
    if train is None:
        train = random_train(0, 103)
    options: dict[str, Any] = {"max_len": MAX_LEN, "batch_size": 64, "seed": 0} | kwargs
    num_items = train.values.size + num_more
    return train, PrefixEpochs(train, num_items, sampling=sampling, **options)


def steps_of(epoch):
    return [PrefixBatch(*fields) for fields in zip(*epoch, strict=True)]


def samples_of(step):
    """What each target of a step is predicted from: `{target: (items, negative)}`."""
    samples = {}
    for cell, target, negative in zip(
        step.cells, step.targets, step.negatives, strict=True
    ):
        if target:
            row, column = divmod(cell, step.inputs.shape[1])
            start = np.flatnonzero(step.starts[row, : column + 1])[-1]
            items = tuple((step.inputs[row, start : column + 1] - 1).tolist())
            assert target - 1 not in samples
            samples[int(target) - 1] = items, int(negative) - 1
    return samples


def samples_of_epoch(epoch):
    samples = {}
    for step in map(samples_of, steps_of(epoch)):
        assert not step.keys() & samples.keys(), "a target comes twice"
        samples |= step
    return samples


def prefixes_of(train):
    """All prefixes: `{target: (items before it, all items of the user)}`."""
    return {
        int(items[k]): (tuple(items[:k].tolist()), set(items.tolist()))
        for items in train
        for k in range(1, len(items))
    }


@pytest.mark.parametrize("max_len", [1, 2, 7, 12, 50])
def test_prefixes_come_once_an_epoch_with_the_last_items_before_them(max_len):
    train, epochs = make("prefix", max_len=max_len)
    expected = {
        target: items[-max_len:] for target, (items, _) in prefixes_of(train).items()
    }
    samples = samples_of_epoch(epochs[2])
    assert {target: items for target, (items, _) in samples.items()} == expected


@pytest.mark.parametrize("max_len", [1, 2, 7, 12, 50])
def test_targets_of_sequences_come_once_an_epoch_with_enough_items(max_len):
    train, epochs = make("sequence", max_len=max_len)
    prefixes = prefixes_of(train)
    samples = samples_of_epoch(epochs[2])
    assert samples.keys() == prefixes.keys()
    read = []
    for target, (items, _) in samples.items():
        before = prefixes[target][0]
        assert items == before[-len(items) :]
        if len(before) <= max_len:
            assert len(items) == len(before)
        else:
            read.append(len(items))
    # Of longer ones both ends of what is allowed occur.
    assert not read or (min(read), max(read)) == (max_len // 2 + 1, max_len)
    assert bool(read) == (max_len < 44)


@pytest.mark.parametrize("sampling", MODES)
def test_negatives_are_outside_all_train_items_of_the_user(sampling):
    train, epochs = make(sampling)
    prefixes, num_items = prefixes_of(train), train.values.size + 30
    before = {}
    for epoch in range(2):
        samples = samples_of_epoch(epochs[epoch])
        for target, (_, negative) in samples.items():
            assert 0 <= negative < num_items
            assert negative not in prefixes[target][1]
        drawn = {target: negative for target, (_, negative) in samples.items()}
        same = [before.get(target) == negative for target, negative in drawn.items()]
        assert np.mean(same) < 0.05
        before = drawn


@pytest.mark.parametrize("sampling", MODES)
def test_cells_and_targets_outside_the_runs_are_empty(sampling):
    train, epochs = make(sampling)
    for step in steps_of(epochs[0]):
        for field in step:
            assert field.dtype == (np.bool_ if field is step.starts else np.int32)
        full = step.inputs > 0
        assert not step.starts[~full].any()
        # Runs begin at the left of a row and leave no gap.
        assert (np.sort(full, axis=1)[:, ::-1] == full).all()
        assert step.starts[:, 0].tolist() == full[:, 0].tolist()
        valid = step.targets > 0
        assert full.reshape(-1)[step.cells[valid]].all()
        for field in (step.cells, step.negatives):
            assert not field[~valid].any()
        assert step.inputs.max() <= train.values.size
        assert step.negatives[valid].min() >= 1


def test_steps_have_as_many_targets_as_the_batch_size_says():
    _, epochs = make("prefix")
    numbers = [len(samples_of(step)) for step in steps_of(epochs[0])]
    assert set(numbers[:-1]) == {64} and 0 < numbers[-1] <= 64
    assert epochs[0].targets.shape[1] == 64

    train, epochs = make("sequence")
    for epoch in range(10):
        numbers = np.array([len(samples_of(step)) for step in steps_of(epochs[epoch])])
        total = len(prefixes_of(train))
        assert len(numbers) == epochs.num_steps == -(-total // 64)
        # Cut within a run of those where "prefix" cuts.
        behind = 64 * np.arange(1, len(numbers)) - np.cumsum(numbers)[:-1]
        assert behind.min() >= 0 and behind.max() < MAX_LEN


def test_a_run_is_read_once_for_all_its_targets():
    train, epochs = make("sequence")
    cells = sum((step.inputs > 0).sum() for step in steps_of(epochs[0]))
    assert cells == sum(
        len(items) - 1 + MAX_LEN // 2 * -(-max(len(items) - 1 - MAX_LEN, 0) // 6)
        for items in train
        if len(items) >= 2
    )
    _, epochs = make("prefix")
    for step in steps_of(epochs[0]):
        assert step.starts.sum() == (step.targets > 0).sum()


@pytest.mark.parametrize("num_short", range(8))
def test_no_step_is_without_targets(num_short):
    # Runs as long as a step: one more target opens a step, whoever comes last.
    train = Sequences.from_lengths(
        np.arange(4 * 9 + 2 * num_short), np.array([9] * 4 + [2] * num_short)
    )
    _, epochs = make("sequence", train, batch_size=8)
    for epoch in range(20):
        assert (epochs[epoch].targets > 0).any(axis=1).all()


@pytest.mark.parametrize("sampling", MODES)
def test_samples_change_steps_from_epoch_to_epoch(sampling):
    _, epochs = make(sampling, random_train(0, 400))
    first, other = (samples_of(steps_of(epochs[epoch])[0]).keys() for epoch in range(2))
    assert len(first & other) < 0.2 * len(first)


@pytest.mark.parametrize("sampling", MODES)
def test_an_epoch_is_a_function_of_seed_and_number(sampling):
    _, epochs = make(sampling)
    ahead = epochs[5]
    _ = epochs[2]
    for again in (epochs[5], make(sampling)[1][5]):
        for field, other in zip(ahead, again, strict=True):
            np.testing.assert_array_equal(field, other)
    _, next_seed = make(sampling, seed=1)
    for other in (epochs[6], next_seed[5], next_seed[4]):
        assert not np.array_equal(ahead.inputs, other.inputs)


@pytest.mark.parametrize("sampling", MODES)
def test_epochs_have_one_shape_and_not_many_more_rows_than_they_need(sampling):
    _, epochs = make(sampling, random_train(1, 600), max_len=20, batch_size=256)
    shapes = {tuple(field.shape for field in epochs[epoch]) for epoch in range(30)}
    assert len(shapes) == 1
    num_rows = epochs[0].inputs.shape[1]
    assert num_rows == epochs.num_rows and num_rows % 4 == 0
    assert num_rows <= 1.5 * epochs[0].inputs.any(axis=2).sum(axis=1).max()


@pytest.mark.parametrize("sampling", MODES)
def test_rows_grow_where_a_draw_needs_more(sampling):
    train, epochs = make(sampling)
    epochs.num_rows = 4
    num_rows = epochs[0].inputs.shape[1]
    assert num_rows > 4 and num_rows % 4 == 0
    assert samples_of_epoch(epochs[0]).keys() == prefixes_of(train).keys()


def test_one_step_that_holds_all_is_no_larger_than_it_must_be():
    train = Sequences.from_lists([np.arange(5)] * 3)
    for sampling in MODES:
        _, epochs = make(sampling, train, batch_size=1000)
        assert epochs[0].targets.shape == (1, 12)


@pytest.mark.parametrize("sampling", MODES)
def test_item_offset_moves_all_items(sampling):
    _, epochs = make(sampling)
    _, moved = make(sampling, item_offset=2)
    for name in ("inputs", "targets", "negatives"):
        field = getattr(epochs[0], name)
        np.testing.assert_array_equal(getattr(moved[0], name), field + (field > 0))
    np.testing.assert_array_equal(moved[0].cells, epochs[0].cells)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"max_len": 0}, "max_len is 0: it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"item_offset": 0}, "item_offset is 0: it must be at least 1"),
        ({"train": Sequences.from_lists([[3], []])}, "none of the 2 users"),
        ({"batch_size": 11}, "is 11, but a sequence of 12 .* choose at least 12, or"),
        ({"sampling": "user"}, "sampling is 'user': choose 'sequence' or 'prefix'"),
    ],
)
def test_bad_input_is_named(option, message):
    with pytest.raises(ValueError, match=message):
        make(**{"sampling": "sequence"} | option)
