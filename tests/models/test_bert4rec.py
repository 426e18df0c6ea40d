"""BERT4Rec against the padded model of its definition."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import (
    assert_trees_close,
    deviations_between,
    draw,
    dropout_at,
    left_padded,
    perturbed,
    random_train,
    with_params,
)
from scipy import special, stats

from sevo_jax.data import InteractionLog, Sequences, leave_one_out
from sevo_jax.models import MODELS
from sevo_jax.models.bert4rec import BERT4Rec, BERT4RecConfig
from sevo_jax.samples.masked import MaskedBatch, MaskedEpochs
from sevo_jax.samples.packing import left_pad
from sevo_jax.training import (
    GraphConfig,
    OptimizerConfig,
    Recipe,
    Trainer,
    find_recipe,
)

NUM_ITEMS = 40
MAX_LEN = 10


def linear(x, leaf):
    return x @ leaf["kernel"] + leaf["bias"]


def norm(x, leaf):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * leaf["scale"] + leaf["bias"]


def plain_attention(params, num_heads, x, is_pad, dropout):
    """Attention on frames `[users, S, width]` to both sides, pads excluded as keys."""
    d = x.shape[-1]
    query, key, value = jnp.split(x @ params["kernel_in"] + params["bias_in"], 3, -1)
    mixed = []
    for h in range(num_heads):
        cut = slice(h * d // num_heads, (h + 1) * d // num_heads)
        scores = query[..., cut] @ jnp.swapaxes(key[..., cut], 1, 2)
        scores = scores / math.sqrt(d // num_heads)
        scores = jnp.where(is_pad[:, None, :], -jnp.inf, scores)
        mixed.append(dropout(jax.nn.softmax(scores)) @ value[..., cut])
    return linear(jnp.concatenate(mixed, -1), params["project_out"])


def plain_block(params, num_heads, x, is_pad, dropout):
    mixed = plain_attention(params["attention"], num_heads, x, is_pad, dropout)
    x = norm(x + dropout(mixed), params["attention_norm"])
    hidden = linear(x, params["expand"])
    hidden = hidden * (1 + jax.scipy.special.erf(hidden / math.sqrt(2))) / 2
    y = dropout(linear(dropout(hidden), params["contract"]))
    return norm(x + y, params["feed_forward_norm"])


def plain(params, config, frames, dropout=lambda x: x):
    """Logits `[users, S, N + 2]` on left-padded frames, literally as it is defined.

    No packing: pads are cells as all, but no keys. `dropout(x)` is called where the
    definition drops.
    """
    x = params["item_embedding"][frames] + params["position_embedding"]
    x = dropout(norm(x, params["input_norm"]))
    for block in params["blocks"].values():
        x = plain_block(block, config.num_heads, x, frames == 0, dropout)
    return x @ params["output_embedding"].T + params["output_bias"]


def plain_loss(params, config, frames, labels, dropout=lambda x: x):
    log_probabilities = jax.nn.log_softmax(plain(params, config, frames, dropout))
    rows, cells = np.nonzero(labels)
    return -log_probabilities[rows, cells, labels[rows, cells]].mean()


def unpack(batch):
    """Left-padded frames of inputs and of labels of the users of a packed step."""
    hidden = np.zeros_like(batch.inputs)
    hidden.reshape(-1)[batch.masked[batch.labels > 0]] = batch.labels[batch.labels > 0]
    return left_padded(batch.segments, MAX_LEN, batch.inputs, hidden)


def make(num_heads=2, dropout=0.0, max_len=MAX_LEN, num_users=30, num_blocks=1):
    config = BERT4RecConfig(max_len, 8, num_heads, num_blocks, dropout, 0.4)
    model = BERT4Rec(NUM_ITEMS, config, rngs=nnx.Rngs(0))
    train = random_train(NUM_ITEMS, num_users, shortest=1, longest=max_len + 3)
    epoch = model.epochs(train, batch_size=num_users, seed=0)[0]
    return model, MaskedBatch(*(field[0] for field in epoch))


@pytest.fixture(scope="module")
def compiled():
    """A model with dropout, a batch, and `(params, batch, key) -> (loss, gradient)`."""
    model, batch = make(dropout=0.5)

    def loss(params, batch, key):
        return with_params(model, params).loss(batch, rng=key)

    return model, batch, jax.jit(jax.value_and_grad(loss))


@pytest.fixture(scope="module")
def beauty():
    """The model of a recipe of the paper, with the number of items in Beauty."""
    return BERT4Rec(12101, BERT4RecConfig(), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "num_blocks, dtype, tolerance", [(1, np.float32, 1e-5), (2, np.float64, 1e-10)]
)
def test_packed_loss_and_gradients_equal_the_padded_ones(num_blocks, dtype, tolerance):
    # Without a key there is no dropout, whatever its rate.
    model, batch = make(num_heads=4, num_blocks=num_blocks, dropout=0.3)
    assert max(len(np.unique(row)) for row in batch.segments) > 3
    frames, labels = unpack(batch)
    assert 0 < (labels > 0).sum() < (frames > 0).sum()
    with jax.enable_x64(dtype is np.float64):
        params = perturbed(model, dtype=dtype)
        packed = jax.jit(
            jax.value_and_grad(
                lambda params: with_params(model, params).loss(batch, rng=None)
            )
        )
        value, gradients = packed(params)
        padded = jax.jit(
            jax.value_and_grad(
                lambda params: plain_loss(params, model.config, frames, labels)
            )
        )
        expected, expected_gradients = padded(params)
        assert value.dtype == dtype
        np.testing.assert_allclose(value, expected, rtol=tolerance)
        assert_trees_close(gradients, expected_gradients, tolerance)


def test_score_is_the_literal_logit_of_the_mask_behind_the_last_items():
    model, _ = make(num_heads=4, num_blocks=2)
    params = perturbed(model)
    model = with_params(model, params)
    train = random_train(NUM_ITEMS, 20, shortest=1, longest=MAX_LEN + 3)
    scores = jax.jit(model.score)(model.inputs(train))
    frames = np.zeros((20, MAX_LEN), np.int32)
    for frame, items in zip(frames, train, strict=True):
        kept = items[-(MAX_LEN - 1) :] + 2
        frame[-1 - len(kept) : -1] = kept
    frames[:, -1] = 1
    expected = jax.jit(lambda params: plain(params, model.config, frames))(params)
    assert scores.shape == (20, NUM_ITEMS)
    np.testing.assert_allclose(scores, expected[:, -1, 2:], rtol=1e-5, atol=1e-5)


def test_inputs_end_with_the_mask_and_are_checked():
    model, _ = make(max_len=3)
    sequences = Sequences.from_lists([[0, 1, 2, 3], [], [39]])
    assert model.inputs(sequences).tolist() == [[4, 5, 1], [0, 0, 1], [0, 41, 1]]
    assert model.inputs(sequences).dtype == np.int32
    with pytest.raises(ValueError, match=r"run from 0 to 40, the model knows 0\.\.39"):
        model.inputs(Sequences.from_lists([[0, 40]]))
    with pytest.raises(ValueError, match=r"run from -1 to 3, the model knows 0\.\.39"):
        model.epochs(Sequences.from_lists([[3, -1]]), batch_size=1, seed=0)


def test_narrow_frames_score_as_those_of_the_whole_width():
    model, _ = make(max_len=20)
    model = with_params(model, perturbed(model))
    sequences = Sequences.from_lists([[3, 1, 4], [], [9, 2, 6, 5, 3, 5, 8]])
    narrow = model.inputs(sequences)
    assert narrow.shape == (3, 8)
    whole = left_pad(sequences.append(np.zeros(3, np.int32)), 20, 2)
    whole[:, -1] = 1
    score = jax.jit(model.score)
    np.testing.assert_allclose(score(narrow), score(whole), rtol=1e-5, atol=1e-5)
    widths = [
        model.inputs(Sequences.from_lists([[1] * n])).shape for n in (8, 15, 16, 30)
    ]
    assert widths == [(1, 16), (1, 16), (1, 20), (1, 20)]


def test_only_what_stands_beside_something_hidden_gets_a_gradient(compiled):
    model, batch, loss_and_grad = compiled
    assert not batch.segments.all(), "some cells are empty"
    _, gradients = loss_and_grad(perturbed(model), batch, jax.random.key(0))
    touched = np.flatnonzero(np.any(gradients["item_embedding"] != 0, axis=1))
    frames, labels = unpack(batch)
    hiding = np.flatnonzero(labels.any(axis=1))
    assert 0 < len(hiding) < len(labels), "some users have nothing hidden"
    distinct = np.unique(frames[hiding])
    assert distinct[:2].tolist() == [0, 1] and 15 < len(distinct) < NUM_ITEMS + 2
    # The mask too, but not the padding.
    np.testing.assert_array_equal(touched, distinct[1:])
    # Every class is in every softmax.
    assert np.any(gradients["output_embedding"] != 0, axis=1).all()
    assert (gradients["output_bias"] != 0).all()


def test_what_stands_in_an_empty_cell_makes_no_difference(compiled):
    model, batch, loss_and_grad = compiled
    params, key = perturbed(model), jax.random.key(0)
    filled = batch._replace(inputs=np.where(batch.segments == 0, 5, batch.inputs))
    same = jax.tree.map(
        np.array_equal,
        loss_and_grad(params, filled, key),
        loss_and_grad(params, batch, key),
    )
    assert all(jax.tree.leaves(same))


def test_a_batch_without_a_masked_cell_has_loss_and_gradients_zero(compiled):
    model, batch, loss_and_grad = compiled
    nothing = batch._replace(
        masked=np.zeros_like(batch.masked), labels=np.zeros_like(batch.labels)
    )
    for each in (nothing, jax.tree.map(np.zeros_like, batch)):
        value, gradients = loss_and_grad(perturbed(model), each, jax.random.key(0))
        assert value == 0
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def test_large_scores_stay_finite(compiled):
    model, batch, loss_and_grad = compiled
    params = perturbed(model, scale=1e4)
    value, gradients = loss_and_grad(params, batch, jax.random.key(0))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_dropout_is_a_function_of_the_key(compiled):
    model, batch, loss_and_grad = compiled
    losses = [
        float(loss_and_grad(perturbed(model), batch, jax.random.key(seed))[0])
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_parameter_count_on_beauty(beauty):
    graphdef, params, rest = nnx.split(beauty, nnx.Param, ...)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_664_583
    assert not jax.tree.leaves(rest), "a model is its parameters alone"


def test_initial_distributions(beauty):
    params = nnx.to_pure_dict(nnx.state(beauty))
    blocks = params["blocks"]

    def assert_clipped_normal(leaf, deviation):
        values = np.asarray(leaf).ravel()
        assert np.abs(values).max() == np.float32(0.02)
        inside = np.abs(values) < np.float32(0.02)
        chance = special.erf(0.02 / deviation / math.sqrt(2))
        error = math.sqrt(chance * (1 - chance) / values.size)
        assert abs(inside.mean() - chance) < 5 * error
        bound = 0.02 / deviation
        within = stats.truncnorm(-bound, bound, scale=deviation)
        assert stats.kstest(values[inside], within.cdf).pvalue > 1e-3

    for name in ("item_embedding", "output_embedding"):
        assert params[name].shape == (12103, 64)
        assert_clipped_normal(params[name], math.sqrt(2 / (12103 + 64)))
        # Padding and mask as all.
        assert (params[name][:2] != 0).all()
    assert not np.array_equal(params["item_embedding"], params["output_embedding"])
    assert_clipped_normal(params["position_embedding"], math.sqrt(2 / (50 + 64)))
    for block in blocks.values():
        attention = block["attention"]
        assert_clipped_normal(
            attention["project_out"]["kernel"], math.sqrt(2 / (64 + 64))
        )
        for name, shape in (("expand", (64, 256)), ("contract", (256, 64))):
            assert block[name]["kernel"].shape == shape
            assert_clipped_normal(block[name]["kernel"], math.sqrt(2 / (64 + 256)))
        kernel = np.asarray(attention["kernel_in"])
        bound = math.sqrt(6 / (4 * 64))
        assert kernel.shape == (64, 192) and np.abs(kernel).max() <= bound
        uniform = stats.uniform(-bound, 2 * bound)
        assert stats.kstest(kernel.ravel(), uniform.cdf).pvalue > 1e-3
        for bias in (
            attention["bias_in"],
            attention["project_out"]["bias"],
            block["expand"]["bias"],
            block["contract"]["bias"],
        ):
            assert (bias == 0).all()
        for leaf in (block["attention_norm"], block["feed_forward_norm"]):
            assert (leaf["scale"] == 1).all() and (leaf["bias"] == 0).all()
    assert (params["output_bias"] == 0).all()
    assert (params["input_norm"]["scale"] == 1).all()
    # The in-projections start alike, all else apart.
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), blocks[0], blocks[1])
    assert same["attention"]["kernel_in"]
    assert not same["attention"]["project_out"]["kernel"]
    assert not same["expand"]["kernel"] and not same["contract"]["kernel"]


def test_features_under_dropout_have_the_distribution_of_the_padded_ones():
    # One user behind seven pads; masks differ between the two layouts, so what is
    # compared are means and mean squares of the logits of three cells: none of
    # 2 * 3 * 42 off by 4.8 standard errors (chance 4e-4).
    model, _ = make(dropout=0.4)
    params = perturbed(model)
    model = with_params(model, params)
    frames = np.zeros((1, MAX_LEN), np.int32)
    frames[0, -3:] = 7, 1, 9

    def packed(key):
        cells = jnp.arange(3)[None]
        features = model._features(
            frames[:, -3:], jnp.ones_like(cells), MAX_LEN - 3 + cells, key
        )
        return features @ params["output_embedding"].T + params["output_bias"]

    def padded(key):
        return plain(params, model.config, frames, dropout_at(0.4, key))[:, -3:]

    ours, theirs = draw(packed, 4000), draw(padded, 4000)
    for power in (1, 2):
        assert np.abs(deviations_between(ours**power, theirs**power)).max() < 4.8


def test_training_learns():
    recipe = Recipe(
        model="bert4rec",
        architecture=BERT4RecConfig(max_len=12, width=16, num_blocks=1),
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.01, b2=0.95),
        graph=GraphConfig(max_len=12),
        batch_size=64,
        epochs=20,
        eval_every=10,
    )
    # Users walk a ring of 40 items from somewhere on it.
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(300), 8)
    items = (rng.integers(40, size=300)[:, None] + np.arange(8)) % 40
    log = InteractionLog.from_columns(users, items.ravel(), name="ring")
    result = Trainer(recipe, leave_one_out(log)).run(progress=False)
    assert result.losses[-1] < 0.7 * result.losses[0]
    assert result.losses[0] < 1.2 * math.log(42)
    # By chance, 10 of the 33 items that a user has not seen.
    assert result.test["HR@10"] > 0.6
    assert result.best_epoch > 0


@pytest.mark.parametrize(
    "name, learning_rate, dropout, mask_prob, b2, max_len, graph_max_len",
    [
        ("beauty", 5e-4, 0.2, 0.5, 0.95, 50, 50),
        ("toys", 1e-3, 0.1, 0.5, 0.95, 50, 50),
        ("tools", 1e-3, 0.3, 0.4, 0.95, 50, 50),
        ("ml-1m", 1e-3, 0.1, 0.2, 0.999, 200, 10),
    ],
)
def test_recipes_of_the_paper(
    name, learning_rate, dropout, mask_prob, b2, max_len, graph_max_len
):
    assert find_recipe(f"bert4rec-{name}") == Recipe(
        model="bert4rec",
        architecture=BERT4RecConfig(
            max_len=max_len,
            width=64,
            num_heads=4,
            num_blocks=2,
            dropout=dropout,
            mask_prob=mask_prob,
        ),
        optimizer=OptimizerConfig(
            name="sevo_adamw",
            learning_rate=learning_rate,
            weight_decay=0.1,
            b1=0.9,
            b2=b2,
            beta=0.99,
            num_layers=3,
        ),
        graph=GraphConfig(max_len=graph_max_len, keep="last", max_hop=1),
        batch_size=256,
        epochs=500,
        eval_every=5,
    )


@pytest.mark.parametrize(
    "option, message",
    [
        ({"max_len": 1}, "max_len is 1: it must be at least 2"),
        ({"width": 0}, "width is 0: it must be at least 1"),
        ({"num_heads": 0}, "num_heads is 0: it must be at least 1"),
        ({"num_blocks": -1}, "num_blocks is -1: it must be at least 1"),
        ({"num_heads": 3}, "num_heads is 3: it must be a divisor of width"),
        ({"dropout": 1.0}, r"dropout is 1.0: it must be in \[0, 1\)"),
        ({"dropout": -0.1}, r"dropout is -0.1: it must be in \[0, 1\)"),
        ({"mask_prob": 0.0}, r"mask_prob is 0.0: it must be in \(0, 1\]"),
        ({"sampling": "user"}, "sampling is 'user': it must be one of users, loaders"),
        ({"mask_prob": 1.1}, r"mask_prob is 1.1: it must be in \(0, 1\]"),
    ],
)
def test_bad_hyper_parameters_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        BERT4RecConfig(**option)


@pytest.mark.parametrize("sampling", ["users", "loaders"])
def test_training_draws_users_as_the_configuration_says(sampling):
    config = BERT4RecConfig(MAX_LEN, 8, 2, 1, sampling=sampling)
    model = BERT4Rec(NUM_ITEMS, config, rngs=nnx.Rngs(0))
    train = random_train(NUM_ITEMS, 30, shortest=1, longest=MAX_LEN)
    epoch = model.epochs(train, batch_size=10, seed=1)[2]
    expected = MaskedEpochs(
        train, max_len=MAX_LEN, batch_size=10, mask_prob=0.5, seed=1, sampling=sampling
    )[2]
    for field, other in zip(epoch, expected, strict=True):
        np.testing.assert_array_equal(field, other)
    # Once each, in three steps; or four loaders with a step of 8 or 7 each.
    assert len(epoch.inputs) == {"users": 3, "loaders": 4}[sampling]


def test_no_items_are_refused():
    with pytest.raises(ValueError, match="num_items is 0: it must be at least 1"):
        BERT4Rec(0, BERT4RecConfig(), rngs=nnx.Rngs(0))


def test_the_model_goes_by_its_name():
    assert MODELS["bert4rec"] is BERT4Rec
    assert BERT4Rec.Config is BERT4RecConfig
    assert BERT4Rec.smoothed == {"item-item": ("item_embedding", "output_embedding")}
    assert BERT4Rec.item_offset == 2
