"""Which leaves a name finds: the matching rules, on paths alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
import scipy.sparse

import sevo_jax as sevo
from sevo_jax._leaves import (
    WHOLE_TREE,
    active_rows_by_leaf,
    find_tables,
    prepare_graphs,
    replace_graphs,
)


def ring(n):
    rows = [*range(n), *[(i + 1) % n for i in range(n)]]
    columns = [*[(i + 1) % n for i in range(n)], *range(n)]
    return scipy.sparse.coo_array(([1.0] * (2 * n), (rows, columns)), shape=(n, n))


def paths_of(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves]


def found(tree, *names, n=4):
    """The paths of each table that the names stand for."""
    paths = paths_of(tree)
    tables = find_tables(tree, prepare_graphs({name: ring(n) for name in names}))
    return [tuple(paths[i] for i in table.leaves) for table in tables]


TABLE = jnp.zeros((4, 2))


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


TREE = {
    "encoder": {"item_embedding": {"embedding": {"value": TABLE}}},
    "old_item_embedding": TABLE,
    "item_embedding_2": TABLE,
    "layers": [Layer(TABLE, jnp.zeros(2)), Layer(TABLE, jnp.zeros(2))],
    "user": {"embedding": TABLE},
}


@pytest.mark.parametrize(
    "name, expected",
    [
        # First, middle and last components, and several at once.
        ("encoder", ["encoder/item_embedding/embedding/value"]),
        ("item_embedding", ["encoder/item_embedding/embedding/value"]),
        ("value", ["encoder/item_embedding/embedding/value"]),
        ("item_embedding/embedding", ["encoder/item_embedding/embedding/value"]),
        (
            "encoder/item_embedding/embedding/value",
            ["encoder/item_embedding/embedding/value"],
        ),
        ("/item_embedding/", ["encoder/item_embedding/embedding/value"]),
        ("old_item_embedding", ["old_item_embedding"]),
        # Attributes and positions are components as dictionary keys are.
        ("kernel", ["layers/0/kernel", "layers/1/kernel"]),
        ("layers/1/kernel", ["layers/1/kernel"]),
        ("0/kernel", ["layers/0/kernel"]),
        (
            "embedding",
            ["encoder/item_embedding/embedding/value", "user/embedding"],
        ),
    ],
)
def test_names_match_whole_components_each_leaf_its_own_table(name, expected):
    assert found(TREE, name) == [(path,) for path in expected]


@pytest.mark.parametrize(
    "name",
    [
        "item",
        "embed",
        "item_embedding_",
        "encoder/embedding",  # components that do not follow each other
        "embedding/item_embedding",  # the wrong way round
        "Encoder",
        "item_embedding.embedding",
        "encoder/*",
        "/",
    ],
)
def test_parts_of_components_and_patterns_match_nothing(name):
    with pytest.raises(ValueError, match="no leaf has") as error:
        found(TREE, name)
    assert all(path in str(error.value) for path in paths_of(TREE))


def test_a_key_that_holds_slashes_is_several_components():
    assert found({"a/b": TABLE, "c": TABLE}, "b") == [("a/b",)]


def test_joint_tables_keep_the_order_of_the_names():
    tree = {"a": jnp.zeros((1, 2)), "b": jnp.zeros((3, 2)), "c": jnp.zeros((2, 2))}
    for order in (("a", "b", "c"), ("c", "a", "b"), ("b", "c", "a")):
        assert found(tree, order, n=6) == [order]


def test_a_tuple_of_one_name_is_one_table():
    assert found(TREE, ("old_item_embedding",)) == [("old_item_embedding",)]


def test_names_in_a_joint_table_must_find_one_leaf_each():
    tree = {
        "first": {"user": TABLE, "item": TABLE},
        "second": {"user": TABLE, "item": TABLE},
    }
    with pytest.raises(ValueError, match="'user' in the joint table") as error:
        found(tree, ("user", "item"), n=8)
    assert "first/user" in str(error.value) and "second/user" in str(error.value)
    full = ("second/user", "first/item")
    assert found(tree, full, n=8) == [full]


@pytest.mark.parametrize(
    "names",
    [
        ("embedding", "user"),
        ("user", ("user/embedding", "old_item_embedding")),
        (("user", "embedding"),),
        (("old_item_embedding", "old_item_embedding"),),
    ],
)
def test_a_leaf_belongs_to_one_graph(names):
    tree = {"user": {"embedding": TABLE}, "old_item_embedding": TABLE}
    sizes = {name: 8 if isinstance(name, tuple) else 4 for name in names}
    graphs = prepare_graphs({name: ring(n) for name, n in sizes.items()})
    with pytest.raises(ValueError, match="is named by .* and by"):
        find_tables(tree, graphs)


def test_two_graphs_for_different_leaves_keep_their_keys():
    graphs = prepare_graphs({"user": ring(4), "kernel": ring(4)})
    tables = find_tables(TREE, graphs)
    assert [table.key for table in tables] == ["user", "kernel", "kernel"]


def test_the_whole_tree_is_its_only_leaf():
    graphs = prepare_graphs(ring(4))
    assert list(graphs) == [WHOLE_TREE]
    for tree in (TABLE, {"a": {"b": TABLE}}, [TABLE], {"a": TABLE, "b": None}):
        (table,) = find_tables(tree, graphs)
        assert table.leaves == (0,) and table.key == WHOLE_TREE
    with pytest.raises(ValueError, match=r"2 leaves.*'a', 'b'"):
        find_tables({"a": TABLE, "b": jnp.zeros(3)}, graphs)


def test_leaves_that_are_masked_are_not_there():
    graphs = prepare_graphs(ring(4))
    tree = {"a": optax.MaskedNode(), "b": TABLE, "c": optax.MaskedNode()}
    (table,) = find_tables(tree, graphs)
    assert table.leaves == (0,)
    with pytest.raises(ValueError, match="no leaf has 'a'"):
        find_tables(tree, prepare_graphs({"a": ring(4)}))


def test_a_tree_without_leaves_has_no_tables():
    assert find_tables({}, prepare_graphs({"item": ring(4)})) == []
    assert find_tables({"item": optax.MaskedNode()}, prepare_graphs(ring(4))) == []


def test_tables_stored_transposed_are_recognised_by_their_shape():
    shapes = {"rows": (4, 2), "columns": (2, 4), "square": (4, 4)}
    tree = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    tables = find_tables(tree, prepare_graphs({name: ring(4) for name in tree}))
    assert {table.key: table.transposed for table in tables} == {
        "rows": False,
        "columns": True,
        "square": False,
    }
    joint = {"a": jnp.zeros((3, 4)), "b": jnp.zeros((3, 2))}
    (table,) = find_tables(joint, prepare_graphs({("b", "a"): ring(6)}))
    assert table.transposed and table.leaves == (1, 0)


def test_shapes_are_enough():
    tree = jax.eval_shape(lambda: {"item": TABLE})
    (table,) = find_tables(tree, prepare_graphs({"item": ring(4)}))
    assert table.leaves == (0,)


# ------------------------------------------------------------------ graphs of a call


def test_graphs_of_a_call():
    bound = prepare_graphs({"item": ring(4), ("a", "b"): ring(5)})
    assert replace_graphs(bound, None) is bound
    given = {("a", "b"): sevo.prepare(ring(5)), "item": sevo.prepare(ring(4))}
    replaced = replace_graphs(bound, given)
    for key in bound:
        assert replaced[key] is given[key]
    others: list[Any] = [
        {"item": ring(4)},
        {**given, "more": ring(4)},
        {"item": ring(4), ("b", "a"): ring(5)},
        ring(4),
    ]
    for wrong in others:
        with pytest.raises(ValueError, match="same names"):
            replace_graphs(bound, wrong)
    operator = sevo.prepare(ring(4))
    whole = replace_graphs(prepare_graphs(ring(4)), operator)
    assert whole == {WHOLE_TREE: operator}


# ------------------------------------------------------------------ active rows


def test_active_rows_go_to_every_leaf_of_their_name():
    mask, other = jnp.array([True, False, True, False]), jnp.ones(4, bool)
    masks = active_rows_by_leaf(TREE, {"kernel": mask, "user": other})
    by_path = dict(zip(paths_of(TREE), masks, strict=True))
    assert by_path.pop("layers/0/kernel") is mask
    assert by_path.pop("layers/1/kernel") is mask
    assert by_path.pop("user/embedding") is other
    assert set(by_path.values()) == {None}


def test_active_rows_without_a_name_or_at_all():
    mask = jnp.ones(4, bool)
    assert active_rows_by_leaf(TREE, None) == [None] * len(paths_of(TREE))
    assert active_rows_by_leaf(TABLE, mask)[0] is mask
    hidden = {"a": optax.MaskedNode(), "b": TABLE}
    assert active_rows_by_leaf(hidden, mask)[0] is mask
    with pytest.raises(ValueError, match="without a name"):
        active_rows_by_leaf({"a": TABLE, "b": TABLE}, mask)


def test_active_rows_of_a_leaf_that_is_masked_are_left_to_its_own_group():
    tree = {"a": optax.MaskedNode(), "b": TABLE}
    mask = jnp.ones(4, bool)
    assert active_rows_by_leaf(tree, {"a": mask}) == [None]
    assert active_rows_by_leaf(tree, {"a": mask, "b": mask})[0] is mask
    with pytest.raises(ValueError, match="no leaf has 'c'"):
        active_rows_by_leaf(tree, {"c": mask})
