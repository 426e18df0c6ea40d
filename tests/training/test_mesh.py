import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import sevo_jax as sevo
from sevo_jax._leaves import names_in
from sevo_jax.evaluation import Evaluator
from sevo_jax.training import Trainer
from sevo_jax.training.epoch import train_epoch
from sevo_jax.training.mesh import (
    make_mesh,
    row_sharding,
    split_batches,
    split_tables,
)

MESHES = [(1, 2), (2, 2)]


@pytest.fixture(scope="module")
def short(tiny_recipe):
    return dataclasses.replace(tiny_recipe, epochs=4, eval_every=2)


@pytest.fixture(scope="module")
def alone(short, tiny_split):
    return Trainer(short, tiny_split).run(seed=1, progress=False)


@pytest.mark.parametrize("data, width", MESHES)
def test_any_mesh_trains_as_one_device_does(short, tiny_split, alone, data, width):
    trainer = Trainer(short, tiny_split, mesh=make_mesh(data, width))
    compiled = train_epoch._cache_size()  # pyright: ignore
    result = trainer.run(seed=1, progress=False)
    # One program for all epochs: what comes out is placed as what went in.
    assert train_epoch._cache_size() == compiled + 1  # pyright: ignore
    np.testing.assert_allclose(result.losses, alone.losses, rtol=2e-5)
    table = result.trained.item_embedding[...]
    assert table.sharding.device_set == set(jax.devices()[: data * width])
    np.testing.assert_allclose(
        table, alone.trained.item_embedding[...], rtol=1e-3, atol=1e-4
    )


def test_a_mask_is_the_same_on_a_mesh(masking_recipe, tiny_split):
    """That of a graph is carried through training, and drawn on the devices."""
    results, masks = [], []
    for mesh in (make_mesh(), make_mesh(2, 2)):
        trainer = Trainer(masking_recipe, tiny_split, mesh=mesh)
        batches = split_batches(mesh, trainer.epochs(1)[0])
        state, losses = trainer.train_epoch(trainer.start(1), batches, seed=1, epoch=0)
        results.append(losses["loss"])
        model: Any = trainer.model(state)
        masks.append(np.asarray(model.mask.weights[...]))
    np.testing.assert_allclose(results[1], results[0], rtol=2e-5)
    np.testing.assert_allclose(masks[1], masks[0], rtol=1e-6)
    assert 0 < np.count_nonzero(masks[0]) < masks[0].size


def test_ranks_do_not_depend_on_where_users_are(tiny_split, alone):
    model = alone.trained
    expected = Evaluator(model, tiny_split, "test").ranks(model)
    mesh = make_mesh(4)
    graphdef, params = nnx.split(model)
    spread = nnx.merge(graphdef, split_tables(mesh, params, ()))
    # 7 users a batch do not split over 4 devices: 8 do.
    evaluator = Evaluator(
        model, tiny_split, "test", batch_size=7, sharding=row_sharding(mesh)
    )
    np.testing.assert_array_equal(evaluator.ranks(spread), expected)


def test_what_does_not_split_is_on_every_device():
    mesh = make_mesh(2, 2)
    batch = {"even": np.zeros((3, 4, 5)), "odd": np.zeros((3, 5)), "flat": np.zeros(4)}
    placed = split_batches(mesh, batch)
    assert placed["even"].sharding.spec == P(None, "data")
    assert placed["odd"].sharding.spec == P() == placed["flat"].sharding.spec

    tree = {"table": {"value": np.zeros((5, 4))}, "dense": np.zeros((4, 4))}
    tree["moments"] = {"table": np.zeros((5, 4)), "other_table": np.zeros((5, 4))}
    placed = split_tables(mesh, tree, ["table"])
    assert placed["table"]["value"].sharding.spec == P(None, "width")
    assert placed["moments"]["table"].sharding.spec == P(None, "width")
    assert placed["moments"]["other_table"].sharding.spec == P()
    assert placed["dense"].sharding.spec == P()
    narrow = split_tables(mesh, {"table": np.zeros((5, 3))}, ["table"])
    assert narrow["table"].sharding.spec == P()


@pytest.mark.parametrize(
    "graphs",
    [
        {"item_embedding/value": 61, "contract/kernel": 16},
        {("contract/kernel", "item_embedding"): 77},
    ],
    ids=["two", "joint"],
)
def test_tables_are_the_leaves_that_the_optimizer_smooths(short, tiny_split, graphs):
    """Names of several components, and joint ones, are split and measured too."""
    recipe = dataclasses.replace(short, epochs=1)
    graphs = {
        key: sevo.graphs.cooccurrence([np.arange(n)], num_items=n)
        for key, n in graphs.items()
    }
    trainer = Trainer(recipe, tiny_split, graphs=graphs, mesh=make_mesh(1, 2))
    state = trainer.start(0)
    split = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.sharding.spec == P(None, "width")
    }
    tables = "item_embedding/value", "blocks/0/contract/kernel/value"
    assert len(split) == 6
    assert all(
        sum(path.endswith(f"/{table}") for path in split) == 3 for table in tables
    )

    measured = trainer.measure(trainer.model(state))
    params: Any = trainer.new_model(0)
    rows = {
        "item_embedding": params.item_embedding[...],
        "contract/kernel": params.blocks[0].contract.kernel[...],
    }
    expected = sum(
        float(
            sevo.smoothing.smoothness(
                graph,
                jnp.concatenate(
                    [rows[name.removesuffix("/value")] for name in names_in(key)]
                ),
            )
        )
        for key, graph in graphs.items()
    )
    np.testing.assert_allclose(measured["smoothness"], expected, rtol=1e-5)


def test_a_mesh_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="data=4, width=4, rows=1, but there are 8"):
        make_mesh(4, 4)
    with pytest.raises(ValueError, match="rows=1: each must be at least 1"):
        make_mesh(0)
