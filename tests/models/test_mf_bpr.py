"""MF-BPR against its definition, written out."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from sevo_jax import models
from sevo_jax.data import Sequences, leave_one_out, planted
from sevo_jax.evaluation import Evaluator, evaluate, recommend
from sevo_jax.models import registry
from sevo_jax.models.mf_bpr import MFBPR, MFBPRConfig
from sevo_jax.samples.triplets import TripletBatch
from sevo_jax.training import Recipe, find_recipe, train

NUM_USERS, NUM_ITEMS = 30, 40


def make(dtype=np.float32, scale=1.0, batch_size=64):
    """A model with parameters of this scale, and a step with cells that do not count.

    The rows that only such cells hold are not among the others.
    """
    rng = np.random.default_rng(0)
    model = MFBPR(NUM_USERS, NUM_ITEMS, MFBPRConfig(width=8), rngs=nnx.Rngs(0))
    for leaf in (model.user_embedding, model.item_embedding):
        leaf[...] = jnp.asarray(scale * rng.normal(size=leaf.shape), dtype)
    users = rng.integers(0, NUM_USERS - 1, batch_size, np.int32)
    positives = rng.integers(0, NUM_ITEMS - 2, batch_size, np.int32)
    others = rng.integers(1, NUM_ITEMS - 2, batch_size, np.int32)
    negatives = (positives + others) % (NUM_ITEMS - 2)
    valid = rng.random(batch_size) < 0.7
    users[~valid], positives[~valid], negatives[~valid] = 29, 39, 38
    fields = map(jnp.asarray, (users, positives, negatives, valid))
    return model, TripletBatch(*fields)


def value_and_gradients(model, batch):
    graphdef, params = nnx.split(model)

    @jax.jit
    def run(params):
        return jax.value_and_grad(
            lambda params: nnx.merge(graphdef, params).loss(batch, rng=None)
        )(params)

    value, gradients = run(params)
    return value, nnx.to_pure_dict(gradients)


def plain(model, batch):
    """Loss and gradients, a sample at a time, in NumPy."""
    users, items = (
        np.asarray(leaf[...], np.float64)
        for leaf in (model.user_embedding, model.item_embedding)
    )
    value, user_gradient, item_gradient = (
        0.0,
        np.zeros_like(users),
        np.zeros_like(items),
    )
    samples = [sample[:3] for sample in zip(*batch, strict=True) if sample[3]]
    for user, positive, negative in samples:
        margin = users[user] @ items[negative] - users[user] @ items[positive]
        value += np.logaddexp(0, margin) / len(samples)
        slope = 1 / (1 + np.exp(-margin)) / len(samples)
        user_gradient[user] += slope * (items[negative] - items[positive])
        item_gradient[negative] += slope * users[user]
        item_gradient[positive] -= slope * users[user]
    return value, {"user_embedding": user_gradient, "item_embedding": item_gradient}


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_loss_and_gradients_are_those_of_the_definition(dtype, tolerance):
    with jax.enable_x64(dtype is np.float64):
        model, batch = make(dtype)
        value, gradients = value_and_gradients(model, batch)
        assert value.dtype == dtype
        expected, expected_gradients = plain(model, batch)
        np.testing.assert_allclose(value, expected, rtol=tolerance)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(
                gradient, expected_gradients[name], rtol=tolerance, atol=tolerance / 10
            )


def test_rows_outside_the_samples_have_no_gradient_at_all():
    model, batch = make(batch_size=12)
    _, gradients = value_and_gradients(model, batch)
    users, positives, negatives, valid = batch
    assert 4 < valid.sum() < 12
    for name, rows in (
        ("user_embedding", users[valid]),
        ("item_embedding", np.concatenate([positives[valid], negatives[valid]])),
    ):
        touched = np.flatnonzero(np.any(np.asarray(gradients[name]) != 0, axis=1))
        np.testing.assert_array_equal(touched, np.unique(rows))


def test_large_scores_stay_finite():
    model, batch = make(scale=1e4)
    value, gradients = value_and_gradients(model, batch)
    assert value > 1e6 and np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in gradients.values())


def test_dropout_keys_make_no_difference():
    model, batch = make()
    assert model.loss(batch, rng=jax.random.key(0)) == model.loss(batch, rng=None)


def test_scores_are_inner_products():
    model, _ = make()
    users = np.array([3, 3, 29, 0])
    inputs = model.inputs(Sequences.from_lists([[1], [], [39], [0, 2]]), users)
    assert inputs.dtype == np.int32 and inputs.tolist() == [[3], [3], [29], [0]]
    expected = [
        [np.dot(model.user_embedding[u], model.item_embedding[i]) for i in range(40)]
        for u in users
    ]
    scores = model.score(jnp.asarray(inputs))
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "rows, users, message",
    [
        ([[0]], None, "give `users`"),
        ([[0]], [30], r"run from 30 to 30, the model knows 0\.\.29: it cannot serve"),
        ([[0], [1]], [-1, 0], "users run from -1 to 0"),
        ([[0], [1]], [0], r"users has shape \(1,\), there are 2 sequences"),
        ([[0, 40]], [0], r"items run from 0 to 40, the model knows 0\.\.39"),
    ],
)
def test_inputs_are_checked(rows, users, message):
    model, _ = make()
    users = users if users is None else np.array(users)
    with pytest.raises(ValueError, match=message):
        model.inputs(Sequences.from_lists(rows), users)


def test_epochs_are_of_the_users_of_the_model():
    model, _ = make()
    with pytest.raises(ValueError, match="train has 2 users, the model 30"):
        model.epochs(Sequences.from_lists([[1], [2]]), batch_size=2, seed=0)
    train = Sequences.from_lists([[u, 39] for u in range(30)])
    epoch = model.epochs(train, batch_size=32, seed=0)[0]
    assert epoch.users.shape == (2, 32)
    assert set(np.unique(epoch.positives)) <= {*range(30), 39}
    assert int(epoch.negatives.max()) == 38


def test_parameter_count_and_initial_values_on_beauty():
    model = MFBPR(22363, 12101, MFBPRConfig(), rngs=nnx.Rngs(0))
    _, params, rest = nnx.split(model, nnx.Param, ...)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_205_696
    assert not jax.tree.leaves(rest), "a model is its parameters alone"
    tables = [model.user_embedding[...], model.item_embedding[...]]
    assert [table.shape for table in tables] == [(22363, 64), (12101, 64)]
    for table in tables:
        values = np.asarray(table, np.float64).ravel()[::10]
        assert stats.kstest(values, stats.norm(0, 1e-4).cdf).pvalue > 1e-3
    assert not np.array_equal(tables[0][:9], tables[1][:9])
    other = MFBPR(9, 9, MFBPRConfig(), rngs=nnx.Rngs(1)).user_embedding[...]
    assert not np.array_equal(tables[0][:9], other)


@pytest.mark.parametrize(
    "num_users, num_items, width, message",
    [
        (0, 3, 2, "num_users is 0: it must be at least 1"),
        (3, 0, 2, "num_items is 0: it must be at least 1"),
        (3, 3, 0, "width is 0: it must be at least 1"),
    ],
)
def test_bad_sizes_are_named(num_users, num_items, width, message):
    with pytest.raises(ValueError, match=message):
        MFBPR(num_users, num_items, MFBPRConfig(width=width), rngs=nnx.Rngs(0))


def test_the_model_goes_by_its_name_and_gets_both_sizes():
    assert models.MODELS["mf-bpr"] is MFBPR
    assert MFBPR.Config is MFBPRConfig
    assert MFBPR.item_offset == 0
    model = MFBPR(3, 5, MFBPRConfig(width=2), rngs=nnx.Rngs(0))
    assert (model.num_users, model.num_items) == (3, 5)
    assert model.user_embedding.shape == (3, 2) and model.item_embedding.shape == (5, 2)


def test_evaluation_ranks_each_user_by_the_own_row():
    # Two users of three have targets, so that rows of the batch are not the users.
    split = leave_one_out(planted(num_users=120, num_items=60, num_groups=5))
    keep = split.valid.copy()
    keep[::3] = -1
    split = dataclasses.replace(split, valid=keep)
    model = MFBPR(
        split.num_users, split.num_items, MFBPRConfig(width=8), rngs=nnx.Rngs(0)
    )
    evaluator = Evaluator(model, split, "valid", batch_size=16)
    ranks = evaluator.ranks(model)
    scores = np.array(model.user_embedding[...] @ model.item_embedding[...].T)
    scores[split.train.rows, split.train.values] = -np.inf
    for user, rank in zip(evaluator.users, ranks, strict=True):
        better = scores[user] > scores[user, split.valid[user]]
        assert rank == 1 + better.sum()

    users = np.array([7, 2, 2])
    rows = Sequences.from_lists(split.train[user] for user in users)
    items, best = recommend(model, rows, 5, users=users)
    order = np.argsort(-scores[users], axis=1)[:, :5]
    np.testing.assert_array_equal(items, order)
    np.testing.assert_allclose(best, np.take_along_axis(scores[users], order, 1))
    with pytest.raises(ValueError, match="users run from"):
        recommend(model, rows, 5, users=users + split.num_users)
    with pytest.raises(ValueError, match=f"knows {split.num_users} users .* users=, "):
        recommend(model, rows, 5)
    everyone, _ = recommend(model, split.train, 5)
    np.testing.assert_array_equal(everyone[users], items)


def test_it_learns_what_is_planted():
    split = leave_one_out(planted(num_users=400, num_items=200, num_groups=10))
    recipe = dataclasses.replace(find_recipe("mf-bpr-synthetic"), batch_size=256)
    result = train(recipe, split, progress=False)
    assert result.losses[0] == pytest.approx(np.log(2), abs=1e-2)
    assert result.losses[-1] < 0.5
    chance = 10 / split.num_items
    assert result.history[0]["valid"]["HR@10"] < 2 * chance
    assert result.test["HR@10"] > 3 * chance
    assert evaluate(result.trained, split) == result.test


def test_a_model_of_users_as_a_newcomer_writes_it(monkeypatch):
    """Parameters, loss and score: all else is there."""

    class Mine(models.UserModel):
        Config = MFBPRConfig

        user_embedding: Any
        item_embedding: Any

        def __init__(self, num_users, num_items, config, *, rngs):
            self.num_users, self.num_items, self.config = num_users, num_items, config
            initial = nnx.initializers.normal(0.1)
            for name, rows in (("user", num_users), ("item", num_items)):
                table = nnx.Param(initial(rngs.params(), (rows, config.width)))
                setattr(self, f"{name}_embedding", table)

        def loss(self, batch, *, rng):
            users = self.user_embedding[...][batch.users]
            table = self.item_embedding[...]
            rows = table[batch.positives] - table[batch.negatives]
            loss = jax.nn.softplus(-jnp.sum(users * rows, axis=-1))
            return jnp.mean(loss, where=batch.valid)

        def score(self, inputs):
            users = self.user_embedding[...][inputs[:, 0]]
            return users @ self.item_embedding[...].T

    missing = models.Recommender.loss
    monkeypatch.setattr(registry, "MODELS", {})
    with pytest.raises(TypeError, match="Half has no loss, score: write it"):
        half: Any = type("Half", (Mine,), dict(loss=missing, score=missing))
        models.register("half")(half)
    monkeypatch.undo()
    monkeypatch.setitem(models.MODELS, "mine", Mine)
    split = leave_one_out(planted(num_users=60, num_items=40, num_groups=4, seed=1))
    recipe = Recipe("mine", MFBPRConfig(width=8), epochs=1, batch_size=64)
    assert 0 <= train(recipe, split, progress=False).test["NDCG@10"] <= 1
