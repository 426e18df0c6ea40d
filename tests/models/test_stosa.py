"""STOSA against the padded model of its definition."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from sevo_jax.data import InteractionLog, Sequences, leave_one_out
from sevo_jax.data.packing import PackedBatch, left_pad
from sevo_jax.models import MODELS
from sevo_jax.models.stosa import STOSA, Block, STOSAConfig, deviation
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
            qm[:, :, None, cut], qc[:, :, None, cut], km[:, None, :, cut], kc[:, None, :, cut]
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


def unpack(batch):
    """Frames `[inputs, targets, negatives]` of the users of a packed step."""
    users = [
        (row, segment)
        for row, segments in enumerate(batch.segments)
        for segment in np.unique(segments[segments > 0])
    ]
    frames = np.zeros((3, len(users), batch.inputs.shape[1]), np.int32)
    for user, (row, segment) in enumerate(users):
        cells = batch.segments[row] == segment
        for frame, field in zip(frames, batch, strict=False):
            frame[user, -cells.sum() :] = field[row][cells]
    return frames


def random_train(rng, num_users, longest):
    """Mostly short sequences, one of each length up to `longest` among them."""
    lengths = np.minimum(1 + rng.geometric(0.3, num_users), longest)
    lengths[: longest - 1] = np.arange(2, longest + 1)
    return Sequences.from_lists(
        rng.choice(NUM_ITEMS, length, replace=False) for length in lengths
    )


def perturbed(model, scale=0.3, dtype=np.float32):
    """Pure parameters moved off the initial ones, so that no bias is zero."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: jnp.asarray(x + scale * rng.normal(size=x.shape), dtype),
        nnx.to_pure_dict(nnx.state(model)),
    )


def with_params(model, params):
    graphdef, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def make(*, max_len=10, num_users=40, **options):
    """A small model, without dropout unless asked, and one step of all users."""
    defaults = dict(width=8, num_heads=2, hidden_dropout=0.0, attention_dropout=0.0)
    # A weight that shows: at the usual one its part is below the tolerance.
    config = STOSAConfig(max_len, **{**defaults, "pvn_weight": 0.7, **options})
    model = STOSA(NUM_ITEMS, config, rngs=nnx.Rngs(0))
    train = random_train(np.random.default_rng(0), num_users, longest=max_len + 3)
    epoch = model.epochs(train, batch_size=num_users, seed=0)[0]
    return model, PackedBatch(*(field[0] for field in epoch))


def loss_of(model, batch):
    """The packed loss of pure parameters and a key."""
    return lambda params, key=None: with_params(model, params).loss(batch, rng=key)


def assert_trees_close(actual, expected, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, atol=tolerance * np.abs(b).max(), rtol=tolerance
        ),
        actual,
        expected,
    )


def at_the_bound(params):
    """Parameters with some covariances far below 1e-24, and so roots at the bound."""
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
        ({}, np.float64, 1e-10),
        ({"propagate_mean": True, "num_blocks": 2}, np.float64, 1e-10),
        ({"num_blocks": 2, "num_heads": 1}, np.float64, 1e-10),
    ],
)
def test_packed_loss_and_gradients_equal_the_padded_ones(options, dtype, tolerance):
    model, batch = make(**options)
    assert max(len(np.unique(row)) for row in batch.segments) > 3
    assert {0, 1, 9} <= set(batch.num_pads[batch.segments > 0])
    with jax.enable_x64(dtype is np.float64):
        value_and_grad = jax.jit(jax.value_and_grad(loss_of(model, batch)))
        padded = jax.jit(jax.value_and_grad(plain_loss), static_argnums=1)
        start = perturbed(model, dtype=dtype)
        for params in (start, at_the_bound(start)):
            value, gradients = value_and_grad(params)
            expected, expected_gradients = padded(params, model.config, unpack(batch))
            assert value.dtype == dtype
            np.testing.assert_allclose(value, expected, rtol=tolerance)
            assert_trees_close(gradients, expected_gradients, tolerance)
