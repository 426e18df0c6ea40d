import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sevo_jax import graphs, prepare
from sevo_jax.data import InteractionLog
from sevo_jax.models import MODELS
from sevo_jax.training import Trainer
from sevo_jax.training.smoothed import find_smoothed, read_graphs

LOG = InteractionLog.from_columns(["u", "u", "v"], ["a", "b", "c"], name="log")
PARAMS = {name: jnp.ones((3, 2)) for name in ("users", "items", "tags")}


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "items.npz"
    graphs.save(file, graphs.cooccurrence([[0, 1, 2]], 3))
    return file


def test_files_and_graphs_by_name(path):
    joint = graphs.cooccurrence([[0, 3, 1, 4, 2, 5]], 6)
    given = {("users", "tags"): joint, "items": path}
    found = read_graphs(given, LOG)
    assert list(found) == list(given)
    np.testing.assert_array_equal(
        found["items"] @ jnp.eye(3), prepare(graphs.load(path)) @ jnp.eye(3)
    )
    # Names and tuples of names together go through JAX, in their order.
    assert list(jax.jit(lambda tree: tree)(found)) == list(given)
    tables = find_smoothed(PARAMS, found, given)
    assert [table.paths for table in tables] == [("users", "tags"), ("items",)]


def test_what_has_several_names_is_made_once(path):
    found = read_graphs(dict.fromkeys(("users", "items"), str(path)), LOG)
    assert found["users"] is found["items"]


def test_a_file_that_is_no_graph_is_named(tmp_path, path):
    empty = tmp_path / "empty.npz"
    graphs.save(empty, graphs.cooccurrence([[0], [1]], 2))
    with pytest.raises(ValueError, match=r"empty.npz: the graph for 'items': .*edge"):
        read_graphs({"users": path, "items": empty}, LOG)
    with pytest.raises(FileNotFoundError, match="none.npz"):
        read_graphs({"items": tmp_path / "none.npz"}, LOG)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="cannot load the graph .*items.npz"):
        read_graphs({"items": path}, LOG)


def test_a_file_of_other_ids_is_refused(tmp_path):
    graph, files = graphs.cooccurrence([[0, 1, 2]], 3), {}
    for name, ids in (("same", "abc"), ("other", "acb")):
        files[name] = tmp_path / f"{name}.npz"
        graphs.save(files[name], graph, items=list(ids))
    read_graphs({"items": files["same"]}, LOG)
    with pytest.raises(ValueError, match="other.npz: it is of other items"):
        read_graphs({"items": files["other"]}, LOG)
    graphs.save(files["same"], graph, users=["v", "u"])
    with pytest.raises(ValueError, match="same.npz: it is of other users"):
        read_graphs({"users": files["same"]}, LOG)


def test_what_does_not_fit_is_named(path):
    wide = {**PARAMS, "items": jnp.ones((4, 2))}
    with pytest.raises(
        ValueError, match="items.npz: items has 4 rows .* 3 nodes: build"
    ):
        find_smoothed(wide, read_graphs({"items": path}, LOG), {"items": path})
    graph = graphs.load(path)
    with pytest.raises(ValueError, match="^items has 4 rows .* 3 nodes: build"):
        find_smoothed(wide, read_graphs({"items": graph}, LOG), {"items": graph})
    with pytest.raises(ValueError, match="no leaf has 'item' in its path"):
        find_smoothed(PARAMS, read_graphs({"item": path}, LOG), {"item": path})


@pytest.mark.parametrize("optimizer", ["sevo_adamw", "adamw"])
def test_a_trainer_checks_its_graphs_at_once(tiny_recipe, tiny_split, path, optimizer):
    recipe = tiny_recipe.with_optimizer(optimizer)
    for given in (path, {"item_embedding": graphs.load(path)}):
        with pytest.raises(ValueError, match="item_embedding/value has 61 rows"):
            Trainer(recipe, tiny_split, graphs=given)


def test_a_model_that_names_no_table_takes_graphs_by_name(
    tiny_recipe, tiny_split, path, monkeypatch
):
    monkeypatch.setattr(MODELS["sasrec"], "smoothed", {})
    plain = tiny_recipe.with_optimizer("adamw")
    assert Trainer(plain, tiny_split).tables == []
    with pytest.raises(ValueError, match="'sevo_adamw' has nothing to smooth"):
        Trainer(tiny_recipe, tiny_split)
    with pytest.raises(ValueError, match="'sasrec' names no table for a graph"):
        Trainer(tiny_recipe, tiny_split, graphs=path)
    ring = graphs.cooccurrence([[*range(61)]], 61)
    trainer = Trainer(tiny_recipe, tiny_split, graphs={"item_embedding": ring})
    assert [table.paths for table in trainer.tables] == [("item_embedding/value",)]
    short = dataclasses.replace(tiny_recipe, epochs=1)
    result = Trainer(short, tiny_split, graphs={"item_embedding": ring}).run(
        progress=False
    )
    assert result.history[-1]["smoothness"] is not None
