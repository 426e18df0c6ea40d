import jax.numpy as jnp
import numpy as np
import pytest

from sevo_jax.data import InteractionLog, Sequences, leave_one_out
from sevo_jax.evaluation import Evaluator, evaluate, recommend, target_ranks
from sevo_jax.evaluation.ranking import _batch_ranks
from sevo_jax.models.mf_bpr import MFBPR


def split_of(*rows):
    users = np.repeat(np.arange(100, 100 + len(rows)), [len(row) for row in rows])
    items = np.concatenate(rows)
    return leave_one_out(InteractionLog.from_columns(users, items, name="toy"))


def rank_by_sorting(scores, target, seen):
    unseen = np.setdiff1d(np.arange(scores.size), seen)
    order = unseen[np.argsort(-scores[unseen])]
    return 1 + int(np.flatnonzero(order == target)[0])


def random_split(num_users, num_items, seed):
    rng = np.random.default_rng(seed)
    rows = [
        rng.permutation(num_items)[: rng.integers(2, num_items)]
        for _ in range(num_users)
    ]
    # Every item occurs, so that ids stay what they are.
    return split_of(np.arange(num_items), *rows)


@pytest.mark.parametrize("seed", range(3))
def test_target_ranks_equal_sorting_with_seen_items_removed(seed):
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(40.0), (25, 1)), axis=1)
    items = rng.permuted(np.tile(np.arange(40), (25, 1)), axis=1)
    targets, seen = items[:, 0], items[:, 1:20].copy()
    lengths = rng.integers(0, 20, size=25)
    seen[np.arange(19) >= lengths[:, None]] = -1
    ranks = target_ranks(jnp.asarray(scores), jnp.asarray(targets), jnp.asarray(seen))
    expected = [
        rank_by_sorting(scores[b], targets[b], seen[b][seen[b] >= 0]) for b in range(25)
    ]
    assert ranks.tolist() == expected


def test_a_tie_has_the_mean_of_its_ranks():
    scores = jnp.array([[1.0, 1.0, 1.0, 0.0, -0.0]])

    def rank(target, seen):
        return target_ranks(scores, jnp.array([target]), jnp.array([seen])).item()

    assert rank(1, [-1]) == 2.0
    assert rank(1, [0, -1]) == 1.5
    assert rank(1, [2, 0]) == 1.0
    assert rank(3, [-1]) == 4.5
    assert rank(4, [3, 0]) == 3.0


def test_a_seen_item_counts_once_and_a_seen_target_is_ranked():
    scores = jnp.array([[3.0, 2.0, 2.0, 1.0]])
    for seen in ([0, 0, 0], [0, -1, 0], [-1, -1, 0], [3, 0, 3], [0, 0, 3]):
        ranks = target_ranks(scores, jnp.array([3]), jnp.array([seen]))
        assert ranks.tolist() == [3.0]
    ranks = target_ranks(scores, jnp.array([1]), jnp.array([[1, 2, 1, 2]]))
    assert ranks.tolist() == [2.0]


def test_padding_of_seen_hides_neither_the_first_nor_the_last_item():
    scores = jnp.array([[3.0, 1.0, 2.0]])
    assert target_ranks(scores, jnp.array([1]), jnp.array([[-1, -1]])).tolist() == [3]


def test_protocol_on_a_log_worked_out_by_hand(next_item_table):
    # Of user 0: train 0 1, validation 2, test 3; of user 1: train 4 3, 1, 0.
    # User 2 has three interactions, which all are for training.
    split = split_of([0, 1, 2, 3], [4, 3, 1, 0], [2, 3, 4])
    table = np.zeros((5, 5))
    table[1] = [9, 8, 3, 7, 6]  # valid of user 0: 0, 1 seen; 3, 4 above 2: rank 3
    table[2] = [9, 8, 7, 5, 6]  # test of user 0: 0, 1, 2 seen; 4 above 3: rank 2
    table[3] = [1, 2, 3, 9, 8]  # valid of user 1: 4, 3 seen; 2 above 1: rank 2
    table[1, 0] = 9  # test of user 1 reads row 1: 4, 3, 1 seen; 0 is the best: rank 1
    model = next_item_table(table)
    valid, test = Evaluator(model, split, "valid"), Evaluator(model, split, "test")
    assert valid.users.tolist() == [0, 1]
    assert valid.ranks(model).tolist() == [3, 2]
    assert test.ranks(model).tolist() == [2, 1]
    assert test(model)["HR@1"] == 0.5
    assert evaluate(model, split) == test(model)
    assert evaluate(model, split, "valid") == valid(model)


@pytest.mark.parametrize("batch_size", [1, 7, 51, 1000, None])
@pytest.mark.parametrize("part", ["valid", "test"])
def test_ranks_equal_sorting_whatever_the_batch(next_item_table, part, batch_size):
    split = random_split(50, 30, seed=0)
    table = np.random.default_rng(1).normal(size=(30, 30)).astype(np.float32)
    model = next_item_table(table)
    evaluator = Evaluator(model, split, part, batch_size=batch_size)
    expected = []
    for user, row in enumerate(split.log.sequences):
        target = (split.valid if part == "valid" else split.test)[user]
        if target >= 0:
            seen = row[: -2 if part == "valid" else -1]
            assert target == row[len(seen)]
            expected.append(rank_by_sorting(table[seen[-1]], target, seen))
    assert evaluator.ranks(model).tolist() == expected


def test_parameters_are_those_of_the_call(next_item_table):
    split = split_of([0, 1, 2, 3])
    evaluator = Evaluator(next_item_table(np.zeros((4, 4))), split, "valid")
    better = next_item_table(np.eye(4)[[1, 2, 3, 0]])
    worse = next_item_table(1 - np.eye(4)[[1, 2, 3, 0]])
    assert evaluator.ranks(better).tolist() == [1]
    assert evaluator.ranks(worse).tolist() == [2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_an_error(next_item_table, bad):
    split = split_of([0, 1, 2, 3], [3, 2, 1, 0])
    table = np.zeros((4, 4))
    table[2, 0] = bad  # Read by the validation of user 1, whose item 0 is not asked.
    model = next_item_table(table)
    with pytest.raises(FloatingPointError, match="1 of 2 users .* first user 101"):
        evaluate(model, split, "valid")
    with pytest.raises(FloatingPointError, match="scores of user 1 are not finite"):
        recommend(model, Sequences.from_lists([[1], [2]]), 1)


def test_who_has_no_ranking_is_named_as_the_log_does(next_item_table):
    users = np.repeat(["zoe", "anna"], 4)
    items = np.array([0, 1, 2, 3, 3, 2, 1, 0])
    split = leave_one_out(InteractionLog.from_columns(users, items, name="named"))
    table = np.zeros((4, 4))
    table[1] = np.nan  # The last train item of zoe, who is user 1.
    with pytest.raises(FloatingPointError, match=r"valid items, first user zoe\)"):
        evaluate(next_item_table(table), split, "valid")


def test_bad_arguments_are_refused(next_item_table):
    model = next_item_table(np.zeros((3, 3)))
    with pytest.raises(
        ValueError, match="part is 'train': it must be 'valid' or 'test'"
    ):
        evaluate(model, split_of([0, 1, 2, 0]), "train")  # pyright: ignore
    with pytest.raises(ValueError, match="no user of 'toy' has a test item"):
        evaluate(model, split_of([0, 1, 2]))


def test_recommend_gives_the_best_unseen_items_in_order(next_item_table):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(12, 12)).astype(np.float32)
    model = next_item_table(table)
    histories = [rng.permutation(12)[:n] for n in (1, 4, 9, 11, 12)]
    sequences = Sequences.from_lists(histories)
    items, scores = recommend(model, sequences, 3, batch_size=2)
    for row, history in enumerate(histories):
        unseen = np.setdiff1d(np.arange(12), history)
        best = unseen[np.argsort(-table[history[-1]][unseen])][:3]
        filled = best.size
        assert items[row, :filled].tolist() == best.tolist()
        assert scores[row, :filled].tolist() == table[history[-1]][best].tolist()
        assert (items[row, filled:] == -1).all()
        assert np.isneginf(scores[row, filled:]).all()


def test_recommend_leaves_out_what_it_is_told_to(next_item_table):
    model = next_item_table(np.tile([3.0, 2.0, 1.0, 0.0], (4, 1)))
    history, nothing = Sequences.from_lists([[0]]), Sequences.from_lists([[]])
    assert recommend(model, history, 4)[0].tolist() == [[1, 2, 3, -1]]
    assert recommend(model, history, 2, seen=nothing)[0].tolist() == [[0, 1]]


def test_recommend_for_nobody_is_empty(next_item_table):
    items, scores = recommend(next_item_table(np.eye(3)), Sequences.from_lists([]), 2)
    assert items.shape == scores.shape == (0, 2)


def test_recommend_refuses_bad_arguments(next_item_table):
    model = next_item_table(np.eye(3))
    history = Sequences.from_lists([[0]])
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k is {k}: choose 1 to 3"):
            recommend(model, history, k)
    with pytest.raises(ValueError, match="seen is 'drop': it must be 'mask' or 'keep'"):
        recommend(model, history, 1, seen="drop")  # pyright: ignore
    with pytest.raises(ValueError, match="seen has 0 rows, sequences 1"):
        recommend(model, history, 1, seen=Sequences.from_lists([]))


def test_short_sequences_get_narrow_inputs_of_their_own(next_item_table):
    widths = set()

    class Padded(next_item_table):
        """Pads on the left, to 4 or to 8 columns."""

        def inputs(self, sequences, users):
            width = 4 if sequences.lengths.max() <= 4 else 8
            frames = np.zeros((len(sequences), width), np.int32)
            for frame, row in zip(frames, sequences, strict=True):
                frame[-len(row) :] = row[-width:]
            return frames

        def score(self, inputs):
            widths.add(inputs.shape)
            return super().score(inputs[:, -1:])

    split = random_split(50, 30, seed=0)
    table = np.random.default_rng(1).normal(size=(30, 30)).astype(np.float32)
    plain, padded = next_item_table(table), Padded(table)
    for part in ("valid", "test"):
        expected = Evaluator(plain, split, part, batch_size=16).ranks(plain)
        actual = Evaluator(padded, split, part, batch_size=16).ranks(padded)
        assert actual.tolist() == expected.tolist()
    assert widths == {(16, 4), (16, 8)}
    for one, other in zip(
        recommend(plain, split.train, 5), recommend(padded, split.train, 5), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_validation_and_test_share_their_programs(next_item_table):
    split = split_of(*np.random.default_rng(0).permuted([range(20)] * 9, axis=1))
    model = next_item_table(np.eye(20))
    evaluate(model, split, "valid")
    size = _batch_ranks._cache_size()  # pyright: ignore
    evaluate(model, split, "test")
    assert _batch_ranks._cache_size() == size  # pyright: ignore


def test_recommend_refuses_items_that_the_model_does_not_know(next_item_table):
    """-1, what an unknown id is mapped to, was the largest item of the row before."""
    model = next_item_table(np.ones((5, 5)))
    histories = Sequences.from_lists([[], [1]])
    for bad in ([[], [-1, 3]], [[], [5]]):
        with pytest.raises(ValueError, match=r"the model knows 0\.\.4"):
            recommend(model, histories, 2, seen=Sequences.from_lists(bad))
        with pytest.raises(ValueError, match=r"the model knows 0\.\.4"):
            recommend(model, Sequences.from_lists(bad), 2)


@pytest.mark.parametrize("columns", [4, 6])
def test_a_model_scores_every_item_and_nothing_else(next_item_table, columns):
    log = InteractionLog.from_columns([0] * 5, range(5), name="small")
    model = next_item_table(np.ones((5, columns)))
    message = rf"scores have shape \(1, {columns}\), but of 1 rows and 5 items"
    with pytest.raises(ValueError, match=message):
        evaluate(model, leave_one_out(log))
    with pytest.raises(ValueError, match=message):
        recommend(model, Sequences.from_lists([[0]]), 2)


def test_a_model_that_knows_users_ranks_by_their_rows():
    """The rows of the split's users in the model's table are in another order."""
    split = split_of(np.arange(5), np.arange(5, 10))
    items = jnp.eye(10)
    users = jnp.stack([jnp.arange(10.0), -jnp.arange(10.0)])
    straight, crossed = (
        MFBPR.of_tables(users, items),
        MFBPR.of_tables(users[::-1], items),
    )
    expected = Evaluator(straight, split, "test").ranks(straight)
    rows = np.array([1, 0])
    found = Evaluator(crossed, split, "test", rows=rows).ranks(crossed)
    assert found.tolist() == expected.tolist()
    assert Evaluator(crossed, split, "test").ranks(crossed).tolist() != found.tolist()
