"""The losses of next items against their definitions, in NumPy and float64."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import LOSSES, literal_losses
from scipy import stats

from sevo_jax.models import GRU4RecConfig, SASRecConfig, losses
from sevo_jax.models.losses import LossConfig, draw_others, next_item_loss

NUM_ITEMS = 11


def problem(num_targets=9, width=4) -> Any:
    """A table whose item 0 is row 1, inputs, targets, negatives, and which count."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(NUM_ITEMS + 1, width))
    inputs, targets = rng.integers(1, NUM_ITEMS + 1, (2, num_targets))
    negatives = targets % NUM_ITEMS + 1
    valid = np.arange(num_targets) % 4 != 1
    # As in a batch, whose empty cells are 0 in every field.
    return table, *(ids * valid for ids in (inputs, targets, negatives)), valid


def loss_of(config, arrays, rng=None):
    inputs, targets, negatives, valid = arrays[1:]
    options: Any = dict(item_offset=1, rng=rng)
    return lambda table: next_item_loss(
        config, table, inputs, targets, negatives, valid, jnp.tanh, **options
    )


def literal(config, arrays, table):
    _, inputs, targets, negatives, valid = arrays
    num = config.num_negatives or 1
    drawn = draw_others(targets, num, NUM_ITEMS + 1, 1, jax.random.key(0))
    each = literal_losses(
        config, np.tanh(table[inputs]), table, targets, negatives, np.asarray(drawn)
    )
    return each[valid].mean()


# In one block; a block for each target; and the last block not full.
@pytest.mark.parametrize(
    ("name", "gathered"),
    [*((name, 2**20) for name in LOSSES), ("sampled", 1), ("gbce", 100)],
)
def test_losses_and_gradients_are_those_defined(name, gathered, monkeypatch, x64):
    monkeypatch.setattr(losses, "_GATHERED", gathered)
    config, arrays = LossConfig(**LOSSES[name]), problem()
    table = arrays[0]
    loss = loss_of(config, arrays)
    value, gradient = jax.jit(jax.value_and_grad(loss))(table)
    assert value.dtype == np.float64
    np.testing.assert_allclose(value, literal(config, arrays, table), rtol=1e-12)
    step = 1e-5 * np.eye(table.size).reshape(-1, *table.shape)
    expected = [
        (literal(config, arrays, table + d) - literal(config, arrays, table - d)) / 2e-5
        for d in step
    ]
    np.testing.assert_allclose(gradient.ravel(), expected, rtol=1e-6, atol=1e-9)
    assert (gradient[0] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_large_scores_stay_finite_and_nothing_costs_nothing(name):
    config = LossConfig(**LOSSES[name])
    table, *batch = map(jnp.asarray, problem())

    @jax.jit
    @jax.value_and_grad
    def loss(table, batch):
        return 2 * loss_of(config, (table, *batch))(table)

    value, gradient = loss(1e4 * table, batch)
    assert np.isfinite(value) and np.isfinite(gradient).all() and np.any(gradient)
    value, gradient = loss(table, [jnp.zeros_like(each) for each in batch])
    assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize("item_offset", [1, 2])
def test_others_are_drawn_uniformly_for_each_target_anew(item_offset):
    rows = jnp.repeat(jnp.arange(5) + item_offset, 4000)
    key = jax.random.key(0)
    drawn = np.asarray(draw_others(rows, 2, 5 + item_offset, item_offset, key))
    for row in range(item_offset, 5 + item_offset):
        mine = drawn[np.asarray(rows) == row]
        counts = np.bincount(mine.ravel(), minlength=5 + item_offset)
        assert counts[row] == counts[:item_offset].sum() == 0
        others = np.delete(counts[item_offset:], row - item_offset)
        assert stats.chisquare(others).pvalue > 1e-3
        pairs = np.unique(mine, axis=0, return_counts=True)[1]
        assert len(pairs) == 16 and stats.chisquare(pairs).pvalue > 1e-3
    # An empty cell draws items too.
    assert draw_others(jnp.zeros(50, int), 9, 4, 1, key).min() >= 1


def test_the_key_of_the_step_draws():
    config, arrays = LossConfig(**LOSSES["sampled"]), problem()
    table = jnp.asarray(arrays[0], jnp.float32)
    loss = jax.jit(lambda rng: loss_of(config, arrays, rng)(table))
    values = [loss(seed and jax.random.key(seed)).item() for seed in (None, 1, 1, 2)]
    assert values[1] == values[2] and len(set(values)) == 3


def test_the_corrected_sum_has_the_mean_of_that_over_all_items(x64):
    arrays = problem()
    table, features = arrays[0], np.tanh(arrays[0][arrays[1]])
    targets, valid = arrays[2], arrays[4]
    scores = np.exp(features @ table[1:].T)
    rows = np.flatnonzero(valid)
    expected = scores[rows].sum(1) - scores[rows, targets[rows] - 1]
    drawn = draw_others(
        np.repeat(targets[rows], 20_000), 3, NUM_ITEMS + 1, 1, jax.random.key(1)
    )
    found = scores[np.repeat(rows, 20_000)[:, None], drawn - 1]
    # The weight that the correction gives to each of three.
    sums = (found.sum(1) * (NUM_ITEMS - 1) / 3).reshape(len(rows), -1)
    errors = sums.std(1) / math.sqrt(sums.shape[1])
    assert (np.abs(sums.mean(1) - expected) < 4 * errors).all()


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"loss": "softmax"},
            "loss is 'softmax': it must be one of bce, bpr, ce, sampled, gbce",
        ),
        (
            {"loss": "ce", "num_negatives": 8},
            "num_negatives is 8: it must be left out, as loss is ce",
        ),
        (
            {"loss": "sampled"},
            "num_negatives is None: it must be at least 1, as loss is sampled",
        ),
        (
            {"loss": "gbce", "num_negatives": 0, "calibration": 0.5},
            "num_negatives is 0: it must be at least 1, as loss is gbce",
        ),
        (
            {"loss": "gbce", "num_negatives": 8},
            r"calibration is None: it must be in \[0, 1\], as loss is gbce",
        ),
        (
            {"loss": "gbce", "num_negatives": 8, "calibration": 1.5},
            r"calibration is 1.5: it must be in \[0, 1\], as loss is gbce",
        ),
        (
            {"loss": "bpr", "log_q_correction": True},
            "log_q_correction is True: it must be left out, as loss is bpr",
        ),
        (
            {"loss": "sampled", "num_negatives": 2, "calibration": 0.5},
            "calibration is 0.5: it must be left out, as loss is sampled",
        ),
    ],
)
@pytest.mark.parametrize("kind", [SASRecConfig, GRU4RecConfig])
def test_bad_options_are_named(kind, options, message):
    with pytest.raises(ValueError, match=f"{kind.__name__}.{message}"):
        kind(**options)


def test_a_loss_needs_items_to_draw():
    with pytest.raises(ValueError, match="num_items is 1: it must be at least 2, as"):
        LossConfig(**LOSSES["sampled"]).check_num_items(1)
    with pytest.raises(ValueError, match="num_negatives is 4: it must be below the nu"):
        LossConfig(**LOSSES["gbce"]).check_num_items(4)
    LossConfig(**LOSSES["gbce"]).check_num_items(5)
    LossConfig(**LOSSES["sampled"]).check_num_items(2)


def test_the_defaults_are_the_published_losses():
    assert SASRecConfig().loss == "bce" and GRU4RecConfig().loss == "bpr"
