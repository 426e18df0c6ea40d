"""GRU4Rec against the recurrence over right-padded prefixes of its definition."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import (
    LOSSES,
    assert_trees_close,
    literal_losses,
    loss_of,
    perturbed,
    with_params,
)
from scipy import stats

from sevo_jax.data import InteractionLog, Sequences, leave_one_out
from sevo_jax.models import MODELS, layers
from sevo_jax.models.gru4rec import GRU4Rec, GRU4RecConfig, recur
from sevo_jax.models.losses import draw_others
from sevo_jax.samples.packing import left_pad
from sevo_jax.samples.prefixes import PrefixBatch, Sampling
from sevo_jax.training import GraphConfig, OptimizerConfig, Recipe, Trainer

MAX_LEN = 10
NUM_MORE = 20


def sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


def plain(params, frames, drop=lambda x: x):
    """Features of right-padded prefixes `[n, cells]`, literally as they are defined."""
    width = params["kernel_hidden"].shape[0]
    in_r, in_z, in_n = (
        params["kernel_in"][:, i * width :][:, :width] for i in range(3)
    )
    h_r, h_z, h_n = (
        params["kernel_hidden"][:, i * width :][:, :width] for i in range(3)
    )

    def step(state, x):
        r = sigmoid(x @ in_r + state @ h_r)
        z = sigmoid(x @ in_z + state @ h_z)
        n = jnp.tanh(x @ in_n + r * (state @ h_n))
        state = (1 - z) * n + z * state
        return state, state

    inputs = drop(params["item_embedding"][frames])
    initial = jnp.zeros((len(frames), width), inputs.dtype)
    states = jax.lax.scan(step, initial, inputs.swapaxes(0, 1))[1]
    lengths = (frames > 0).sum(axis=1)
    last = states[lengths - 1, np.arange(len(frames))]
    return last @ params["project_out"]["kernel"] + params["project_out"]["bias"]


def plain_loss(params, frames, targets, negatives, drop=lambda x: x):
    features = plain(params, frames, drop)
    table = params["item_embedding"]
    positive = (features * table[targets]).sum(-1)
    negative = (features * table[negatives]).sum(-1)
    return jnp.log1p(jnp.exp(negative - positive)).mean()


def right_pad(prefixes):
    frames = np.zeros((len(prefixes), max(map(len, prefixes))), np.int32)
    for frame, items in zip(frames, prefixes, strict=True):
        frame[: len(items)] = items
    return frames


def unpack(step):
    """Prefixes, targets and negatives of a step, read off its cells."""
    prefixes, valid = [], step.targets > 0
    for cell in step.cells[valid]:
        row, column = divmod(cell, step.inputs.shape[1])
        start = np.flatnonzero(step.starts[row, : column + 1])[-1]
        prefixes.append(step.inputs[row, start : column + 1])
    return right_pad(prefixes), step.targets[valid], step.negatives[valid]


def all_prefixes(train, epoch):
    """All prefixes of `train`, with the negatives that an epoch has for them."""
    valid = epoch.targets > 0
    negative = dict(zip(epoch.targets[valid], epoch.negatives[valid], strict=True))
    assert len(negative) == valid.sum() == sum(len(items) - 1 for items in train)
    prefixes = [items[:k] + 1 for items in train for k in range(1, len(items))]
    targets = np.concatenate([items[1:] + 1 for items in train])
    negatives = np.array([negative[target] for target in targets])
    return right_pad([items[-MAX_LEN:] for items in prefixes]), targets, negatives


def random_train(longest=MAX_LEN + 1):
    """No item comes twice, so that a target tells its prefix."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(1 + rng.geometric(0.3, longest + 20), longest)
    lengths[: longest - 1] = np.arange(2, longest + 1)
    return Sequences.from_lengths(rng.permutation(lengths.sum()), lengths)


def make(
    sampling: Sampling = "sequence", dropout=0.0, train=None, batch_size=1000, **loss
):
    """A model of unequal widths, a train set and the model's first epoch of it."""
    train = random_train() if train is None else train
    config = GRU4RecConfig(MAX_LEN, 6, 8, dropout, sampling, **loss)
    model = GRU4Rec(train.values.size + NUM_MORE, config, rngs=nnx.Rngs(0))
    return model, train, model.epochs(train, batch_size=batch_size, seed=0)[0]


def step_of(epoch, index=0):
    return PrefixBatch(*(field[index] for field in epoch))


def assert_same_loss(model, batch, samples, dtype, tolerance):
    """Loss and gradients of a step equal those of literal samples."""
    with jax.enable_x64(dtype is np.float64):
        params = perturbed(model, dtype=dtype)
        value, gradients = jax.jit(jax.value_and_grad(loss_of(model, batch)))(params)
        literal = jax.jit(jax.value_and_grad(lambda p: plain_loss(p, *samples)))
        expected, expected_gradients = literal(params)
        assert value.dtype == dtype
        np.testing.assert_allclose(value, expected, rtol=tolerance)
        assert_trees_close(gradients, expected_gradients, tolerance)


@pytest.mark.parametrize(
    "sampling, dtype, tolerance",
    [
        ("sequence", np.float32, 1e-5),
        ("sequence", np.float64, 1e-10),
        ("prefix", np.float64, 1e-10),
    ],
)
def test_loss_and_gradients_are_those_over_all_prefixes(sampling, dtype, tolerance):
    model, train, epoch = make(sampling)
    batch = step_of(epoch)
    # Runs that follow others in their row, up to the longest.
    assert batch.starts[:, 1:].any()
    assert max(len(items) - 1 for items in train) == MAX_LEN
    samples = all_prefixes(train, epoch)
    assert_same_loss(model, batch, samples, dtype, tolerance)


@pytest.mark.parametrize("name", ["bce", "ce", "corrected", "gbce"])
def test_any_loss_is_that_over_all_prefixes(name, x64):
    model, _, epoch = make(**LOSSES[name])
    batch, config = step_of(epoch), model.config
    params = perturbed(model, scale=0.1, dtype=np.float64)
    frames, targets, negatives = unpack(batch)
    assert config.takes_negatives == negatives.any()
    num, num_rows = config.num_negatives or 1, model.num_items + 1
    drawn = draw_others(batch.targets, num, num_rows, 1, jax.random.key(0))

    def literal(params):
        features, table = plain(params, frames), params["item_embedding"]
        mine = drawn[batch.targets > 0]
        return literal_losses(
            config, features, table, targets, negatives, mine, jnp
        ).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss_of(model, batch)))(params)
    expected, expected_gradients = jax.jit(jax.value_and_grad(literal))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    assert_trees_close(gradients, expected_gradients, 1e-10)


def test_a_step_of_prefixes_reads_the_last_items_of_long_ones():
    train = random_train(longest=2 * MAX_LEN)
    model, _, epoch = make("prefix", train=train)
    samples = all_prefixes(train, epoch)
    assert_same_loss(model, step_of(epoch), samples, np.float64, 1e-10)


def test_a_step_of_long_sequences_reads_runs_from_their_start():
    model, _, epoch = make(train=random_train(longest=4 * MAX_LEN), batch_size=100)
    batch = step_of(epoch, 1)
    # Some cells warm up, some targets are missing.
    assert (batch.inputs > 0).sum() > (batch.targets > 0).sum() < batch.targets.size
    assert_same_loss(model, batch, unpack(batch), np.float64, 1e-10)


def test_score_is_that_of_the_right_padded_frame():
    model, train, _ = make()
    params = perturbed(model)
    model = with_params(model, params)
    features = plain(params, right_pad([items + 1 for items in train.last(MAX_LEN)]))
    expected = features @ params["item_embedding"][1:].T
    inputs = model.inputs(train)
    assert inputs.shape == (len(train), MAX_LEN) and (inputs[:, 0] == 0).any()
    scores = jax.jit(model.score)(inputs)
    assert scores.shape == (len(train), model.num_items)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_pads_make_no_difference():
    model, _, _ = make()
    model = with_params(model, perturbed(model))
    sequences = Sequences.from_lists([[3, 1, 4], [5], [9, 2, 6, 5, 3, 1, 8]])
    narrow = model.inputs(sequences)
    assert narrow.shape == (3, 8)
    wide = left_pad(sequences, 30, 1)
    scores = model.score(narrow), model.score(wide)
    np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-6)
    features = model.encode(wide)
    assert features.shape == (3, 30, 6)
    # Before the first item, and where there is none, the state is zero.
    bias = model.project_out.bias[...]
    for pads in (features[0, :27], model.encode(np.zeros((1, 4), np.int32))[0]):
        np.testing.assert_array_equal(pads, np.broadcast_to(bias, pads.shape))


def test_encode_has_the_features_of_all_prefixes():
    model, _, _ = make()
    params = perturbed(model)
    items = np.array([3, 1, 4, 9, 2])
    features = with_params(model, params).encode(np.array([[0, 0, *items]]))[0, 2:]
    expected = plain(params, right_pad([items[:k] for k in range(1, 6)]))
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


def test_states_start_anew_where_they_are_told_to():
    rng = np.random.default_rng(0)
    projected, kernel = (
        jnp.asarray(rng.normal(size=size), jnp.float32)
        for size in ((7, 1, 12), (4, 12))
    )
    starts = jnp.zeros((7, 1), bool).at[3].set(True)
    states = recur(projected, starts, kernel)
    for part in (slice(0, 3), slice(3, 7)):
        alone = recur(projected[part], starts[part], kernel)
        np.testing.assert_allclose(states[part], alone, rtol=1e-6)
    assert not np.allclose(states[3:], recur(projected, ~starts, kernel)[3:])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("sampling", ["sequence", "prefix"])
def test_only_rows_of_the_batch_get_a_gradient(sampling, dropout):
    model, _, epoch = make(sampling, dropout, batch_size=20)
    batch = step_of(epoch)
    key = jax.random.key(0)
    gradients = jax.jit(jax.grad(loss_of(model, batch)))(perturbed(model), key)
    touched = np.flatnonzero(np.any(gradients["item_embedding"] != 0, axis=1))
    ids = np.concatenate([batch.inputs.ravel(), batch.targets, batch.negatives])
    distinct = np.unique(ids)
    assert distinct[0] == 0 and 15 < len(distinct) < model.num_items
    if dropout == 0:
        np.testing.assert_array_equal(touched, distinct[1:])
    else:
        assert set(touched) <= set(distinct[1:])


def test_an_empty_batch_has_loss_and_gradients_zero():
    model, _, epoch = make()
    batch = jax.tree.map(np.zeros_like, step_of(epoch))
    loss_and_grad = jax.jit(jax.value_and_grad(loss_of(model, batch)))
    value, gradients = loss_and_grad(perturbed(model))
    assert value == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def test_large_scores_stay_finite():
    model, _, epoch = make()
    loss_and_grad = jax.jit(jax.value_and_grad(loss_of(model, step_of(epoch))))
    value, gradients = loss_and_grad(perturbed(model, scale=1e4))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_dropout_is_on_the_input_embeddings_alone(monkeypatch):
    calls = []

    def triple(x, rate=None, key=None):
        calls.append((rate, key))
        return 3 * x

    monkeypatch.setattr(layers, "dropout", triple)
    model, train, epoch = make("prefix", dropout=0.5)
    params, key = perturbed(model), jax.random.key(0)
    value = loss_of(model, step_of(epoch))(params, key)
    expected = plain_loss(params, *all_prefixes(train, epoch), triple)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert calls[:-1] == [(0.5, key)], "not called once"


def test_dropout_is_a_function_of_the_key_and_off_without_one():
    model, _, epoch = make(dropout=0.5)
    batch = step_of(epoch)
    loss = jax.jit(loss_of(model, batch))
    params = perturbed(model)
    first, second = (jax.random.key(seed) for seed in (0, 1))
    assert loss(params, first) == loss(params, first) != loss(params, second)
    undropped, _, _ = make(dropout=0.0)
    assert loss(params) == jax.jit(loss_of(undropped, batch))(params, first)


def test_loss_under_dropout_has_the_mean_of_the_literal_one():
    # The prefixes of a user share masks, but each alone has the distribution of one
    # with its own: mean losses over 3000 draws within 4 standard errors.
    model, train, epoch = make("sequence", dropout=0.4)
    params = perturbed(model)
    loss, samples = loss_of(model, step_of(epoch)), all_prefixes(train, epoch)

    def literal(key):
        def drop(x):
            return jnp.where(jax.random.bernoulli(key, 0.6, x.shape), x / 0.6, 0)

        return plain_loss(params, *samples, drop)

    ours, theirs = (
        np.asarray(
            jax.jit(lambda keys, f=f: jax.lax.map(f, keys))(
                jax.random.split(jax.random.key(0), 3000)
            )
        )
        for f in (lambda key: loss(params, key), literal)
    )
    error = math.sqrt((ours.var() + theirs.var()) / 3000)
    assert error < 0.003 * theirs.mean()
    assert abs(ours.mean() - theirs.mean()) < 4 * error
    undropped = jax.jit(loss)(params)
    assert abs(undropped - theirs.mean()) > 8 * error, "this would not show dropout"


def test_parameter_count_on_beauty():
    model = GRU4Rec(12101, GRU4RecConfig(), rngs=nnx.Rngs(0))
    _, params, rest = nnx.split(model, nnx.Param, ...)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 803_264
    assert not jax.tree.leaves(rest), "a model is its parameters alone"


def test_initial_distributions():
    config = GRU4RecConfig(width=64, hidden_width=100)
    params = nnx.to_pure_dict(nnx.state(GRU4Rec(12101, config, rngs=nnx.Rngs(0))))

    def assert_normal(leaf, deviation):
        values = np.asarray(leaf).ravel()
        assert stats.kstest(values, stats.norm(0, deviation).cdf).pvalue > 1e-3
        # Cut off at two deviations, these would be none.
        beyond = np.mean(np.abs(values) > 2 * deviation)
        assert beyond == pytest.approx(0.0455, abs=5 * math.sqrt(0.0434 / values.size))

    def assert_uniform(leaf, bound):
        values = np.asarray(leaf).ravel()
        assert np.abs(values).max() <= bound
        assert stats.kstest(values, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3

    assert params["item_embedding"].shape == (12102, 64)
    assert_normal(params["item_embedding"], math.sqrt(2 / (12102 + 64)))
    assert_normal(params["item_embedding"][0], math.sqrt(2 / (12102 + 64)))
    assert params["kernel_in"].shape == (64, 300)
    assert_uniform(params["kernel_in"], math.sqrt(6 / (300 + 64)))
    assert params["kernel_hidden"].shape == (100, 300)
    assert_uniform(params["kernel_hidden"], math.sqrt(6 / (300 + 100)))
    assert params["project_out"]["kernel"].shape == (100, 64)
    assert_uniform(params["project_out"]["kernel"], 1 / 10)
    assert_uniform(params["project_out"]["bias"], 1 / 10)


def test_training_learns_who_follows_whom():
    # A walk around a ring of 60 items: the next item is one of two.
    rng = np.random.default_rng(0)
    rows = [
        (rng.integers(60) + np.cumsum(1 + (rng.random(length) < 0.1))) % 60
        for length in rng.integers(6, 12, size=150)
    ]
    users = np.repeat(np.arange(150), [row.size for row in rows])
    log = InteractionLog.from_columns(users, np.concatenate(rows), name="ring")
    recipe = Recipe(
        model="gru4rec",
        architecture=GRU4RecConfig(12, 16, 16, dropout=0.2),
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.01),
        graph=GraphConfig(max_len=12),
        batch_size=64,
        epochs=8,
        eval_every=8,
    )
    result = Trainer(recipe, leave_one_out(log)).run(seed=0, progress=False)
    assert result.losses[-1] < 0.5 * result.losses[0]
    # Among some 52 unseen items a random order has 10 / 52.
    assert result.test["HR@10"] > 0.6


@pytest.mark.parametrize(
    "option, message",
    [
        ({"max_len": 0}, "max_len is 0: it must be at least 1"),
        ({"width": 0}, "width is 0: it must be at least 1"),
        ({"hidden_width": -1}, "hidden_width is -1: it must be at least 1"),
        ({"dropout": 1.0}, r"dropout is 1.0: it must be in \[0, 1\)"),
        ({"dropout": -0.1}, r"dropout is -0.1: it must be in \[0, 1\)"),
        (
            {"sampling": "user"},
            "sampling is 'user': it must be one of sequence, prefix",
        ),
    ],
)
def test_bad_hyper_parameters_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        GRU4RecConfig(**option)


def test_no_items_are_refused():
    with pytest.raises(ValueError, match="num_items is 0: it must be at least 1"):
        GRU4Rec(0, GRU4RecConfig(), rngs=nnx.Rngs(0))


def test_the_model_goes_by_its_name():
    assert MODELS["gru4rec"] is GRU4Rec
    assert GRU4Rec.Config is GRU4RecConfig
    assert GRU4Rec.smoothed == {"item-item": ("item_embedding",)}
    assert GRU4Rec.item_offset == 1
