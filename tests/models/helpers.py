"""What the tests of several models use."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sevo_jax.data import Sequences


def perturbed(model, scale=0.3, dtype=np.float32):
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
