"""SR-GNN against its definition, one prefix at a time with dense matrices."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_trees_close, loss_of, perturbed, with_params
from scipy import stats

from sevo_jax.data import InteractionLog, Sequences, leave_one_out
from sevo_jax.models import MODELS
from sevo_jax.models.sr_gnn import SRGNN, SRGNNConfig
from sevo_jax.samples.packing import left_pad
from sevo_jax.samples.sessions import SessionBatch, SessionEpochs
from sevo_jax.training import GraphConfig, OptimizerConfig, Recipe, Trainer

MAX_LEN = 5
NUM_ITEMS = 30


def sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


def affine(params, x):
    return x @ params["kernel"] + params["bias"]


def matrices(items):
    """The graph of a session, filled up with nodes that nothing leads to.

    Returns:
      Rows of the table of its nodes, the two normalised adjacencies, the node of each
      position and that of the last, as rows of ones and zeros.
    """
    items = items.tolist()
    nodes = sorted(set(items))
    alias = [nodes.index(item) for item in items]
    adjacency = np.zeros((MAX_LEN, MAX_LEN))
    for before, after in zip(alias, alias[1:], strict=False):
        adjacency[before, after] = 1
    a_in = (adjacency / np.maximum(adjacency.sum(0), 1)).T
    a_out = adjacency / np.maximum(adjacency.sum(1), 1)[:, None]
    positions = np.zeros((MAX_LEN, MAX_LEN))
    positions[np.arange(len(alias)), alias] = 1
    table_rows = np.array(nodes + [0] * (MAX_LEN - len(nodes)))
    return table_rows, a_in, a_out, positions, positions[len(alias) - 1]


def plain(params, session, num_steps=1):
    """Scores of all items after a session, as they are defined."""
    table_rows, a_in, a_out, positions, last_position = session
    graph, table = params["graph"], params["item_embedding"]
    width = table.shape[1]
    h = table[table_rows]
    for _ in range(num_steps):
        a = jnp.concatenate(
            [
                a_in @ affine(graph["edges_in"], h) + graph["bias_in"],
                a_out @ affine(graph["edges_out"], h) + graph["bias_out"],
            ],
            axis=1,
        )
        read, keep = affine(graph["read"], a), affine(graph["keep"], h)
        i_r, i_z, i_n = (read[:, i * width : (i + 1) * width] for i in range(3))
        h_r, h_z, h_n = (keep[:, i * width : (i + 1) * width] for i in range(3))
        r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
        h = (1 - z) * jnp.tanh(i_n + r * h_n) + z * h
    v, last = positions @ h, last_position @ h
    query = affine(params["attend_last"], last)
    alpha = sigmoid(query + affine(params["attend_each"], v)) @ params["attention"]
    # Where there is no position, v is 0.
    session = affine(params["project_out"], jnp.concatenate([alpha @ v, last]))
    return table[1:] @ session


def plain_scores(params, sessions, num_steps=1):
    dtype = params["item_embedding"].dtype
    rows, *others = (np.array(each) for each in zip(*sessions, strict=True))
    stacked = rows, *(each.astype(dtype) for each in others)
    return jax.vmap(lambda session: plain(params, session, num_steps))(stacked)


def plain_loss(params, samples, num_steps=1):
    sessions, targets = zip(*samples, strict=True)
    scores = plain_scores(params, map(matrices, sessions), num_steps)
    own = scores[np.arange(len(targets)), np.array(targets) - 1]
    return jnp.mean(jnp.log(jnp.sum(jnp.exp(scores), axis=1)) - own)


def random_train(repeats):
    """A few sequences, shorter and longer than what is read."""
    rng = np.random.default_rng(0)
    num_items = 5 if repeats else NUM_ITEMS - 10
    return Sequences.from_lists(
        rng.choice(num_items, length, replace=repeats)
        for length in (2, 3, MAX_LEN + 1, 2 * MAX_LEN + 2)
    )


def samples_of(train):
    """Rows of the last items before each target, and the target's row."""
    return [
        (items[max(k - MAX_LEN, 0) : k] + 1, items[k] + 1)
        for items in train
        for k in range(1, len(items))
    ]


def make(**options):
    fields: Any = {"max_len": MAX_LEN, "width": 6} | options
    config = SRGNNConfig(**fields)
    return SRGNN(NUM_ITEMS, config, rngs=nnx.Rngs(0))


def step_of(epoch, index=0):
    return SessionBatch(*(field[index] for field in epoch))


def whole(model, train):
    """All prefixes in one step."""
    epochs = model.epochs(train, batch_size=1000, seed=0)
    assert epochs.num_steps == 1
    return step_of(epochs[0])


def loss_and_gradients(model, batch, dtype):
    params = perturbed(model, dtype=dtype)
    return jax.jit(jax.value_and_grad(loss_of(model, batch)))(params)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-10)])
@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"sampling": "prefix"}, {"num_steps": 2}],
    ids=["sequence", "prefix", "two steps"],
)
def test_loss_and_gradients_are_those_over_all_prefixes(
    options, repeats, dtype, tolerance
):
    model, train = make(**options), random_train(repeats)
    samples = samples_of(train)
    assert repeats == any(len(set(items)) < len(items) for items, _ in samples)
    with jax.enable_x64(dtype is np.float64):
        value, gradients = loss_and_gradients(model, whole(model, train), dtype)
        assert value.dtype == dtype
        literal = jax.jit(
            jax.value_and_grad(
                lambda params: plain_loss(params, samples, model.config.num_steps)
            )
        )
        expected, expected_gradients = literal(perturbed(model, dtype=dtype))
        np.testing.assert_allclose(value, expected, rtol=tolerance)
        assert_trees_close(gradients, expected_gradients, tolerance)


def test_steps_of_an_epoch_have_all_prefixes():
    model, train = make(), random_train(False)
    epoch = model.epochs(train, batch_size=6, seed=0)[3]
    sizes = (epoch.targets > 0).sum(axis=1)
    assert len(sizes) > 2
    params = perturbed(model)
    loss = jax.jit(lambda batch: loss_of(model, batch)(params))
    losses = [loss(step_of(epoch, index)) for index in range(len(sizes))]
    mean = np.average(losses, weights=sizes)
    expected = plain_loss(params, samples_of(train))
    np.testing.assert_allclose(mean, expected, rtol=1e-5)


@pytest.mark.parametrize("max_len", [1, 2, 3, 10, 100])
def test_shared_nodes_give_what_graphs_of_their_own_give(max_len):
    # Users of all lengths, no item twice: one pass a run, or a graph a prefix.
    rng = np.random.default_rng(1)
    train = Sequences.from_lists(
        rng.choice(NUM_ITEMS, length, replace=False) for length in (2, 5, 17, 30, 30)
    )
    model = make(max_len=max_len)
    results = []
    with jax.enable_x64(True):
        for share in (True, False):
            epochs = SessionEpochs(
                train, max_len=max_len, batch_size=1000, seed=0, share=share
            )
            batch = step_of(epochs[0])
            results.append(loss_and_gradients(model, batch, np.float64))
            results[-1] += ((batch.items > 0).sum(),)
    (loss, gradients, few), (expected, expected_gradients, many) = results
    assert few < many / 2 or max_len < 10
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert_trees_close(gradients, expected_gradients, 1e-10)


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("repeats", [False, True])
def test_scores_are_the_literal_ones(repeats, num_steps):
    model, train = make(num_steps=num_steps), random_train(repeats)
    params = perturbed(model)
    inputs = model.inputs(train)
    assert inputs.shape == (len(train), MAX_LEN) and (inputs[:, 0] == 0).any()
    scores = jax.jit(with_params(model, params).score)(inputs)
    sessions = [matrices(items + 1) for items in train.last(MAX_LEN)]
    expected = plain_scores(params, sessions, num_steps)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=2e-5)


def test_pads_make_no_difference():
    model = make(max_len=40)
    model = with_params(model, perturbed(model))
    sequences = Sequences.from_lists([[3, 1, 4, 1], [5], [], [9, 2, 6, 5, 3, 1, 8]])
    narrow = model.inputs(sequences)
    assert narrow.shape == (4, 8)
    wide = left_pad(sequences, 30, 1)
    scores = model.score(narrow), model.score(wide)
    np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-5)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("repeats", [False, True])
def test_padding_gets_no_gradient(repeats):
    model, train = make(), random_train(repeats)
    epoch = model.epochs(train, batch_size=10, seed=0)[0]
    batch = step_of(epoch, -1)
    assert (batch.targets == 0).any() and (batch.items == 0).sum() > 1
    _, gradients = loss_and_gradients(model, batch, np.float32)
    assert (gradients["item_embedding"][0] == 0).all()
    # The softmax is over all items.
    assert (gradients["item_embedding"][1:] != 0).all()


def test_an_empty_batch_has_loss_and_gradients_zero():
    model = make()
    batch = jax.tree.map(np.zeros_like, whole(model, random_train(True)))
    value, gradients = loss_and_gradients(model, batch, np.float32)
    assert value == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def test_large_scores_stay_finite():
    model = make()
    batch = whole(model, random_train(True))
    loss_and_grad = jax.jit(jax.value_and_grad(loss_of(model, batch)))
    value, gradients = loss_and_grad(perturbed(model, scale=1e4))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_parameter_count_on_beauty():
    model = SRGNN(12101, SRGNNConfig(), rngs=nnx.Rngs(0))
    _, params, rest = nnx.split(model, nnx.Param, ...)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    # The table, 15 squares of the width and 14 vectors.
    assert count == 12102 * 64 + 15 * 64**2 + 14 * 64 == 836_864
    assert not jax.tree.leaves(rest), "a model is its parameters alone"


def test_all_parameters_start_uniform_within_one_bound():
    model = SRGNN(2000, SRGNNConfig(width=64), rngs=nnx.Rngs(0))
    for leaf in jax.tree.leaves(nnx.state(model)):
        values = np.asarray(leaf).ravel()
        assert 0.9 / 8 < np.abs(values).max() <= 1 / 8
        assert stats.kstest(values, stats.uniform(-1 / 8, 2 / 8).cdf).pvalue > 1e-4
    first = [np.asarray(leaf).flat[0] for leaf in jax.tree.leaves(nnx.state(model))]
    assert len(set(first)) == len(first) == 18
    assert math.isclose(np.std(model.item_embedding[0]), 1 / 8 / 3**0.5, rel_tol=0.3)


@pytest.mark.parametrize("optimizer", ["adamw", "sevo_adamw"])
def test_training_learns_who_follows_whom(optimizer):
    # A walk around a ring of 60 items, which goes back now and then.
    rng = np.random.default_rng(0)
    rows = []
    for length in rng.integers(6, 12, size=150):
        steps = np.where(rng.random(length) < 0.1, -1, 1)
        rows.append((rng.integers(60) + np.cumsum(steps)) % 60)
    users = np.repeat(np.arange(150), [row.size for row in rows])
    log = InteractionLog.from_columns(users, np.concatenate(rows), name="ring")
    recipe = Recipe(
        model="sr-gnn",
        architecture=SRGNNConfig(12, 16),
        optimizer=OptimizerConfig(optimizer, learning_rate=1e-2, weight_decay=0.01),
        graph=GraphConfig(max_len=12),
        batch_size=64,
        epochs=10,
        eval_every=10,
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
        ({"num_steps": 0}, "num_steps is 0: it must be at least 1"),
        (
            {"sampling": "user"},
            "sampling is 'user': it must be one of sequence, prefix",
        ),
    ],
)
def test_bad_hyper_parameters_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        SRGNNConfig(**option)


def test_no_items_are_refused():
    with pytest.raises(ValueError, match="num_items is 0: it must be at least 1"):
        SRGNN(0, SRGNNConfig(), rngs=nnx.Rngs(0))


def test_items_of_another_log_are_refused():
    train = Sequences.from_lists([[0, NUM_ITEMS]])
    with pytest.raises(ValueError, match="items run from 0 to 30"):
        make().epochs(train, batch_size=8, seed=0)


def test_the_model_goes_by_its_name():
    assert MODELS["sr-gnn"] is SRGNN
    assert SRGNN.Config is SRGNNConfig
    assert SRGNN.smoothed == {"item-item": ("item_embedding",)}
    assert SRGNN.item_offset == 1
