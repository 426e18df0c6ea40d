"""LESSR against its definition, a session and a node at a time."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_trees_close
from scipy import stats

from sevo_jax.data import InteractionLog, Sequences, leave_one_out
from sevo_jax.models import MODELS, layers
from sevo_jax.models.lessr import LESSR, LESSRConfig
from sevo_jax.models.session_graphs import BatchNorm
from sevo_jax.samples.packing import left_pad
from sevo_jax.samples.prefixes import RunBatch, Sampling
from sevo_jax.training import GraphConfig, OptimizerConfig, Recipe, Trainer

MAX_LEN = 6
NUM_ITEMS = 12
DISTINCT = [[0, 1, 2, 3], [4, 5], [6, 1, 9, 2, 0, 3, 7, 8], [10, 3, 5]]
# In a row, in turn, and before and within what is read of a long one.
REPEATED = [
    [3, 3, 3, 1, 3],
    [1, 2, 1, 2, 1],
    [5, 0, 6, 5, 7, 0, 5, 8, 9, 5],
    [4, 10],
    [2, 9, 9, 4, 2],
]
MIXED = DISTINCT + REPEATED


# ------------------------------------------------------------ the definition


def sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


class Plain:
    """The model over the nodes of all sessions, one after the other.

    Args:
      params: of a `LESSR`, pure.
      sessions: lists of items.
      running: its running statistics, pure; None normalises by those of the batch.
      drop: dropout.
    """

    def __init__(self, params, sessions, running=None, drop=lambda x: x):
        self.params, self.running, self.drop = params, running, drop
        self.statistics = []
        nodes = [(s, v) for s, items in enumerate(sessions) for v in sorted(set(items))]
        self.items = np.array([item for _, item in nodes])
        self.last = np.array(
            [nodes.index((s, items[-1])) for s, items in enumerate(sessions)]
        )
        self.members = np.array(
            [[s == t for t, _ in nodes] for s in range(len(sessions))]
        )
        # The sources of each node's edges, in the order of their occurrence.
        self.sources = [[] for _ in nodes]
        self.shortcut = np.zeros((len(nodes), len(nodes)), bool)
        for s, items in enumerate(sessions):
            at = [nodes.index((s, item)) for item in items]
            for source, target in zip(at, at[1:], strict=False):
                self.sources[target].append(source)
            for j, target in enumerate(at):
                for source in at[: j + 1]:
                    self.shortcut[target, source] = True

    def norm(self, params, x, running):
        if running is None:
            mean = x.sum(axis=0) / len(x)
            variance = ((x - mean) ** 2).sum(axis=0) / len(x)
            self.statistics.append((mean, variance * len(x) / (len(x) - 1)))
        else:
            mean, variance = running["mean"], running["variance"]
        x = (x - mean) / jnp.sqrt(variance + 1e-5)
        return x * params["scale"] + params["bias"]

    def prelu(self, p, x):
        return jnp.maximum(x, 0) + p["slope"] * jnp.minimum(x, 0)

    def edge_order(self, p, x):
        """Of normalised features."""
        dropped, width = self.drop(x), x.shape[1]
        states = jnp.zeros_like(x)
        for number in range(max(map(len, self.sources))):
            has = [v for v, sources in enumerate(self.sources) if len(sources) > number]
            targets = np.array(has)
            sources = np.array([self.sources[v][number] for v in has])
            given = dropped[sources] @ p["kernel_in"] + p["bias_in"]
            state = states[targets] @ p["kernel_hidden"] + p["bias_hidden"]
            r, z = (
                sigmoid(given[:, i * width :] + state[:, i * width :])[:, :width]
                for i in range(2)
            )
            n = jnp.tanh(given[:, 2 * width :] + r * state[:, 2 * width :])
            states = states.at[targets].set((1 - z) * n + z * states[targets])
        return self.prelu(p, x @ p["kernel_self"] + states @ p["kernel_neighbours"])

    def attend(self, p, query, key, value, edges):
        scores = sigmoid(query[:, None] + key[None]) @ p["score"]["kernel"][:, 0]
        weights = jnp.where(edges, jnp.exp(scores), 0)
        return weights / weights.sum(axis=1, keepdims=True) @ value

    def attention(self, p, x):
        """Of normalised features over the shortcut graph."""
        x = self.drop(x)
        key = x @ p["project_key"]["kernel"] + p["project_key"]["bias"]
        query = x @ p["project_query"]["kernel"]
        value = x @ p["project_value"]["kernel"]
        return self.prelu(p, self.attend(p, query, key, value, self.shortcut))

    def readout(self, p, x):
        """Of normalised features."""
        x = self.drop(x)
        query = x[self.last] @ p["project_query"]["kernel"] + p["project_query"]["bias"]
        key = x @ p["project_key"]["kernel"]
        mixed = self.attend(p, query, key, x, self.members)
        return self.prelu(p, mixed @ p["project_out"]["kernel"])

    def logits(self):
        """Of each session, with the rows of the table as they are."""
        p = self.params
        num_blocks = len(p["blocks"])
        running = [None] * (num_blocks + 2)
        if self.running is not None:
            running = norms_of(self.running, num_blocks)
        x = p["item_embedding"][self.items]
        for number in range(num_blocks):
            part = p["blocks"][number]
            layer = self.attention if number % 2 else self.edge_order
            normed = self.norm(part["norm"], x, running[number])
            x = jnp.concatenate([layer(part, normed), x], axis=1)
        normed = self.norm(p["readout"]["norm"], x, running[-2])
        out = self.readout(p["readout"], normed)
        out = jnp.concatenate([x[self.last], out], axis=1)
        out = self.drop(self.norm(p["norm"], out, running[-1]))
        return out @ p["project_out"]["kernel"] @ p["item_embedding"].T

    def loss(self, targets):
        logits = self.logits()
        own = logits[np.arange(len(targets)), np.array(targets)]
        return jnp.mean(jnp.log(jnp.exp(logits).sum(axis=1)) - own)


def norms_of(tree, num_blocks):
    """The statistics of each normalisation, in order."""
    parts = [tree["blocks"][number] for number in range(num_blocks)]
    return [part["norm"] for part in (*parts, tree["readout"], tree)]


def prefixes(rows):
    """All sessions of rows, each with what follows it, in some order."""
    return sorted(
        (row[max(0, end - MAX_LEN) : end], row[end])
        for row in rows
        for end in range(1, len(row))
    )


def unpack(step):
    """The sessions of a step and what follows each, read off its cells."""
    sessions, valid = [], step.targets > 0
    for cell in step.cells[valid]:
        row, column = divmod(cell, step.inputs.shape[1])
        start = np.flatnonzero(step.starts[row, : column + 1])[-1]
        sessions.append((step.inputs[row, start : column + 1] - 1).tolist())
    return sessions, (step.targets[valid] - 1).tolist()


# ------------------------------------------------------------ the model


def make(
    rows=MIXED,
    num_blocks=3,
    dropout=0.0,
    sampling: Sampling = "sequence",
    batch_size=100,
    step=0,
):
    """A model, and a step of its first epoch of rows."""
    config = LESSRConfig(MAX_LEN, 5, num_blocks, dropout, sampling)
    model = LESSR(NUM_ITEMS, config, rngs=nnx.Rngs(0))
    train = Sequences.from_lists(rows)
    epoch = model.epochs(train, batch_size=batch_size, seed=0)[0]
    return model, RunBatch(*(field[step] for field in epoch))


def perturbed(model, dtype):
    """Pure parameters and running statistics moved off the initial ones."""
    rng = np.random.default_rng(1)
    return tuple(
        jax.tree.map(
            lambda x: (
                jnp.asarray(np.abs(x + 0.3 * rng.normal(size=x.shape)), dtype)
                if kind is nnx.BatchStat
                else jnp.asarray(x + 0.3 * rng.normal(size=x.shape), dtype)
            ),
            nnx.to_pure_dict(nnx.state(model, kind)),
        )
        for kind in (nnx.Param, nnx.BatchStat)
    )


def with_state(model, params, running):
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    for state, pure in zip(states, (params, running), strict=True):
        nnx.replace_by_pure_dict(state, pure)
    return nnx.merge(graphdef, *states)


def run(model, batch, params, running, key=None):
    """Loss, running statistics after it, and gradients."""

    @jax.jit
    def compiled(params, running, key):
        def loss_of(params):
            fresh = with_state(model, params, running)
            loss = fresh.loss(batch, rng=key)
            return loss, nnx.to_pure_dict(nnx.state(fresh, nnx.BatchStat))

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    (loss, after), gradients = compiled(params, running, key)
    return loss, after, gradients


@pytest.mark.parametrize(
    "options, dtype, tolerance",
    [
        ({}, np.float32, 1e-5),
        ({}, np.float64, 1e-10),
        ({"sampling": "prefix"}, np.float64, 1e-10),
        ({"rows": DISTINCT, "num_blocks": 2}, np.float64, 1e-10),
        ({"num_blocks": 1, "batch_size": 5, "step": 2}, np.float64, 1e-10),
    ],
)
def test_loss_gradients_and_statistics_are_those_of_the_definition(
    options, dtype, tolerance
):
    with jax.enable_x64(dtype is np.float64):
        model, batch = make(**options)
        params, running = perturbed(model, dtype)
        loss, after, gradients = run(model, batch, params, running)
        sessions, targets = unpack(batch)
        if "step" not in options:
            whole = prefixes(options.get("rows", MIXED))
            assert sorted(zip(sessions, targets, strict=True)) == whole

        @jax.jit
        def definition(params):
            def loss_of(params):
                plain = Plain(params, sessions)
                return plain.loss(targets), plain.statistics

            return jax.value_and_grad(loss_of, has_aux=True)(params)

        (expected, statistics), expected_gradients = definition(params)
        assert loss.dtype == dtype
        np.testing.assert_allclose(loss, expected, rtol=tolerance)
        assert_trees_close(gradients, expected_gradients, tolerance)
        number = len(model.blocks)
        places = zip(
            norms_of(running, number), norms_of(after, number), statistics, strict=True
        )
        for before, now, (mean, variance) in places:
            for name, value in (("mean", mean), ("variance", variance)):
                moved = 0.9 * before[name] + 0.1 * value
                np.testing.assert_allclose(now[name], moved, rtol=1e2 * tolerance)


def test_prefixes_share_a_pass_where_it_is_exact():
    _, batch = make()
    assert max(len(row) - 1 for row in DISTINCT) == MAX_LEN + 1
    # Of each without repeats a run, one more for what is longer, and [4, 10].
    num_runs = len(DISTINCT) + 1 + sum(len(row) - 1 for row in REPEATED)
    assert batch.starts.sum() == num_runs
    _, batch = make(sampling="prefix")
    assert batch.starts.sum() == (batch.targets > 0).sum() == len(prefixes(MIXED))


def test_a_user_may_have_all_items():
    model, batch = make([list(range(NUM_ITEMS))])
    assert np.isfinite(model.loss(batch, rng=None))


@pytest.mark.parametrize("rows", [DISTINCT, REPEATED], ids=["distinct", "repeated"])
def test_scores_are_those_of_the_definition_by_running_statistics(rows):
    model, _ = make(rows)
    params, running = perturbed(model, np.float32)
    model = with_state(model, params, running)
    table = params["item_embedding"]
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    assert (norms > 1).any() and (norms < 1).any()
    params["item_embedding"] = jnp.where(norms > 1, table / norms, table)
    sessions = [row[-MAX_LEN:] for row in rows]
    expected = Plain(params, sessions, running).logits()
    inputs = model.inputs(Sequences.from_lists(rows))
    assert (inputs == 0).any()
    scores = jax.jit(model.score)(inputs)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_pads_make_no_difference():
    model, _ = make()
    model = with_state(model, *perturbed(model, np.float32))
    sequences = Sequences.from_lists([[3, 1, 4, 3], [], [5], [9, 2, 6, 5, 3, 1]])
    assert model.inputs(Sequences.from_lists([[5]])).shape == (1, MAX_LEN)
    score = jax.jit(model.score)
    narrow, wide = (score(left_pad(sequences, cells, 1)) for cells in (6, 15))
    assert np.isfinite(narrow).all()
    np.testing.assert_allclose(narrow, wide, rtol=1e-5, atol=1e-6)


def test_dropout_is_on_normalised_features_alone(monkeypatch):
    calls = []

    def triple(x, rate, key):
        calls.append((rate, jax.random.key_data(key).tolist()))
        return 3 * x

    monkeypatch.setattr(layers, "dropout", triple)
    model, batch = make(dropout=0.5)
    params, running = perturbed(model, np.float32)
    model = with_state(model, params, running)
    sessions, targets = unpack(batch)
    expected = Plain(params, sessions, drop=lambda x: 3 * x).loss(targets)
    loss = model.loss(batch, rng=jax.random.key(0))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    rates, keys = zip(*calls, strict=True)
    assert rates == (0.5,) * 5
    assert len({tuple(key) for key in keys}) == 5


def test_a_step_cuts_the_rows_and_the_optimizer_goes_on_from_there():
    train = [[*row, 3, 11] for row in REPEATED]
    log = log_of(train)
    recipe = Recipe(
        model="lessr",
        architecture=LESSRConfig(MAX_LEN, 5, 1, dropout=0.0),
        optimizer=OptimizerConfig("sgd", learning_rate=0.5),
        batch_size=100,
    )
    split = leave_one_out(log)
    trainer = Trainer(recipe, split)
    state = trainer.start(0)
    grown = 2 * state.params["item_embedding"][...]
    grown = grown.at[4].multiply(0.2)
    state.params["item_embedding"][...] = grown
    model: Any = trainer.model(state)
    epoch = trainer.epochs(0)[0]
    batch = RunBatch(*(field[0] for field in epoch))
    norms = np.linalg.norm(grown, axis=1, keepdims=True)
    assert norms[4] < 1 < norms[5]
    cut = np.where(norms > 1, grown / (norms + 1e-7), grown)
    params, running = (
        nnx.to_pure_dict(nnx.state(model, kind)) for kind in (nnx.Param, nnx.BatchStat)
    )
    params["item_embedding"] = jnp.asarray(cut)
    _, after, gradients = run(model, batch, params, running)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradients)
    state, _ = trainer.train_epoch(state, epoch, seed=0, epoch=0)
    assert_trees_close(nnx.to_pure_dict(state.params), expected, 1e-5)
    assert_trees_close(nnx.to_pure_dict(state.carried), after, 1e-5)


def test_normalisation_weighs_cells():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(5, 3)), np.array([2.0, 0, 1, 3, 1])
    x[1] = 1e6
    norm = BatchNorm(3)
    out = norm(jnp.asarray(x, jnp.float32), jnp.asarray(weights, jnp.float32))
    repeated = np.repeat(x, weights.astype(int), axis=0)
    expected = (x - repeated.mean(0)) / np.sqrt(repeated.var(0) + 1e-5)
    seen = weights > 0
    np.testing.assert_allclose(out[seen], expected[seen], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * repeated.mean(0), rtol=1e-4)
    variance = 0.9 + 0.1 * repeated.var(0, ddof=1)
    np.testing.assert_allclose(norm.variance[...], variance, rtol=1e-4)


def test_parameter_count_on_beauty():
    model = LESSR(12101, LESSRConfig(), rngs=nnx.Rngs(0))
    d = 64
    edge_order = sum(
        2 * f + 2 * (3 * f * f + 3 * f) + 2 * f * d + d for f in (d, 3 * d)
    )
    shortcut = 2 * (2 * d) + 3 * (2 * d * d) + d + d + d
    readout = 2 * (4 * d) + 2 * (4 * d * d) + d + d + 4 * d * d + d
    out = 2 * (5 * d) + 5 * d * d
    params = nnx.state(model, nnx.Param)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == 12101 * d + edge_order + shortcut + readout + out
    statistics = nnx.state(model, nnx.Not(nnx.Param))
    widths = [d, 2 * d, 3 * d, 4 * d, 5 * d]
    assert sum(leaf.size for leaf in jax.tree.leaves(statistics)) == 2 * sum(widths)


def test_initial_values():
    model = LESSR(5000, LESSRConfig(width=64), rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    norms = np.linalg.norm(params["item_embedding"], axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    # Normal, and cut to the sphere.
    signs = np.asarray(params["item_embedding"])[:, 0] * 8
    assert stats.kstest(signs, stats.norm(0, 1).cdf).pvalue > 1e-3

    def assert_uniform(leaf, fan_in):
        values, bound = np.asarray(leaf).ravel(), 1 / math.sqrt(fan_in)
        assert np.abs(values).max() <= bound
        assert stats.kstest(values, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3

    first, second, third = (params["blocks"][number] for number in range(3))
    for layer, width in ((first, 64), (third, 192)):
        for name in ("kernel_in", "kernel_hidden", "bias_in", "bias_hidden"):
            assert layer[name].shape[-1] == 3 * width
            assert_uniform(layer[name], width)
        for name in ("kernel_self", "kernel_neighbours"):
            assert layer[name].shape == (width, 64)
            assert_uniform(layer[name], width)
    for name in ("project_query", "project_key", "project_value"):
        assert_uniform(second[name]["kernel"], 128)
    assert_uniform(second["project_key"]["bias"], 128)
    assert_uniform(second["score"]["kernel"], 64)
    assert_uniform(params["readout"]["project_out"]["kernel"], 256)
    assert_uniform(params["project_out"]["kernel"], 320)
    for slope in (first["slope"], second["slope"], params["readout"]["slope"]):
        assert slope.tolist() == [0.25] * 64


def log_of(rows):
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return InteractionLog.from_columns(users, np.concatenate(rows), name="rows")


def test_training_learns_who_follows_whom():
    # A walk around a ring of 60 items, back and forth: the next item is one of two.
    rng = np.random.default_rng(0)
    rows = [
        (rng.integers(60) + np.cumsum(1 - 2 * (rng.random(length) < 0.2))) % 60
        for length in rng.integers(6, 12, size=150)
    ]
    recipe = Recipe(
        model="lessr",
        architecture=LESSRConfig(8, 16, dropout=0.1),
        optimizer=OptimizerConfig("sevo_adamw", learning_rate=1e-2, weight_decay=0.01),
        graph=GraphConfig(max_len=12),
        batch_size=128,
        epochs=6,
        eval_every=6,
    )
    result = Trainer(recipe, leave_one_out(log_of(rows))).run(progress=False)
    assert result.losses[-1] < 0.7 * result.losses[0]
    # Among some 52 unseen items a random order has 10 / 52.
    assert result.test["HR@10"] > 0.6


@pytest.mark.parametrize(
    "option, message",
    [
        ({"max_len": 0}, "max_len is 0: it must be at least 1"),
        ({"width": 0}, "width is 0: it must be at least 1"),
        ({"num_blocks": 0}, "num_blocks is 0: it must be at least 1"),
        ({"dropout": 1.0}, r"dropout is 1.0: it must be in \[0, 1\)"),
        (
            {"sampling": "user"},
            "sampling is 'user': it must be one of sequence, prefix",
        ),
        ({"dropout": -0.1}, r"dropout is -0.1: it must be in \[0, 1\)"),
    ],
)
def test_bad_hyper_parameters_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        LESSRConfig(**option)


def test_no_items_are_refused():
    with pytest.raises(ValueError, match="num_items is 0: it must be at least 1"):
        LESSR(0, LESSRConfig(), rngs=nnx.Rngs(0))


def test_the_model_goes_by_its_name():
    assert MODELS["lessr"] is LESSR
    assert LESSR.smoothed == {"item-item": ("item_embedding",)}
    assert LESSR.item_offset == 0


def test_a_batch_of_one_cell_leaves_the_running_variance_finite():
    norm = BatchNorm(2)
    norm(jnp.ones((1, 2)), jnp.ones(1))
    assert np.isfinite(np.asarray(norm.variance[...])).all()
