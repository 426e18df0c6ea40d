"""STOSA against the padded model of its definition."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import (
    assert_trees_close,
    deviations_between,
    draw,
    drop_at,
    loss_of,
    perturbed,
    random_train,
    unpack,
    with_params,
)
from scipy import stats

from sevo_jax.data import InteractionLog, Sequences, leave_one_out
from sevo_jax.models import MODELS
from sevo_jax.models.stosa import STOSA, STOSAConfig, deviation
from sevo_jax.samples.packing import PackedBatch, left_pad
from sevo_jax.training import (
    RECIPES,
    GraphConfig,
    OptimizerConfig,
    Recipe,
    Trainer,
    find_recipe,
)

NUM_ITEMS = 40


# ------------------------------------------- the model, literally as it is defined


def keep_all(x, _):
    return x


def elu(x):
    return jnp.where(x > 0, x, jnp.expm1(jnp.minimum(x, 0)))


def root(covariance):
    return jnp.sqrt(jnp.maximum(covariance, 1e-24))


def norm(x, leaf):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-12) * leaf["scale"] + leaf["bias"]


def linear(x, leaf):
    return x @ leaf["kernel"] + leaf["bias"]


def third(leaf, index):
    """The linear of queries, keys or values."""
    kernels, biases = jnp.split(leaf["kernel"], 3, 1), jnp.split(leaf["bias"], 3)
    return {"kernel": kernels[index], "bias": biases[index]}


def distance(mean, covariance, other_mean, other_covariance):
    means = ((mean - other_mean) ** 2).sum(-1)
    return means + ((root(covariance) - root(other_covariance)) ** 2).sum(-1)


def plain_attention(params, num_heads, mean, covariance, frames, drop):
    """Both streams of frames `[users, S]`; pads are no keys."""
    size, width = mean.shape[1:]
    qm, km, vm = (linear(mean, third(params["mean_in"], i)) for i in range(3))
    qc, kc, vc = (
        elu(linear(covariance, third(params["covariance_in"], i))) + 1 for i in range(3)
    )
    seen = (frames != 0)[:, None, :] & np.tri(size, dtype=bool)
    mask = jnp.where(seen, 0.0, -(2.0**32) + 1)
    means, covariances = [], []
    for h in range(num_heads):
        cut = slice(h * width // num_heads, (h + 1) * width // num_heads)
        apart = distance(
            qm[:, :, None, cut],
            qc[:, :, None, cut],
            km[:, None, :, cut],
            kc[:, None, :, cut],
        )
        p = jax.nn.softmax(-apart / math.sqrt(width // num_heads) + mask)
        p = drop(p, "attention")
        means.append(p @ vm[..., cut])
        covariances.append((p * p) @ vc[..., cut])
    return (
        linear(jnp.concatenate(means, -1), params["mean_out"]),
        linear(jnp.concatenate(covariances, -1), params["covariance_out"]),
    )


def plain_feed_forward(params, x, drop):
    y = linear(elu(linear(x, params["expand"])), params["contract"])
    return norm(drop(y, "hidden") + x, params["norm"])


def plain_block(params, config, mean, covariance, frames, drop):
    am, ac = plain_attention(
        params["attention"], config.num_heads, mean, covariance, frames, drop
    )
    am = norm(drop(am, "hidden") + mean, params["attention_norm"])
    ac = norm(drop(ac, "hidden") + covariance, params["attention_norm"])
    am = plain_feed_forward(params["mean_feed_forward"], am, drop)
    ac = plain_feed_forward(params["covariance_feed_forward"], ac, drop)
    return am if config.propagate_mean else mean, elu(ac) + 1


def plain(params, config, frames, drop=keep_all):
    """Mean and covariance of left-padded frames `[users, S]`.

    `drop(x, kind)` is called where the definition drops.
    """
    mean = params["item_mean"][frames] + params["position_mean"]
    mean = elu(drop(norm(mean, params["input_norm"]), "hidden"))
    covariance = params["item_covariance"][frames] + params["position_covariance"]
    covariance = elu(drop(norm(covariance, params["input_norm"]), "hidden")) + 1
    for block in params["blocks"].values():
        mean, covariance = plain_block(block, config, mean, covariance, frames, drop)
    return mean, covariance


def plain_loss(params, config, frames, drop=keep_all):
    inputs, targets, negatives = frames
    users = plain(params, config, inputs, drop)
    next_items, negative_items = (
        (params["item_mean"][ids], elu(params["item_covariance"][ids]) + 1)
        for ids in (targets, negatives)
    )
    positive = distance(*users, *next_items)
    losses = jax.nn.softplus(positive - distance(*users, *negative_items))
    nearer = jax.nn.relu(positive - distance(*next_items, *negative_items))
    valid = targets != 0
    return losses.mean(where=valid) + config.pvn_weight * nearer.mean(where=valid)


def plain_scores(params, config, frames):
    mean, covariance = (x[:, -1:] for x in plain(params, config, frames))
    items = params["item_mean"][1:], elu(params["item_covariance"][1:]) + 1
    return -distance(mean, covariance, *items)


# ---------------------------------------------------------------- what the tests use


def make(*, max_len=10, num_users=40, **options):
    """A small model, without dropout unless asked, and one step of all users."""
    defaults = dict(width=8, num_heads=2, hidden_dropout=0.0, attention_dropout=0.0)
    # A weight that shows: at the usual one its part is below the tolerance.
    config = STOSAConfig(max_len, **{**defaults, "pvn_weight": 0.7, **options})
    model = STOSA(NUM_ITEMS, config, rngs=nnx.Rngs(0))
    train = random_train(NUM_ITEMS, num_users, shortest=2, longest=max_len + 3)
    epoch = model.epochs(train, batch_size=num_users, seed=0)[0]
    return model, PackedBatch(*(field[0] for field in epoch))


def at_the_bound(params):
    """The same with some covariances far below 1e-24, and so roots at the bound."""
    params = jax.tree.map(lambda x: x, params)
    params["item_covariance"] = params["item_covariance"].at[3:9, ::2].set(-80)
    attention = params["blocks"][0]["attention"]["covariance_in"]
    attention["bias"] = attention["bias"].at[::5].set(-200)
    last = params["blocks"][max(params["blocks"])]["covariance_feed_forward"]["norm"]
    last["bias"] = last["bias"].at[::3].set(-80)
    return params


# ---------------------------------------------------------------- loss and gradients


@pytest.mark.parametrize(
    "options, dtype, tolerance",
    [
        ({}, np.float32, 1e-5),
        ({"num_blocks": 2}, np.float64, 1e-10),
        ({"propagate_mean": True}, np.float64, 1e-10),
    ],
)
def test_packed_loss_and_gradients_equal_the_padded_ones(options, dtype, tolerance):
    model, batch = make(**options)
    assert max(len(np.unique(row)) for row in batch.segments) > 3
    assert {0, 1, 9} <= set(batch.num_pads[batch.segments > 0])
    with jax.enable_x64(dtype is np.float64):
        value_and_grad = jax.jit(jax.value_and_grad(loss_of(model, batch)))
        padded = jax.jit(jax.value_and_grad(plain_loss), static_argnums=1)
        ordinary = perturbed(model, dtype=dtype)
        for params in (ordinary, at_the_bound(ordinary)):
            value, gradients = value_and_grad(params)
            expected, expected_gradients = padded(params, model.config, unpack(batch))
            assert value.dtype == dtype
            np.testing.assert_allclose(value, expected, rtol=tolerance)
            assert_trees_close(gradients, expected_gradients, tolerance)


@pytest.mark.parametrize("propagate", [False, True])
def test_leaves_that_propagate_the_mean_get_a_gradient_only_if_it_does(propagate):
    model, batch = make(propagate_mean=propagate)
    gradients = jax.jit(jax.grad(loss_of(model, batch)))(perturbed(model))
    block = gradients["blocks"][0]
    kernel, bias = (block["attention"]["mean_in"].pop(x) for x in ("kernel", "bias"))
    propagating = [
        kernel[:, 16:],
        bias[16:],
        *jax.tree.leaves(block["attention"].pop("mean_out")),
        *jax.tree.leaves(block.pop("mean_feed_forward")),
    ]
    assert len(propagating) == 10
    for leaf in propagating:
        assert (leaf != 0).any() == propagate
    for leaf in [kernel[:, :16], bias[:16], *jax.tree.leaves(gradients)]:
        assert (leaf != 0).any()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_only_rows_of_the_batch_get_a_gradient(dropout):
    model, batch = make(hidden_dropout=dropout, attention_dropout=dropout)
    rows = [*np.flatnonzero(batch.segments.any(axis=1))[:2], -1]
    batch = PackedBatch(*(field[rows] for field in batch))
    key = jax.random.key(0)
    gradients = jax.jit(jax.grad(loss_of(model, batch)))(perturbed(model), key)
    distinct = np.union1d(np.union1d(batch.inputs, batch.targets), batch.negatives)
    assert distinct[0] == 0 and 15 < len(distinct) < NUM_ITEMS
    for name in ("item_mean", "item_covariance"):
        touched = np.flatnonzero(np.any(gradients[name] != 0, axis=1))
        np.testing.assert_array_equal(touched, distinct[1:])


def test_empty_cells_and_scales_far_off_leave_all_finite():
    model, batch = make()
    value_and_grad = jax.jit(jax.value_and_grad(loss_of(model, PackedBatch(*batch))))
    for scale in (0.0, 1e4):
        params = jax.tree.map(lambda x: x * scale, perturbed(model))
        value, gradients = value_and_grad(params)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
        assert (gradients["item_mean"][0] == 0).all()
    empty = jax.tree.map(np.zeros_like, batch)
    value, gradients = jax.jit(jax.value_and_grad(loss_of(model, empty)))(params)
    assert value == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def test_deviation_is_the_root_of_elu_plus_one():
    raw = np.array([-200.0, -40.0, -3.0, -1e-3, -0.0, 0.0, 1e-3, 2.0, 1e6])
    with jax.enable_x64(True):
        value, slope = jax.vmap(jax.value_and_grad(deviation))(jnp.asarray(raw))
    below = raw <= 0
    covariance = np.where(below, np.exp(np.where(below, raw, 0)), raw + 1)
    np.testing.assert_allclose(value, np.sqrt(covariance), rtol=1e-12)
    inner = np.where(below, covariance, 1)
    np.testing.assert_allclose(slope, inner / (2 * np.sqrt(covariance)), rtol=1e-12)
    slope = jax.vmap(jax.grad(deviation))(jnp.asarray([-1e30, -90.0, 1e30]))
    assert np.isfinite(slope).all()


# ---------------------------------------------------------------- ranking


@pytest.mark.parametrize("options", [{"num_blocks": 2}, {"propagate_mean": True}])
def test_padded_frames_give_the_points_of_the_definition(options):
    model, batch = make(**options)
    params = perturbed(model)
    frames = unpack(batch)[0]
    points = jax.jit(with_params(model, params).encode)(frames)
    mean, covariance = jax.jit(plain, static_argnums=1)(params, model.config, frames)
    expected = np.concatenate([mean, root(covariance)], axis=-1)
    assert points.shape == (len(frames), 10, 16)
    valid = frames != 0
    np.testing.assert_allclose(points[valid], expected[valid], atol=2e-5)
    empty = jax.jit(model.encode)(np.zeros((1, 10), np.int32))
    assert np.isfinite(empty).all()


def test_score_is_minus_the_distance_to_each_item():
    model, batch = make()
    params = perturbed(model)
    frames = unpack(batch)[0]
    scores = jax.jit(with_params(model, params).score)(frames)
    expected = plain_scores(params, model.config, frames)
    assert scores.shape == (len(frames), NUM_ITEMS)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_score_keeps_its_digits_far_from_the_origin():
    # Deviations of about 30 that differ by a hundredth: the squares of 8 numbers sum
    # to 8000, with a float32 grid of 5e-4 there, and distances are about 1e-2.
    model, batch = make()
    params = perturbed(model)
    noise = jax.random.normal(jax.random.key(0), (NUM_ITEMS + 1, 8))
    params["item_covariance"] = 1000 + noise
    params["item_mean"] = params["position_mean"][-1] + 0.01 * noise
    last = params["blocks"][0]["covariance_feed_forward"]["norm"]
    last.update(scale=jnp.ones(8), bias=jnp.full(8, 1000.0))
    params["input_norm"].update(scale=jnp.full(8, 0.01), bias=params["item_mean"][1])
    frames = unpack(batch)[0]
    scores = jax.jit(with_params(model, params).score)(frames)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: jnp.asarray(x, np.float64), params)
        expected = np.asarray(plain_scores(exact, model.config, frames))
    assert -5 < np.mean(expected) and np.std(expected) > 1e-3
    np.testing.assert_allclose(scores, expected, atol=2e-5)


def test_narrow_frames_score_as_those_of_the_whole_width():
    model, _ = make(max_len=20)
    model = with_params(model, perturbed(model))
    sequences = Sequences.from_lists([[3, 1, 4], [5], [9, 2, 6, 5, 3, 5, 8, 39]])
    narrow = model.inputs(sequences)
    assert narrow.shape == (3, 8)
    score = jax.jit(model.score)
    whole = score(left_pad(sequences, 20, 1))
    np.testing.assert_allclose(score(narrow), whole, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- parameters


def test_parameter_count_on_beauty():
    model = STOSA(12101, STOSAConfig(max_len=100), rngs=nnx.Rngs(0))
    _, params, rest = nnx.split(model, nnx.Param, ...)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_661_824
    assert not jax.tree.leaves(rest), "a model is its parameters alone"


def test_initial_distributions():
    model = STOSA(3000, STOSAConfig(num_blocks=2), rngs=nnx.Rngs(0))
    leaves = jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
    seen = set()
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        values = np.asarray(leaf).ravel()
        if name.endswith(("scale", "bias")):
            assert (values == name.endswith("scale")).all(), name
            continue
        result = stats.kstest(values, stats.norm(0.01, 0.02).cdf)
        assert result.pvalue > 1e-3, name
        # Cut off at two deviations, these would be none.
        beyond = np.mean(np.abs(values - 0.01) > 0.04)
        assert beyond == pytest.approx(0.0455, abs=5 * math.sqrt(0.0434 / values.size))
        assert values[0] not in seen, "drawn with a key of its own"
        seen.add(values[0])
    assert len(seen) == 4 + 2 * (4 + 2 * 2)
    assert model.item_covariance.shape == (3001, 64)
    assert stats.kstest(model.item_mean[0], stats.norm(0.01, 0.02).cdf).pvalue > 1e-3


# ---------------------------------------------------------------- dropout


def dropout_at(config, key):
    """Plain dropout at the rates of the configuration."""
    drop = drop_at(key)
    return lambda x, kind: drop(x, getattr(config, f"{kind}_dropout"))


def test_points_under_dropout_have_the_distribution_of_the_definition():
    # Three items in a frame of five. Masks differ between the two layouts, so what is
    # compared are means and mean squares of each number that comes out, and the means
    # of products of the streams: none of 120 may be off by 4.5 standard errors
    # (chance 8e-4).
    options: Any = dict(hidden_dropout=0.2, attention_dropout=0.5, propagate_mean=True)
    model, _ = make(max_len=5, **options)
    params = perturbed(model)
    model = with_params(model, params)
    frames = np.array([[0, 0, 3, 1, 4]])
    cells = frames[:, 2:], np.ones((1, 3), int), np.array([[2, 3, 4]])

    def padded(key):
        drop = dropout_at(model.config, key)
        mean, covariance = plain(params, model.config, frames, drop)
        return jnp.concatenate([mean, root(covariance)], axis=-1)[:, 2:]

    ours = draw(lambda key: model._features(*cells, key), 20_000)
    theirs = draw(padded, 20_000)
    for statistic in (
        lambda x: x,
        np.square,
        lambda x: x[..., :8] * x[..., 8:],
    ):
        a, b = statistic(ours), statistic(theirs)
        assert np.abs(deviations_between(a, b)).max() < 4.5


def test_dropout_is_a_function_of_the_key_and_off_without_one():
    model, batch = make(hidden_dropout=0.2, attention_dropout=0.5)
    loss = jax.jit(loss_of(model, batch))
    params = perturbed(model)
    first, second = (jax.random.key(seed) for seed in (0, 1))
    assert loss(params, first) == loss(params, first) != loss(params, second)
    undropped, _ = make()
    assert loss(params) == jax.jit(loss_of(undropped, batch))(params, first)


# ---------------------------------------------------------------- training


def test_a_run_learns_a_ring_of_items():
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 10, size=200)
    walks = [(rng.integers(60) + np.arange(length)) % 60 for length in lengths]
    users = np.repeat(np.arange(200), lengths)
    log = InteractionLog.from_columns(users, np.concatenate(walks), name="ring")
    recipe = Recipe(
        model="stosa",
        architecture=STOSAConfig(max_len=8, width=16, num_heads=2),
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.01),
        graph=GraphConfig(max_len=8),
        batch_size=64,
        epochs=20,
        eval_every=20,
    )
    result = Trainer(recipe, leave_one_out(log)).run(progress=False)
    assert result.losses[-1] < 0.5 * result.losses[0]
    # Ten of sixty items, guessed, have an NDCG@10 of 0.08.
    assert result.test["NDCG@10"] > 0.4


# ---------------------------------------------------------------- names and errors


@pytest.mark.parametrize(
    "option, message",
    [
        ({"max_len": 0}, "max_len is 0: it must be at least 1"),
        ({"width": 0}, "width is 0: it must be at least 1"),
        ({"num_heads": 0}, "num_heads is 0: it must be at least 1"),
        ({"num_blocks": -1}, "num_blocks is -1: it must be at least 1"),
        ({"num_heads": 3}, "num_heads is 3: it must be a divisor of width"),
        ({"hidden_dropout": 1.0}, r"hidden_dropout is 1.0: it must be in \[0, 1\)"),
        (
            {"attention_dropout": -0.1},
            r"attention_dropout is -0.1: it must be in \[0, 1\)",
        ),
        ({"pvn_weight": -1.0}, "pvn_weight is -1.0: it must be finite and at least 0"),
        (
            {"pvn_weight": math.nan},
            "pvn_weight is nan: it must be finite and at least 0",
        ),
    ],
)
def test_bad_hyper_parameters_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        STOSAConfig(**option)


def test_bad_items_are_refused():
    with pytest.raises(ValueError, match="num_items is 0: it must be at least 1"):
        STOSA(0, STOSAConfig(), rngs=nnx.Rngs(0))
    model, _ = make()
    with pytest.raises(ValueError, match=r"run from 0 to 40, the model knows 0\.\.39"):
        model.inputs(Sequences.from_lists([[0, 40]]))


def test_the_model_goes_by_its_name():
    assert MODELS["stosa"] is STOSA
    assert STOSA.Config is STOSAConfig
    # Two tables, each smoothed by itself.
    assert STOSA.smoothed == {"item-item": ("item_mean", "item_covariance")}
    assert STOSA.item_offset == 1


@pytest.mark.parametrize(
    "name, max_len, hidden, attention, pvn_weight, learning_rate",
    [
        ("stosa-beauty", 100, 0.2, 0.5, 0.005, 1e-3),
        ("stosa-toys", 100, 0.2, 0.6, 0.005, 1e-3),
        ("stosa-tools", 100, 0.3, 0.1, 0.005, 1e-3),
        ("stosa-ml-1m", 200, 0.1, 0.2, 0.001, 5e-3),
    ],
)
def test_recipes_of_the_paper(
    name, max_len, hidden, attention, pvn_weight, learning_rate
):
    assert find_recipe(name) == Recipe(
        model="stosa",
        architecture=STOSAConfig(
            max_len=max_len,
            width=64,
            num_heads=4,
            num_blocks=1,
            hidden_dropout=hidden,
            attention_dropout=attention,
            pvn_weight=pvn_weight,
            propagate_mean=False,
        ),
        optimizer=OptimizerConfig(
            name="sevo_adamw",
            learning_rate=learning_rate,
            weight_decay=0.1,
            b1=0.9,
            b2=0.999,
            beta=0.99,
            num_layers=3,
        ),
        graph=GraphConfig(max_len=max_len),
        batch_size=256,
        epochs=500,
        eval_every=5,
    )


def test_there_is_a_recipe_for_the_built_in_log():
    assert RECIPES["stosa-synthetic"].model == "stosa"
