import numpy as np
import pytest
from scipy import stats

from sevo_jax.data import InteractionLog, Sequences, leave_one_out
from sevo_jax.samples import NegativeSampler


def test_never_a_training_item():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 60, size) for size in rng.integers(0, 80, 200)]
    train = Sequences.from_lists(rows)
    drawn = NegativeSampler(train, 60).sample(rng, train.rows)
    assert drawn.dtype == np.int32
    assert drawn.min() >= 0 and drawn.max() < 60
    for user, item in zip(train.rows, drawn, strict=True):
        assert item not in rows[user]


@pytest.mark.parametrize(
    "taken", [[], [0], [9], [0, 1, 2, 3, 4, 5, 6, 7], [3, 3, 3, 1], [2, 4, 6, 9]]
)
def test_uniform_over_the_other_items(taken):
    # The other rows hold all kinds of neighbours in the search keys.
    train = Sequences.from_lists([[9, 0], taken, [0, 1, 5]])
    users = np.full(40_000, 1)
    drawn = NegativeSampler(train, 10).sample(np.random.default_rng(7), users)
    counts = np.bincount(drawn, minlength=10)
    others = np.setdiff1d(np.arange(10), taken)
    assert counts[others].sum() == len(users)
    assert stats.chisquare(counts[others]).pvalue > 0.001


def test_equal_to_rejection_in_distribution():
    rng = np.random.default_rng(3)
    train = Sequences.from_lists([[1, 2], [0, 4, 5, 6]])
    users = rng.integers(0, 2, 30_000)
    drawn = NegativeSampler(train, 7).sample(rng, users)
    rejected = rng.integers(0, 7, len(users))
    while True:
        again = np.array([i in train[u] for u, i in zip(users, rejected)])
        if not again.any():
            break
        rejected[again] = rng.integers(0, 7, again.sum())
    table = [np.bincount(7 * users + x, minlength=14) for x in (drawn, rejected)]
    table = np.array(table)
    assert (table[:, table.sum(0) > 0] > 0).all()
    test = stats.chi2_contingency(table[:, table.sum(0) > 0])
    assert test.pvalue > 0.001  # pyright: ignore[reportAttributeAccessIssue]


def test_the_seed_decides():
    train = Sequences.from_lists([[1, 2], [0, 4]])
    sampler = NegativeSampler(train, 1000)
    users = np.array([0, 1] * 50)
    first, second, other = (
        sampler.sample(np.random.default_rng(seed), users).tolist()
        for seed in (5, 5, 6)
    )
    assert first == second != other


def test_successive_draws_differ():
    sampler = NegativeSampler(Sequences.from_lists([[1]]), 1000)
    rng = np.random.default_rng(0)
    users = np.zeros(50, np.int64)
    assert sampler.sample(rng, users).tolist() != sampler.sample(rng, users).tolist()


def test_no_users():
    sampler = NegativeSampler(Sequences.from_lists([[1]]), 5)
    assert sampler.sample(np.random.default_rng(0), np.array([])).shape == (0,)


def test_a_user_with_all_items_is_refused():
    train = Sequences.from_lists([[1, 2], [2, 0, 1, 0]])
    with pytest.raises(ValueError, match="user 1 are all 3 items"):
        NegativeSampler(train, 3)
    # A user of a log has an id.
    log = InteractionLog.from_columns([104] * 3 + [101], [7, 8, 9, 9], name="log")
    with pytest.raises(ValueError, match="user 104 are all 3 items"):
        NegativeSampler(leave_one_out(log).train, 3)


@pytest.mark.parametrize("items", [[0, 3], [-1, 2]])
def test_items_out_of_range_are_refused(items):
    with pytest.raises(ValueError, match=r"must be in 0\.\.2"):
        NegativeSampler(Sequences.from_lists([items]), 3)


@pytest.mark.parametrize("user", [-1, 2])
def test_unknown_users_are_refused(user):
    sampler = NegativeSampler(Sequences.from_lists([[1], [2]]), 3)
    with pytest.raises(IndexError):
        sampler.sample(np.random.default_rng(0), np.array([0, user]))
