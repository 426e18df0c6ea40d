"""BSARec against its definition: complex transforms, full frames in every block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_trees_close, loss_of, perturbed, random_train, with_params
from scipy import special, stats

from sevo_jax.models import MODELS, BSARec, BSARecConfig, layers
from sevo_jax.models.bsarec import low_pass
from sevo_jax.samples.frames import FrameBatch

NUM_ITEMS = 25
MAX_LEN = 7


def linear(x, leaf):
    return x @ leaf["kernel"] + leaf["bias"]


def norm(x, leaf):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-12) * leaf["scale"] + leaf["bias"]


def plain_low(x, cutoff):
    kept = np.arange(x.shape[1] // 2 + 1) < cutoff // 2 + 1
    transformed = jnp.fft.rfft(x, axis=1, norm="ortho") * kept[:, None]
    return jnp.fft.irfft(transformed, n=x.shape[1], axis=1, norm="ortho")


def plain_attention(params, num_heads, x, frames, drop):
    size, d = x.shape[1:]
    query, key, value = jnp.split(x @ params["kernel_in"] + params["bias_in"], 3, -1)
    seen = (frames > 0)[:, None, :] & np.tri(size, dtype=bool)
    mask = np.where(seen, 0.0, -1e4)
    mixed = []
    for h in range(num_heads):
        cut = slice(h * d // num_heads, (h + 1) * d // num_heads)
        scores = query[..., cut] @ jnp.swapaxes(key[..., cut], 1, 2)
        weights = jax.nn.softmax(scores / np.sqrt(d // num_heads) + mask)
        mixed.append(drop(weights) @ value[..., cut])
    return linear(jnp.concatenate(mixed, -1), params["project_out"])


def plain(params, config, frames, drop=lambda x, rate: x):
    """Features of left-padded frames, literally as they are defined."""

    def hide(x):
        return drop(x, config.hidden_dropout)

    def thin(x):
        return drop(x, config.attention_dropout)

    # The padding row gets no gradient.
    table = params["item_embedding"]
    table = table.at[0].set(jax.lax.stop_gradient(table[0]))
    x = hide(norm(table[frames] + params["position_embedding"], params["input_norm"]))
    for block in params["blocks"].values():
        low = plain_low(x, config.cutoff)
        filtered = hide(low + block["high_weight"] ** 2 * (x - low)) + x
        attention = block["attention"]
        mixed = plain_attention(attention, config.num_heads, x, frames, thin)
        m = config.alpha * norm(filtered, block["filter_norm"])
        m += (1 - config.alpha) * norm(hide(mixed) + x, block["attention_norm"])
        inner = linear(m, block["expand"])
        inner = inner * (1 + jax.scipy.special.erf(inner / np.sqrt(2))) / 2
        y = hide(linear(inner, block["contract"])) + m
        x = norm(y, block["feed_forward_norm"])
    return x[:, -1]


def plain_loss(params, config, frames, targets, drop=lambda x, rate: x):
    logits = plain(params, config, frames, drop) @ params["item_embedding"][1:].T
    own = logits[np.arange(len(targets)), targets - 1]
    return (jax.nn.logsumexp(logits, axis=1) - own).mean()


def make(num_heads=1, max_len=MAX_LEN, **options):
    config = BSARecConfig(max_len, 4, num_heads, **options)
    model = BSARec(NUM_ITEMS, config, rngs=nnx.Rngs(0))
    train = random_train(NUM_ITEMS, 12, shortest=2, longest=max_len + 3)
    epoch = model.epochs(train, batch_size=60, seed=0)[0]
    return model, train, FrameBatch(*(field[0] for field in epoch))


@pytest.mark.parametrize("num_heads, max_len, cutoff", [(1, 7, 3), (2, 8, 5)])
def test_loss_and_gradients_are_those_defined(num_heads, max_len, cutoff, x64):
    model, _, batch = make(num_heads, max_len, cutoff=cutoff)
    valid = batch.targets > 0
    # Every number of pads that there is, and what fills the batch up.
    assert set((batch.inputs[valid] == 0).sum(1)) == set(range(1, max_len))
    assert not valid.all()
    params = perturbed(model, dtype=np.float64)
    value, gradients = jax.jit(jax.value_and_grad(loss_of(model, batch)))(params)
    samples = batch.inputs[valid], batch.targets[valid]
    literal = jax.value_and_grad(lambda p: plain_loss(p, model.config, *samples))
    expected, expected_gradients = jax.jit(literal)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    assert_trees_close(gradients, expected_gradients, 1e-9)
    assert (gradients["item_embedding"][0] == 0).all()


def test_the_numbers_of_the_authors_module(x64):
    """User vector and scores of their PyTorch module with these parameters."""

    def fill(tag, *shape, base=0.0, layer=0):
        k = np.arange(np.prod(shape))
        return (base + 0.3 * np.sin(0.7 * k + tag + 5 * layer)).reshape(shape)

    def norm_of(tag, layer=0):
        scale = fill(tag, 4, base=1.0, layer=layer)
        return {"scale": scale, "bias": fill(tag + 1, 4, layer=layer)}

    def linear_of(tag, size_in, size_out, layer):
        kernel = fill(tag, size_out, size_in, layer=layer).T
        return {"kernel": kernel, "bias": fill(tag + 1, size_out, layer=layer)}

    def block(layer):
        stacked = [linear_of(tag, 4, 4, layer) for tag in (8, 10, 12)]
        return {
            "high_weight": fill(5, 4, layer=layer),
            "filter_norm": norm_of(6, layer),
            "attention": {
                "kernel_in": np.concatenate([each["kernel"] for each in stacked], 1),
                "bias_in": np.concatenate([each["bias"] for each in stacked]),
                "project_out": linear_of(14, 4, 4, layer),
            },
            "attention_norm": norm_of(16, layer),
            "expand": linear_of(18, 4, 16, layer),
            "contract": linear_of(20, 16, 4, layer),
            "feed_forward_norm": norm_of(22, layer),
        }

    params = {
        "item_embedding": fill(1, 6, 4),
        "position_embedding": fill(2, 6, 4),
        "input_norm": norm_of(3),
        "blocks": {0: block(0), 1: block(1)},
    }
    config = BSARecConfig(6, 4, num_heads=2, num_blocks=2, alpha=0.7, cutoff=3)
    model = BSARec(5, config, rngs=nnx.Rngs(0))
    model = with_params(model, jax.tree.map(jnp.asarray, params))
    frame = jnp.array([[0, 0, 3, 1, 5, 2]])
    np.testing.assert_allclose(
        model.encode(frame)[0],
        [1.29954298, 0.80706065, -0.45281513, -1.50475116],
        atol=1e-8,
    )
    np.testing.assert_allclose(
        model.score(frame)[0],
        [-0.18642862, -0.10631543, 0.38677417, -0.6225391, 0.78636633],
        atol=1e-8,
    )


def test_scores_are_of_the_full_frame():
    model, train, _ = make()
    params = perturbed(model)
    model = with_params(model, params)
    inputs = model.inputs(train)
    assert inputs.shape == (len(train), MAX_LEN)
    assert {0, MAX_LEN - 2} <= set((inputs == 0).sum(1))
    expected = plain(params, model.config, inputs) @ params["item_embedding"][1:].T
    np.testing.assert_allclose(model.score(inputs), expected, rtol=1e-4, atol=1e-4)


def test_pads_take_part():
    model, _, batch = make()
    params = perturbed(model)
    moved = params | {"item_embedding": params["item_embedding"].at[0, 0].add(1.0)}
    loss = jax.jit(loss_of(model, batch))
    values = [loss(each) for each in (params, moved)]
    assert abs(values[0] - values[1]) > 1e-3


def test_dropout_is_where_it_is_defined(monkeypatch):
    """With what is dropped scaled by its rate, in the model and in its definition."""
    rates = []

    def scaled(x, rate, key=None):
        rates.append((rate, key))
        return x * (1 + rate)

    model, _, batch = make(num_blocks=1, hidden_dropout=0.5, attention_dropout=0.25)
    params, valid = perturbed(model), batch.targets > 0
    samples = batch.inputs[valid], batch.targets[valid]
    expected = plain_loss(params, model.config, *samples, scaled)
    assert len(rates) == 1 + 4
    rates.clear()
    monkeypatch.setattr(layers, "dropout", scaled)
    value = loss_of(model, batch)(params, jax.random.key(0))
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    keys = {jax.random.key_data(key).tobytes() for _, key in rates}
    assert len(keys) == len(rates) == 5, "a key is used twice"


@pytest.mark.parametrize("size, cutoff", [(6, 3), (7, 5), (8, 0), (8, 8), (9, 30)])
def test_the_filter_keeps_the_lowest_frequencies(size, cutoff):
    matrix = low_pass(size, cutoff)
    x = np.random.default_rng(0).normal(size=(1, size, 2))
    transformed = np.fft.rfft(x, axis=1)
    transformed[:, cutoff // 2 + 1 :] = 0
    expected = np.fft.irfft(transformed, n=size, axis=1)
    np.testing.assert_allclose(matrix @ x[0], expected[0], atol=1e-12)
    np.testing.assert_allclose(matrix @ matrix, matrix, atol=1e-12)


def test_parameter_count_and_initial_distributions():
    on_beauty = nnx.eval_shape(lambda: BSARec(12101, BSARecConfig(), rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(on_beauty))) == 878_208
    model = BSARec(200, BSARecConfig(), rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model))

    def assert_normal(leaf, deviation):
        values = np.asarray(leaf).ravel()
        assert stats.kstest(values, stats.norm(0, deviation).cdf).pvalue > 1e-3

    assert_normal(params["item_embedding"], 0.02)
    assert np.any(params["item_embedding"][0] != 0)
    assert_normal(params["position_embedding"], 0.02)
    block, other = params["blocks"][0], params["blocks"][1]
    assert not np.array_equal(block["high_weight"], other["high_weight"])
    assert_normal(block["high_weight"], 1.0)
    # Three matrices: the bound is not that of the stack.
    assert_normal(block["attention"]["kernel_in"], np.sqrt(2 / 128))
    assert_normal(block["attention"]["project_out"]["kernel"], np.sqrt(2 / 128))
    for name in ("expand", "contract"):
        assert_normal(block[name]["kernel"], np.sqrt(2 / 320))
        assert (block[name]["bias"] == 0).all()
    # At the start all items are about as likely.
    frame = np.arange(-45, 5).clip(0)[None]
    scores = np.asarray(jax.jit(model.score)(frame))
    assert -special.log_softmax(scores)[0, 7] == pytest.approx(np.log(200), abs=0.5)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"max_len": 1}, "BSARecConfig.max_len is 1: it must be at least 2"),
        ({"num_heads": 3}, "num_heads is 3: it must be a divisor of width"),
        ({"num_blocks": 0}, "num_blocks is 0: it must be at least 1"),
        ({"hidden_dropout": 1.0}, r"hidden_dropout is 1.0: it must be in \[0, 1\)"),
        ({"attention_dropout": -1.0}, r"attention_dropout is -1.0: it must be in \[0,"),
        ({"alpha": 1.5}, r"alpha is 1.5: it must be in \[0, 1\]"),
        ({"cutoff": -1}, "cutoff is -1: it must be at least 0"),
    ],
)
def test_bad_hyper_parameters_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        BSARecConfig(**option)


def test_the_model_goes_by_its_name():
    assert MODELS["bsarec"] is BSARec and BSARec.Config is BSARecConfig
    assert BSARec.smoothed == {"item-item": ("item_embedding",)}
