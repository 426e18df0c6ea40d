"""Samples of random logs in which items come again, against literal loops."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from sevo_jax.data import InteractionLog, Sequences, leave_one_out
from sevo_jax.samples import (
    MaskedEpochs,
    NegativeSampler,
    PackedEpochs,
    PrefixEpochs,
    TripletEpochs,
)
from sevo_jax.samples.masked import MASK

NUM_USERS = 1000
NUM_ITEMS = 12
MAX_LEN = 5


def random_train(seed):
    """Users of few items, which come again; some have none, nobody has all."""
    rng = np.random.default_rng(seed)
    pools = [rng.permutation(NUM_ITEMS)[: rng.integers(1, NUM_ITEMS)] for _ in range(9)]
    return Sequences.from_lists(
        rng.choice(pools[rng.integers(9)], size)
        for size in rng.integers(0, 15, NUM_USERS)
    )


def steps_of(epoch):
    return [type(epoch)(*fields) for fields in zip(*epoch, strict=True)]


def segments_of(step, *names):
    """The cells of each user of a step, as a tuple of tuples of the fields."""
    for row, segments in enumerate(step.segments):
        for segment in np.unique(segments[segments > 0]):
            cells = segments == segment
            yield tuple(
                tuple(getattr(step, name)[row][cells].tolist()) for name in names
            )


def test_negatives_are_the_items_outside_in_order():
    """Every draw that a generator can make, in place of some."""
    train = random_train(0)
    outside = [sorted(set(range(NUM_ITEMS)) - set(row.tolist())) for row in train]
    sizes = [len(items) for items in outside]

    class Draws:
        def integers(self, high):
            np.testing.assert_array_equal(high, np.repeat(sizes, sizes))
            return np.concatenate([np.arange(size) for size in sizes])

    users = np.repeat(np.arange(NUM_USERS), sizes)
    drawn = NegativeSampler(train, NUM_ITEMS).sample(Draws(), users)  # pyright: ignore
    assert drawn.tolist() == [item for items in outside for item in items]


def test_packed_users():
    train = random_train(1)
    epochs = PackedEpochs(train, NUM_ITEMS, max_len=MAX_LEN, batch_size=64, seed=0)
    expected, outside = Counter(), {}
    for row in train:
        if len(row) >= 2:
            inputs, targets = row[:-1][-MAX_LEN:] + 1, row[1:][-MAX_LEN:] + 1
            cells = tuple(inputs.tolist()), tuple(targets.tolist())
            expected[cells] += 1
            # Those who look alike may differ in what was cut off.
            others = set(range(1, NUM_ITEMS + 1)) - set((row + 1).tolist())
            outside[cells] = outside.get(cells, set()) | others
    found = Counter()
    for step in steps_of(epochs[2]):
        for inputs, targets, negatives in segments_of(
            step, "inputs", "targets", "negatives"
        ):
            found[inputs, targets] += 1
            assert set(negatives) <= outside[inputs, targets]
    assert found == expected


@pytest.mark.parametrize("max_len", [MAX_LEN, 14])
@pytest.mark.parametrize("sampling", ["prefix", "sequence"])
def test_prefixes(sampling, max_len):
    train = random_train(2)
    epochs = PrefixEpochs(
        train, NUM_ITEMS, max_len=max_len, batch_size=64, seed=0, sampling=sampling
    )
    expected, outside = Counter(), {}
    for row in train:
        for k in range(1, len(row)):
            # A long sequence is cut in another way, tested elsewhere.
            read = max_len if sampling == "prefix" else max_len // 2 + 1
            sample = tuple(row[max(0, k - read) : k].tolist()), int(row[k])
            expected[sample] += 1
            others = set(range(NUM_ITEMS)) - set(row.tolist())
            outside[sample] = outside.get(sample, set()) | others
    found = Counter()
    for step in steps_of(epochs[1]):
        for cell, target, negative in zip(
            step.cells, step.targets, step.negatives, strict=True
        ):
            if target:
                row, column = divmod(cell, max_len)
                start = np.flatnonzero(step.starts[row, : column + 1])[-1]
                items = step.inputs[row, start : column + 1] - 1
                if sampling == "sequence":
                    items = items[-(max_len // 2 + 1) :]
                sample = tuple(items.tolist()), int(target) - 1
                found[sample] += 1
                assert int(negative) - 1 in outside[sample]
    assert found == expected


def test_masked_users():
    train = random_train(3)
    epochs = MaskedEpochs(train, max_len=MAX_LEN, batch_size=64, mask_prob=0.4, seed=0)
    expected = Counter(
        tuple((row[-MAX_LEN:] + 2).tolist()) for row in train if len(row)
    )
    found = Counter()
    for step in steps_of(epochs[0]):
        rows = step.inputs.copy()
        hidden = step.labels > 0
        assert (rows.reshape(-1)[step.masked[hidden]] == MASK).all()
        rows.reshape(-1)[step.masked[hidden]] = step.labels[hidden]
        whole = step._replace(inputs=rows)
        found.update(items for (items,) in segments_of(whole, "inputs"))
    assert found == expected


def test_triplets():
    train = random_train(4)
    epochs = TripletEpochs(train, NUM_ITEMS, batch_size=500, seed=0)
    assert epochs.num_samples == len(train.values)
    drawn = set()
    for number in range(20):
        users, positives, negatives, valid = map(np.asarray, epochs[number])
        drawn |= set(zip(*(x[valid].tolist() for x in (users, positives, negatives))))
    items = [set(row.tolist()) for row in train]
    for user, positive, negative in drawn:
        assert positive in items[user] and negative not in items[user]
    # Nearly everything that can be drawn has been.
    pairs = sum(len(own) for own in items)
    assert len({(user, positive) for user, positive, _ in drawn}) > 0.95 * pairs


@pytest.mark.parametrize("kind", [PackedEpochs, TripletEpochs])
def test_who_has_all_items_is_named_as_the_log_does(kind):
    rows = {"anna": [1, 2, 3, 1], "zoe": [3, 1, 2, 3, 2, 1, 1], "bob": [2, 1, 2, 1]}
    users = [user for user, row in rows.items() for _ in row]
    items = [item for row in rows.values() for item in row]
    split = leave_one_out(InteractionLog.from_columns(users, items, name="all"))
    options: dict[str, Any] = {"max_len": 5} if kind is PackedEpochs else {}
    with pytest.raises(ValueError, match="items of user zoe are all 3 items"):
        kind(split.train, 3, batch_size=2, seed=0, **options)
