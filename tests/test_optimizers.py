"""The optimizers against literal NumPy ones, step by step, and against Optax itself."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse

import sevo_jax as sevo

STEPS = 50

# ------------------------------------------------------------------ literal optimizers
#
# Leaves are float64 arrays in a dict; a table is (names of its leaves in order, whether
# they are transposed, dense adjacency). Rows are updated one after another, moments are
# the biased ones, decay comes first: the definition, not the library's form of it.


class Table(NamedTuple):
    names: tuple[str, ...]
    dense: np.ndarray
    transposed: bool = False


class Smoothing(NamedTuple):
    beta: Any = 0.99
    num_layers: int = 3
    approximation: str = "neumann"
    rescale: bool = True


def smooth(oracle, tables, directions, smoothing, t):
    beta, num_layers, approximation, rescale = smoothing
    beta = beta(t - 1) if callable(beta) else beta
    out = dict(directions)
    for names, dense, transposed in tables:
        parts = [directions[n].T if transposed else directions[n] for n in names]
        stacked = np.concatenate(parts)
        if approximation == "iterative":
            result = oracle.iterative(dense, stacked, beta, num_layers)
        else:
            result = oracle.neumann(dense, stacked, beta, num_layers, rescale)
        for name, part in zip(names, parts, strict=True):
            rows, result = result[: len(part)], result[len(part) :]
            out[name] = rows.T if transposed else rows
    return out


def literal_adamw(
    oracle,
    params,
    gradients,
    tables,
    smoothing=Smoothing(),
    *,
    lr=0.05,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    wd=0.1,
    decays=lambda name: True,
    correction=True,
    active=None,
    tables_at=None,
):
    """Parameters after each step; ``tables_at(t)`` replaces the tables of a step."""
    params = dict(params)
    m = {name: np.zeros(leaf.shape) for name, leaf in params.items()}
    v = {name: np.zeros(leaf.shape) for name, leaf in params.items()}
    transposed = {name: table.transposed for table in tables for name in table.names}
    history = []
    for t, gradient in enumerate(gradients, start=1):
        rate = lr(t - 1) if callable(lr) else lr
        k = max(1, t - 1)
        directions = {}
        for name, e in params.items():
            g = gradient[name]
            if decays(name):
                e = e * (1 - rate * wd)
            if correction and name in transposed:
                turn = np.transpose if transposed[name] else np.asarray
                rows, mm, vv = turn(g), turn(m[name]).copy(), turn(v[name]).copy()
                for i in range(len(rows)):
                    idle = all(rows[i] == 0)
                    if active is not None:
                        idle = not active[t - 1][name][i]
                    gm = mm[i] / (1 - b1**k) if idle else rows[i]
                    gv = vv[i] / (1 - b2**k) if idle else rows[i] ** 2
                    mm[i] = b1 * mm[i] + (1 - b1) * gm
                    vv[i] = b2 * vv[i] + (1 - b2) * gv
                m[name], v[name] = turn(mm), turn(vv)
            else:
                m[name] = b1 * m[name] + (1 - b1) * g
                v[name] = b2 * v[name] + (1 - b2) * g**2
            m_hat, v_hat = m[name] / (1 - b1**t), v[name] / (1 - b2**t)
            directions[name] = m_hat / (np.sqrt(v_hat + eps_root) + eps)
            params[name] = e
        now = tables if tables_at is None else tables_at(t)
        for name, step in smooth(oracle, now, directions, smoothing, t).items():
            params[name] = params[name] - rate * step
        history.append(dict(params))
    return history


def literal_adam(
    oracle,
    params,
    gradients,
    tables,
    smoothing=Smoothing(),
    *,
    lr=0.05,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    wd=0.0,
    tables_at=None,
):
    params = dict(params)
    m = {name: np.zeros(leaf.shape) for name, leaf in params.items()}
    v = {name: np.zeros(leaf.shape) for name, leaf in params.items()}
    history = []
    for t, gradient in enumerate(gradients, start=1):
        rate = lr(t - 1) if callable(lr) else lr
        directions = {}
        for name, e in params.items():
            g = gradient[name] + wd * e
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            root = np.sqrt(v[name]) / math.sqrt(1 - b2**t)
            directions[name] = m[name] / (1 - b1**t) / (root + eps)
        now = tables if tables_at is None else tables_at(t)
        for name, step in smooth(oracle, now, directions, smoothing, t).items():
            params[name] = params[name] - rate * step
        history.append(dict(params))
    return history


def literal_sgd(
    oracle,
    params,
    gradients,
    tables,
    smoothing=Smoothing(),
    *,
    lr=0.05,
    momentum=None,
    nesterov=False,
    wd=0.0,
    tables_at=None,
):
    params, buffers, history = dict(params), {}, []
    for t, gradient in enumerate(gradients, start=1):
        rate = lr(t - 1) if callable(lr) else lr
        directions = {}
        for name, e in params.items():
            d = gradient[name] + wd * e
            if momentum:
                first = name not in buffers
                buffers[name] = d if first else momentum * buffers[name] + d
                d = d + momentum * buffers[name] if nesterov else buffers[name]
            directions[name] = d
        now = tables if tables_at is None else tables_at(t)
        for name, step in smooth(oracle, now, directions, smoothing, t).items():
            params[name] = params[name] - rate * step
        history.append(dict(params))
    return history


# ------------------------------------------------------------------ the setting

ROWS, WIDTH = 7, 3


@pytest.fixture(scope="module")
def item_graph(random_graph):
    return random_graph(3, ROWS, isolated=(0, 6), self_loops=True)


@pytest.fixture(scope="module")
def other_graph(random_graph):
    return random_graph(5, ROWS, isolated=(2,))


@pytest.fixture(scope="module")
def joint_graph(random_graph):
    """Four users, then seven items; the first user and the last item are isolated."""
    return random_graph(4, 4 + ROWS, density=0.4, isolated=(0, 10))


def idle_some(gradients, rng):
    """Half the rows idle, whole steps idle, zero rows at t = 1, two rows never active.

    All of the zeros are exact, as they are for the rows that a lookup did not touch.
    """
    gradients[rng.random(gradients.shape[:2]) < 0.5] = 0
    gradients[[1, 20, 21]] = 0
    gradients[0, 2:] = 0
    gradients[0, 1] = 1.5  # a row that is active at t = 1 and idle after
    gradients[3, 1] = 0
    gradients[3, 1, 0] = 1  # single zeros do not make a row idle
    gradients[:, [0, 4 % gradients.shape[1]]] = 0
    return gradients


@pytest.fixture(scope="module")
def problem():
    """Parameters, and the gradients of every step, in float32 values.

    The order of the leaves is not the order in which any test stacks them.
    """
    rng = np.random.default_rng(11)
    shapes = {
        "bias": (WIDTH,),
        "decoder/item": (ROWS, WIDTH - 1),
        "dense/kernel": (WIDTH, WIDTH + 1),
        "encoder/item": (ROWS, WIDTH),
        "output": (WIDTH, ROWS),
        "user": (4, WIDTH),
    }
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    series = {k: rng.normal(size=(STEPS, *s)) for k, s in shapes.items()}
    for name in ("decoder/item", "encoder/item", "user"):
        idle_some(series[name], rng)
    idle_some(np.moveaxis(series["output"], 2, 1), rng)
    series["bias"][10] = 0
    gradients = [
        {k: s[t].astype(np.float32) for k, s in series.items()} for t in range(STEPS)
    ]
    return params, gradients


def sparse(dense):
    return scipy.sparse.csr_array(dense)


# By name: what the library is given as `graphs`, and the literal tables it stands for.
@pytest.fixture(scope="module")
def layouts(item_graph, other_graph, joint_graph):
    return {
        "several leaves": (
            {"item": sparse(item_graph)},
            [
                Table(("encoder/item",), item_graph),
                Table(("decoder/item",), item_graph),
            ],
        ),
        "joint": (
            {("user", "encoder/item"): sparse(joint_graph)},
            [Table(("user", "encoder/item"), joint_graph)],
        ),
        "transposed": (
            {"output": sparse(item_graph), "decoder": sparse(other_graph)},
            [
                Table(("output",), item_graph, True),
                Table(("decoder/item",), other_graph),
            ],
        ),
        "none": ({}, []),
    }


LAYOUTS = ["several leaves", "joint", "transposed", "none"]


def row_axis(tables):
    return {name: 1 for table in tables if table.transposed for name in table.names}


def run(optimizer, problem, dtype, extras=None):
    """The library's parameters after each step."""
    params, gradients = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), problem)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, gradient, extra):
        updates, state = optimizer.update(gradient, state, params, **extra)
        return optax.apply_updates(params, updates), state

    history = []
    for t, gradient in enumerate(gradients):
        params, state = step(params, state, gradient, extras[t] if extras else {})
        history.append(params)
    return history


def literal(function, oracle, problem, *args, **kwargs):
    params, gradients = jax.tree.map(lambda leaf: leaf.astype(np.float64), problem)
    return function(oracle, params, gradients, *args, **kwargs)


# Parameters of order one after fifty steps. In float32 rounding them costs 5e-7, and
# Optax's own Adam moments 6e-6, most of it from 1 - 0.999^t at the first steps.
TOLERANCE, SINGLE, SINGLE_OF_OPTAX = 2e-12, 1e-6, 1e-5


def check(actual, expected, dtype: Any = np.float64, tolerance=lambda name: TOLERANCE):
    for t, (one, two) in enumerate(zip(actual, expected, strict=True), start=1):
        assert one.keys() == two.keys()
        for name in one:
            assert one[name].dtype == dtype
            error = np.abs(np.asarray(one[name], np.float64) - two[name]).max()
            assert error <= tolerance(name), f"{name} after step {t}"
    # Every leaf went somewhere, so that there was something to compare.
    for name, leaf in expected[-1].items():
        assert np.abs(leaf - expected[0][name]).max() > 1e-3


# ------------------------------------------------------------------ against literal


@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adamw(layout, correction, layouts, problem, oracle, x64):
    graphs, tables = layouts[layout]
    optimizer = sevo.sevo_adamw(
        0.05,
        graphs,
        weight_decay=0.1,
        moment_correction=correction,
        row_axis=row_axis(tables),
    )
    expected = literal(literal_adamw, oracle, problem, tables, correction=correction)
    check(run(optimizer, problem, np.float64), expected)


@pytest.mark.parametrize("layout", ["joint", "transposed"])
def test_adamw_in_single_precision(layout, layouts, problem, oracle):
    graphs, tables = layouts[layout]
    optimizer = sevo.sevo_adamw(
        0.05, graphs, weight_decay=0.1, row_axis=row_axis(tables)
    )
    expected = literal(literal_adamw, oracle, problem, tables)
    smoothed = {name for table in tables for name in table.names}
    check(
        run(optimizer, problem, np.float32),
        expected,
        np.float32,
        lambda name: SINGLE if name in smoothed else SINGLE_OF_OPTAX,
    )


@pytest.mark.parametrize(
    "layout, wd", [*((layout, 0.1) for layout in LAYOUTS), ("joint", 0.0)]
)
def test_adam(layout, wd, layouts, problem, oracle, x64):
    graphs, tables = layouts[layout]
    optimizer = sevo.sevo_adam(0.05, graphs, weight_decay=wd, row_axis=row_axis(tables))
    expected = literal(literal_adam, oracle, problem, tables, wd=wd)
    check(run(optimizer, problem, np.float64), expected)


@pytest.mark.parametrize("wd", [0.0, 0.1])
@pytest.mark.parametrize(
    "momentum, nesterov", [(None, False), (0.0, False), (0.9, False), (0.9, True)]
)
def test_sgd(momentum, nesterov, wd, layouts, problem, oracle, x64):
    graphs, tables = layouts["joint"]
    optimizer = sevo.sevo_sgd(0.05, graphs, momentum, nesterov, weight_decay=wd)
    expected = literal(
        literal_sgd,
        oracle,
        problem,
        tables,
        momentum=momentum,
        nesterov=nesterov,
        wd=wd,
    )
    check(run(optimizer, problem, np.float64), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sgd_layouts(layout, layouts, problem, oracle, x64):
    graphs, tables = layouts[layout]
    optimizer = sevo.sevo_sgd(0.05, graphs, 0.9, row_axis=row_axis(tables))
    expected = literal(literal_sgd, oracle, problem, tables, momentum=0.9)
    check(run(optimizer, problem, np.float64), expected)


def test_adam_and_sgd_in_single_precision(layouts, problem, oracle):
    graphs, tables = layouts["joint"]
    optimizer = sevo.sevo_adam(0.05, graphs, weight_decay=0.1)
    expected = literal(literal_adam, oracle, problem, tables, wd=0.1)
    actual = run(optimizer, problem, np.float32)
    check(actual, expected, np.float32, lambda name: SINGLE_OF_OPTAX)
    optimizer = sevo.sevo_sgd(0.01, graphs, 0.9, True, weight_decay=0.1)
    expected = literal(
        literal_sgd,
        oracle,
        problem,
        tables,
        lr=0.01,
        momentum=0.9,
        nesterov=True,
        wd=0.1,
    )
    actual = run(optimizer, problem, np.float32)
    check(actual, expected, np.float32, lambda name: SINGLE)


FACTORIES = {
    "adamw": (sevo.sevo_adamw, literal_adamw, {"weight_decay": 0.1}),
    "adam": (sevo.sevo_adam, literal_adam, {}),
    "sgd": (sevo.sevo_sgd, literal_sgd, {}),
}


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.9, "num_layers": 5},
        {"beta": 0.9, "num_layers": 2, "rescale": False},
        {"beta": 0.5, "num_layers": 1, "approximation": "iterative"},
    ],
    ids=str,
)
@pytest.mark.parametrize("factory", FACTORIES)
def test_kinds_of_smoothing(factory, options, layouts, problem, oracle, x64):
    make, definition, more = FACTORIES[factory]
    graphs, tables = layouts["several leaves"]
    expected = literal(definition, oracle, problem, tables, Smoothing(**options))
    check(run(make(0.05, graphs, **more, **options), problem, np.float64), expected)


@pytest.mark.parametrize("factory", FACTORIES)
def test_windows_come_to_the_same(factory, layouts, problem, x64):
    """Where the directions do not depend on the parameters, at the end of each."""
    graphs, few = layouts["joint"][0], (problem[0], problem[1][:6])
    make, _, more = FACTORIES[factory]
    if factory == "adamw":
        more = {"weight_decay": 0.0}
    each = run(make(0.05, graphs, **more), few, np.float64)
    third = run(make(0.05, graphs, every=3, **more), few, np.float64)
    check(third[2::3], each[2::3])
    item = "encoder/item"
    assert np.abs(np.asarray(third[0][item] - each[0][item])).max() > 1e-3


@pytest.mark.parametrize("factory", FACTORIES)
def test_schedules(factory, layouts, problem, oracle, x64):
    make, definition, more = FACTORIES[factory]
    graphs, tables = layouts["several leaves"]

    def rate(count):
        return 0.1 / (1 + count)

    def strength(count):
        return 0.9 * (count + 1) / (count + 10)

    expected = literal(
        definition, oracle, problem, tables, Smoothing(beta=strength), lr=rate
    )
    optimizer = make(rate, graphs, beta=strength, **more)
    check(run(optimizer, problem, np.float64), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"b1": 0.0, "b2": 0.9},
        {"b1": 0.5, "b2": 0.6, "eps": 1e-2},
        {"eps_root": 1e-3},
    ],
    ids=str,
)
def test_moments_of_adamw(options, layouts, problem, oracle, x64):
    graphs, tables = layouts["several leaves"]
    optimizer = sevo.sevo_adamw(0.05, graphs, weight_decay=0.1, **options)
    expected = literal(literal_adamw, oracle, problem, tables, **options)
    check(run(optimizer, problem, np.float64), expected)


def test_moments_of_adam(layouts, problem, oracle, x64):
    graphs, tables = layouts["several leaves"]
    options: dict[str, Any] = {"b1": 0.5, "b2": 0.6, "eps": 1e-2}
    optimizer = sevo.sevo_adam(0.05, graphs, **options)
    expected = literal(literal_adam, oracle, problem, tables, **options)
    check(run(optimizer, problem, np.float64), expected)


@pytest.mark.parametrize("as_function", [False, True])
def test_mask_of_the_decay(as_function, layouts, problem, oracle, x64):
    graphs, tables = layouts["several leaves"]

    def decays(name):
        return name in ("encoder/item", "output")

    def mask(params):
        return {name: decays(name) for name in params}

    optimizer = sevo.sevo_adamw(
        0.05,
        graphs,
        weight_decay=0.1,
        mask=mask if as_function else mask(problem[0]),
    )
    expected = literal(literal_adamw, oracle, problem, tables, decays=decays)
    check(run(optimizer, problem, np.float64), expected)


@pytest.mark.parametrize("factory", FACTORIES)
def test_graphs_given_to_update(factory, item_graph, other_graph, problem, oracle, x64):
    make, definition, more = FACTORIES[factory]
    given = [other_graph if t % 3 else item_graph for t in range(STEPS)]

    def tables(dense):
        return [Table(("encoder/item",), dense), Table(("decoder/item",), dense)]

    expected = literal(
        definition,
        oracle,
        problem,
        tables(item_graph),
        tables_at=lambda t: tables(given[t - 1]),
    )
    operators = {id(d): sevo.prepare(sparse(d)) for d in (item_graph, other_graph)}
    extras = [{"graphs": {"item": operators[id(dense)]}} for dense in given]
    optimizer = make(0.05, {"item": sparse(item_graph)}, **more)
    check(run(optimizer, problem, np.float64, extras), expected)


@pytest.mark.parametrize("layout", ["several leaves", "joint", "transposed"])
def test_active_rows_given_to_update(layout, layouts, problem, oracle, x64):
    graphs, tables = layouts[layout]
    rng = np.random.default_rng(0)
    sizes = {"encoder/item": ROWS, "decoder/item": ROWS, "output": ROWS, "user": 4}
    smoothed = {name for table in tables for name in table.names}
    active = [
        {name: rng.random(n) < 0.4 for name, n in sizes.items() if name in smoothed}
        for _ in range(STEPS)
    ]
    extras = [{"active_rows": jax.tree.map(jnp.asarray, masks)} for masks in active]
    optimizer = sevo.sevo_adamw(
        0.05, graphs, weight_decay=0.1, row_axis=row_axis(tables)
    )
    expected = literal(literal_adamw, oracle, problem, tables, active=active)
    check(run(optimizer, problem, np.float64, extras), expected)


def test_one_mask_for_all_leaves_of_a_name(layouts, problem, oracle, x64):
    graphs, tables = layouts["several leaves"]
    rng = np.random.default_rng(0)
    masks = [rng.random(ROWS) < 0.4 for _ in range(STEPS)]
    optimizer = sevo.sevo_adamw(0.05, graphs, weight_decay=0.1)
    extras = [{"active_rows": {"item": jnp.asarray(mask)}} for mask in masks]
    active = [{"encoder/item": mask, "decoder/item": mask} for mask in masks]
    expected = literal(literal_adamw, oracle, problem, tables, active=active)
    check(run(optimizer, problem, np.float64, extras), expected)


@pytest.mark.parametrize("factory", FACTORIES)
def test_one_graph_without_a_name(factory, item_graph, problem, oracle, x64):
    make, definition, more = FACTORIES[factory]
    params, gradients = problem
    alone = (params["encoder/item"], [g["encoder/item"] for g in gradients])
    named = ({"": alone[0]}, [{"": gradient} for gradient in alone[1]])
    expected = literal(definition, oracle, named, [Table(("",), item_graph)])
    actual = run(make(0.05, sparse(item_graph), **more), alone, np.float64)
    check([{"": leaf} for leaf in actual], expected)


def test_one_graph_and_one_mask_without_a_name(item_graph, problem, oracle, x64):
    params, gradients = problem
    alone = (params["encoder/item"], [g["encoder/item"] for g in gradients])
    named = ({"": alone[0]}, [{"": gradient} for gradient in alone[1]])
    rng = np.random.default_rng(0)
    masks = [rng.random(ROWS) < 0.4 for _ in range(STEPS)]
    optimizer = sevo.sevo_adamw(0.05, sparse(item_graph), weight_decay=0.1)
    extras = [{"active_rows": jnp.asarray(mask)} for mask in masks]
    expected = literal(
        literal_adamw,
        oracle,
        named,
        [Table(("",), item_graph)],
        active=[{"": mask} for mask in masks],
    )
    check([{"": p} for p in run(optimizer, alone, np.float64, extras)], expected)


def test_row_without_gradient_or_neighbours_moves_by_decay_alone(layouts, problem, x64):
    optimizer = sevo.sevo_adamw(0.05, layouts["several leaves"][0], weight_decay=0.1)
    start = problem[0]["encoder/item"].astype(np.float64)
    items = [params["encoder/item"] for params in run(optimizer, problem, np.float64)]
    for t, item in enumerate(items, start=1):
        np.testing.assert_allclose(item[0], start[0] * (1 - 0.005) ** t, rtol=1e-13)
    # Row 4 has no gradient either, but neighbours.
    assert np.abs(items[-1][4] - start[4] * (1 - 0.005) ** STEPS).min() > 0.01


# ------------------------------------------------------------------ against Optax


def same_bits(one, two):
    for name in one:
        assert np.asarray(one[name]).tobytes() == np.asarray(two[name]).tobytes(), name


PLAIN = {
    "adamw": (sevo.sevo_adamw, optax.adamw, {"weight_decay": 0.1}),
    "adamw of other moments": (
        sevo.sevo_adamw,
        optax.adamw,
        {"b1": 0.5, "b2": 0.98, "eps": 1e-6, "eps_root": 1e-9},
    ),
    "adam": (sevo.sevo_adam, optax.adam, {}),
    "adam of other moments": (
        sevo.sevo_adam,
        optax.adam,
        {"b1": 0.5, "b2": 0.98, "eps": 1e-6, "eps_root": 1e-3},
    ),
    "sgd": (sevo.sevo_sgd, optax.sgd, {}),
    "sgd with momentum": (sevo.sevo_sgd, optax.sgd, {"momentum": 0.9}),
    "sgd with Nesterov": (
        sevo.sevo_sgd,
        optax.sgd,
        {"momentum": 0.9, "nesterov": True},
    ),
}


@pytest.fixture(scope="module")
def optax_run(problem):
    """What Optax makes of the problem, once for each entry of the table."""

    @functools.cache
    def result(name):
        _, theirs, options = PLAIN[name]
        return run(theirs(0.05, **options), problem, np.float32)

    return result


@pytest.mark.parametrize("name", PLAIN)
def test_other_leaves_are_those_of_optax_bit_by_bit(name, layouts, problem, optax_run):
    ours, _, options = PLAIN[name]
    graphs, tables = layouts["joint"]
    smoothed = tables[0].names
    mixed, plain = (
        run(ours(0.05, graphs, **options), problem, np.float32),
        optax_run(name),
    )
    for one, two in zip(mixed, plain, strict=True):
        others = one.keys() - set(smoothed)
        assert len(others) == 4
        same_bits({k: one[k] for k in others}, {k: two[k] for k in others})
    for leaf in smoothed:
        assert (np.asarray(mixed[-1][leaf]) != np.asarray(plain[-1][leaf])).any()


@pytest.mark.parametrize(
    "name, layout, more",
    [
        *((name, "joint", {"beta": 0.0}) for name in PLAIN),
        *((name, "none", {}) for name in PLAIN),
        ("adamw", "transposed", {"num_layers": 0, "row_axis": {"output": 1}}),
        ("sgd", "several leaves", {"num_layers": 0}),
    ],
)
def test_without_smoothing_it_is_optax_bit_by_bit(
    name, layout, more, layouts, problem, optax_run
):
    ours, _, options = PLAIN[name]
    if ours is sevo.sevo_adamw:
        more = {**more, "moment_correction": False}
    optimizer = ours(0.05, layouts[layout][0], **options, **more)
    for one, two in zip(
        run(optimizer, problem, np.float32), optax_run(name), strict=True
    ):
        same_bits(one, two)


def test_without_smoothing_it_is_optax_bit_by_bit_outside_jit(layouts, problem):
    graphs = layouts["joint"][0]
    ours = sevo.sevo_adamw(0.05, graphs, beta=0.0, moment_correction=False)
    theirs = optax.adamw(0.05)
    params, gradients = problem
    one = two = jax.tree.map(jnp.asarray, params)
    first, second = ours.init(one), theirs.init(two)
    for gradient in gradients[:20]:
        updates, first = ours.update(gradient, first, one)
        one = optax.apply_updates(one, updates)
        updates, second = theirs.update(gradient, second, two)
        two = optax.apply_updates(two, updates)
        same_bits(one, two)


def test_without_graphs_the_correction_changes_nothing(problem, optax_run):
    optimizer = sevo.sevo_adamw(0.05, {}, weight_decay=0.1)
    for one, two in zip(
        run(optimizer, problem, np.float32), optax_run("adamw"), strict=True
    ):
        same_bits(one, two)


# ------------------------------------------------------------------ the interface


@pytest.mark.parametrize("make", [sevo.sevo_adam, sevo.sevo_sgd])
def test_parameters_are_needed_for_decay_alone(make, layouts, problem):
    params, gradients = problem
    graphs = layouts["joint"][0]
    optimizer = make(0.05, graphs)
    with_params, _ = optimizer.update(gradients[0], optimizer.init(params), params)
    without, _ = optimizer.update(gradients[0], optimizer.init(params))
    same_bits(with_params, without)
    decaying = make(0.05, graphs, weight_decay=0.1)
    with pytest.raises(ValueError, match="params"):
        decaying.update(gradients[0], decaying.init(params))


HALF, FULL = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)


@pytest.mark.parametrize(
    "params_dtype, mu_dtype, table_moments, other_moments",
    [
        # A corrected table's moments are in float32 unless mu_dtype says otherwise.
        (HALF, None, (FULL, FULL), (HALF, HALF)),
        (HALF, FULL, (FULL, FULL), (FULL, HALF)),
        (FULL, HALF, (HALF, FULL), (HALF, FULL)),
        (FULL, None, (FULL, FULL), (FULL, FULL)),
    ],
)
def test_dtypes_of_the_moments(
    params_dtype, mu_dtype, table_moments, other_moments, layouts, problem
):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, params_dtype), problem[0])
    graphs, tables = layouts["joint"]

    def moments(correction):
        optimizer = sevo.sevo_adamw(
            0.05, graphs, mu_dtype=mu_dtype, moment_correction=correction
        )
        found = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(optimizer.init(params)):
            keys = [getattr(key, "name", getattr(key, "key", None)) for key in path]
            for moment in {"mu", "nu"}.intersection(keys):
                found.setdefault(keys[-1], {})[moment] = leaf.dtype
        return {name: (kinds["mu"], kinds["nu"]) for name, kinds in found.items()}

    plain = {name: other_moments for name in params}
    assert moments(False) == plain
    assert moments(True) == plain | {name: table_moments for name in tables[0].names}
