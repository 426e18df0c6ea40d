"""Tables split by their rows: as on one device, and whole on none."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sevo_jax import sevo_adamw
from sevo_jax.data import leave_one_out
from sevo_jax.evaluation import ranking
from sevo_jax.models import (
    MODELS,
    GRU4RecConfig,
    MFBPRConfig,
    SASRecConfig,
)
from sevo_jax.training import GraphConfig, Recipe, Trainer, load
from sevo_jax.training.epoch import train_epoch
from sevo_jax.training.mesh import make_mesh, split_batches

SASREC = SASRecConfig(max_len=12, width=8, num_blocks=1, dropout=0.2)
# Model, hyper-parameters, kind of graph, and how often psi is propagated.
RUNS = {
    "mf-bpr": ("mf-bpr", MFBPRConfig(width=8), "item-item", 1),
    "mf-bpr, user-item, every 2": ("mf-bpr", MFBPRConfig(width=8), "user-item", 2),
    "sasrec, sampled": (
        "sasrec",
        dataclasses.replace(SASREC, loss="sampled", num_negatives=4),
        "item-item",
        1,
    ),
    "gru4rec, softmax": (
        "gru4rec",
        GRU4RecConfig(max_len=12, width=8, hidden_width=8, loss="ce"),
        "item-item",
        1,
    ),
}


@pytest.fixture(scope="module")
def split(ring_log):
    return leave_one_out(ring_log(num_users=67))


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    def make(run: str) -> Recipe:
        model, architecture, links, every = RUNS[run]
        optimizer = dataclasses.replace(tiny_recipe.optimizer, every=every)
        return dataclasses.replace(
            tiny_recipe,
            model=model,
            architecture=architecture,
            optimizer=optimizer,
            graph=GraphConfig(links, max_len=12),
            batch_size=20,
            epochs=3,
            eval_every=1,
        )

    return make


def whole_tables(program: Any, sizes: set[int]) -> set[str]:
    """Arrays of two dimensions or more in what each device runs, one of a size."""
    shapes = re.findall(r"\w+\[([\d,]+)\]", program.compile().as_text())
    return {
        shape
        for shape in shapes
        if "," in shape and not sizes.isdisjoint(map(int, shape.split(",")))
    }


def programs(trainer: Trainer):
    """What is compiled of a run: its start, its epochs and its rankings."""
    state = trainer.start(1)
    batches = split_batches(trainer.mesh, trainer.epochs(1)[0])
    yield train_epoch.lower(
        trainer.program,
        state,
        batches,
        trainer.graphs,
        np.uint32(1),
        np.int32(0),
    )
    evaluator = trainer._valid
    graphdef, values = ranking.nnx.split(
        trainer.as_ranked(trainer.model(state).for_ranking())
    )
    yield ranking._batch_ranks.lower(
        graphdef, values, *evaluator._batches[0][1], num_items=trainer.split.num_items
    )


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_that_of_one_device_and_no_device_holds_a_table(split, recipe, run):
    alone = Trainer(recipe(run), split)
    # 67 users and 60 items, or 61 rows of them: 8 and 4 do not divide these.
    mesh = make_mesh(2, 1, 4) if run.startswith("gru4rec") else make_mesh(rows=8)
    trainer = Trainer(recipe(run), split, mesh=mesh)
    sizes = {60, 61, 64, 67, 68, 72, 127, 136}
    assert all(whole_tables(program, sizes) for program in programs(alone))
    epoch, scoring = programs(trainer)
    assert whole_tables(epoch, sizes) == set()
    # So many users are ranked at a time, and so many seen items are left out.
    assert whole_tables(scoring, sizes - {64, 67, 68, 72}) == set()

    states, losses = [], []
    for each in (alone, trainer):
        batches = split_batches(each.mesh, each.epochs(1)[0])
        state, steps = each.train_epoch(each.start(1), batches, seed=1, epoch=0)
        states.append(state)
        losses.append(steps["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    leaves = map(jax.tree_util.tree_leaves_with_path, states)
    for (path, one), (_, many) in zip(*leaves, strict=True):
        if one.shape != many.shape:
            assert many.sharding.spec == P("rows")
            assert not np.any(np.asarray(many)[len(one) :])
        one, many = np.asarray(one), np.asarray(many)[tuple(map(slice, one.shape))]
        if "bias_in" in jax.tree_util.keystr(path):
            # That of the keys changes no softmax: Adam makes steps of its rounding.
            one, many = (np.delete(x, np.s_[8:16]) for x in (one, many))
        # Beside its own size: Adam makes of a small gradient a step like any other.
        difference = np.linalg.norm(np.subtract(many, one))
        is_table = "embedding" in jax.tree_util.keystr(path)
        most = 1e-6 if is_table else 3e-6
        assert difference <= most * np.linalg.norm(one), jax.tree_util.keystr(path)
    measured = [
        each.measure(each.model(state)) for each, state in zip((alone, trainer), states)
    ]
    assert measured[1]["valid"] == measured[0]["valid"]
    np.testing.assert_allclose(
        measured[1]["smoothness"], measured[0]["smoothness"], rtol=1e-5
    )


def test_a_table_is_whole_on_no_device_at_the_start(split, recipe):
    trainer = Trainer(
        recipe("mf-bpr, user-item, every 2"), split, mesh=make_mesh(rows=8)
    )
    tables = [leaf for leaf in jax.tree.leaves(trainer.start(1)) if leaf.ndim == 2]
    # Users and items: parameters, two moments, what is pending.
    assert len(tables) == 8
    assert all(leaf.sharding.shard_shape(leaf.shape)[0] < 10 for leaf in tables)


def test_a_run_goes_on_with_its_rows_on_other_devices(split, recipe, tmp_path):
    whole = recipe("mf-bpr, user-item, every 2")
    alone = Trainer(whole, split).run(seed=1, progress=False)
    result: Any = None
    meshes = make_mesh(rows=8), make_mesh(width=2, rows=2), make_mesh()
    for epochs, mesh in enumerate(meshes, 1):
        recipe_so_far = dataclasses.replace(whole, epochs=epochs)
        trainer = Trainer(recipe_so_far, split, mesh=mesh)
        result = trainer.run(
            seed=1, output=tmp_path / "run", resume=epochs > 1, progress=False
        )
        saved = load(tmp_path / "run").model
        for name in ("user_embedding", "item_embedding"):
            table = np.asarray(getattr(result.trained, name)[...])
            np.testing.assert_array_equal(getattr(saved, name)[...], table)
    np.testing.assert_allclose(result.losses, alone.losses, rtol=1e-6)
    assert result.test == alone.test


def test_an_optimizer_with_graphs_of_its_own_is_told_what_to_do(split, recipe):
    mesh, mine = make_mesh(rows=8), recipe("mf-bpr")
    graphs = dict(Trainer(mine, split).smoothing)
    with pytest.raises(ValueError, match="rows are split.*give a function that makes"):
        Trainer(mine, split, optimizer=sevo_adamw(1e-3, graphs), mesh=mesh)
    trainer = Trainer(
        mine, split, optimizer=lambda graphs: sevo_adamw(1e-3, graphs), mesh=mesh
    )
    assert trainer.optimizer_name == "custom"


@pytest.mark.parametrize("model", ["lightgcn", "maerec"])
def test_a_model_that_propagates_whole_tables_is_refused(split, model):
    recipe = Recipe(model, MODELS[model].Config())
    with pytest.raises(
        ValueError, match=f"{model}.* rows cannot be split: split their"
    ):
        Trainer(recipe, split, mesh=make_mesh(rows=2))
