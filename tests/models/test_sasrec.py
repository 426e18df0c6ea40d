"""SASRec against the padded model of its definition."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import (
    LOSSES,
    assert_trees_close,
    deviations_between,
    draw,
    dropout_at,
    left_padded,
    literal_losses,
    loss_of,
    perturbed,
    random_train,
    unpack,
    with_params,
)
from scipy import stats

from sevo_jax.data import Sequences
from sevo_jax.models import MODELS
from sevo_jax.models.losses import draw_others
from sevo_jax.models.sasrec import (
    Block,
    SASRec,
    SASRecConfig,
    lay_out,
    sample_binomial,
)
from sevo_jax.samples.packing import PackedBatch, left_pad

NUM_ITEMS = 40


def linear(x, leaf):
    return x @ leaf["kernel"] + leaf["bias"]


def plain_attention(params, num_heads, queries, x, dropout):
    """Causal attention on frames `[users, S, width]`, whose pads are cells like all."""
    size, d = x.shape[1:]
    query, key, value = (
        y @ params["kernel_in"][:, cut] + params["bias_in"][cut]
        for y, cut in (
            (queries, slice(0, d)),
            (x, slice(d, 2 * d)),
            (x, slice(2 * d, None)),
        )
    )
    mixed = []
    for h in range(num_heads):
        cut = slice(h * d // num_heads, (h + 1) * d // num_heads)
        scores = query[..., cut] @ jnp.swapaxes(key[..., cut], 1, 2)
        scores = scores / math.sqrt(d // num_heads)
        scores = jnp.where(np.tri(size, dtype=bool), scores, -jnp.inf)
        mixed.append(dropout(jax.nn.softmax(scores)) @ value[..., cut])
    return linear(jnp.concatenate(mixed, -1), params["project_out"])


def norm(x, leaf):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-8) * leaf["scale"] + leaf["bias"]


def plain_block(params, num_heads, x, keep, dropout):
    queries = norm(x, params["attention_norm"])
    x = plain_attention(params["attention"], num_heads, queries, x, dropout) + x
    y = norm(x, params["feed_forward_norm"])
    hidden = jax.nn.relu(dropout(linear(y, params["expand"])))
    return (dropout(linear(hidden, params["contract"])) + y) * keep


def plain(params, config, frames, dropout):
    """The model on left-padded frames `[users, S]`, literally as it is defined.

    No packing, no key-padding mask: pads are zero cells which attend and are attended.
    `dropout(x)` is called where the definition drops.
    """
    keep = (frames != 0)[..., None]
    scaled = math.sqrt(config.width) * params["item_embedding"][frames]
    x = dropout(scaled + params["position_embedding"]) * keep
    for block in params["blocks"].values():
        x = plain_block(block, config.num_heads, x, keep, dropout)
    return norm(x, params["final_norm"])


def plain_loss(params, config, frames, dropout=lambda x: x):
    inputs, targets, negatives = frames
    features = plain(params, config, inputs, dropout)
    positive = (features * params["item_embedding"][targets]).sum(-1)
    negative = (features * params["item_embedding"][negatives]).sum(-1)
    valid = targets != 0
    return jax.nn.softplus(-positive).mean(where=valid) + jax.nn.softplus(
        negative
    ).mean(where=valid)


def make(num_heads=1, dropout=0.0, max_len=10, num_users=40, num_blocks=1, **loss):
    config = SASRecConfig(max_len, 8, num_heads, num_blocks, dropout, **loss)
    model = SASRec(NUM_ITEMS, config, rngs=nnx.Rngs(0))
    train = random_train(NUM_ITEMS, num_users, shortest=2, longest=max_len + 3)
    epoch = model.epochs(train, batch_size=num_users, seed=0)[0]
    return model, PackedBatch(*(field[0] for field in epoch))


@pytest.mark.parametrize(
    "num_heads, dtype, tolerance",
    [(1, np.float32, 1e-5), (1, np.float64, 1e-10), (2, np.float64, 1e-10)],
)
def test_packed_loss_and_gradients_equal_the_padded_ones(num_heads, dtype, tolerance):
    model, batch = make(num_heads, num_blocks=2)
    assert max(len(np.unique(row)) for row in batch.segments) > 3
    assert {0, 1, 9} <= set(batch.num_pads[batch.segments > 0])
    with jax.enable_x64(dtype is np.float64):
        params = perturbed(model, dtype=dtype)
        value, gradients = jax.jit(jax.value_and_grad(loss_of(model, batch)))(params)
        padded = jax.jit(jax.value_and_grad(plain_loss), static_argnums=1)
        expected, expected_gradients = padded(params, model.config, unpack(batch))
        assert value.dtype == dtype
        np.testing.assert_allclose(value, expected, rtol=tolerance)
        assert_trees_close(gradients, expected_gradients, tolerance)


@pytest.mark.parametrize("name", ["bpr", "ce", "corrected", "gbce"])
def test_any_loss_of_packed_rows_is_that_of_padded_frames(name, x64):
    model, batch = make(**LOSSES[name])
    config, params = model.config, perturbed(model, dtype=np.float64)
    # Where the items of each cell were drawn, as one field for each draw.
    cells, num = batch.targets.reshape(-1), config.num_negatives or 1
    drawn = draw_others(cells, num, NUM_ITEMS + 1, 1, jax.random.key(0))
    fields = np.moveaxis(np.asarray(drawn).reshape(*batch.targets.shape, num), 2, 0)
    frames = left_padded(batch.segments, 10, *fields)
    inputs, targets, negatives = unpack(batch)
    assert config.takes_negatives == negatives.any()
    valid = targets > 0

    def literal(params):
        features = plain(params, config, inputs, lambda x: x)
        return literal_losses(
            config,
            features[valid],
            params["item_embedding"],
            targets[valid],
            negatives[valid],
            np.moveaxis(frames, 0, -1)[valid],
            jnp,
        ).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss_of(model, batch)))(params)
    expected, expected_gradients = jax.jit(jax.value_and_grad(literal))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    assert_trees_close(gradients, expected_gradients, 1e-10)


def test_a_user_who_has_all_items_can_train_without_negatives():
    train = Sequences.from_lists([range(NUM_ITEMS), [0, 1, 2]])
    model, _ = make(loss="ce")
    assert not model.epochs(train, batch_size=2, seed=0)[0].negatives.any()
    model, _ = make()
    with pytest.raises(ValueError, match="no negative can be drawn"):
        model.epochs(train, batch_size=2, seed=0)


def test_pads_matter():
    # Without the pads among the keys the equality above would prove nothing of them.
    model, batch = make()
    params = perturbed(model)
    unseen = batch._replace(num_pads=np.zeros_like(batch.num_pads))
    losses = [jax.jit(loss_of(model, each))(params) for each in (batch, unseen)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_padded_frames_give_the_features_of_packed_rows():
    model, batch = make(num_heads=2)
    params = perturbed(model)
    model = with_params(model, params)
    frames = unpack(batch)[0]
    features = jax.jit(model.encode)(frames)
    expected = jax.jit(lambda params: plain(params, model.config, frames, lambda x: x))
    np.testing.assert_allclose(features, expected(params), atol=2e-5)
    # Pads too, up to the last norm's shift, and a user without any item.
    empty = jax.jit(model.encode)(np.zeros((1, 10), np.int32))
    shift = np.broadcast_to(params["final_norm"]["bias"], (1, 10, 8))
    np.testing.assert_allclose(empty, shift, atol=1e-6)


def test_score_is_the_last_feature_times_the_unscaled_items():
    model, batch = make()
    model = with_params(model, perturbed(model))
    frames = unpack(batch)[0]
    scores = jax.jit(model.score)(frames)
    table = np.asarray(model.item_embedding[...])
    expected = np.asarray(jax.jit(model.encode)(frames))[:, -1] @ table[1:].T
    assert scores.shape == (len(frames), NUM_ITEMS)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_inputs_are_padded_rows_of_the_table_and_checked():
    model, _ = make(max_len=3)
    sequences = Sequences.from_lists([[0, 1, 2, 3], [], [39]])
    assert model.inputs(sequences).tolist() == [[2, 3, 4], [0, 0, 0], [0, 0, 40]]
    np.testing.assert_array_equal(model.inputs(sequences), left_pad(sequences, 3, 1))
    assert model.inputs(Sequences.from_lists([[]])).tolist() == [[0, 0, 0]]
    with pytest.raises(ValueError, match=r"run from 0 to 40, the model knows 0\.\.39"):
        model.inputs(Sequences.from_lists([[0, 40]]))


def test_narrow_frames_score_as_those_of_the_whole_width():
    model, _ = make(max_len=20)
    model = with_params(model, perturbed(model))
    sequences = Sequences.from_lists([[3, 1, 4], [5], [9, 2, 6, 5, 3, 5, 8, 39]])
    narrow = model.inputs(sequences)
    assert narrow.shape == (3, 8)
    whole = model.score(left_pad(sequences, 20, 1))
    np.testing.assert_allclose(model.score(narrow), whole, rtol=1e-5, atol=1e-5)
    assert model.inputs(Sequences.from_lists([[1] * 9])).shape == (1, 16)
    assert model.inputs(Sequences.from_lists([[1] * 17])).shape == (1, 20)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_only_rows_of_the_batch_get_a_gradient(dropout):
    model, batch = make(dropout=dropout)
    rows = [*np.flatnonzero(batch.segments.any(axis=1))[:2], -1]
    batch = PackedBatch(*(field[rows] for field in batch))
    key = jax.random.key(0)
    gradients = jax.jit(jax.grad(loss_of(model, batch)))(perturbed(model), key)
    touched = np.flatnonzero(np.any(gradients["item_embedding"] != 0, axis=1))
    distinct = np.union1d(np.union1d(batch.inputs, batch.targets), batch.negatives)
    assert distinct[0] == 0 and 15 < len(distinct) < NUM_ITEMS
    if dropout == 0:
        np.testing.assert_array_equal(touched, distinct[1:])
    else:
        assert set(touched) <= set(distinct[1:])


def test_an_empty_batch_has_loss_and_gradients_zero():
    model, batch = make()
    batch = jax.tree.map(np.zeros_like, batch)
    loss_and_grad = jax.jit(jax.value_and_grad(loss_of(model, batch)))
    value, gradients = loss_and_grad(perturbed(model))
    assert value == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def test_large_scores_stay_finite():
    model, batch = make()
    loss_and_grad = jax.jit(jax.value_and_grad(loss_of(model, batch)))
    value, gradients = loss_and_grad(perturbed(model, scale=1e4))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_parameter_count_on_beauty():
    model = SASRec(12101, SASRecConfig(), rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 828_288
    assert not jax.tree.leaves(rest), "a model is its parameters alone"


def test_initial_distributions():
    model = SASRec(12101, SASRecConfig(num_blocks=1), rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model))
    block = params["blocks"][0]

    def assert_normal(leaf, deviation):
        values = np.asarray(leaf).ravel()
        result = stats.kstest(values, stats.norm(0, deviation).cdf)
        assert result.pvalue > 1e-3
        # Cut off at two deviations, these would be none.
        beyond = np.mean(np.abs(values) > 2 * deviation)
        assert beyond == pytest.approx(0.0455, abs=5 * math.sqrt(0.0434 / values.size))

    def assert_uniform(leaf, bound):
        values = np.asarray(leaf).ravel()
        assert np.abs(values).max() <= bound
        assert stats.kstest(values, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3

    assert_normal(params["item_embedding"], math.sqrt(2 / (12102 + 64)))
    assert_normal(params["item_embedding"][0], math.sqrt(2 / (12102 + 64)))
    assert_normal(params["position_embedding"], math.sqrt(2 / (50 + 64)))
    attention = block["attention"]
    assert_uniform(attention["kernel_in"], math.sqrt(6 / (4 * 64)))
    assert attention["kernel_in"].shape == (64, 192)
    assert_normal(attention["project_out"]["kernel"], math.sqrt(2 / (64 + 64)))
    for name in ("expand", "contract"):
        assert_uniform(block[name]["kernel"], 1 / 8)
        assert_uniform(block[name]["bias"], 1 / 8)
    for leaf in (attention["bias_in"], attention["project_out"]["bias"]):
        assert (leaf == 0).all()
    for norm in (
        block["attention_norm"],
        block["feed_forward_norm"],
        params["final_norm"],
    ):
        assert (norm["scale"] == 1).all() and (norm["bias"] == 0).all()


def test_blocks_start_apart_and_seeds_differ():
    kernels = [
        np.asarray(block.expand.kernel[...])
        for seed in (0, 0, 1)
        for block in SASRec(
            9, SASRecConfig(max_len=3, width=8), rngs=nnx.Rngs(seed)
        ).blocks
    ]
    same = [[np.array_equal(a, b) for b in kernels] for a in kernels]
    eye = np.eye(6, dtype=bool)
    eye[[0, 1, 2, 3], [2, 3, 0, 1]] = True
    np.testing.assert_array_equal(same, eye)


@pytest.mark.parametrize("probability", [0.7, 0.05, 1.0])
def test_sample_binomial_has_the_binomial_distribution(probability):
    num_draws = 20_000
    trials = np.array([0, 1, 2, 7, 50])
    num_trials = jnp.broadcast_to(trials[:, None], (5, num_draws))
    key = jax.random.key(0)
    draws = np.asarray(sample_binomial(num_trials, probability, 50, key))
    assert draws.shape == (5, num_draws)
    for n, drawn in zip(trials, draws, strict=True):
        expected = num_draws * stats.binom.pmf(np.arange(n + 1), n, probability)
        observed = np.bincount(drawn, minlength=n + 1)
        assert observed.size == n + 1
        # Cells of fewer than five expected draws go together, as the test requires.
        rare = expected < 5
        pairs = [*zip(observed[~rare], expected[~rare], strict=True)]
        if expected[rare].sum() > 0.1:
            pairs.append((observed[rare].sum(), expected[rare].sum()))
        chi_squared = sum((o - e) ** 2 / e for o, e in pairs)
        assert chi_squared <= stats.chi2.isf(1e-4, max(len(pairs) - 1, 1))


def test_a_block_under_dropout_has_the_distribution_of_the_padded_one():
    # Three items behind two pads. Masks differ between the two layouts, so what is
    # compared are means and mean squares of each number that comes out, over 8000
    # draws: none of 2 * 24 may be off by 4.5 standard errors (chance 3e-4).
    config = SASRecConfig(max_len=5, width=8, num_heads=2, dropout=0.4)
    block = Block(config, rngs=nnx.Rngs(0))
    params = perturbed(block)
    # The value of the pads is the bias: a large one, so that their draw shows.
    bias = params["attention"]["bias_in"]
    params["attention"]["bias_in"] = bias.at[16:].multiply(5)
    block = with_params(block, params)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 8)), jnp.float32)
    layout = lay_out(jnp.ones((1, 3), jnp.int32), jnp.full((1, 3), 2), jnp.float32)

    def padded(key):
        frame = jnp.pad(x, ((0, 0), (2, 0), (0, 0)))
        keep = jnp.arange(5)[:, None] >= 2
        return plain_block(params, 2, frame, keep, dropout_at(0.4, key))[:, 2:]

    ours = draw(lambda key: block(x[0], layout, key)[None], 8000)
    theirs = draw(padded, 8000)
    for power in (1, 2):
        assert np.abs(deviations_between(ours**power, theirs**power)).max() < 4.5


def test_loss_under_dropout_has_the_distribution_of_the_padded_one():
    # As above for the whole model: mean and mean square of the loss within 4 standard
    # errors, which are less than half a percent of them.
    model, batch = make(dropout=0.4)
    params = perturbed(model)
    loss, frames = loss_of(model, batch), unpack(batch)
    packed = draw(lambda key: loss(params, key), 3000)
    padded = draw(
        lambda key: plain_loss(params, model.config, frames, dropout_at(0.4, key)), 3000
    )
    for power in (1, 2):
        a, b = packed**power, padded**power
        assert math.sqrt((a.var() + b.var()) / len(a)) < 0.005 * b.mean()
        assert abs(deviations_between(a, b)) < 4


def test_dropout_is_a_function_of_the_key_and_off_without_one():
    model, batch = make(dropout=0.5)
    loss = jax.jit(loss_of(model, batch))
    params = perturbed(model)
    first, second = (jax.random.key(seed) for seed in (0, 1))
    assert loss(params, first) == loss(params, first) != loss(params, second)
    undropped, _ = make(dropout=0.0)
    assert loss(params) == jax.jit(loss_of(undropped, batch))(params, first)


def test_epochs_feed_a_scan():
    config = SASRecConfig(max_len=6, width=8, num_blocks=1)
    model = SASRec(NUM_ITEMS, config, rngs=nnx.Rngs(0))
    # Who had item i next has item i + 1: there is something to learn.
    train = Sequences.from_lists(
        np.arange(i, i + 2 + i % 8) % NUM_ITEMS for i in range(50)
    )
    epochs = model.epochs(train, batch_size=16, seed=3)
    graphdef, params = nnx.split(model)

    @jax.jit
    def run(params, epoch, keys):
        def step(params, batch_and_key):
            batch, key = batch_and_key
            value, gradients = jax.value_and_grad(
                lambda params: nnx.merge(graphdef, params).loss(batch, rng=key)
            )(params)
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradients), value

        return jax.lax.scan(step, params, (epoch, keys))

    means, losses = [], np.empty(0)
    for number in range(15):
        keys = jax.random.split(jax.random.key(number), epochs.num_steps)
        params, losses = run(params, epochs[number], keys)
        means.append(losses.mean())
    assert losses.shape == (4,)
    assert means[-1] < 0.9 * means[0]


@pytest.mark.parametrize(
    "option, message",
    [
        ({"max_len": 0}, "max_len is 0: it must be at least 1"),
        ({"width": 0}, "width is 0: it must be at least 1"),
        ({"num_heads": 0}, "num_heads is 0: it must be at least 1"),
        ({"num_blocks": -1}, "num_blocks is -1: it must be at least 1"),
        ({"num_heads": 3}, "num_heads is 3: it must be a divisor of width"),
        ({"dropout": 1.0}, r"dropout is 1.0: it must be in \[0, 1\)"),
        ({"dropout": -0.1}, r"dropout is -0.1: it must be in \[0, 1\)"),
    ],
)
def test_bad_hyper_parameters_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        SASRecConfig(**option)


def test_no_items_are_refused():
    with pytest.raises(ValueError, match="num_items is 0: it must be at least 1"):
        SASRec(0, SASRecConfig(), rngs=nnx.Rngs(0))


def test_the_model_goes_by_its_name():
    assert MODELS["sasrec"] is SASRec
    assert SASRec.Config is SASRecConfig
    assert SASRec.smoothed == {"item-item": ("item_embedding",)}
    assert SASRec.item_offset == 1
