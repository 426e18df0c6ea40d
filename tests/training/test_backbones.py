"""Each backbone under its recipe: what a step changes, against the literal method.

The models' losses and gradients and the transforms have their own oracles. Here is what
joins them: which leaves move over which graph, with whose decay, rates and moments.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from sevo_jax.training import RECIPES, Trainer
from sevo_jax.training.epoch import with_parts

# The leaves that SEvo smooths, those of one psi together, and the rows of the item
# table in front of the items.
SMOOTHED = {
    "mf-bpr-ui": ([("user_embedding", "item_embedding")], 0),
    "mf-bpr-ii": ([("item_embedding",)], 0),
    "gru4rec": ([("item_embedding",)], 1),
    "sasrec": ([("item_embedding",)], 1),
    "stosa": ([("item_mean",), ("item_covariance",)], 1),
    "bert4rec": ([("item_embedding",), ("output_embedding",)], 2),
    "sr-gnn": ([("item_embedding",)], 1),
    "lessr": ([("item_embedding",)], 0),
    "maerec": ([("item_embedding",)], 1),
    "zero-block": ([("item_embedding",)], 1),
}
# So few samples a step that rows are idle; GRU4Rec takes whole users.
BATCH_SIZE = 8
STEPS = 4


def adjacency(backbone, recipe, split, item_offset):
    """Of users and their items, or of items that follow each other."""
    num_nodes = split.num_items + item_offset
    sequences = [split.train[user].tolist() for user in range(split.num_users)]
    if backbone != "mf-bpr-ui":
        dense = np.zeros((num_nodes, num_nodes))
        for sequence in sequences:
            last = sequence[-recipe.graph.max_len :]
            for one, other in zip(last, last[1:], strict=False):
                dense[one + item_offset, other + item_offset] += 1
                dense[other + item_offset, one + item_offset] += 1
        return dense
    dense = np.zeros((split.num_users + num_nodes,) * 2)
    for user, sequence in enumerate(sequences):
        for item in sequence:
            dense[user, split.num_users + item] = 1
            dense[split.num_users + item, user] = 1
    return dense


def literal_step(groups, psi, options, params, moments, gradients, t):
    """SEvo-AdamW, leaf by leaf in float64; `moments` change in place."""
    k = max(1, t - 1)
    tables = {name for names in groups for name in names}
    directions = {}
    for name, g in gradients.items():
        m, v = moments[name]
        first, second = g, g**2
        if name in tables:
            idle = np.all(g == 0, axis=1, keepdims=True)
            first = np.where(idle, m / (1 - options.b1**k), first)
            second = np.where(idle, v / (1 - options.b2**k), second)
        m = options.b1 * m + (1 - options.b1) * first
        v = options.b2 * v + (1 - options.b2) * second
        moments[name] = m, v
        root = np.sqrt(v) / np.sqrt(1 - options.b2**t)
        directions[name] = m / (1 - options.b1**t) / (root + 1e-8)
    for names in groups:
        stacked = psi @ np.concatenate([directions[name] for name in names])
        cuts = np.cumsum([len(directions[name]) for name in names])[:-1]
        directions |= zip(names, np.split(stacked, cuts), strict=True)
    return {
        name: e * (1 - options.learning_rate * options.weight_decay)
        - options.learning_rate * directions[name]
        for name, e in params.items()
    }


def leaves(tree) -> dict[str, np.ndarray]:
    """By path, in float64."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(
            leaf, np.float64
        )
        for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(tree))
    }


@pytest.mark.parametrize("backbone", SMOOTHED)
def test_steps_are_the_literal_ones(backbone, tiny_split, oracle):
    groups, item_offset = SMOOTHED[backbone]
    recipe = dataclasses.replace(RECIPES[f"{backbone}-beauty"], batch_size=BATCH_SIZE)
    # The recipes of graph models are without SEvo.
    recipe = recipe.with_optimizer("sevo_adamw")
    trainer = Trainer(recipe, tiny_split)
    dense = adjacency(backbone, recipe, tiny_split, item_offset)
    psi = oracle.neumann(dense, np.eye(len(dense)), recipe.optimizer.beta, 3)
    graphdef = trainer.program.graphdef
    state = trainer.start(0)
    batches = trainer.new_model(0).epochs(
        tiny_split.train, batch_size=BATCH_SIZE, seed=0
    )[0]

    @jax.jit
    def gradients_at(params, batch, step):
        key = jax.random.key(step)

        def loss_of(params):
            fresh = jax.tree.map(lambda leaf: leaf, carried)
            model: Any = nnx.merge(graphdef, params, trainer.graphs.model, fresh)
            return with_parts(model.loss(batch, rng=key))[0]

        return jax.grad(loss_of)(params)

    @jax.jit
    def updated(params, opt_state, gradients):
        updates, opt_state = trainer.optimizer.update(
            gradients, opt_state, params, graphs=trainer.smoothing
        )
        return optax.apply_updates(params, updates), opt_state

    params, carried, opt_state = state
    expected = leaves(params)
    moments = {name: (np.zeros(e.shape),) * 2 for name, e in expected.items()}
    idle = dict.fromkeys((name for names in groups for name in names), 0)
    for step in range(STEPS):
        batch = jax.tree.map(lambda each: each[step], batches)
        gradients = gradients_at(params, batch, step)
        params, opt_state = updated(params, opt_state, gradients)
        literal = leaves(gradients)
        for name in idle:
            before = np.any(moments[name][0] != 0, axis=1)
            idle[name] += np.sum(before & np.all(literal[name] == 0, axis=1))
        expected = literal_step(
            groups, psi, recipe.optimizer, expected, moments, literal, step + 1
        )
    for name, leaf in leaves(params).items():
        np.testing.assert_allclose(
            leaf, expected[name], rtol=1e-5, atol=1e-6, err_msg=name
        )
    # Without idle rows the correction would not have been seen at work. The gradient
    # of a softmax over all items has none, nor has that of a regularization.
    table = {
        "bert4rec": "output_embedding",
        "sr-gnn": "item_embedding",
        "lessr": "item_embedding",
        "maerec": "item_embedding",
        "zero-block": "item_embedding",
    }.get(backbone)
    idle.pop(table, None)
    assert all(idle.values())
