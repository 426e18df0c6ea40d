"""MAERec against its definition on padded frames and dense matrices."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from flax import nnx
from helpers import (
    assert_trees_close,
    deviations_between,
    draw,
    drop_at,
    random_train,
    unpack,
)
from scipy import stats

import sevo_jax as sevo
from sevo_jax.data import InteractionLog, Sequences, leave_one_out
from sevo_jax.evaluation import evaluate, recommend
from sevo_jax.graphs import kinds
from sevo_jax.models import MODELS, edge_masks, reconstruction
from sevo_jax.models.edge_masks import Carried
from sevo_jax.models.maerec import MAERec, MAERecConfig, Transformer
from sevo_jax.samples.packing import PackedBatch, left_pad
from sevo_jax.training import (
    RECIPES,
    GraphConfig,
    OptimizerConfig,
    Recipe,
    RunFolder,
    Trainer,
    load,
)

NUM_ITEMS = 16
SMALL = {
    "max_len": 10,
    "width": 8,
    "num_heads": 2,
    "num_blocks": 1,
    "dropout": 0.0,
    "mask_steps": 3,
    "num_seeds": 4,
    "num_edges": 12,
    "num_negatives": 4,
    "regularization": 1e-3,
    "reconstruction_weight": 0.7,
}
INTENDED = {"seeds_from_ends": True, "log_contrast": True, "sample_last_item": True}


def links_of(train):
    """Items at most three places apart, and each row with itself."""
    links = np.eye(NUM_ITEMS + 1, dtype=bool)
    for items in train:
        for i, j in itertools.combinations(range(len(items)), 2):
            if j - i <= 3:
                links[items[i] + 1, items[j] + 1] = True
                links[items[j] + 1, items[i] + 1] = True
    return links


def make(num_users=12, **options):
    """A model, a step of training, and the links of its items."""
    config = MAERecConfig(**{**SMALL, **options})
    train = random_train(NUM_ITEMS, num_users, shortest=2, longest=config.max_len + 3)
    # Few of them make the graph, so that there are pairs without a link.
    links = links_of([train[user] for user in (5, 11)])
    graph = sevo.prepare(scipy.sparse.csr_array(links.astype(float)))
    model = MAERec(NUM_ITEMS, config, graph, rngs=nnx.Rngs(0))
    epoch = model.epochs(train, batch_size=num_users, seed=0)[0]
    return model, PackedBatch(*(field[0] for field in epoch)), links


def perturbed_params(model, dtype, scale=0.3):
    """Pure parameters moved off the initial ones, so that no bias is zero."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: jnp.asarray(x + scale * rng.normal(size=x.shape), dtype),
        nnx.to_pure_dict(nnx.state(model, nnx.Param)),
    )


def run(model, params, batch, key):
    """Loss, its parts and gradients, and the model's carried variables after it."""
    graphdef, state, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def evaluate(params, rest):
        def loss_of(params):
            nnx.replace_by_pure_dict(state, params)
            fresh = nnx.merge(graphdef, state, rest, copy=True)
            loss, parts = fresh.loss(batch, rng=key)
            return loss, (parts, nnx.to_pure_dict(nnx.state(fresh, Carried))["mask"])

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    (loss, (parts, carried)), gradients = evaluate(params, rest)
    return loss, parts, carried, gradients


# ------------------------------------------------------------ the literal model


def norm(x, leaf):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * leaf["scale"] + leaf["bias"]


def linear(x, leaf):
    return x @ leaf["kernel"] + leaf["bias"]


def gelu(x):
    return x * (1 + jax.scipy.special.erf(x / math.sqrt(2))) / 2


def plain(params, config, table, frames, drop=lambda x: x):
    """Features of left-padded frames `[users, S]`, literally as they are defined."""
    size, d = frames.shape[1], config.width
    hidden = (frames == 0)[:, None, :] | ~np.tri(size, dtype=bool)
    x = drop(norm(table[frames] + params["position_embedding"], params["input_norm"]))
    total = x
    for block in params["blocks"].values():
        attention, mixed = block["attention"], []
        query, key, value = jnp.split(
            x @ attention["kernel_in"] + attention["bias_in"], 3, axis=-1
        )
        for h in range(config.num_heads):
            cut = slice(h * d // config.num_heads, (h + 1) * d // config.num_heads)
            scores = query[..., cut] @ jnp.swapaxes(key[..., cut], 1, 2)
            scores = scores / math.sqrt(d // config.num_heads) - 1e4 * hidden
            mixed.append(drop(jax.nn.softmax(scores)) @ value[..., cut])
        out = linear(jnp.concatenate(mixed, -1), attention["project_out"])
        y = norm(drop(out) + x, block["attention_norm"])
        y = linear(gelu(linear(y, block["expand"])), block["contract"])
        x = norm(drop(y), block["feed_forward_norm"])
        total += x
    return total


def plain_main(params, config, table, frames, drop=lambda x: x):
    inputs, targets, negatives = frames
    features = plain(params, config, table, inputs, drop)
    positive = jax.nn.sigmoid((features * table[targets]).sum(-1))
    negative = jax.nn.sigmoid((features * table[negatives]).sum(-1))
    losses = -jnp.log(positive + 1e-24) - jnp.log(1 - negative + 1e-24)
    return losses.mean(where=targets != 0)


def normalised(matrix):
    scale = (matrix.sum(1) + 1e-12) ** -0.5
    return matrix * scale * scale[:, None]


def plain_hops(table, matrix, num_hops):
    hops = [table]
    for _ in range(num_hops):
        hops.append(matrix @ hops[-1])
    return hops


def plain_phi(params, hops, u, v):
    """How surely the decoder links the nodes `u` and `v`, of one shape."""
    x = jnp.concatenate([one[u] * other[v] for one in hops for other in hops], axis=-1)
    first, second, third = params["decoder"]["layers"].values()
    x = jax.nn.relu(linear(jax.nn.relu(linear(x, first)), second))
    return jax.nn.sigmoid(linear(x, third))[..., 0]


def drawn_pairs(model, masked, key):
    """First and second nodes: of each edge drawn, then of its pairs without a link."""
    graph, config = model.mask.graph.get_value(), model.config
    edges_key, one_key, other_key = jax.random.split(key, 3)
    order = np.array(jax.random.uniform(edges_key, (graph.num_entries,)))
    order[~masked] = -1
    edges = np.argsort(-order)[: min(config.num_edges, masked.sum())]
    assert masked[edges].all()
    one, other = np.asarray(graph.rows)[edges], np.asarray(graph.columns)[edges]
    size = min(config.num_edges, graph.num_entries)
    # The draws are of as many edges as there may be.
    padded = [np.pad(x, (0, size - len(x))) for x in (one, other)]
    last = NUM_ITEMS if config.sample_last_item else NUM_ITEMS - 1
    half = config.num_negatives // 2

    def unlinked(nodes, key):
        drawn = reconstruction.draw_unlinked(graph, jnp.asarray(nodes), half, last, key)
        return np.asarray(drawn)[: len(edges)]

    not_one, not_other = unlinked(padded[1], one_key), unlinked(padded[0], other_key)
    firsts = [one[:, None], not_one, np.repeat(one[:, None], half, 1)]
    seconds = [other[:, None], np.repeat(other[:, None], half, 1), not_other]
    return np.concatenate(firsts, 1), np.concatenate(seconds, 1)


def plain_reconstruction(params, config, hops, pairs):
    exponentials = jnp.exp(plain_phi(params, hops, *pairs))
    ratios = exponentials[:, 0] / (exponentials.sum(1) + 1e-8) + 1e-8
    return -jnp.log(ratios).mean() if config.log_contrast else -ratios.sum()


def literal_mask(model, links, table, key):
    """What a new mask leaves, and the noisy relatedness as a function of the table."""
    graph, config = model.mask.graph.get_value(), model.config
    drops_key, noise_key, spread_key = jax.random.split(key, 3)
    rows, columns = np.asarray(graph.rows), np.asarray(graph.columns)

    def dense(entries):
        matrix = np.zeros(links.shape)
        matrix[rows, columns] = entries
        return matrix

    kept = edge_masks.draw_kept(drops_key, graph.num_entries, config.mask_depth)
    matrices = [dense(np.asarray(each)) for each in kept]
    noise = np.asarray(jax.random.gumbel(noise_key, (len(links),), table.dtype))

    def noisy(table):
        degrees = links.sum(1, keepdims=True)
        found, paths = [links @ table - table], [degrees]
        for matrix in matrices:
            found.append(matrix @ found[-1] - found[-1] - degrees * found[-1])
            paths.append(matrix @ paths[-1] - paths[-1] - degrees)
            degrees = matrix.sum(1, keepdims=True)
        mean = sum(found) / (sum(paths) + 1e-8)
        # Row 0 has no surroundings, and whatever else has none: no cosine.
        alone = links.sum(1) == 1
        mean = jnp.where(alone[:, None], 1.0, mean)
        norms = jnp.linalg.norm(mean, axis=1) * jnp.linalg.norm(table, axis=1)
        return jnp.where(alone, 0, (mean * table).sum(1) / norms) + noise

    seeds = {*np.argsort(-np.asarray(noisy(table)))[: config.num_seeds].tolist()}
    left = links.copy()
    for hop, hop_key in enumerate(jax.random.split(spread_key, config.mask_depth), 1):
        hit = [(u, v) for u, v in np.argwhere(left) if u in seeds or v in seeds]
        nodes = np.zeros(2 * len(links), bool)
        for u, v in hit:
            left[u, v] = False
            nodes[[u, v] if config.seeds_from_ends else [u + v]] = True
        share = edge_masks.draw_share(jnp.asarray(nodes), 0.5**hop, hop_key)
        seeds = set(np.flatnonzero(share).tolist())
    return left, noisy


def literal_draws(model, links, table, key):
    """What a step draws: `left` and `noisy` of `literal_mask`, and `drawn_pairs`."""
    _, mask_key, edges_key = jax.random.split(key, 3)
    left, noisy = literal_mask(model, links, table, mask_key)
    graph = model.mask.graph.get_value()
    masked = ~left[np.asarray(graph.rows), np.asarray(graph.columns)]
    return left, noisy, drawn_pairs(model, masked, edges_key)


def literal_step(config, params, batch, left, noisy, pairs):
    """The parts of the first step of training, and the gradients of their sum."""
    frames = unpack(batch)

    def parts_of(params):
        table = params["item_embedding"]
        hops = plain_hops(table, normalised(jnp.asarray(left, float)), config.num_hops)
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        reconstruction = plain_reconstruction(params, config, hops[:-1], pairs)
        parts = {
            "main": plain_main(params, config, sum(hops), frames),
            "regularization": config.regularization * squares,
            "mask": -jnp.mean(noisy(table)),
            "reconstruction": config.reconstruction_weight * reconstruction,
        }
        return sum(parts.values()), parts

    gradients, parts = jax.jit(jax.grad(parts_of, has_aux=True))(params)
    return jax.tree.map(np.asarray, (parts, gradients))


# ------------------------------------------------------------ loss and gradients


@pytest.mark.parametrize(
    "dtype, tolerance, options",
    [
        (np.float32, 1e-5, {}),
        (np.float64, 1e-9, {"num_blocks": 2}),
        (np.float64, 1e-9, {"num_hops": 3, "mask_depth": 1, **INTENDED}),
    ],
)
def test_a_step_is_that_of_the_definition(dtype, tolerance, options):
    key = jax.random.key(0)
    with jax.enable_x64(dtype is np.float64):
        model, batch, links = make(**options)
        params = perturbed_params(model, dtype)
        loss, parts, carried, gradients = run(model, params, batch, key)
        assert loss.dtype == dtype
        draws = literal_draws(model, links, params["item_embedding"], key)
    loss, parts, carried, gradients = jax.tree.map(
        np.asarray, (loss, parts, carried, gradients)
    )
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, float), params)
        expected, expected_gradients = literal_step(model.config, params, batch, *draws)
    left = draws[0]
    assert 0.1 < left.sum() / links.sum() < 0.95
    assert parts.keys() == expected.keys()
    for name, part in parts.items():
        np.testing.assert_allclose(part, expected[name], rtol=tolerance, err_msg=name)
    np.testing.assert_allclose(loss, sum(expected.values()), rtol=tolerance)
    assert_trees_close(gradients, expected_gradients, 3 * tolerance)
    weights = normalised(left.astype(float))[links]
    np.testing.assert_allclose(carried["weights"], weights, rtol=1e-5)
    assert (carried["weights"] == 0).sum() == (links & ~left).sum()
    assert carried["num_steps"] == 1
    np.testing.assert_allclose(carried["first_loss"], parts["main"], rtol=1e-6)


def test_without_a_key_nothing_is_drawn_or_changed():
    model, batch, links = make(dropout=0.5)
    params = perturbed_params(model, np.float32)
    loss, parts, carried, _ = run(model, params, batch, None)
    assert parts.keys() == {"main", "regularization"}
    hops = plain_hops(params["item_embedding"], normalised(links.astype(float)), 2)
    expected = plain_main(params, model.config, sum(hops), unpack(batch))
    np.testing.assert_allclose(parts["main"], expected, rtol=1e-5)
    assert carried["num_steps"] == 0
    np.testing.assert_array_equal(
        carried["weights"], model.mask.graph.get_value().weights
    )


def test_reconstruction_of_weight_zero_is_left_out():
    model, batch, _ = make(reconstruction_weight=0.0)
    params = perturbed_params(model, np.float32)
    _, parts, _, gradients = run(model, params, batch, jax.random.key(0))
    assert parts.keys() == {"main", "regularization", "mask"}
    decoder, decay = gradients["decoder"], 2 * model.config.regularization
    assert_trees_close(
        decoder, jax.tree.map(lambda x: decay * x, params["decoder"]), 1e-5
    )


def test_a_mask_lasts_its_steps():
    model, batch, _ = make()
    params = perturbed_params(model, np.float32)
    graphdef, state, rest = nnx.split(model, nnx.Param, ...)
    nnx.replace_by_pure_dict(state, params)

    @jax.jit
    def step(rest, key):
        fresh = nnx.merge(graphdef, state, rest, copy=True)
        _, parts = fresh.loss(batch, rng=key)
        return nnx.split(fresh, nnx.Param, ...)[2], parts["mask"]

    weights, rewards = [], []
    for number in range(7):
        rest, reward = step(rest, jax.random.key(number))
        weights.append(np.asarray(rest["mask"]["weights"][...]))
        rewards.append(float(reward))
    same = [np.array_equal(a, b) for a, b in itertools.pairwise(weights)]
    assert same == [True, True, False, True, True, False]
    assert [reward != 0 for reward in rewards] == [i % 3 == 0 for i in range(7)]


@pytest.mark.parametrize("mask_steps", [1, 2, 5])
def test_rewards_compare_falls_of_the_loss(mask_steps):
    model, _, _ = make(mask_steps=mask_steps)
    losses = np.random.default_rng(0).uniform(1, 2, 40).astype(np.float32)
    rewards = [float(model.mask.reward(jnp.asarray(loss))) for loss in losses]
    record, seen = [], set()
    for step, loss in enumerate(losses):
        record.append(loss)
        if step % mask_steps == 0:
            expected = 1.0
            if len(record) >= 3:
                falls = -np.diff(record)
                expected = 1.0 if falls[-1] > np.mean(falls[:-1]) else 0.2
            assert rewards[step] == pytest.approx(expected)
            seen.add(expected)
            record = record[-1:]
    assert seen == ({1.0} if mask_steps == 1 else {1.0, 0.2})


def test_large_and_small_graphs_are_reconstructed():
    # More edges are asked for than there are, and a block is not full; and an item
    # is linked to all others, so that no pair of it is without a link.
    model, batch, _ = make(num_edges=5000, num_negatives=2)
    full = np.eye(NUM_ITEMS + 1, dtype=bool)
    full[1:, 1:] = True
    graph = sevo.prepare(scipy.sparse.csr_array(full.astype(float)))
    whole = MAERec(NUM_ITEMS, model.config, graph, rngs=nnx.Rngs(0))
    for each in (model, whole):
        params = perturbed_params(each, np.float32)
        _, parts, carried, gradients = run(each, params, batch, jax.random.key(1))
        masked = (carried["weights"] == 0).sum()
        assert 0 < masked < 5000
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
        if each is whole:
            # Its share of itself is 1.
            expected = -0.7 * masked
            np.testing.assert_allclose(parts["reconstruction"], expected, rtol=1e-5)


def test_large_scores_stay_finite():
    model, batch, _ = make()
    params = perturbed_params(model, np.float32, scale=1e4)
    loss, _, _, gradients = run(model, params, batch, jax.random.key(0))
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_rows_of_padding_get_no_gradient_of_the_next_items():
    model, batch, _ = make(regularization=0.0)
    _, _, _, gradients = run(model, perturbed_params(model, np.float32), batch, None)
    assert (gradients["item_embedding"][0] == 0).all()
    assert (gradients["item_embedding"][1:] != 0).any(axis=1).all()


def test_main_loss_under_dropout_has_the_distribution_of_the_padded_one():
    model, batch, _ = make(dropout=0.4)
    ranking = model.for_ranking()
    graphdef, params = nnx.split(ranking)
    params = nnx.to_pure_dict(params)
    frames, table = unpack(batch), params["item_embedding"]
    assert isinstance(ranking, Transformer)
    packed = draw(lambda key: ranking.loss(batch, rng=key), 3000)

    def padded(key):
        at_rate = drop_at(key)
        return plain_main(
            params, model.config, table, frames, lambda x: at_rate(x, 0.4)
        )

    literal = draw(padded, 3000)
    for power in (1, 2):
        assert abs(deviations_between(packed**power, literal**power)) < 4


# ------------------------------------------------------------ ranking


def test_what_ranks_holds_the_table_of_the_whole_graph():
    model, batch, links = make()
    params = perturbed_params(model, np.float32)
    graphdef, state, rest = nnx.split(model, nnx.Param, ...)
    nnx.replace_by_pure_dict(state, params)
    model = nnx.merge(graphdef, state, rest)
    model.mask.weights[...] = jnp.zeros_like(model.mask.weights[...])  # All is masked.
    ranking = model.for_ranking()
    hops = plain_hops(params["item_embedding"], normalised(links.astype(float)), 2)
    table = jnp.sum(jnp.stack(hops), axis=0)
    np.testing.assert_allclose(ranking.item_embedding[...], table, rtol=1e-5, atol=1e-6)
    assert not jax.tree.leaves(nnx.state(ranking, nnx.Not(nnx.Param)))
    frames = unpack(batch)[0]
    features = plain(params, model.config, table, frames)
    expected = features[:, -1] @ table[1:].T
    for scored in (ranking.score(frames), model.score(frames)):
        np.testing.assert_allclose(scored, expected, rtol=1e-4, atol=1e-4)


def test_narrow_frames_score_as_those_of_the_whole_width():
    config = MAERecConfig(**{**SMALL, "max_len": 20})
    ranking = Transformer(NUM_ITEMS, config, rngs=nnx.Rngs(0))
    sequences = Sequences.from_lists([[3, 1, 4], [5], [9, 2, 6, 5, 3, 5, 8, 15]])
    narrow = ranking.inputs(sequences)
    assert narrow.shape == (3, 8)
    narrow, whole = map(jax.jit(ranking.score), (narrow, left_pad(sequences, 20, 1)))
    np.testing.assert_allclose(narrow, whole, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------ samples and sizes


@pytest.mark.parametrize("sample_last_item", [False, True])
def test_the_last_item_is_a_negative_if_asked_for(sample_last_item):
    model, _, _ = make(sample_last_item=sample_last_item)
    train = Sequences.from_lists([[0, 1, 2], [3, 3, 15], [4, 5]] * 40)
    negatives = set()
    for number in range(5):
        epoch = model.epochs(train, batch_size=30, seed=0)[number]
        valid = epoch.segments > 0
        negatives |= set(epoch.negatives[valid].tolist())
        np.testing.assert_array_equal(epoch.negatives[~valid], 0)
    last = {NUM_ITEMS} if sample_last_item else set()
    assert negatives == {*range(1, NUM_ITEMS)} | last


def test_parameter_count_and_initial_distributions():
    links = np.eye(12102)[:3, :3]
    links = scipy.sparse.block_diag([links, scipy.sparse.eye_array(12099)])
    model = MAERec(12101, MAERecConfig(), sevo.prepare(links), rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    d = 64
    block = 4 * (d * d + d) + 4 * d + (4 * d * d + 4 * d) + (4 * d * d + d)
    decoder = (4 * d * 2 * d + 2 * d) + (2 * d * d + d) + (d + 1)
    expected = (12102 + 50) * d + 2 * d + 2 * block + decoder
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected == 919_041

    def assert_uniform(leaf, fans):
        values, bound = np.asarray(leaf).ravel(), math.sqrt(6 / sum(fans))
        assert np.abs(values).max() <= bound
        assert stats.kstest(values, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3

    assert_uniform(params["item_embedding"], (12102, d))
    assert_uniform(params["position_embedding"], (50, d))
    for block in params["blocks"].values():
        attention = block["attention"]
        assert_uniform(attention["kernel_in"], (d, d))
        assert_uniform(attention["project_out"]["kernel"], (d, d))
        assert_uniform(block["expand"]["kernel"], (d, 4 * d))
        assert_uniform(block["contract"]["kernel"], (4 * d, d))
        for leaf in (attention["bias_in"], attention["project_out"]["bias"]):
            assert (leaf == 0).all()
    for layer, fans in zip(
        params["decoder"]["layers"].values(),
        ((4 * d, 2 * d), (2 * d, d), (d, 1)),
        strict=True,
    ):
        assert_uniform(layer["kernel"], fans)
        assert (layer["bias"] == 0).all()


@pytest.mark.parametrize(
    "option, message",
    [
        ({"max_len": 0}, "max_len is 0: it must be at least 1"),
        ({"num_heads": 3}, "num_heads is 3: it must be a divisor of width"),
        ({"dropout": 1.0}, r"dropout is 1.0: it must be in \[0, 1\)"),
        ({"num_hops": 0}, "num_hops is 0: it must be at least 1"),
        ({"mask_steps": 0}, "mask_steps is 0: it must be at least 1"),
        ({"mask_depth": 0}, "mask_depth is 0: it must be at least 1"),
        ({"num_seeds": 0}, "num_seeds is 0: it must be at least 1"),
        ({"num_edges": 0}, "num_edges is 0: it must be at least 1"),
        ({"num_negatives": 3}, "num_negatives is 3: it must be even"),
        ({"num_negatives": 0}, "num_negatives is 0: it must be at least 1"),
        (
            {"reconstruction_weight": 0, "log_contrast": True},
            "log_contrast is True: it",
        ),
        ({"reconstruction_weight": -1.0}, "reconstruction_weight is -1.0"),
        ({"regularization": -1.0}, "regularization is -1.0: it must be at least 0"),
    ],
)
def test_bad_hyper_parameters_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        MAERecConfig(**option)


def test_the_graph_is_of_whole_sequences_three_places_each_way():
    """Of items far behind too, which the model does not read."""
    num = 2 * MAERecConfig.max_len
    log = InteractionLog.from_columns(np.zeros(num), np.arange(num), name="long")
    (config,) = MAERec.propagated(MAERecConfig()).values()
    graph: Any = kinds.build(config, leave_one_out(log), MAERec.item_offset)
    row, column = np.indices((num + 1, num + 1))
    # The last two items, to validate and to test, have their loops alone.
    linked = (np.abs(row - column) <= 3) & (np.minimum(row, column) > 0)
    linked &= np.maximum(row, column) <= num - 2
    np.testing.assert_array_equal(graph.todense(), linked | (row == column))


def test_a_graph_of_other_nodes_is_refused():
    graph = make()[0].mask.graph.get_value()
    with pytest.raises(ValueError, match="17 nodes, the item table 18 rows"):
        MAERec(NUM_ITEMS + 1, MAERecConfig(), graph, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="num_items is 0: it must be at least 1"):
        MAERec(0, MAERecConfig(), graph, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("dataset", ["beauty", "toys", "tools", "ml-1m"])
def test_the_recipes_are_the_authors_but_for_weight_and_epochs(dataset):
    max_len = 200 if dataset == "ml-1m" else 50
    expected = Recipe(
        model="maerec",
        architecture=MAERecConfig(
            max_len=max_len,
            width=64,
            num_heads=4,
            num_blocks=2,
            dropout=0.3,
            num_hops=2,
            mask_steps=10,
            mask_depth=3,
            num_seeds=50,
            num_edges=2048,
            num_negatives=40,
            reconstruction_weight=0.0,
            regularization=1e-6,
            seeds_from_ends=False,
            log_contrast=False,
            sample_last_item=False,
        ),
        optimizer=OptimizerConfig("adam", learning_rate=1e-3, weight_decay=0.0),
        graph=GraphConfig(max_len=max_len),
        batch_size=256,
        epochs=200,
        patience=4,
    )
    assert RECIPES[f"maerec-{dataset}"] == expected


def test_the_model_goes_by_its_name():
    assert MODELS["maerec"] is MAERec


# ------------------------------------------------------------ through the trainer


def recipe(optimizer):
    small = {**SMALL, "dropout": 0.1, "num_blocks": 1, "num_edges": 128}
    return Recipe(
        model="maerec",
        architecture=MAERecConfig(**small),
        optimizer=OptimizerConfig(optimizer, learning_rate=1e-2, weight_decay=1e-3),
        graph=GraphConfig(max_len=10),
        batch_size=32,
        epochs=6,
        eval_every=3,
    )


@pytest.mark.parametrize("optimizer", ["sevo_adamw", "adamw"])
def test_it_learns_resumes_with_its_mask_and_is_served(optimizer, tmp_path):
    # Users walk a ring of 40 items.
    rng = np.random.default_rng(0)
    rows = [(rng.integers(40) + np.arange(n)) % 40 for n in rng.integers(5, 10, 200)]
    users = np.repeat(np.arange(200), [len(row) for row in rows])
    log = InteractionLog.from_columns(users, np.concatenate(rows), name="ring")
    split = leave_one_out(log)
    trainer = Trainer(recipe(optimizer), split)
    result = trainer.run(output=tmp_path / "whole", progress=False)
    assert result.parts[-1]["main"] < 0.8 * result.parts[0]["main"]
    untrained = result.history[0]["valid"]["NDCG@10"]
    assert result.test["NDCG@10"] > untrained + 0.2

    half = dataclasses.replace(trainer.recipe, epochs=3)
    Trainer(half, split).run(output=tmp_path / "resumed", progress=False)
    resumed = trainer.run(output=tmp_path / "resumed", resume=True, progress=False)
    assert resumed.losses == result.losses
    template = {"training": trainer.start(0)}
    whole, again = (
        RunFolder(tmp_path / name).last_checkpoint().arrays(**template)["training"]
        for name in ("whole", "resumed")
    )
    weights = whole.carried["mask"]["weights"][...]
    assert 0 < (weights == 0).sum() < weights.size
    assert whole.carried["mask"]["num_steps"][...] == 6 * trainer.epochs(0).num_steps
    jax.tree.map(np.testing.assert_array_equal, whole, again)

    model: Any = load(tmp_path / "whole").model
    assert type(model) is Transformer
    assert evaluate(model, split) == result.test
    rows = Sequences.from_lists([split.train[7], split.train[2]])
    items, _ = recommend(model, rows, 5)
    scores = np.array(model.score(jnp.asarray(model.inputs(rows))))
    for row, seen, best in zip(scores, rows, items, strict=True):
        row[seen] = -np.inf
        np.testing.assert_array_equal(best, np.argsort(-row)[:5])


def test_a_log_with_repeated_items_trains():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 30, length) for length in rng.integers(5, 12, 40)]
    users = np.repeat(np.arange(40), [len(row) for row in rows])
    log = InteractionLog.from_columns(users, np.concatenate(rows), name="repeats")
    split = leave_one_out(log)
    assert any(len(np.unique(row)) < len(row) for row in split.train)
    trainer = Trainer(recipe("sevo_adamw"), split)
    epoch = trainer.epochs(0)[0]
    _, losses = trainer.train_epoch(trainer.start(0), epoch, seed=0, epoch=0)
    assert all(np.isfinite(values).all() for values in losses.values())
