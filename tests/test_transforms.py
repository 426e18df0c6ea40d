"""The smoothing transformation by itself: what it makes of updates, and accepts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse

import sevo_jax as sevo

# Optax types updates as any tree; here they are the arrays that were given.
scale_by_sevo: Any = sevo.scale_by_sevo
scale_by_moment_corrected_adam: Any = sevo.scale_by_moment_corrected_adam

pytestmark = pytest.mark.usefixtures("strict_promotion")


def run(transform: Any, gradients, extras=None):
    """What the transformation makes of each gradient, and its state after the last."""
    gradients = [jax.tree.map(jnp.asarray, gradient) for gradient in gradients]
    state, out = transform.init(gradients[0]), []
    for t, gradient in enumerate(gradients):
        update, state = transform.update(
            gradient, state, **(extras[t] if extras else {})
        )
        out.append(update)
    return out, state


@pytest.fixture
def adjacency(random_graph):
    return random_graph(0, 6, isolated=(5,), self_loops=True)


def sparse(dense):
    return scipy.sparse.csr_array(dense)


def smoothed(transform, updates, **extra):
    out, state = transform.update(updates, transform.init(updates), **extra)
    assert state.count == 1
    return out


def test_smooths_the_named_leaf_and_touches_no_other(adjacency, oracle, rng, x64):
    updates = {
        "item": jnp.asarray(rng.normal(size=(6, 3))),
        "old_item": jnp.asarray(rng.normal(size=(6, 3))),
        "bias": jnp.asarray(rng.normal(size=6)),
    }
    out = smoothed(scale_by_sevo({"item": sparse(adjacency)}, 0.9, 2), updates)
    expected = oracle.neumann(adjacency, np.asarray(updates["item"]), 0.9, 2)
    np.testing.assert_allclose(out["item"], expected, rtol=1e-12)
    assert out["old_item"] is updates["old_item"]
    assert out["bias"] is updates["bias"]


@pytest.mark.parametrize(
    "options, name, arguments",
    [
        ({}, "neumann", (0.99, 3)),
        ({"beta": 0.5, "num_layers": 1}, "neumann", (0.5, 1)),
        ({"rescale": False}, "neumann", (0.99, 3, False)),
        ({"approximation": "iterative"}, "iterative", (0.99, 3)),
        ({"approximation": "iterative", "rescale": False}, "iterative", (0.99, 3)),
    ],
)
def test_options(options, name, arguments, adjacency, oracle, rng, x64):
    x = rng.normal(size=(6, 3))
    out = smoothed(scale_by_sevo(sparse(adjacency), **options), jnp.asarray(x))
    expected = getattr(oracle, name)(adjacency, x, *arguments)
    np.testing.assert_allclose(out, expected, rtol=1e-11, atol=1e-14)


def test_a_name_that_matches_several_leaves_smooths_each_alone(
    adjacency, oracle, rng, x64
):
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    updates = {"in": {"table": jnp.asarray(x)}, "out": {"table": jnp.asarray(y)}}
    out = smoothed(scale_by_sevo({"table": sparse(adjacency)}, 0.9), updates)
    for name, given in (("in", x), ("out", y)):
        expected = oracle.neumann(adjacency, given, 0.9, 3)
        np.testing.assert_allclose(out[name]["table"], expected, rtol=1e-11)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "a", "b"), ("b", "c", "a")])
def test_joint_table_is_stacked_in_the_order_of_the_names(
    order, transposed, adjacency, oracle, rng, x64
):
    turn = np.transpose if transposed else np.asarray
    leaves = {k: rng.normal(size=(n, 4)) for k, n in (("a", 1), ("b", 3), ("c", 2))}
    updates = {k: jnp.asarray(turn(leaf)) for k, leaf in leaves.items()}
    transform = scale_by_sevo({order: sparse(adjacency)}, 0.9, row_axis=int(transposed))
    out = smoothed(transform, updates)
    stacked = np.concatenate([leaves[name] for name in order])
    expected = oracle.neumann(adjacency, stacked, 0.9, 3)
    actual = np.concatenate([turn(out[name]) for name in order])
    np.testing.assert_allclose(actual, expected, rtol=1e-11)


def test_rows_are_the_last_axis_only_where_asked_for(adjacency, oracle, rng, x64):
    shapes = {"kernel": (3, 6), "square": (6, 6), "table": (6, 3), "other": (6, 6)}
    given = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    updates = jax.tree.map(jnp.asarray, given)
    graphs = dict.fromkeys(shapes, sparse(adjacency))
    axes = {"kernel": 1, "other": -1, "square": 0}
    out = smoothed(scale_by_sevo(graphs, 0.9, row_axis=axes), updates)
    for name, x in given.items():
        turn = np.transpose if name in ("kernel", "other") else np.asarray
        expected = turn(oracle.neumann(adjacency, turn(x), 0.9, 3))
        np.testing.assert_allclose(out[name], expected, rtol=1e-11)


def test_a_joint_table_of_both_orientations(adjacency, oracle, rng, x64):
    rows, columns = rng.normal(size=(2, 3)), rng.normal(size=(3, 4))
    updates = {"embedding": jnp.asarray(rows), "output": jnp.asarray(columns)}
    graphs = {("embedding", "output"): sparse(adjacency)}
    out = smoothed(scale_by_sevo(graphs, 0.9, row_axis={"output": 1}), updates)
    stacked = np.concatenate([rows, columns.T])
    expected = oracle.neumann(adjacency, stacked, 0.9, 3)
    np.testing.assert_allclose(out["embedding"], expected[:2], rtol=1e-11)
    np.testing.assert_allclose(out["output"], expected[2:].T, rtol=1e-11)


@pytest.mark.parametrize("row_axis", [0, 1])
@pytest.mark.parametrize("leading", [(2,), (2, 3), (6,)])
def test_a_stack_of_tables_is_smoothed_table_by_table(
    leading, row_axis, adjacency, oracle, rng, x64
):
    x = rng.normal(size=(*leading, 6, 3))

    def turn(x):
        return np.swapaxes(x, -1, -2) if row_axis else x

    transform = scale_by_sevo(sparse(adjacency), 0.9, row_axis=row_axis)
    out = turn(smoothed(transform, jnp.asarray(turn(x))))
    for index in np.ndindex(leading):
        expected = oracle.neumann(adjacency, x[index], 0.9, 3)
        np.testing.assert_allclose(out[index], expected, rtol=1e-11)


def test_a_joint_stack_of_tables(adjacency, oracle, rng, x64):
    x, y = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 2, 3))
    updates = {"a": jnp.asarray(x), "b": jnp.asarray(y)}
    out = smoothed(scale_by_sevo({("a", "b"): sparse(adjacency)}, 0.9), updates)
    stacked = np.concatenate([x, y], axis=1)
    for i in range(2):
        expected = oracle.neumann(adjacency, stacked[i], 0.9, 3)
        np.testing.assert_allclose(out["a"][i], expected[:4], rtol=1e-11)
        np.testing.assert_allclose(out["b"][i], expected[4:], rtol=1e-11)


def test_schedule_of_the_strength(adjacency, oracle, rng, x64):
    x = rng.normal(size=(6, 3))
    betas = [0.0, 0.3, 0.6, 0.9]
    transform = scale_by_sevo(
        sparse(adjacency), lambda count: jnp.asarray(betas)[count]
    )
    state = transform.init(jnp.asarray(x))
    update = jax.jit(transform.update)
    for step, beta in enumerate(betas):
        assert state.count == step and state.count.dtype == jnp.int32
        out, state = update(jnp.asarray(x), state)
        expected = oracle.neumann(adjacency, x, beta, 3)
        np.testing.assert_allclose(out, expected, rtol=1e-11)


def test_graphs_given_to_update_replace_the_bound_ones(
    adjacency, random_graph, oracle, rng, x64
):
    x, other = rng.normal(size=(6, 3)), random_graph(7, 6)
    transform = scale_by_sevo({"item": sparse(adjacency)}, 0.9)
    updates = {"item": jnp.asarray(x)}
    state = transform.init(updates)

    @jax.jit
    def update(graphs):
        return transform.update(updates, state, graphs=graphs)[0]["item"]

    for dense in (other, adjacency):
        out = update({"item": sevo.prepare(sparse(dense))})
        np.testing.assert_allclose(out, oracle.neumann(dense, x, 0.9, 3), rtol=1e-11)
    out = transform.update(updates, state)[0]["item"]
    np.testing.assert_allclose(out, oracle.neumann(adjacency, x, 0.9, 3), rtol=1e-11)
    whole = scale_by_sevo(sparse(adjacency), 0.9)
    out = smoothed(whole, jnp.asarray(x), graphs=sparse(other))
    np.testing.assert_allclose(out, oracle.neumann(other, x, 0.9, 3), rtol=1e-11)


def test_graphs_given_to_update_need_the_same_names(adjacency):
    transform = scale_by_sevo({"item": sparse(adjacency)})
    updates = {"item": jnp.ones((6, 2)), "user": jnp.ones((6, 2))}
    with pytest.raises(ValueError, match=r"for \['user'\].*made for \['item'\]"):
        smoothed(transform, updates, graphs={"user": sparse(adjacency)})


def test_unknown_extra_arguments_are_swallowed(adjacency):
    updates = jnp.ones((6, 2))
    for transform in (
        scale_by_sevo(sparse(adjacency)),
        scale_by_moment_corrected_adam(),
    ):
        out = smoothed(transform, updates, value=1.0, loss_fn=None, grad=updates)
        np.testing.assert_array_equal(out, smoothed(transform, updates))


@pytest.mark.parametrize(
    "name, meant",
    [
        ("graph", "graphs"),
        ("grpahs", "graphs"),
        ("active_row", "active_rows"),
        ("activerows", "active_rows"),
        ("flsh", "flush"),
    ],
)
def test_misspelt_extra_arguments_are_refused(name, meant, adjacency):
    updates = jnp.ones((6, 2))
    for transform in (
        scale_by_sevo(sparse(adjacency)),
        scale_by_moment_corrected_adam(),
    ):
        with pytest.raises(TypeError, match=f"'{name}'.*no effect.*'{meant}'"):
            transform.update(updates, transform.init(updates), **{name: None})


def test_state_of_smoothing_is_its_count_alone(adjacency):
    transform = scale_by_sevo({"item": sparse(adjacency)})
    state = transform.init({"item": jnp.ones((6, 2))})
    assert isinstance(state, sevo.ScaleBySevoState)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [()]


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtype_of_the_updates_is_kept(kind, adjacency, oracle, rng):
    x = jnp.asarray(rng.normal(size=(6, 3))).astype(kind)
    out = smoothed(scale_by_sevo(sparse(adjacency)), x)
    assert out.dtype == kind
    expected = oracle.neumann(adjacency, np.asarray(x, np.float64), 0.99, 3)
    np.testing.assert_allclose(
        np.asarray(out, np.float64),
        expected,
        rtol=float(jnp.finfo(kind).eps),
        atol=2e-6,
    )


def test_joint_table_of_two_dtypes_keeps_both(adjacency, oracle, rng):
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(2, 3))
    updates = {
        "a": jnp.asarray(x, jnp.float32),
        "b": jnp.asarray(y, jnp.bfloat16),
    }
    with jax.numpy_dtype_promotion("standard"):
        out = smoothed(scale_by_sevo({("a", "b"): sparse(adjacency)}), updates)
    assert out["a"].dtype == jnp.float32 and out["b"].dtype == jnp.bfloat16
    stacked = np.concatenate(
        [np.asarray(leaf, np.float64) for leaf in updates.values()]
    )
    expected = oracle.neumann(adjacency, stacked, 0.99, 3)
    np.testing.assert_allclose(out["a"], expected[:4], rtol=0, atol=2e-6)
    np.testing.assert_allclose(
        np.asarray(out["b"], np.float64), expected[4:], rtol=0.004, atol=1e-5
    )


def test_one_nan_reaches_what_lies_within_the_hops():
    path = np.diag(np.ones(5), 1) + np.diag(np.ones(5), -1)
    updates = jnp.ones((6, 1)).at[0].set(jnp.nan)
    out = smoothed(scale_by_sevo(sparse(path), 0.9, num_layers=2), updates)
    np.testing.assert_array_equal(np.isnan(out[:, 0]), [1, 1, 1, 0, 0, 0])


def test_chained_after_adam_it_smooths_the_direction(adjacency, oracle, rng):
    gradients = rng.normal(size=(4, 6, 3)).astype(np.float32)
    chained = optax.chain(optax.scale_by_adam(), scale_by_sevo(sparse(adjacency)))
    with jax.numpy_dtype_promotion("standard"):
        (*_, direction), _ = run(optax.scale_by_adam(), gradients)
        (*_, out), _ = run(chained, gradients)
    expected = oracle.neumann(adjacency, np.asarray(direction, np.float64), 0.99, 3)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)


# ------------------------------------------------------------------ every=k


WINDOW = 4
KINDS = {
    "rescaled": {},
    "unscaled": {"rescale": False},
    "iterative": {"approximation": "iterative"},
}


def in_windows(tx, updates, **options):
    """The updates of each step, and the states after them."""
    update = jax.jit(tx.update, **options)
    state, out, states = tx.init(updates[0]), [], []
    for each in updates:
        smoothed, state = update(each, state)
        out.append(smoothed)
        states.append(state)
    return out, states


def sums(trees):
    return jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *trees)


@pytest.mark.parametrize("num_layers", [0, 1, 3])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_window_comes_to_the_same(num_layers, options, adjacency, x64, rng):
    updates = [
        {"table": jnp.asarray(rng.normal(size=(6, 3))), "bias": jnp.asarray([1.0, t])}
        for t in range(3 * WINDOW)
    ]
    graphs = {"table": sparse(adjacency)}
    options = {"beta": 0.7, "num_layers": num_layers, **options}
    expected, _ = in_windows(scale_by_sevo(graphs, **options), updates)
    tx = scale_by_sevo(graphs, every=WINDOW, **options)
    actual, states = in_windows(tx, updates)
    # The local term is what the transformation makes of an isolated row.
    alone = np.asarray(expected[0]["table"][5] / updates[0]["table"][5])
    for t, (out, given) in enumerate(zip(actual, updates, strict=True)):
        np.testing.assert_array_equal(out["bias"], given["bias"])
        assert states[t].step == t + 1
        done = (t + 1) // WINDOW * WINDOW
        if done > t:
            close = sums(actual[:done])["table"], sums(expected[:done])["table"]
            np.testing.assert_allclose(*close, rtol=0, atol=1e-13)
            assert not states[t].pending["table"].any()
        else:
            here = alone[0] * given["table"]
            np.testing.assert_allclose(out["table"], here, rtol=1e-12)
            waits = sums(actual[done : t + 1])["table"]
            np.testing.assert_allclose(states[t].pending["table"], waits, rtol=1e-12)


def test_joint_tables_and_stacks_wait_leaf_by_leaf(adjacency, oracle, x64, rng):
    shapes = {"a": (2, 3, 4), "b": (2, 3, 2), "c": (5,)}
    updates = [
        {k: jnp.asarray(rng.normal(size=shape)) for k, shape in shapes.items()}
        for _ in range(WINDOW)
    ]
    tx = scale_by_sevo(
        {("b", "a"): sparse(adjacency)}, 0.9, every=WINDOW, row_axis={"a": 1, "b": 1}
    )
    out, states = in_windows(tx, updates)
    assert jax.tree.map(jnp.shape, states[0].pending) == {
        "a": (2, 3, 4),
        "b": (2, 3, 2),
        "c": optax.MaskedNode(),
    }
    total, moved = sums(updates), sums(out)
    for i in range(2):
        stacked = np.concatenate([total["b"][i].T, total["a"][i].T])
        expected = oracle.neumann(adjacency, stacked, 0.9, 3)
        actual = np.concatenate([moved["b"][i].T, moved["a"][i].T])
        np.testing.assert_allclose(actual, expected, rtol=1e-11)


def test_each_update_by_itself_is_the_program_without_windows(adjacency):
    updates = {"table": jnp.ones((6, 2))}
    graphs = {"table": sparse(adjacency)}
    plain, every = scale_by_sevo(graphs), scale_by_sevo(graphs, every=1)
    state = plain.init(updates)
    assert jax.tree.structure(every.init(updates)) == jax.tree.structure(state)
    programs = [
        jax.jit(tx.update).lower(updates, state).as_text() for tx in (plain, every)
    ]
    assert programs[0] == programs[1]


@pytest.mark.parametrize("traced", [False, True])
def test_flush_propagates_at_once(traced, adjacency, oracle, x64, rng):
    tx = scale_by_sevo(sparse(adjacency), 0.9, every=WINDOW)
    updates = [jnp.asarray(rng.normal(size=(6, 3))) for _ in range(2 * WINDOW)]
    update = tx.update
    if traced:
        update = jax.jit(lambda *args, flush: tx.update(*args, flush=flush))
    state, out = tx.init(updates[0]), []
    for t, each in enumerate(updates[:6]):
        each, state = update(each, state, flush=t == 5)
        out.append(each)
        assert state.pending.any() == (t not in (3, 5))
    expected = oracle.neumann(adjacency, np.sum(updates[:6], axis=0), 0.9, 3)
    np.testing.assert_allclose(sums(out), expected, rtol=1e-11)
    # The next window ends where it would have without.
    for each in updates[6:]:
        each, state = update(each, state, flush=False)
        out.append(each)
    expected = oracle.neumann(adjacency, np.sum(updates, axis=0), 0.9, 3)
    np.testing.assert_allclose(sums(out), expected, rtol=1e-11)
    once = scale_by_sevo(sparse(adjacency), 0.9)
    np.testing.assert_array_equal(
        *(smoothed(once, updates[0], flush=flush) for flush in (False, True))
    )


def test_graph_and_strength_of_a_window_are_those_of_its_end(
    adjacency, random_graph, oracle, x64, rng
):
    other = random_graph(7, 6)
    x = rng.normal(size=(2, 6, 3))
    betas = jnp.array([0.5, 0.8])
    tx = scale_by_sevo(sparse(adjacency), lambda count: betas[count], 2, every=2)
    state = tx.init(jnp.asarray(x[0]))
    first, state = tx.update(jnp.asarray(x[0]), state)
    second, _ = tx.update(jnp.asarray(x[1]), state, graphs=sparse(other))
    factors = [1 / (1 + b + b**2) for b in (0.5, 0.8)]
    here = factors[0] * x[0], factors[1] * x[1]
    np.testing.assert_allclose(first, here[0], rtol=1e-12)
    acted = here[0] + here[1]
    whole = oracle.neumann(other, acted, 0.8, 2) / factors[1]
    np.testing.assert_allclose(second, here[1] + whole - acted, rtol=1e-10)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_branch_stays_a_branch(depth, adjacency):
    """Under vmap of several runs too, whether they are as far as each other or not."""
    tx = scale_by_sevo({"table": sparse(adjacency)}, every=2)
    update = tx.update
    updates = {"table": jnp.arange(36.0).reshape(6, 6)}
    state = tx.init(updates)
    for _ in range(depth):
        update = jax.vmap(update)
        updates, state = jax.tree.map(lambda x: jnp.stack([x, x]), (updates, state))
    text = str(jax.jit(update).lower(updates, state).compile().as_text())
    assert text.count("conditional(") == 1
    # The kernel is called in the branch only: no branch, no kernel, in the entry.
    entry = text[text.index("ENTRY") :]
    assert "csr" not in entry and "csr" in text


def test_several_runs_under_one_vmap(adjacency, rng):
    tx = scale_by_sevo({"table": sparse(adjacency)}, every=3)
    updates = {"table": jnp.asarray(rng.normal(size=(2, 6, 2)), jnp.float32)}
    state = tx.init({"table": updates["table"][0]})
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    # One run is a step ahead of the other: neither is propagated too soon.
    states = states._replace(step=jnp.array([0, 1]))
    together, alone = jax.jit(jax.vmap(tx.update)), jax.jit(tx.update)
    for _ in range(4):
        actual = together(updates, states)
        for i in range(2):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], (updates, states))
            jax.tree.map(
                lambda a, b, i=i: np.testing.assert_allclose(
                    a[i], b, rtol=1e-6, atol=1e-6
                ),
                actual,
                alone(*one),
            )
        states = actual[1]


def test_gradients_flow_through_a_window(adjacency, oracle, x64, rng):
    tx = scale_by_sevo(sparse(adjacency), 0.9, every=2)
    x, y = jnp.asarray(rng.normal(size=(2, 6, 3)))

    def total(x):
        first, state = tx.update(x, tx.init(x))
        second, _ = tx.update(y, state)
        return jnp.sum((first + second) * y)

    expected = oracle.neumann(adjacency, np.asarray(y), 0.9, 3)
    np.testing.assert_allclose(jax.grad(total)(x), expected, rtol=1e-10)


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16])
def test_a_window_in_half_precision(kind, adjacency, oracle, rng):
    tx = scale_by_sevo(sparse(adjacency), every=2)
    updates = [jnp.asarray(rng.normal(size=(6, 3))).astype(kind) for _ in range(2)]
    # As it is written: by itself the compiler leaves roundings out.
    strict = {"xla_allow_excess_precision": False}
    out, states = in_windows(tx, updates, compiler_options=strict)
    assert all(x.dtype == kind for x in [*out, *(each.pending for each in states)])
    total = sum(np.asarray(x, np.float64) for x in updates)
    moved = sum(np.asarray(x, np.float64) for x in out)
    expected = oracle.neumann(adjacency, total, 0.99, 3)
    rounding = float(jnp.finfo(kind).eps)
    np.testing.assert_allclose(moved, expected, rtol=0, atol=8 * rounding)
    # Only what acts is rounded, each part by half a unit in the last place.
    factor = np.float32(1 / (1 + 0.99 + 0.99**2 + 0.99**3))
    here = [(factor * x.astype(jnp.float32)).astype(kind) for x in updates]
    np.testing.assert_array_equal(out[0], here[0])
    first, second = (np.asarray(x, np.float64) for x in here)
    whole = oracle.neumann(adjacency, first + second, 0.99, 3) / factor
    beyond = whole - first - second
    error = np.abs(np.asarray(out[1], np.float64) - (second + beyond))
    parts = np.abs(beyond) + np.abs(second + beyond)
    assert (error <= 0.51 * rounding * parts + 3e-6).all()


def test_a_state_of_every_step_is_refused_by_windows():
    graph = sevo.graphs.cooccurrence([[0, 1, 2, 3]], num_items=4)
    updates = {"table": jnp.ones((4, 2))}
    state = sevo.scale_by_sevo({"table": graph}).init(updates)
    with pytest.raises(ValueError, match="no pending updates, but every is 3"):
        scale_by_sevo({"table": graph}, every=3).update(updates, state)


@pytest.mark.parametrize("every, error", [(0, ValueError), (1.5, TypeError)])
def test_a_period_is_a_positive_int(every, error):
    graph = sevo.graphs.cooccurrence([[0, 1]], num_items=2)
    with pytest.raises(error, match="every must be"):
        sevo.scale_by_sevo(graph, every=every)


@pytest.mark.parametrize("every", [1, 3])
def test_windows_go_on_when_the_counter_is_at_its_end(every):
    """A counter that stayed would have the last window never end, or always."""
    graph = np.array([[0.0, 1.0], [1.0, 0.0]])
    tx = sevo.scale_by_sevo({"item": graph}, every=every)
    grads = {"item": jnp.array([[1.0], [0.0]])}
    state: Any = tx.init(grads)
    state = state._replace(step=jnp.int32(2**31 - 3))
    due = []
    for _ in range(9):
        due.append(int(state.step) % every == every - 1)
        updates: Any
        updates, state = tx.update(grads, state)
        assert bool(updates["item"][1, 0] != 0) == due[-1]
        assert state.step > 0
    # The first steps of a window may be missing at the start: nothing else is.
    assert due[every:] == due[:-every] and sum(due) >= 9 // every
