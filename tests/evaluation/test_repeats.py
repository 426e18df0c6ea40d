"""Rankings of random logs with repeats and ties, against literal loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sevo_jax as sevo
from sevo_jax.data import InteractionLog, leave_one_out
from sevo_jax.evaluation import EvaluationConfig, Evaluator, recommend, target_ranks
from sevo_jax.evaluation.protocol import targets_and_histories
from sevo_jax.graphs import kinds
from sevo_jax.models import MODELS

NUM_LOGS = 1000
NUM_ITEMS = 8
NUM_USERS = 6


def random_rows(rng):
    """The users of a log: of few items, so that most come again and again."""
    pool = rng.permutation(NUM_ITEMS)[: rng.integers(2, NUM_ITEMS + 1)]
    # Fewer than 4 are no target; more than 8 are cut off by the models.
    return [rng.choice(pool, size) for size in rng.integers(3, 13, NUM_USERS)]


def log_of(rows):
    """Rows, and behind them a user of all items, so that ids stay what they are."""
    rows = [*rows, np.arange(NUM_ITEMS)]
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return InteractionLog.from_columns(users, np.concatenate(rows), name="repeats")


def rank_by_hand(scores, target, seen):
    rank = 1.0
    for item in range(len(scores)):
        if item != target and item not in seen:
            rank += scores[item] > scores[target]
            rank += 0.5 * (scores[item] == scores[target])
    return rank


def best_by_hand(scores, seen):
    left = [item for item in range(len(scores)) if item not in seen]
    return sorted(left, key=lambda item: (-scores[item], item))


def check_ranks(model, split, part, seen, score, batch_size):
    """Compares the ranks of one part; `score` gives those of a user's history.

    Returns how many of them are decided by ties, and how many targets are repeats.
    """
    config = EvaluationConfig(seen=seen)
    evaluator = Evaluator(model, split, part, config, batch_size=batch_size)
    ranks = evaluator.ranks(model)
    held_out = 2 if part == "valid" else 1
    rows = {u: row for u, row in enumerate(split.log.sequences) if row.size > 3}
    assert evaluator.users.tolist() == list(rows)
    repeats = 0
    for (user, row), rank in zip(rows.items(), ranks, strict=True):
        history, target = row[:-held_out], row[-held_out]
        left_out = set(history.tolist()) if seen == "mask" else set()
        assert rank == rank_by_hand(score(user, history), target, left_out)
        repeats += target in history
    return np.sum(ranks % 1 != 0), repeats


def check_recommendations(model, histories, seen, score, batch_size):
    options = {"seen": seen, "batch_size": batch_size}
    items, _ = recommend(model, histories, NUM_ITEMS, **options)
    for user, history in enumerate(histories):
        left_out = set(history.tolist()) if seen == "mask" else set()
        best = best_by_hand(score(user, history), left_out)
        assert items[user].tolist() == best + [-1] * (NUM_ITEMS - len(best))


def test_random_logs(next_item_table):
    rng = np.random.default_rng(0)
    found = np.zeros(2)
    for number in range(NUM_LOGS):
        seen = ("mask", "keep")[number % 2]
        # Few values, a negative zero among them.
        table = rng.choice([-0.0, 0.0, 1.0, 1.5, -2.0], (NUM_ITEMS, NUM_ITEMS))
        model = next_item_table(table)
        split = leave_one_out(log_of(random_rows(rng)))

        def score(user, history, table=table):
            return table[history[-1]]

        for part in ("valid", "test"):
            found += check_ranks(model, split, part, seen, score, NUM_USERS)
        check_recommendations(model, split.log.sequences, seen, score, NUM_USERS)
    assert (found > NUM_LOGS).all()


def with_equal_items(model):
    """The model with items that differ in one column alone, which has a few values.

    Then the scores of items with one value are equal in every order of summation.
    """
    values = np.random.default_rng(1).choice([-1.0, 0.0, 0.5, 1.0], NUM_ITEMS)
    first, *others = type(model).smoothed["item-item"]
    for name in (first, *others):
        table = getattr(model, name)
        table[...] = jnp.zeros(table.shape)
    table = getattr(model, first)
    table[...] = table[...].at[-NUM_ITEMS:, 0].set(values)
    return model


@pytest.fixture(scope="module")
def side_by_side():
    """The users of a thousand logs as one log, which is one evaluation."""
    rng = np.random.default_rng(2)
    rows = [row for _ in range(NUM_LOGS) for row in random_rows(rng)]
    return leave_one_out(log_of(rows))


@pytest.mark.parametrize("name", MODELS)
def test_every_model(name, side_by_side):
    split, kind = side_by_side, MODELS[name]
    sizes = {"max_len": 8, "width": 4, "hidden_width": 4}
    fields = {field.name for field in dataclasses.fields(kind.Config)}
    config = kind.Config(**{k: v for k, v in sizes.items() if k in fields})
    graphs = {
        key: sevo.prepare(kinds.build(graph, split, kind.item_offset))
        for key, graph in kind.propagated(config).items()
    }
    model = kind.for_data(split, config, graphs=graphs, rngs=nnx.Rngs(0))
    # After propagation, which would make them differ.
    model = with_equal_items(model.for_ranking())

    def scores_of(histories):
        return np.asarray(jax.jit(model.score)(model.inputs(histories, users)))

    users = np.arange(split.num_users)
    for part in ("valid", "test"):
        scores = scores_of(targets_and_histories(split, part)[1])
        for seen in ("mask", "keep"):
            found = check_ranks(model, split, part, seen, lambda u, _: scores[u], 1000)
            assert min(found) > NUM_LOGS
    scores = scores_of(split.log.sequences)
    for seen in ("mask", "keep"):
        check_recommendations(
            model, split.log.sequences, seen, lambda u, _: scores[u], 1000
        )


def test_target_ranks_of_any_arrays():
    rng = np.random.default_rng(3)
    scores = rng.choice([-0.0, 0.0, 1.0, 2.0], (NUM_LOGS, NUM_ITEMS))
    targets = rng.integers(NUM_ITEMS, size=NUM_LOGS)
    # Repeats, pads in any place, the target itself, and nothing at all.
    seen = rng.integers(-1, NUM_ITEMS, (NUM_LOGS, 10))
    seen[rng.random(NUM_LOGS) < 0.1] = -1
    ranks = target_ranks(jnp.asarray(scores), jnp.asarray(targets), jnp.asarray(seen))
    expected = [rank_by_hand(*row) for row in zip(scores, targets, seen.tolist())]
    assert ranks.tolist() == expected
