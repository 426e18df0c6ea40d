"""Bad input: every error names what is wrong, its value and what to do about it."""

import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
from jax.experimental.sparse import BCOO, BCSR

import sevo_jax as sevo

DENSE = np.array(
    [[0.0, 2.0, 1.0, 0.0], [2.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0] * 4]
)
GRAPH = scipy.sparse.csr_array(DENSE)
TABLE: Any = np.ones((4, 3), np.float32)

# Everything that takes a graph, given one graph for one table.
CONSUMERS = {
    "prepare": lambda graph: sevo.prepare(graph),
    "neumann": lambda graph: sevo.smoothing.neumann(graph, TABLE, 0.9, 3),
    "iterative": lambda graph: sevo.smoothing.iterative(graph, TABLE, 0.4, 3),
    "exact": lambda graph: sevo.smoothing.exact(graph, TABLE, 0.9),
    "smoothness": lambda graph: sevo.smoothing.smoothness(graph, TABLE),
    "compare": lambda graph: sevo.smoothing.effect(graph, TABLE, TABLE),
    "scale_by_sevo": lambda graph: sevo.scale_by_sevo(graph),
    "adamw": lambda graph: sevo.sevo_adamw(1e-3, graph),
    "adam": lambda graph: sevo.sevo_adam(1e-3, graph),
    "sgd": lambda graph: sevo.sevo_sgd(1e-3, graph),
}
OPTIMIZERS = {
    "scale_by_sevo": lambda graphs, **options: sevo.scale_by_sevo(graphs, **options),
    "adamw": lambda graphs, **options: sevo.sevo_adamw(1e-3, graphs, **options),
    "adam": lambda graphs, **options: sevo.sevo_adam(1e-3, graphs, **options),
    "sgd": lambda graphs, **options: sevo.sevo_sgd(1e-3, graphs, **options),
}


@pytest.fixture(params=CONSUMERS)
def consume(request):
    return CONSUMERS[request.param]


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return OPTIMIZERS[request.param]


def raises(error, *parts):
    """``pytest.raises`` of a message that holds all the parts, in this order."""
    return pytest.raises(error, match=".*".join(map(re.escape, parts)))


def changed(*entries):
    dense = DENSE.copy()
    for row, column, weight in entries:
        dense[row, column] = weight
    return dense


def as_bcoo(dense):
    return BCOO.fromdense(jnp.asarray(dense, jnp.float32))


def bcoo(weights, indices, size=4):
    return BCOO((jnp.asarray(weights), jnp.asarray(indices)), shape=(size, size))


# ---------------------------------------------------------------- graphs


FORMATS = [scipy.sparse.csr_array, scipy.sparse.coo_matrix, as_bcoo]


@pytest.mark.parametrize("form", FORMATS, ids=["csr", "coo", "bcoo"])
@pytest.mark.parametrize(
    "dense, parts",
    [
        (DENSE[:, :3], ["must be square", "(4, 3)", "the same nodes"]),
        (
            changed((0, 1, 5.0)),
            ["not symmetric", "(0, 1) is 5.0", "(1, 0) is 2.0", "A + A.T"],
        ),
        (
            changed((0, 1, -2.0), (1, 0, -2.0)),
            ["(0, 1) = -2.0", "negative", "2 such entries", "non-negative"],
        ),
        (
            changed((1, 2, np.nan), (2, 1, np.nan)),
            ["(1, 2) = nan", "not finite", "2 such entries"],
        ),
        (changed((2, 2, np.inf)), ["(2, 2) = inf", "not finite", "1 such entries"]),
        (np.zeros((4, 4)), ["4 nodes", "no edges", "leave the table out"]),
    ],
    ids=["square", "symmetric", "negative", "nan", "infinite", "empty"],
)
def test_bad_weights(consume, form, dense, parts):
    with raises(ValueError, *parts):
        consume(form(dense))


@pytest.mark.parametrize("index", [[0, 4], [7, 1], [0, -1]])
def test_bcoo_index_out_of_range(consume, index):
    graph = bcoo([1.0, -1.0], [[0, 1], index])
    parts = [f"({index[0]}, {index[1]})", "out of range for 4 nodes", "0..3"]
    with raises(ValueError, *parts):
        consume(graph)


@pytest.mark.parametrize("form", [scipy.sparse.csr_array, scipy.sparse.csc_matrix])
@pytest.mark.parametrize("index", [4, 10**6, -1])
def test_scipy_index_out_of_range(consume, form, index):
    # SciPy itself does not look, and would write beyond its buffers.
    graph = form(([1.0, 1.0], [1, index], [0, 1, 2, 2, 2]), shape=(4, 4))
    with raises(ValueError, "index out of range for 4 nodes"):
        consume(graph)


@pytest.mark.parametrize(
    ("other", "remedy"),
    [
        (DENSE.tolist(), "numpy.array(graph)"),
        (None, "scipy.sparse.coo_array"),
        ("item_graph.npz", "sevo_jax.graphs.load(path)"),
        (pathlib.Path("item_graph.npz"), "sevo_jax.graphs.load(path)"),
    ],
    ids=["list", "none", "text", "path"],
)
def test_no_graph(consume, other, remedy):
    with raises(TypeError, "SciPy", type(other).__name__, remedy):
        consume(other)


@pytest.mark.parametrize("form", [BCOO, BCSR])
def test_batched_matrix(consume, form):
    graph = form.fromdense(jnp.asarray(DENSE)[None], n_batch=1)
    name = f"two-dimensional {form.__name__}"
    with raises(ValueError, name, "(1, 4, 4)", "n_batch=1"):
        consume(graph)


@pytest.mark.parametrize("form", [BCOO.fromdense, BCSR.fromdense, jnp.asarray])
def test_traced_matrix(consume, form):
    with raises(TypeError, "is traced", "sevo_jax.prepare(adjacency)", "outside jit"):
        jax.jit(lambda graph: jax.tree.leaves(consume(graph)))(form(jnp.asarray(DENSE)))


def test_traced_bcoo_in_update(make):
    tx = make({"item_embedding": GRAPH})
    params = {"item_embedding": jnp.asarray(TABLE)}

    @jax.jit
    def step(graph):
        return tx.update(
            params, tx.init(params), params, graphs={"item_embedding": graph}
        )

    with raises(TypeError, "'item_embedding'", "is traced", "sevo_jax.prepare"):
        step(as_bcoo(DENSE))
    step(sevo.prepare(GRAPH))


@pytest.mark.parametrize("size", [4, 100], ids=["dense_solver", "iterative_solver"])
def test_not_normalised_after_all(size):
    dense = np.zeros((size, size))
    dense[:4, :4] = DENSE
    with raises(ValueError, "spectral radius 2.73205", "above 1", "normalize=True"):
        sevo.prepare(scipy.sparse.csr_array(dense), normalize=False)


def test_graph_in_a_mapping_is_named(make):
    graphs = {"good": GRAPH, ("bad", "worse"): scipy.sparse.csr_array(DENSE[:3])}
    with raises(ValueError, "('bad', 'worse')", "must be square", "(3, 4)"):
        make(graphs)
    with raises(TypeError, "'bad'", "builtins.list", "numpy.array"):
        make({"bad": DENSE.tolist()})


@pytest.mark.parametrize("key", [1, (), ("item", 2), ("item", ""), None])
def test_key_that_is_no_name(make, key):
    with raises(TypeError, "a leaf name or a tuple of leaf names", repr(key)):
        make({key: GRAPH})


# ---------------------------------------------------------------- tables


def check_refused(make, graphs, params, error, *parts):
    """Refused by ``init``, under a transformation and without."""
    tx = make(graphs)
    params = jax.tree.map(jnp.asarray, params)
    with raises(error, *parts):
        tx.init(params)
    with raises(error, *parts):
        jax.eval_shape(tx.init, params)


def test_name_that_matches_nothing(make):
    params = {"encoder": {"old_item_embedding": TABLE, "bias": TABLE[0]}}
    check_refused(
        make,
        {"item_embedding": GRAPH},
        params,
        ValueError,
        "no leaf has 'item_embedding'",
        "the leaves are",
        "encoder/bias",
        "encoder/old_item_embedding",
    )


@pytest.mark.parametrize(
    "name", ["item", "embedding", "item_embedding/embed", "tem_embedding", "encoder/x"]
)
def test_name_that_is_only_part_of_a_component(make, name):
    params = {"encoder": {"item_embedding": TABLE}}
    check_refused(
        make, {name: GRAPH}, params, ValueError, repr(name), "encoder/item_embedding"
    )


def test_one_adjacency_for_two_leaves(make):
    params = {"item_embedding": TABLE, "bias": TABLE[0]}
    check_refused(
        make,
        GRAPH,
        params,
        ValueError,
        "without a name",
        "2 leaves",
        "name the leaf",
        "bias",
        "item_embedding",
    )


def test_row_count_differs(make):
    check_refused(
        make,
        {"item_embedding": GRAPH},
        {"encoder": {"item_embedding": np.ones((5, 3))}},
        ValueError,
        "encoder/item_embedding has 5 rows",
        "(5, 3)",
        "4 nodes",
        "item_offset=1",
        "num_nodes=",
    )


def test_row_count_of_a_bare_array_differs(make):
    check_refused(
        make, GRAPH, np.ones((5, 3)), ValueError, "the only leaf has 5 rows", "4 nodes"
    )


def test_row_count_of_a_joint_table_differs(make):
    check_refused(
        make,
        {("user", "item"): GRAPH},
        {"item": np.ones((4, 3)), "user": np.ones((2, 3))},
        ValueError,
        "user + item has 6 rows",
        "(2, 3), (4, 3)",
        "4 nodes",
    )


@pytest.mark.parametrize(
    "user, item", [((2, 3), (2, 5)), ((6, 2, 3), (7, 2, 3)), ((2, 3), (7, 2, 3))]
)
def test_shapes_of_a_joint_table_differ(make, user, item):
    check_refused(
        make,
        {("user", "item"): GRAPH},
        {"item": np.ones(item), "user": np.ones(user)},
        ValueError,
        "user + item",
        f"{user}, {item}",
        "need one width, and stacks of tables one length",
    )


def test_name_in_a_joint_table_matches_several(make):
    check_refused(
        make,
        {("user", "item"): GRAPH},
        {"a": {"item": TABLE}, "b": {"item": TABLE}, "user": TABLE},
        ValueError,
        "'item'",
        "('user', 'item')",
        "several leaves",
        "a/item",
        "b/item",
        "more of the path",
    )


def test_leaf_claimed_by_two_graphs(make):
    check_refused(
        make,
        {"item_embedding": GRAPH, "encoder": GRAPH},
        {"encoder": {"item_embedding": TABLE}},
        ValueError,
        "encoder/item_embedding",
        "'item_embedding'",
        "'encoder'",
        "one graph only",
    )


def test_leaf_twice_in_a_joint_table(make):
    check_refused(
        make,
        {("item", "item"): GRAPH},
        {"item": np.ones((2, 3)), "user": np.ones((2, 3))},
        ValueError,
        "item",
        "one graph only",
        "path of one leaf would be 'item/item'",
    )


@pytest.mark.parametrize("dtype", [np.int32, bool, np.complex64])
def test_table_that_is_not_floating_point(make, dtype):
    check_refused(
        make,
        {"item_embedding": GRAPH},
        {"item_embedding": TABLE.astype(dtype)},
        TypeError,
        f"item_embedding is {np.dtype(dtype)}",
        "floating-point",
    )


@pytest.mark.parametrize("shape", [(4,), (7,), ()])
def test_table_that_is_not_two_dimensional(make, shape):
    check_refused(
        make,
        {"item_embedding": GRAPH},
        {"item_embedding": np.ones(shape)},
        ValueError,
        f"item_embedding has shape {shape}",
        "two dimensions",
    )


def test_update_of_another_tree():
    tx = sevo.scale_by_sevo({"item_embedding": GRAPH})
    params = {"item_embedding": jnp.asarray(TABLE)}
    state = tx.init(params)
    with raises(ValueError, "no leaf has 'item_embedding'", "renamed"):
        tx.update({"renamed": params["item_embedding"]}, state, params)


@pytest.mark.parametrize("name", ["neumann", "iterative", "exact"])
@pytest.mark.parametrize(
    "table, error, parts",
    [
        (np.ones((5, 3)), ValueError, ["(5, 3)", "4 nodes", "[..., 4, d]"]),
        (np.ones(4), ValueError, ["(4,)", "[..., 4, d]"]),
        (np.ones((4, 3), np.int32), TypeError, ["floating point", "int32"]),
    ],
    ids=["rows", "vector", "integer"],
)
def test_table_of_a_function(name, table, error, parts):
    function = getattr(sevo.smoothing, name)
    hops = () if name == "exact" else (3,)
    with raises(error, *parts):
        function(GRAPH, table, 0.4, *hops)
    with raises(error, *parts):
        sevo.smoothing.smoothness(GRAPH, table)
    with raises(error, *parts):
        sevo.smoothing.effect(GRAPH, TABLE, table)


# ---------------------------------------------------------------- hyper-parameters


@pytest.mark.parametrize(
    "beta", [1.0, -0.01, 1.5, np.nan, np.float32(1.0), jnp.array(2.0)]
)
def test_beta_out_of_range(make, beta):
    with raises(ValueError, "beta must lie in [0, 1)", f"got {beta}"):
        make(GRAPH, beta=beta)
    for name in ("neumann", "iterative", "exact"):
        hops = () if name == "exact" else (3,)
        with raises(ValueError, "beta must lie in [0, 1)", f"got {beta}"):
            getattr(sevo.smoothing, name)(GRAPH, TABLE, beta, *hops)


@pytest.mark.parametrize("beta", ["0.9", None, np.array([0.5, 0.9])])
def test_beta_that_is_no_number(make, beta):
    with raises(TypeError, "beta must be a number or a schedule", repr(beta)):
        make(GRAPH, beta=beta)


@pytest.mark.parametrize(
    "num_layers, error, parts",
    [
        (-1, ValueError, ["num_layers must be at least 0", "-1"]),
        (2.5, TypeError, ["num_layers must be a Python int", "2.5"]),
        (3.0, TypeError, ["num_layers must be a Python int", "3.0"]),
        ("3", TypeError, ["num_layers must be a Python int", "'3'"]),
    ],
)
def test_bad_num_layers(make, num_layers, error, parts):
    with raises(error, *parts):
        make(GRAPH, num_layers=num_layers)
    for function in (sevo.smoothing.neumann, sevo.smoothing.iterative):
        with raises(error, *parts):
            function(GRAPH, TABLE, 0.4, num_layers)


def test_traced_num_layers():
    def smooth(num_layers):
        return sevo.smoothing.neumann(GRAPH, TABLE, 0.9, num_layers)

    with raises(TypeError, "num_layers is traced", "Python int", "static_args"):
        jax.jit(smooth)(3)


@pytest.mark.parametrize(
    "factory",
    [
        lambda inject: inject(sevo.scale_by_sevo)(GRAPH),
        lambda inject: inject(sevo.sevo_adamw)(1e-3, GRAPH),
        lambda inject: inject(sevo.sevo_adam)(1e-3, GRAPH),
        lambda inject: inject(sevo.sevo_sgd)(1e-3, GRAPH),
    ],
    ids=["scale_by_sevo", "adamw", "adam", "sgd"],
)
def test_injected_num_layers_that_is_not_static(factory):
    tx = factory(optax.inject_hyperparams)
    params = jnp.asarray(TABLE)
    state = tx.init(params)
    with raises(TypeError, "num_layers is traced", "static_args"):
        jax.jit(tx.update)(params, state, params)


@pytest.mark.parametrize("name", ["b1", "b2"])
@pytest.mark.parametrize("value", [1.0, -0.1, 1.1, np.nan])
def test_decay_of_a_moment_out_of_range(name, value):
    for make in (
        sevo.scale_by_moment_corrected_adam,
        lambda **options: sevo.sevo_adamw(1e-3, GRAPH, **options),
    ):
        with raises(ValueError, f"{name} must lie in [0, 1)", f"got {value}"):
            make(**{name: value})


def test_decay_of_half_precision():
    """As optax.inject_hyperparams makes it of tables in bfloat16."""
    params = jnp.asarray(TABLE, jnp.bfloat16)
    make = optax.inject_hyperparams(
        sevo.sevo_adamw, static_args=("num_layers", "every")
    )
    tx = make(learning_rate=1e-3, graphs=GRAPH)
    for init in (tx.init, jax.jit(tx.init)):
        with raises(ValueError, "b1 is bfloat16", "hyperparam_dtype=jnp.float32"):
            init(params)
    make = optax.inject_hyperparams(
        sevo.sevo_adamw,
        static_args=("num_layers", "every"),
        hyperparam_dtype=jnp.float32,
    )
    tx = make(learning_rate=1e-3, graphs=GRAPH)
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert np.isfinite(np.asarray(updates, np.float32)).all()


@pytest.mark.parametrize("tol", [-1.0, np.nan])
def test_tolerance_of_exact(tol):
    with raises(ValueError, f"tol must be at least 0, got {tol}"):
        sevo.smoothing.exact(GRAPH, jnp.asarray(TABLE), 0.9, tol=tol)


@pytest.mark.parametrize("approximation", ["exact", "Neumann", None])
def test_unknown_approximation(make, approximation):
    with raises(ValueError, "'neumann' or 'iterative'", repr(approximation)):
        make(GRAPH, approximation=approximation)


# ---------------------------------------------------------------- per-call arguments


@pytest.mark.parametrize(
    "graphs, parts",
    [
        ({"user_embedding": GRAPH}, ["user_embedding", "item_embedding"]),
        ({}, ["item_embedding"]),
        ({"item_embedding": GRAPH, "other": GRAPH}, ["other", "item_embedding"]),
        (GRAPH, ["item_embedding"]),
    ],
    ids=["other", "none", "more", "unnamed"],
)
def test_graphs_of_a_call_with_other_names(make, graphs, parts):
    tx, params = make({"item_embedding": GRAPH}), {"item_embedding": jnp.asarray(TABLE)}
    with raises(ValueError, "update was given graphs for", *parts, "the same"):
        tx.update(params, tx.init(params), params, graphs=graphs)


def test_graph_of_a_call_with_another_number_of_nodes(make):
    tx, params = make({"item_embedding": GRAPH}), {"item_embedding": jnp.ones((4, 2))}
    smaller = {"item_embedding": sevo.prepare(scipy.sparse.csr_array(DENSE[:3, :3]))}
    with raises(ValueError, "item_embedding has 4 rows", "3 nodes"):
        tx.update(params, tx.init(params), params, graphs=smaller)


ACTIVE_ROWS = {
    "shape": (
        {"item_embedding": np.ones(5, bool)},
        ValueError,
        ["(5,)", "(4, 3)", "(4,)"],
    ),
    "column": (
        {"item_embedding": np.ones((4, 1), bool)},
        ValueError,
        ["(4, 1)", "(4,)"],
    ),
    "integers": (
        {"item_embedding": np.ones(4, np.int32)},
        TypeError,
        ["item_embedding", "boolean", "int32"],
    ),
    "floats": (
        {"item_embedding": jnp.ones(4)},
        TypeError,
        ["item_embedding", "boolean", "float32"],
    ),
    "list": (
        {"item_embedding": [True] * 4},
        TypeError,
        ["item_embedding", "boolean", "list"],
    ),
    "name": (
        {"user_embedding": np.ones(4, bool)},
        ValueError,
        ["no leaf has 'user_embedding'", "item_embedding"],
    ),
}


@pytest.mark.parametrize("rows, error, parts", ACTIVE_ROWS.values(), ids=ACTIVE_ROWS)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_bad_active_rows(rows, error, parts, transposed):
    table = TABLE.T if transposed else TABLE
    params = {"item_embedding": jnp.asarray(table), "bias": jnp.ones(3)}
    tx = sevo.sevo_adamw(1e-3, {"item_embedding": GRAPH}, row_axis=int(transposed))
    parts = ["(3, 4)" if transposed and part == "(4, 3)" else part for part in parts]
    with raises(error, *parts):
        tx.update(params, tx.init(params), params, active_rows=rows)


def test_one_mask_for_several_tables():
    params = {"item": jnp.asarray(TABLE), "user": jnp.asarray(TABLE)}
    tx = sevo.sevo_adamw(1e-3, {"item": GRAPH, "user": GRAPH})
    with raises(ValueError, "without a name", "2 leaves", "item", "user"):
        tx.update(params, tx.init(params), params, active_rows=np.ones(4, bool))


def test_weight_decay_needs_params(make):
    if make is OPTIMIZERS["scale_by_sevo"]:
        pytest.skip("has no weight decay")
    tx = make(GRAPH, weight_decay=0.1)
    params = jnp.asarray(TABLE)
    with pytest.raises(ValueError, match="params"):
        tx.update(params, tx.init(params))


def test_row_pointers_that_decrease():
    broken = scipy.sparse.csr_array((3, 3))
    broken.indptr, broken.indices, broken.data = (
        np.array([0, 99, 0, 0], np.int32),
        np.array([0], np.int32),
        np.array([1.0]),
    )
    with pytest.raises(ValueError, match="row pointers of the adjacency decrease"):
        sevo.prepare(broken)


def test_active_rows_of_a_joint_table_are_given_leaf_by_leaf():
    tx = sevo.scale_by_moment_corrected_adam()
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))}
    with pytest.raises(TypeError, match=r"one leaf, got \('a', 'b'\)"):
        tx.update(params, tx.init(params), active_rows={("a", "b"): jnp.ones(4, bool)})
