import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sevo_jax.data import Sequences
from sevo_jax.samples import TripletBatch, TripletEpochs
from sevo_jax.samples.triplets import _draw, item_outside


def make_train(num_users=200, num_items=60, seed=0):
    """Users of all lengths, none among them, with repeats."""
    rng = np.random.default_rng(seed)
    return Sequences.from_lists(
        rng.integers(0, num_items, size) for size in rng.integers(0, 80, num_users)
    )


def drawn(epochs, numbers):
    """Valid samples `[3, n]` of several epochs: users, positives, negatives."""
    parts = [np.stack(epochs[e][:3])[:, np.asarray(epochs[e].valid)] for e in numbers]
    return np.concatenate(parts, axis=1)


def test_an_epoch_is_as_many_samples_as_interactions_in_steps():
    train = make_train()
    epochs = TripletEpochs(train, 60, batch_size=1000, seed=0)
    assert (epochs.num_samples, epochs.num_steps) == (len(train.values), 9)
    epoch = epochs[0]
    assert isinstance(epoch, TripletBatch)
    assert {field.shape for field in epoch} == {(9, 1000)}
    assert {str(field.dtype) for field in epoch} == {"int32", "bool"}
    # All count but those at the very end.
    valid = np.asarray(epoch.valid).ravel()
    assert valid.sum() == len(train.values) and not len(train.values) % 1000 == 0
    assert valid[: valid.sum()].all()


@pytest.mark.parametrize("batch_size, shape", [(5, (1, 5)), (3, (1, 3)), (2, (2, 2))])
def test_batches_larger_than_equal_to_and_smaller_than_an_epoch(batch_size, shape):
    train = Sequences.from_lists([[0, 1], [2]])
    valid = TripletEpochs(train, 4, batch_size=batch_size, seed=0)[0].valid
    assert valid.shape == shape and valid.sum() == 3


def test_positives_are_the_users_items_and_negatives_are_not():
    train = make_train()
    epochs = TripletEpochs(train, 60, batch_size=1000, seed=1)
    users, positives, negatives = drawn(epochs, range(3))
    own = np.zeros((len(train), 60), bool)
    own[train.rows, train.values] = True
    assert own[users, positives].all() and not own[users, negatives].any()
    assert negatives.min() >= 0 and negatives.max() < 60
    # Who has nothing in train is never drawn, everybody else is.
    assert 0 < np.sum(train.lengths == 0) < 20
    np.testing.assert_array_equal(np.unique(users), np.flatnonzero(train.lengths))


def test_every_item_outside_has_its_rank():
    # Users with no gap, all gaps, items at both ends, of many lengths; all ranks.
    rng = np.random.default_rng(0)
    num_items = 70
    rows = [[0], [69], [0, 69], [*range(69)], [*range(1, 70)], [*range(0, 70, 2)]]
    rows += [
        rng.choice(num_items, size, replace=False) for size in rng.integers(1, 70, 40)
    ]
    train = Sequences.from_lists(np.sort(row) for row in rows)
    outside = [np.setdiff1d(np.arange(num_items), row) for row in train]
    sizes = [row.size for row in outside]
    found = item_outside(
        jnp.asarray(train.values),
        jnp.asarray(np.repeat(train.offsets[:-1], sizes), jnp.int32),
        jnp.asarray(np.repeat(train.lengths, sizes), jnp.int32),
        jnp.asarray(np.concatenate([np.arange(size) for size in sizes]), jnp.int32),
        search_bits=int(train.lengths.max()).bit_length(),
    )
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, np.concatenate(outside))


def test_triplets_have_the_distribution_of_their_definition():
    # Users uniform whatever their number of items, and items that repeat in train no
    # likelier than others.
    rows = [[3, 3, 3, 1], [], [0, 1, 2, 4, 5, 6], [5], [6, 0, 2, 2]]
    num_items = 7
    epochs = TripletEpochs(
        Sequences.from_lists(rows * 300), num_items, batch_size=1000, seed=5
    )
    users, positives, negatives = drawn(epochs, range(20))
    assert users.size == 20 * 15 * 300

    expected = np.zeros((5, num_items, num_items))
    for user, row in enumerate(rows):
        own = np.unique(row).astype(int)
        outside = np.setdiff1d(np.arange(num_items), own)
        if own.size:
            expected[user, own[:, None], outside] = 1 / (4 * own.size * outside.size)
    observed = np.zeros_like(expected)
    np.add.at(observed, (users % 5, positives, negatives), 1)
    assert (observed[expected == 0] == 0).all()
    possible = expected > 0
    test = stats.chisquare(observed[possible], users.size * expected[possible])
    assert test.pvalue > 1e-3
    # Among those who have the same items too.
    counts = np.bincount(users, minlength=1500).reshape(300, 5)
    assert (counts[:, 1] == 0).all()
    assert stats.chisquare(counts[:, [0, 2, 3, 4]].ravel()).pvalue > 1e-3


def test_draws_of_a_user_are_independent():
    # Positive and negative of a sample, and those of successive samples.
    train = Sequences.from_lists([[0, 1, 2, 3]] * 5000)
    epochs = TripletEpochs(train, 8, batch_size=1000, seed=2)
    _, positives, negatives = drawn(epochs, [0])
    pairs = [
        (positives, negatives - 4),
        (positives[:-1], positives[1:]),
        (negatives[:-1] - 4, negatives[1:] - 4),
    ]
    for first, second in pairs:
        table = np.bincount(4 * first + second, minlength=16).reshape(4, 4)
        test = stats.chi2_contingency(table)
        assert test.pvalue > 1e-3  # pyright: ignore[reportAttributeAccessIssue]


def test_an_epoch_depends_on_seed_and_number_alone():
    train = make_train()

    def samples(seed, epoch, *others):
        epochs = TripletEpochs(train, 60, batch_size=1000, seed=seed)
        for other in others:
            epochs[other]
        return np.stack(epochs[epoch][:3])

    first = samples(3, 4)
    np.testing.assert_array_equal(first, samples(3, 4, 0, 1))
    for other in (samples(3, 5), samples(4, 4), samples(4, 3)):
        for field, other_field in zip(first, other, strict=True):
            assert (field != other_field).mean() > 0.5


def test_epochs_share_one_program_and_precision_makes_no_difference():
    train = make_train()
    epochs = TripletEpochs(train, 60, batch_size=1000, seed=2**32 - 1)
    first = np.stack(epochs[0][:3])
    size = _draw._cache_size()  # pyright: ignore
    epochs[1]
    TripletEpochs(train, 60, batch_size=1000, seed=1)[0]
    assert _draw._cache_size() == size  # pyright: ignore
    with jax.enable_x64(True):
        epochs = TripletEpochs(train, 60, batch_size=1000, seed=2**32 - 1)
        assert epochs[0].negatives.dtype == np.int32
        np.testing.assert_array_equal(np.stack(epochs[0][:3]), first)


def test_a_user_with_all_items_is_refused():
    with pytest.raises(ValueError, match="user 1 are all 3 items"):
        TripletEpochs(
            Sequences.from_lists([[1, 2], [2, 0, 1, 0]]), 3, batch_size=1, seed=0
        )


@pytest.mark.parametrize("rows", [[], [[], []]])
def test_no_interactions_are_refused(rows):
    with pytest.raises(ValueError, match="train has 0 interactions"):
        TripletEpochs(Sequences.from_lists(rows), 3, batch_size=1, seed=0)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        ({"seed": -1}, r"seed is -1: it must be in \[0, 2\*\*32\)"),
        ({"seed": 2**32}, r"seed is 4294967296: it must be in \[0, 2\*\*32\)"),
        ({"num_items": 2}, r"run from 0 to 2, but must be in 0\.\.1"),
    ],
)
def test_arguments_out_of_range_are_refused(option, message):
    arguments = {"num_items": 4, "batch_size": 1, "seed": 0, **option}
    with pytest.raises(ValueError, match=message):
        TripletEpochs(Sequences.from_lists([[0, 2]]), **arguments)
