"""Prefixes in frames against a literal loop."""

import numpy as np
import pytest

from sevo_jax.data import Sequences
from sevo_jax.samples.frames import FrameEpochs

MAX_LEN = 6


def make(seed=0, batch_size=7, **options):
    rng = np.random.default_rng(0)
    train = Sequences.from_lists(
        rng.integers(0, 50, length) for length in [0, 1, 2, 3, 6, 7, 15, 2]
    )
    options = {"max_len": MAX_LEN} | options
    return train, FrameEpochs(train, batch_size=batch_size, seed=seed, **options)


def samples_of(epoch):
    """Frames and targets as they come, without what fills the last batch up."""
    inputs = epoch.inputs.reshape(-1, epoch.inputs.shape[-1])
    return [
        (*frame, target)
        for frame, target in zip(inputs.tolist(), epoch.targets.ravel().tolist())
        if target
    ]


@pytest.mark.parametrize("item_offset", [1, 3])
def test_an_epoch_has_each_prefix_of_the_last_items_once(item_offset):
    train, epochs = make(item_offset=item_offset)
    expected = []
    for row in train:
        items = (row[-MAX_LEN:] + item_offset).tolist()
        for k in range(1, len(items)):
            expected.append((*[0] * (MAX_LEN - k), *items[:k], items[k]))
    epoch = epochs[3]
    assert sorted(samples_of(epoch)) == sorted(expected)
    steps = -(-len(expected) // 7)
    assert epoch.inputs.shape == (steps, 7, MAX_LEN) and steps == epochs.num_steps
    assert epoch.inputs.dtype == epoch.targets.dtype == np.int32
    # All steps but the last are full, and what is left there is empty.
    filled = epoch.targets > 0
    assert filled[:-1].all() and (np.diff(filled[-1].astype(int)) <= 0).all()
    assert not epoch.inputs[~filled].any()


def test_an_epoch_is_a_function_of_seed_and_number():
    same = samples_of(make()[1][2])
    assert same == samples_of(make()[1][2])
    # Seeds next to each other have no epoch in common.
    for seed, epoch in ((0, 3), (1, 2), (1, 1)):
        assert same != samples_of(make(seed=seed)[1][epoch])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_len": 1}, "max_len is 1: it must be at least 2"),
        ({"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"item_offset": 0}, "item_offset is 0: it must be at least 1"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_nothing_to_predict_is_an_error():
    with pytest.raises(ValueError, match="none of the 2 users has two train items"):
        FrameEpochs(Sequences.from_lists([[1], []]), max_len=3, batch_size=1, seed=0)
