"""The zero-block model against its definition, one transition at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_trees_close, loss_of, perturbed, random_train, with_params
from scipy import special

from sevo_jax.models import MODELS, ZeroBlock, ZeroBlockConfig, layers
from sevo_jax.samples.packing import PackedBatch

NUM_ITEMS = 30


def make(max_len=4, **options):
    model = ZeroBlock(
        NUM_ITEMS, ZeroBlockConfig(max_len, 6, **options), rngs=nnx.Rngs(0)
    )
    train = random_train(NUM_ITEMS, 20, shortest=2, longest=max_len + 4)
    epoch = model.epochs(train, batch_size=20, seed=0)[0]
    return model, train, PackedBatch(*(field[0] for field in epoch))


def literal(table, transitions):
    """The mean loss and its gradient, in NumPy: of the last items' rows and of all."""
    loss, gradient = 0.0, np.zeros_like(table)
    for last, following in transitions:
        x, items = table[last + 1], table[1:]
        probabilities = special.softmax(items @ x)
        loss -= np.log(probabilities[following])
        errors = probabilities - np.eye(len(items))[following]
        gradient[last + 1] += errors @ items
        gradient[1:] += errors[:, None] * x
    return loss / len(transitions), gradient / len(transitions)


def test_loss_and_gradient_are_those_of_all_transitions(x64):
    model, train, batch = make(dropout=0.0)
    params = perturbed(model, dtype=np.float64)
    # Of each user the last four transitions.
    pairs = [pair for row in train for pair in [*zip(row, row[1:], strict=False)][-4:]]
    assert max(len(row) for row in train) > 5
    loss, gradients = jax.jit(jax.value_and_grad(loss_of(model, batch)))(params)
    expected = literal(np.asarray(params["item_embedding"]), pairs)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-12)
    assert_trees_close(gradients, {"item_embedding": expected[1]}, 1e-12)


def test_scores_are_products_with_the_last_row():
    model, train, _ = make()
    model = with_params(model, perturbed(model))
    table = np.asarray(model.item_embedding[...])
    expected = table[[row[-1] + 1 for row in train]] @ table[1:].T
    scores = model.score(jnp.asarray(model.inputs(train)))
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


def test_dropout_is_on_the_last_row_alone(monkeypatch):
    model, _, batch = make(dropout=0.25)
    params = perturbed(model)
    key, calls = jax.random.key(0), []

    def double(x, rate, key):
        calls.append((rate, key))
        return 2 * x

    monkeypatch.setattr(layers, "dropout", double)
    dropped = loss_of(model, batch)(params, key)
    assert calls == [(0.25, key)]
    table, valid = np.asarray(params["item_embedding"], np.float64), batch.targets > 0
    logits = 2 * table[batch.inputs[valid]] @ table[1:].T
    own = logits[np.arange(len(logits)), batch.targets[valid] - 1]
    expected = np.mean(special.logsumexp(logits, axis=1) - own)
    np.testing.assert_allclose(dropped, expected, rtol=1e-5)


def test_it_is_one_table_and_goes_by_its_name():
    model, _, _ = make()
    assert list(nnx.to_pure_dict(nnx.state(model))) == ["item_embedding"]
    assert MODELS["zero-block"] is ZeroBlock and ZeroBlockConfig().loss == "ce"
    assert ZeroBlock.smoothed == {"item-item": ("item_embedding",)}


@pytest.mark.parametrize(
    "option, message",
    [
        ({"max_len": 0}, "ZeroBlockConfig.max_len is 0: it must be at least 1"),
        ({"width": 0}, "ZeroBlockConfig.width is 0: it must be at least 1"),
        ({"dropout": 1.0}, r"ZeroBlockConfig.dropout is 1.0: it must be in \[0, 1\)"),
        ({"num_negatives": 3}, "num_negatives is 3: it must be left out, as loss is c"),
    ],
)
def test_bad_hyper_parameters_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        ZeroBlockConfig(**option)
