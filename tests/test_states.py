"""A state that is carried over: new rows, new tables, another window."""

from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
import scipy.sparse

import sevo_jax as sevo

WIDTH, OLD, NEW = 3, 6, 9


def graph(n):
    path = scipy.sparse.diags_array([1.0] * (n - 1), offsets=1, shape=(n, n))
    return scipy.sparse.csr_array(path + path.T)


OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda graphs, **more: sevo.sevo_adamw(
        0.1, graphs, 0.8, 0.95, weight_decay=0.1, **more
    ),
    "uncorrected": lambda graphs, **more: sevo.sevo_adamw(
        0.1, graphs, 0.8, 0.95, moment_correction=False, **more
    ),
    "adam": lambda graphs, **more: sevo.sevo_adam(0.1, graphs, 0.8, 0.95, **more),
    "sgd": lambda graphs, **more: sevo.sevo_sgd(0.1, graphs, 0.9, **more),
    "chain": lambda graphs, **more: optax.chain(
        optax.clip(10.0),
        sevo.scale_by_moment_corrected_adam(0.8, 0.95),
        sevo.scale_by_sevo(graphs, **more),
        optax.scale_by_learning_rate(0.1),
    ),
    "wrapped": lambda graphs, **more: optax.apply_if_finite(
        optax.masked(
            sevo.sevo_adamw(0.1, graphs, 0.8, 0.95, **more),
            lambda tree: jax.tree.map(lambda _: True, tree),
        ),
        2,
    ),
}


def tree(seed, items=OLD):
    """User and item tables, of which rows are idle; those of old items first."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(NEW + 4, WIDTH)) * (rng.random((NEW + 4, 1)) < 0.7)
    rows = jnp.asarray(rows, jnp.float32)
    return {"item": rows[:items], "user": rows[NEW:], "bias": rows[0]}


def train(tx, params, state, seeds, items=OLD, **extra):
    update = jax.jit(tx.update)
    for seed in seeds:
        updates, state = update(tree(seed, items), state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


def close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        actual,
        expected,
    )


def grown(params, start):
    return {**params, "item": jnp.concatenate([params["item"], start["item"][OLD:]])}


JOINT = ("user", "item")


@pytest.mark.parametrize(
    "name, key, every",
    [
        ("adamw", "item", 1),
        ("adamw", JOINT, 1),
        ("adamw", "item", 3),
        ("uncorrected", "item", 1),
        ("adam", "item", 1),
        ("sgd", JOINT, 1),
        ("chain", "item", 3),
        ("wrapped", JOINT, 3),
    ],
)
def test_new_items_join_as_if_they_had_been_there_idle(name, key, every):
    """Before they come, the new items are isolated and without gradient."""
    make, more = OPTIMIZERS[name], 4 if key == JOINT else 0
    big = graph(NEW + more).toarray()
    before = big.copy()
    before[OLD + more :], before[:, OLD + more :] = 0, 0
    small = make(
        {key: scipy.sparse.csr_array(before[: OLD + more, : OLD + more])}, every=every
    )
    there = make({key: scipy.sparse.csr_array(before)}, every=every)
    after = make({key: scipy.sparse.csr_array(big)}, every=every)

    start = tree(0, NEW)
    params = {**start, "item": start["item"][:OLD]}
    params, state = train(small, params, small.init(params), range(1, 6))
    params = grown(params, start)
    state = sevo.carry_over(after, state, params)
    params, state = train(after, params, state, range(6, 10), NEW)

    expected, theirs, update = start, there.init(start), jax.jit(there.update)
    for seed in range(1, 6):
        grads = tree(seed, NEW)
        grads["item"] = grads["item"].at[OLD:].set(0)
        updates, theirs = update(grads, theirs, expected)
        # What weight decay does to them is no matter here.
        updates["item"] = updates["item"].at[OLD:].set(0)
        expected = optax.apply_updates(expected, updates)
    expected, theirs = train(after, expected, theirs, range(6, 10), NEW)
    close((params, state), (expected, theirs))


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "chain"])
def test_a_bound_optimizer_takes_a_graph_with_more_nodes(name):
    """Where graphs are arguments of the step, the optimizer stays."""
    make = OPTIMIZERS[name]
    tx, other = make({"item": graph(OLD)}), make({"item": graph(NEW)})
    start = tree(0, NEW)
    params = {**start, "item": start["item"][:OLD]}
    params, state = train(tx, params, tx.init(params), range(1, 4))
    params = grown(params, start)
    state = sevo.carry_over(other, state, params)
    graphs = {"item": sevo.prepare(graph(NEW))}
    close(
        train(tx, params, state, range(4, 8), NEW, graphs=graphs),
        train(other, params, state, range(4, 8), NEW),
    )


@pytest.mark.parametrize(
    "name, count",
    [("adamw", 0), ("adamw", 1), ("adamw", 5), ("uncorrected", 5), ("sgd", 5)],
)
def test_moments_go_on_when_a_table_is_given_a_graph(name, count):
    make = OPTIMIZERS[name]
    one, both = make({"item": graph(OLD)}), make({"item": graph(OLD), "user": graph(4)})
    params, state = train(one, tree(0), one.init(tree(0)), range(1, count + 1))
    carried = sevo.carry_over(both, state, params)
    # The tree of the new optimizer, from the first update on: it can be scanned.
    assert jax.tree.structure(carried) == jax.tree.structure(both.init(params))

    # If all rows are active, corrected moments are those of Adam.
    busy = jax.tree.map(lambda leaf: leaf + 0.5, tree(99))
    before, _ = one.update(busy, state, params)
    after, carried = both.update(busy, carried, params)
    idle = jax.tree.map(jnp.zeros_like, busy)
    decay = one.update(idle, one.init(params), params)[0]["user"]
    direction = before["user"] - decay
    expected = sevo.smoothing.neumann(graph(4), direction, 0.99, 3) + decay
    np.testing.assert_allclose(after["user"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(after["item"], before["item"])


def test_idle_rows_of_a_new_table_keep_the_direction_they_had():
    make = OPTIMIZERS["adamw"]
    one, both = make({"item": graph(OLD)}), make({"item": graph(OLD), "user": graph(4)})
    params = tree(0)
    params, state = train(one, params, one.init(params), range(1, 5))
    plain = state[0]
    state = sevo.carry_over(both, state, params)
    grads = jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):
        _, state = both.update(grads, state, params)
        np.testing.assert_allclose(
            state[0].mu["user"], plain.mu["user"] / (1 - 0.8**4), rtol=1e-5
        )
        np.testing.assert_allclose(
            state[0].nu["user"], plain.nu["user"] / (1 - 0.95**4), rtol=1e-5
        )


def test_a_state_of_other_tables_is_never_taken_as_it_is():
    make = OPTIMIZERS["adamw"]
    one, both = make({"item": graph(OLD)}), make({"item": graph(OLD), "user": graph(4)})
    none = OPTIMIZERS["uncorrected"]({"item": graph(OLD)})
    params = tree(0)
    for old, new in ((one, both), (both, one), (one, none), (none, one)):
        _, state = train(old, params, old.init(params), range(1, 3))
        with pytest.raises(ValueError, match=r"carry_over"):
            new.update(params, state, params)
        stored = flax.serialization.to_bytes(state)
        with pytest.raises(ValueError, match="state dict.* do not match"):
            flax.serialization.from_bytes(new.init(params), stored)
    for old, new in ((both, one), (one, none)):
        _, state = train(old, params, old.init(params), range(1, 3))
        with pytest.raises(ValueError, match="corrected.*no place"):
            sevo.carry_over(new, state, params)


@pytest.mark.parametrize("name", ["adamw", "wrapped"])
def test_another_window(name):
    make, params = OPTIMIZERS[name], tree(0)
    graphs = {"item": graph(OLD)}
    each, third = make(graphs), make(graphs, every=3)
    params, state = train(each, params, each.init(params), range(1, 7))
    state = sevo.carry_over(third, state, params)
    params, state = train(third, params, state, range(7, 10))
    # At the end of a window nothing is pending, within it something is.
    sevo.carry_over(each, state, params)
    _, state = train(third, params, state, [10])
    with pytest.raises(ValueError, match="pending.*no place"):
        sevo.carry_over(each, state, params)


def test_the_order_of_names_does_not_matter():
    make = OPTIMIZERS["adamw"]
    one, both = make({"user": graph(4)}), make({"item": graph(OLD), "user": graph(4)})
    _, state = train(one, tree(0), one.init(tree(0)), range(1, 3))
    flags = sevo.carry_over(both, state, tree(0))[0].corrected
    assert [{**flag} for flag in flags] == [{"item": 0}, {"user": 1}]


def test_rows_are_appended_only():
    tx = OPTIMIZERS["sgd"]({"item": graph(OLD)})
    params = tree(0)
    fewer = {**params, "user": params["user"][:2]}
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(2, 3\).*none removed"):
        sevo.carry_over(tx, tx.init(params), fewer)


@pytest.mark.parametrize("name", ["chain", "wrapped", "free"])
def test_new_rows_are_as_at_the_start(name):
    """Also of states that hold parameters, which are not zero then."""
    make = OPTIMIZERS[name] if name in OPTIMIZERS else free
    old, new = make({"item": graph(OLD)}), make({"item": graph(NEW)})
    params, state = train(old, tree(0), old.init(tree(0)), range(1, 4))
    params = grown(params, tree(5, NEW))
    fresh, state = new.init(params), sevo.carry_over(new, state, params)
    for start, leaf in zip(jax.tree.leaves(fresh), jax.tree.leaves(state)):
        if leaf.ndim and len(leaf) == NEW:
            np.testing.assert_array_equal(leaf[OLD:], start[OLD:])
    if name == "free":
        found = optax.contrib.schedule_free_eval_params(state, params)["item"]
        np.testing.assert_allclose(found[OLD:], params["item"][OLD:], rtol=1e-6)


def free(graphs):
    return optax.contrib.schedule_free(sevo.sevo_adamw(0.1, graphs, 0.0), 0.1)


def test_corrected_moments_and_adam_s_are_never_taken_for_each_other():
    """Neither as they are nor stored; Adam's are carried over, and corrected then."""

    def make(adam):
        return optax.chain(adam, optax.scale_by_learning_rate(0.1))

    plain, corrected = (
        make(adam(0.8, 0.95))
        for adam in (optax.scale_by_adam, sevo.scale_by_moment_corrected_adam)
    )
    tables = OPTIMIZERS["adamw"]({"item": graph(OLD)})
    busy = jax.tree.map(lambda leaf: leaf + 0.5, tree(1))
    states = {}
    for tx in (plain, corrected, tables):
        state = tx.init(busy)
        for _ in range(3):
            _, state = tx.update(busy, state, busy)
        states[tx] = state
    with pytest.raises(ValueError, match="ScaleByAdamState, .*carry_over makes it"):
        corrected.update(busy, states[plain])
    for old, new in ((plain, corrected), (corrected, plain), (corrected, tables)):
        stored = flax.serialization.to_bytes(states[old])
        with pytest.raises(ValueError, match="state dict.* do not match"):
            flax.serialization.from_bytes(new.init(busy), stored)
    for old, new in ((corrected, plain), (corrected, tables), (tables, corrected)):
        with pytest.raises(ValueError, match="corrected.*no place"):
            sevo.carry_over(new, states[old], busy)
    carried = sevo.carry_over(corrected, states[plain], busy)
    assert int(carried[0].corrected) == 0
    # Of rows that are all active, the two are the same; of one that is idle, the
    # direction stays.
    for grads in (busy, tree(2)):
        mine, carried = jax.jit(corrected.update)(grads, carried)
        one, states[corrected] = corrected.update(grads, states[corrected])
        close((mine, carried), (one, states[corrected]))


def plain_adamw(rate, *before):
    return optax.chain(*before, optax.adamw(rate, 0.8, 0.95, weight_decay=0.1))


@pytest.mark.parametrize("before", [(), (optax.clip(10.0),)], ids=["alone", "clipped"])
def test_a_job_with_adamw_and_a_schedule_goes_on_with_sevo(before):
    schedule = optax.linear_schedule(0.1, 0.01, 8)
    mine = sevo.sevo_adamw(schedule, {"item": graph(OLD)}, 0.8, 0.95, weight_decay=0.1)
    old, new = plain_adamw(schedule, *before), optax.chain(*before, mine)
    params, state = train(old, tree(0), old.init(tree(0)), range(1, 5))
    carried = sevo.carry_over(new, state, params)
    assert jax.tree.structure(carried) == jax.tree.structure(new.init(params))
    counts = [leaf for leaf in jax.tree.leaves(carried) if jnp.shape(leaf) == ()]
    # Those of Adam, the flag of the table, the step of SEvo, and the schedule's.
    assert sorted(map(int, counts)) == [0, 0, 4, 4]
    # Of a leaf without a graph nothing changes.
    expected: Any = old.update(tree(5), state, params)[0]
    found: Any = new.update(tree(5), carried, params)[0]
    close(found["user"], expected["user"])
    assert not np.allclose(found["item"], expected["item"])


def test_moments_of_another_kind_are_not_taken_for_those_of_adam():
    lion = optax.lion(0.1, weight_decay=0.1)
    params, state = train(lion, tree(0), lion.init(tree(0)), [1])
    with pytest.raises(ValueError, match=r"\[0\].count of the state has no place"):
        sevo.carry_over(OPTIMIZERS["adamw"]({"item": graph(OLD)}), state, params)


def test_a_state_of_another_chain_is_refused():
    graphs: Any = {"item": graph(OLD)}
    params = tree(0)
    smoothing = sevo.scale_by_sevo(graphs)
    rest = optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(0.1)
    adam, corrected = (
        optax.chain(first(), smoothing, *rest)
        for first in (optax.scale_by_adam, sevo.scale_by_moment_corrected_adam)
    )
    tables = OPTIMIZERS["adamw"](graphs)
    for old, new, message in (
        (tables, corrected, "AdamOfTablesState, not one of scale_by_moment_corrected"),
        (corrected, tables, "ScaleByMomentCorrectedAdamState, not one of sevo_adamw"),
        (adam, tables, "ScaleByAdamState, not one of sevo_adamw: .*carry_over"),
        (optax.identity(), smoothing, "EmptyState, not one of scale_by_sevo"),
    ):
        with pytest.raises(ValueError, match=message):
            new.update(params, old.init(params), params)


@pytest.mark.parametrize(
    "tx, what",
    [
        (OPTIMIZERS["adamw"]({"item": graph(NEW)}), "its moments"),
        (OPTIMIZERS["adamw"]({"user": graph(4)}), "its moments"),
        (sevo.scale_by_moment_corrected_adam(), "its moments"),
        (sevo.scale_by_sevo({"item": graph(NEW)}, every=2), "what is pending of it"),
    ],
    ids=["table", "other leaf", "alone", "pending"],
)
def test_a_table_that_has_grown_is_told_to_carry_its_state_over(tx, what):
    state = jax.tree.map(
        lambda leaf: leaf[:OLD] if leaf.shape[:1] == (NEW,) else leaf,
        tx.init(tree(0, NEW)),
    )
    message = rf"item has shape \(9, 3\), {what} in the state \(6, 3\): .*carry_over"
    with pytest.raises(ValueError, match=message):
        tx.update(tree(0, NEW), state, tree(0, NEW))


def test_what_is_pending_is_never_lost():
    graphs = {"item": graph(OLD)}
    each, third = (OPTIMIZERS["sgd"](graphs, every=every) for every in (1, 3))
    params, state = train(third, tree(0), third.init(tree(0)), [1])
    with pytest.raises(
        ValueError, match="pending updates, but every is 1.* flush=True"
    ):
        each.update(params, state, params)
    with pytest.raises(ValueError, match="pending.*no place.*flush=True"):
        sevo.carry_over(each, state, params)
    _, state = third.update(params, state, params, flush=True)
    sevo.carry_over(each, state, params)


def test_moments_take_the_precision_of_the_new_optimizer():
    """Whole tables and those with more rows."""
    start = tree(0, NEW)
    params = {**start, "item": start["item"][:OLD]}
    wide: Any = sevo.sevo_adamw(0.1, {"item": graph(OLD)})
    narrow = sevo.sevo_adamw(0.1, {"item": graph(NEW)}, mu_dtype=jnp.bfloat16)
    _, state = train(wide, params, wide.init(params), range(1, 3))
    carried = sevo.carry_over(narrow, state, start)
    dtypes = [
        [leaf.dtype for leaf in jax.tree.leaves(each)]
        for each in (carried, narrow.init(start))
    ]
    assert dtypes[0] == dtypes[1]
    for name in ("item", "user"):
        mu = state[0].mu[name]
        close(carried[0].mu[name][: len(mu)], mu.astype(jnp.bfloat16))
