"""LightGCN against its definition over a dense matrix, in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from flax import nnx
from helpers import assert_trees_close
from scipy import stats

import sevo_jax as sevo
from sevo_jax.data import InteractionLog, Sequences, leave_one_out, planted
from sevo_jax.evaluation import evaluate, recommend
from sevo_jax.models import MODELS, lightgcn
from sevo_jax.models.lightgcn import LightGCN, LightGCNConfig
from sevo_jax.models.mf_bpr import MFBPR
from sevo_jax.samples.triplets import TripletBatch
from sevo_jax.training import GraphConfig, OptimizerConfig, Recipe, Trainer, load

# Its gradient is defined by rules, which hide its type.
propagate: Any = lightgcn.propagate
NUM_USERS, NUM_ITEMS = 12, 9
TABLES = ("user_embedding", "item_embedding")
# User 3 has an item three times, user 11 nothing; nobody has item 8.
TRAIN = [[0, 1, 2], [3, 4], [4], [5, 5, 1, 5], [6, 7], [0, 7], [2, 3], [1]] + [
    [2, 6],
    [7, 0, 3],
    [4, 1, 6, 0],
    [],
]


def dense_links():
    links = np.zeros((NUM_USERS + NUM_ITEMS,) * 2)
    for user, items in enumerate(TRAIN):
        for item in items:
            links[user, NUM_USERS + item] = links[NUM_USERS + item, user] = 1
    return links


def make(num_hops=3, regularization=0.05, width=8):
    train = Sequences.from_lists(TRAIN)
    links = sevo.graphs.bipartite(train.rows, train.values, NUM_USERS, NUM_ITEMS)
    config = LightGCNConfig(width, num_hops, regularization)
    return LightGCN(NUM_USERS, NUM_ITEMS, config, sevo.prepare(links), rngs=nnx.Rngs(0))


def random_params(dtype, scale=1.0):
    rng = np.random.default_rng(1)
    shapes = {"user_embedding": (NUM_USERS, 8), "item_embedding": (NUM_ITEMS, 8)}
    return {
        name: jnp.asarray(scale * rng.normal(size=shape), dtype)
        for name, shape in shapes.items()
    }


def random_batch(size=20):
    """A step whose last samples do not count."""
    rng = np.random.default_rng(2)
    users = rng.integers(0, NUM_USERS, size, np.int32)
    positives, negatives = rng.integers(0, NUM_ITEMS, (2, size), np.int32)
    fields: Any = users, positives, negatives, np.arange(size) < size - 6
    return TripletBatch(*fields)


def replaced(model, params):
    """The model with these tables; its graph stays."""
    graphdef, state, graphs = nnx.split(model, nnx.Param, ...)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state, graphs)


def mean_of_hops(matrix, num_hops):
    powers = [np.linalg.matrix_power(matrix, hop) for hop in range(num_hops + 1)]
    return sum(powers) / (num_hops + 1)


def plain(config, hops, params, batch):
    """Parts of the loss and their gradients, a sample at a time, in NumPy.

    `hops` is the matrix that propagates the stacked tables.
    """
    start = np.concatenate([np.asarray(params[name], np.float64) for name in TABLES])
    final = hops @ start
    samples = [sample[:3] for sample in zip(*batch, strict=True) if sample[3]]
    main = regularization = 0.0
    to_final, to_start = np.zeros_like(final), np.zeros_like(start)
    for user, positive, negative in samples:
        positive, negative = NUM_USERS + positive, NUM_USERS + negative
        margin = final[user] @ final[negative] - final[user] @ final[positive]
        main += np.logaddexp(0, margin) / len(samples)
        slope = 1 / (1 + np.exp(-margin)) / len(samples)
        to_final[user] += slope * (final[negative] - final[positive])
        to_final[negative] += slope * final[user]
        to_final[positive] -= slope * final[user]
        for row in (user, positive, negative):
            weight = config.regularization / len(samples)
            regularization += weight * start[row] @ start[row] / 2
            to_start[row] += weight * start[row]
    gradient = hops.T @ to_final + to_start
    gradients = dict(zip(TABLES, np.split(gradient, [NUM_USERS]), strict=True))
    return {"main": main, "regularization": regularization}, gradients


@pytest.mark.parametrize("num_hops", [0, 1, 3])
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_loss_and_gradients_are_those_of_the_definition(
    dtype, tolerance, num_hops, oracle
):
    hops = mean_of_hops(oracle.normalised(dense_links()), num_hops)
    with jax.enable_x64(dtype is np.float64):
        model, params, batch = make(num_hops), random_params(dtype), random_batch()

        @jax.jit
        def run(params):
            return jax.value_and_grad(
                lambda params: replaced(model, params).loss(batch, rng=None),
                has_aux=True,
            )(params)

        (value, parts), gradients = run(params)
        assert value.dtype == dtype
    expected, expected_gradients = plain(model.config, hops, params, batch)
    assert parts.keys() == expected.keys()
    for name, part in parts.items():
        np.testing.assert_allclose(part, expected[name], rtol=tolerance)
    np.testing.assert_allclose(value, sum(expected.values()), rtol=tolerance)
    assert_trees_close(gradients, expected_gradients, tolerance)


def test_without_hops_and_regularization_it_is_mf_bpr():
    params, batch = random_params(np.float32), random_batch()
    model = replaced(make(num_hops=0, regularization=0.0), params)
    loss, parts = model.loss(batch, rng=None)
    plain = MFBPR.of_tables(*(params[name] for name in TABLES))
    np.testing.assert_allclose(loss, plain.loss(batch, rng=None), rtol=1e-6)
    assert parts["regularization"] == 0


def test_what_ranks_holds_the_propagated_tables_and_no_graph(oracle):
    params = random_params(np.float32)
    model = replaced(make(), params)
    ranking = model.for_ranking()
    hops = mean_of_hops(oracle.normalised(dense_links()), 3)
    stacked = hops @ np.concatenate([params[name] for name in TABLES])
    users, items = np.split(stacked, [NUM_USERS])
    for name, expected in zip(TABLES, (users, items), strict=True):
        actual = getattr(ranking, name)[...]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert isinstance(ranking, MFBPR)
    assert len(jax.tree.leaves(nnx.state(ranking))) == 2
    inputs = model.inputs(Sequences.from_lists([[1], [8]]), np.array([11, 3]))
    np.testing.assert_allclose(
        model.score(inputs), (users @ items.T)[[11, 3]], rtol=1e-5, atol=1e-5
    )


def test_propagation_takes_any_tables_and_their_second_derivatives():
    graph = sevo.prepare(scipy.sparse.csr_array(dense_links()))
    rng = np.random.default_rng(0)
    tables = [jnp.asarray(rng.normal(size=(rows, 3))) for rows in (5, 7, 9)]
    whole = propagate(graph, [jnp.concatenate(tables)], 2)[0]
    several = propagate(graph, tables, 2)
    np.testing.assert_allclose(jnp.concatenate(several), whole, rtol=1e-5)

    # Half the squared norm of P x has the slope P^2 x, and that in turn P^2 y.
    def slope(tables):
        def half(tables):
            return sum(jnp.sum(each**2) for each in propagate(graph, tables, 2)) / 2

        return jax.grad(half)(tables)

    ones = [jnp.ones_like(table) for table in tables]
    _, pull_back = jax.vjp(slope, tables)
    assert_trees_close(pull_back(ones)[0], slope(ones), 1e-5)


def test_large_scores_stay_finite():
    model = make()
    batch = random_batch()
    value, gradients = jax.value_and_grad(
        lambda params: replaced(model, params).loss(batch, rng=None)[0]
    )(random_params(np.float32, scale=1e4))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in gradients.values())


def test_parameter_count_and_initial_values_on_beauty():
    links = scipy.sparse.coo_array(([1.0, 1.0], ([0, 22363], [22363, 0])))
    links.resize((22363 + 12101,) * 2)
    graph = sevo.prepare(links)
    config = LightGCNConfig(initial_scale=0.02)
    model = LightGCN(22363, 12101, config, graph, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_205_696
    for name, rows in zip(TABLES, (22363, 12101), strict=True):
        table = np.asarray(getattr(model, name)[...])
        assert table.shape == (rows, 64)
        values = table.ravel()[::10]
        assert stats.kstest(values, stats.norm(0, 0.02).cdf).pvalue > 1e-3
    assert LightGCNConfig().initial_scale == 1e-4


@pytest.mark.parametrize(
    "option, message",
    [
        ({"width": 0}, "width is 0: it must be at least 1"),
        ({"num_hops": -1}, "num_hops is -1: it must be at least 0"),
        ({"regularization": -1e-9}, "regularization is -1e-09: it must be at least 0"),
        ({"initial_scale": 0.0}, "initial_scale is 0.0: it must be above 0"),
    ],
)
def test_bad_hyper_parameters_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        LightGCNConfig(**option)


def test_bad_sizes_are_named():
    graph = sevo.prepare(scipy.sparse.csr_array(dense_links()))
    for sizes, message in (
        ((0, 9), "num_users is 0: it must be at least 1"),
        ((12, 0), "num_items is 0: it must be at least 1"),
        ((12, 10), "the graph has 21 nodes, there are 12 users and 10 items"),
    ):
        with pytest.raises(ValueError, match=message):
            LightGCN(*sizes, LightGCNConfig(), graph, rngs=nnx.Rngs(0))


def test_the_model_goes_by_its_name():
    assert MODELS["lightgcn"] is LightGCN


# ------------------------------------------------------------ through the trainer


def recipe(optimizer, kind="item-item"):
    return Recipe(
        model="lightgcn",
        architecture=LightGCNConfig(width=8, num_hops=2),
        optimizer=OptimizerConfig(optimizer, learning_rate=3e-2, weight_decay=1e-3),
        graph=GraphConfig(kind),
        batch_size=128,
        epochs=8,
        eval_every=4,
    )


@pytest.mark.parametrize(
    "optimizer, kind", [("sevo_adamw", "user-item"), ("adamw", "item-item")]
)
def test_it_learns_and_is_served_without_its_graph(optimizer, kind, tmp_path):
    # That it resumes, and with the item graph, `testing.check_recommender` sees to.
    split = leave_one_out(planted(num_users=150, num_items=60, num_groups=5))
    trainer = Trainer(recipe(optimizer, kind), split)
    result = trainer.run(output=tmp_path / "run", progress=False)
    assert result.losses[0] == pytest.approx(np.log(2), abs=1e-2)
    assert result.losses[-1] < 0.7 * result.losses[0]
    assert result.parts[-1]["main"] < result.losses[-1]
    assert result.test["HR@10"] > 2 * 10 / split.num_items

    model = load(tmp_path / "run").model
    assert isinstance(model, MFBPR)
    assert not jax.tree.leaves(nnx.state(model, nnx.Not(nnx.Param)))
    assert evaluate(model, split) == result.test
    users = np.array([7, 2, 2])
    rows = Sequences.from_lists(split.train[user] for user in users)
    items, _ = recommend(model, rows, 5, users=users)
    scores = np.array(model.user_embedding[...] @ model.item_embedding[...].T)
    scores[split.train.rows, split.train.values] = -np.inf
    np.testing.assert_array_equal(items, np.argsort(-scores[users], axis=1)[:, :5])


def test_a_log_with_repeated_items_trains():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 12, length) for length in rng.integers(5, 12, 40)]
    users = np.repeat(np.arange(40), [len(row) for row in rows])
    log = InteractionLog.from_columns(users, np.concatenate(rows), name="repeats")
    split = leave_one_out(log)
    trainer = Trainer(recipe("sevo_adamw"), split)
    model: Any = trainer.new_model(0)
    weights = model.graph.get_value().weights
    distinct = {(u, i) for u, items in enumerate(split.train) for i in items.tolist()}
    assert len(distinct) < len(split.train.values)
    assert len(weights) == 2 * len(distinct)
    epoch = trainer.epochs(0)[0]
    _, losses = trainer.train_epoch(trainer.start(0), epoch, seed=0, epoch=0)
    assert np.isfinite(losses["loss"]).all()
