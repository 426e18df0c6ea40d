"""Which leaves a name finds: the matching rules, on paths alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
import scipy.sparse
from flax import nnx

import sevo_jax as sevo
from sevo_jax._leaves import (
    WHOLE_TREE,
    active_rows_by_leaf,
    check_row_axis,
    find_tables,
    prepare_graphs,
    replace_graphs,
    row_axes_of,
    tables_of,
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


class Scaled(NamedTuple):
    value: jax.Array
    scale: jax.Array


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


def test_a_whole_path_is_the_same_with_and_without_the_variables_of_nnx():
    """`nnx.Optimizer` hands its parameters to init in Variables and bare to update."""
    bare = {"table": TABLE, "inner": {"table": TABLE}}
    boxed = jax.tree.map(nnx.Param, bare)
    for name in ("table", "inner/table"):
        assert found(bare, name) == [(name,)]
        assert found(boxed, name) == [(f"{name}/value",)]
    hidden = {**boxed, "table": nnx.Param(optax.MaskedNode())}
    assert found(hidden, "table") == []
    with pytest.raises(ValueError, match=r"leaves are \['inner/table', 'table'\]"):
        found(boxed, "tables")
    # Beside others it is a component as any.
    assert found({"table": Scaled(TABLE, TABLE), "inner": bare}, "table") == [
        ("inner/inner/table",),
        ("inner/table",),
        ("table/value",),
        ("table/scale",),
    ]


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


HIDDEN = optax.MaskedNode()


@pytest.mark.parametrize("hidden", [HIDDEN, None])
def test_leaves_that_are_hidden_are_left_alone(hidden):
    tree = {"a": hidden, "b": TABLE, "c": {"d": hidden, "e": hidden}}
    (table,) = find_tables(tree, prepare_graphs(ring(4)))
    assert table.leaves == (0,)
    assert found(tree, "a", "b") == [("b",)]
    assert found(tree, "a", "c", "d") == []
    assert found(tree, ("a", "c/d"), n=8) == []
    assert found(tree, "a/f/g") == []
    for wrong in ("f", "c/f"):
        with pytest.raises(ValueError, match=f"no leaf has '{wrong}'.*hidden are"):
            found(tree, wrong)


def test_a_name_may_find_leaves_there_and_hidden_ones():
    tree = {"one": {"item": TABLE}, "two": {"item": HIDDEN}}
    assert found(tree, "item") == [("one/item",)]


def test_a_hidden_subtree_may_hold_what_its_path_begins():
    """Masks may be prefixes of the tree: then one node hides many leaves."""
    tree = {"encoder": {"item": HIDDEN}, "head": TABLE}
    for name in ("encoder", "item", "encoder/item", "item/embedding", "encoder/item/a"):
        assert found(tree, name) == []
    for name in ("embedding", "encoder/embedding", "tem", "coder/item"):
        with pytest.raises(ValueError, match=rf"no leaf has '{name}'.*path from there"):
            found(tree, name)


def test_a_joint_table_is_hidden_as_a_whole():
    tree = {"user": HIDDEN, "item": TABLE}
    with pytest.raises(ValueError, match=r"\['user'\] of the joint table .* hidden"):
        found(tree, ("user", "item"), n=8)


def test_the_whole_path_of_a_leaf_means_it_alone():
    tree = {"item": TABLE, "encoder": {"item": TABLE, "user": {"item": TABLE}}}
    assert found(tree, "item") == found(tree, "/item") == [("item",)]
    assert found(tree, "encoder/item") == [("encoder/item",)]
    assert found(tree, ("encoder/item", "item"), n=8) == [("encoder/item", "item")]
    del tree["item"]
    assert found(tree, "item") == [("encoder/item",), ("encoder/user/item",)]
    # Hidden it is still meant alone.
    assert found({"item": HIDDEN, "encoder": {"item": TABLE}}, "item") == []


def test_a_tree_without_leaves_has_no_tables():
    assert find_tables({}, prepare_graphs({"item": ring(4)})) == []
    assert find_tables({"item": HIDDEN}, prepare_graphs(ring(4))) == []


@pytest.mark.parametrize("shape", [(65, 64), (128, 64), (63, 64), (1, 64)])
def test_rows_are_not_guessed_from_the_shape(shape):
    tree = {"item": jnp.zeros(shape)}
    graphs = prepare_graphs({"item": ring(64)})
    with pytest.raises(ValueError, match=rf"{shape[0]} rows .*64 nodes.*row_axis=.*1"):
        find_tables(tree, graphs)
    row_axis: Any
    for row_axis in (1, -1, {"item": 1}):
        (table,) = find_tables(tree, graphs, row_axis)
        assert table.row_axes == (-1,)


def test_row_axis_by_name():
    shapes = {"rows": (4, 2), "columns": (2, 4), "square": (4, 4), "other": (4, 4)}
    tree = {"layer": {name: jnp.zeros(shape) for name, shape in shapes.items()}}
    graphs = prepare_graphs({name: ring(4) for name in shapes})
    axes: Any = {"layer/columns": 1, "other": -1, "rows": 0, "square": -2}
    tables = find_tables(tree, graphs, axes)
    assert {table.key: table.row_axes for table in tables} == {
        "rows": (-2,),
        "columns": (-1,),
        "square": (-2,),
        "other": (-1,),
    }
    joint = {"a": jnp.zeros((3, 4)), "b": jnp.zeros((3, 2))}
    (table,) = find_tables(joint, prepare_graphs({("b", "a"): ring(6)}), 1)
    assert table.row_axes == (-1, -1) and table.leaves == (1, 0)
    assert row_axes_of(tree, {"layer": 1, "rows": 0}) == [-1, -1, -2, -1]


def test_row_axis_without_effect_is_refused():
    tree = {"item": TABLE, "user": TABLE, "hidden": HIDDEN}
    graphs = prepare_graphs({"item": ring(4)})
    find_tables(tree, graphs, {"item": 0, "hidden": 1})
    with pytest.raises(ValueError, match="row_axis names user, which no graph names"):
        find_tables(tree, graphs, {"item": 0, "user": 1})
    with pytest.raises(ValueError, match="no leaf has 'itme'"):
        find_tables(tree, graphs, {"itme": 1})


@pytest.mark.parametrize(
    "axis, error", [(2, ValueError), (-3, ValueError), (0.5, TypeError)]
)
def test_row_axis_is_one_of_two(axis, error):
    row_axis: Any
    for row_axis in (axis, {"item": axis}):
        with pytest.raises(error):
            check_row_axis(row_axis)


def test_tables_of_names_without_graphs():
    (table,) = tables_of(TREE, [("old_item_embedding", "user")])
    assert table.paths == ("old_item_embedding", "user/embedding")
    assert table.names == ("old_item_embedding", "user")
    leaves = jax.tree.leaves(TREE)
    assert all(leaves[i] is TABLE for i in table.leaves)


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


def test_active_rows_of_a_leaf_that_they_have_no_effect_on():
    tree = {"a": TABLE, "b": TABLE, "c": HIDDEN}
    mask = jnp.ones(4, bool)
    given = {"a": mask, "c": mask}
    assert active_rows_by_leaf(tree, given, corrected=[0])[0] is mask
    with pytest.raises(ValueError, match="names b, but its moments are not corrected"):
        active_rows_by_leaf(tree, {"b": mask}, corrected=[0])


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dia", "bsr", "dok"])
def test_a_single_graph_of_any_form_is_not_taken_for_names(form):
    path = ring(6)
    assert list(prepare_graphs(path.asformat(form))) == [WHOLE_TREE]
    assert list(prepare_graphs({"table": path.asformat(form)})) == ["table"]
