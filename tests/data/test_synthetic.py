import numpy as np
import pytest

from sevo_jax.data import leave_one_out, planted


@pytest.fixture(scope="module")
def log():
    return planted()


def test_size_and_shape(log):
    assert log.name == "synthetic"
    assert 2400 <= log.num_users <= 2500
    assert 1900 <= log.num_items <= 2000
    assert 8 <= log.num_interactions / log.num_users <= 9
    assert log.sequences.lengths.min() >= 5
    assert log.sequences.lengths.max() <= 50
    assert np.bincount(log.sequences.values).min() >= 5


def test_deterministic():
    small = {"num_users": 300, "num_items": 100, "num_groups": 5}
    first, second, other = (planted(**small, seed=seed) for seed in (1, 1, 2))
    assert first.sequences.values.tolist() == second.sequences.values.tolist()
    assert first.sequences.offsets.tolist() == second.sequences.offsets.tolist()
    assert first.sequences.values.tolist() != other.sequences.values.tolist()


def test_no_user_takes_an_item_twice(log):
    for row in log.sequences:
        assert len(np.unique(row)) == len(row)


def test_users_keep_to_their_groups_unless_they_wander():
    log = planted(wander=0)
    groups = log.item_ids % 100
    for row in log.sequences:
        assert len(np.unique(groups[row])) <= 2
    # Each of the other 98 groups is a hundredth of the wandering.
    wandering = planted(follow=0, wander=0.3)
    groups = wandering.item_ids % 100
    elsewhere = [
        np.sort(np.unique(groups[row], return_counts=True)[1])[:-2].sum() / len(row)
        for row in wandering.sequences
    ]
    assert 0.15 < np.mean(elsewhere) < 0.3


def test_next_items_are_predictable_from_the_training_part(log):
    """Counting transitions in training predicts the held out ones far above chance."""
    split = leave_one_out(log)
    same_row = np.diff(split.train.rows) == 0
    counts = np.zeros((log.num_items, log.num_items))
    before, after = split.train.values[:-1][same_row], split.train.values[1:][same_row]
    np.add.at(counts, (before, after), 1)
    top = np.argsort(-counts, axis=1)[:, :10]
    last = split.train.values[split.train.offsets[1:] - 1]
    hits = np.mean(np.any(top[last] == split.valid[:, None], axis=1))
    popular = np.argsort(-np.bincount(split.train.values))[:10]
    assert hits > 0.08
    assert hits > 4 * np.mean(np.isin(split.valid, popular))


def test_popularity_is_skewed(log):
    counts = np.sort(np.bincount(log.sequences.values))[::-1]
    tenth = len(counts) // 10
    assert counts[:tenth].mean() > 3 * counts[-tenth:].mean()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_users", 0),
        ("num_groups", 0),
        ("num_groups", 401),
        ("mean_length", 5),
        ("follow", 1.0),
        ("reach", 10),
        ("wander", 1.1),
        ("skew", -0.1),
        ("groups_per_user", 101),
    ],
)
def test_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, but must be from"):
        planted(**{name: value})
