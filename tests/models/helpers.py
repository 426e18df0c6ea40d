"""What the tests of several models use."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sevo_jax.data import Sequences


def perturbed(model, scale=0.3, dtype: Any = np.float32):
    """Pure parameters moved off the initial ones, so that no bias is zero."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: jnp.asarray(x + scale * rng.normal(size=x.shape), dtype),
        nnx.to_pure_dict(nnx.state(model)),
    )


def with_params(model, params):
    """The model with those pure parameters."""
    graphdef, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def loss_of(model, batch):
    """The loss as a function of pure parameters and a key."""
    return lambda params, key=None: with_params(model, params).loss(batch, rng=key)


def random_train(num_items, num_users, *, shortest, longest):
    """Mostly short sequences, one of each length among them."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(shortest - 1 + rng.geometric(0.3, num_users), longest)
    lengths[: longest - shortest + 1] = np.arange(shortest, longest + 1)
    return Sequences.from_lists(
        rng.choice(num_items, length, replace=False) for length in lengths
    )


def left_padded(segments, size, *fields):
    """Left-padded frames `[users, size]` of the users of packed rows, a field each."""
    users = [
        (row, segment)
        for row, here in enumerate(segments)
        for segment in np.unique(here[here > 0])
    ]
    frames = np.zeros((len(fields), len(users), size), np.int32)
    for user, (row, segment) in enumerate(users):
        cells = segments[row] == segment
        for frame, field in zip(frames, fields, strict=True):
            frame[user, -cells.sum() :] = field[row][cells]
    return frames


def unpack(batch):
    """Frames `[inputs, targets, negatives]` of the users of a packed step."""
    fields = batch.inputs, batch.targets, batch.negatives
    return left_padded(batch.segments, batch.inputs.shape[1], *fields)


def literal_losses(config, features, table, targets, negatives, drawn, xp=np):
    """The loss of each target as it is defined, from the scores of all items.

    Args:
      config: which loss.
      features: one a target.
      table: item `i` in row `i + 1`.
      targets: rows of the table.
      negatives: one a target, for bce and bpr.
      drawn: some a target, for sampled and gbce.
      xp: NumPy, or JAX's for gradients.
    """
    scores = features @ table.T
    own, negative = (
        xp.take_along_axis(scores, rows[:, None], 1)[:, 0]
        for rows in (targets, negatives)
    )
    others = xp.take_along_axis(scores, drawn, 1)

    def sigmoid(x):
        return 1 / (1 + xp.exp(-x))

    num_items, k = len(table) - 1, drawn.shape[1]
    if config.loss == "bce":
        return -xp.log(sigmoid(own)) - xp.log(1 - sigmoid(negative))
    if config.loss == "bpr":
        return -xp.log(sigmoid(own - negative))
    if config.loss == "ce":
        return -xp.log(xp.exp(own) / xp.exp(scores[:, 1:]).sum(1))
    if config.loss == "sampled":
        share = k / (num_items - 1) if config.log_q_correction else 1.0
        return -xp.log(xp.exp(own) / (xp.exp(own) + xp.exp(others).sum(1) / share))
    rate = k / (num_items - 1)
    beta = rate * (config.calibration * (1 - 1 / rate) + 1 / rate)
    positive = beta * xp.log(sigmoid(own))
    return -(positive + xp.log(1 - sigmoid(others)).sum(1)) / (k + 1)


LOSSES = {
    "bce": dict(loss="bce"),
    "bpr": dict(loss="bpr"),
    "ce": dict(loss="ce"),
    "sampled": dict(loss="sampled", num_negatives=5),
    "corrected": dict(loss="sampled", num_negatives=3, log_q_correction=True),
    "gbce": dict(loss="gbce", num_negatives=4, calibration=0.75),
    "uncalibrated": dict(loss="gbce", num_negatives=1, calibration=0.0),
}
"""Every loss, by what it is called in the names of tests."""


def assert_trees_close(actual, expected, tolerance):
    """Each leaf within `tolerance`, relative to its own size."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, atol=tolerance * np.abs(b).max(), rtol=tolerance
        ),
        actual,
        expected,
    )


# ---------------------------------------------------------------- dropout


def drop_at(key):
    """Plain dropout of `(x, rate)`, a fresh key each time it is called."""
    keys = iter(jax.random.split(key, 20))

    def drop(x, rate):
        kept = jax.random.bernoulli(next(keys), 1 - rate, x.shape)
        return jnp.where(kept, x / (1 - rate), 0)

    return drop


def dropout_at(rate, key):
    """Plain dropout at one rate, a fresh key each time it is called."""
    drop = drop_at(key)
    return lambda x: drop(x, rate)


def draw(function, num_draws):
    """Float64 values of `function(key)` for many keys."""
    keys = jax.random.split(jax.random.key(0), num_draws)
    values = jax.jit(lambda keys: jax.lax.map(function, keys, batch_size=100))(keys)
    return np.asarray(values, np.float64)


def deviations_between(a, b):
    """Difference of two samples' means, in standard errors."""
    return (a.mean(0) - b.mean(0)) / np.sqrt((a.var(0) + b.var(0)) / len(a))
