"""The library on meshes of eight virtual CPU devices, automatic and explicit."""

import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sevo_jax as sevo

NUM_NODES, WIDTH = 48, 16
COLLECTIVE = re.compile(
    r"= (?P<shape>\S+|\([^)]*\)) (?:all-gather|all-reduce|all-to-all|collective-permute"
    r"|collective-broadcast|reduce-scatter)(?:-start)?\("
)

# Where the table lies on a mesh of two by four devices.
OVER_WIDTH = {"width": P(None, "columns"), "both_axes": P(None, ("rows", "columns"))}
OVER_ROWS = {"rows": P("rows"), "all_rows": P(("rows", "columns"), None)}
OVER_BOTH = {"rows_and_width": P("rows", "columns")}
ONE_OF_EACH = {"width": P(None, "columns"), "rows": P("rows")}
EVERYWHERE = {**OVER_WIDTH, **OVER_ROWS, **OVER_BOTH, "replicated": P()}


def places(specs):
    return pytest.mark.parametrize("spec", specs.values(), ids=specs.keys())


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request):
    devices = jax.devices("cpu")
    assert len(devices) >= 8, "tests/conftest.py asks for eight virtual CPU devices"
    mesh = jax.make_mesh(
        (2, 4),
        ("rows", "columns"),
        axis_types=(request.param,) * 2,
        devices=devices[:8],
    )
    with jax.set_mesh(mesh):
        yield mesh


def _operator() -> sevo.GraphOperator:
    rng = np.random.default_rng(7)
    upper = np.triu(rng.uniform(0.5, 2, (NUM_NODES,) * 2), 1)
    upper *= rng.random(upper.shape) < 0.2
    return sevo.prepare(scipy.sparse.csr_array(upper + upper.T))


# Made outside of any mesh, as a user would.
GRAPH = _operator()


def table(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(NUM_NODES, WIDTH)).astype(np.float32)


def psi(x):
    return sevo.smoothing.neumann(GRAPH, x, 0.9, 3)


SMOOTHING = {
    "iterative": lambda x: sevo.smoothing.iterative(GRAPH, x, 0.4, 2),
    "exact": lambda x: sevo.smoothing.exact(GRAPH, x, 0.9),
    "smoothness": lambda x: sevo.smoothing.smoothness(GRAPH, x),
    "effect": lambda x: sevo.smoothing.effect(GRAPH, x, psi(x)),
}


@pytest.fixture(scope="module")
def alone():
    """What one device gives; of wider scope than any mesh, so outside of them all."""
    first, second = jnp.asarray(table()), jnp.asarray(table(1))
    assert len(psi(first).devices()) == 1
    return SimpleNamespace(
        psi=np.asarray(psi(first)),
        psi_of_second=np.asarray(psi(second)),
        psi_of_psi=np.asarray(psi(psi(first))),
        smoothing={name: function(first) for name, function in SMOOTHING.items()},
        trajectory=trajectory([gradients(step) for step in range(20)]),
        batch_step=trajectory([batch_gradient()])[0],
    )


def place(mesh, spec, array):
    return jax.device_put(array, NamedSharding(mesh, spec))


def collectives(function, *args) -> list[str]:
    """Shapes of everything that devices exchange in the compiled program."""
    return COLLECTIVE.findall(str(jax.jit(function).lower(*args).compile().as_text()))


def assert_placed(array, mesh, spec):
    assert array.sharding.is_equivalent_to(NamedSharding(mesh, spec), array.ndim)


# ---------------------------------------------------------------- smoothing


@places(EVERYWHERE)
def test_psi_is_exact_and_keeps_the_sharding(alone, mesh, spec):
    x = place(mesh, spec, table())
    for function in (psi, jax.jit(psi)):
        result = function(x)
        assert_placed(result, mesh, spec)
        np.testing.assert_allclose(result, alone.psi, rtol=1e-6, atol=3e-7)


@places(OVER_WIDTH)
def test_psi_of_a_table_sharded_over_width_needs_no_communication(mesh, spec):
    x = place(mesh, spec, table())
    assert collectives(psi, x) == []
    # The measure itself: rows can only be smoothed by moving them.
    assert collectives(psi, place(mesh, P("rows"), table())) != []


@places(OVER_WIDTH)
def test_gradient_through_psi_needs_no_communication(alone, mesh, spec):
    def gradient(x, cotangent):
        return jax.vjp(psi, x)[1](cotangent)[0]

    x = place(mesh, spec, table())
    assert collectives(gradient, x, x) == []
    result = jax.jit(gradient)(x, x)
    assert_placed(result, mesh, spec)
    np.testing.assert_allclose(result, alone.psi, rtol=1e-6, atol=3e-7)


@places(EVERYWHERE)
@pytest.mark.parametrize("seeds", [None, "rows"], ids=["whole", "seeds_over_rows"])
def test_vmap_over_seeds(alone, mesh, spec, seeds):
    if seeds and "rows" in str(spec):
        pytest.skip("an axis of the mesh shards one dimension only")
    spec = P(seeds, *spec)
    tables = np.stack([table(), table(1)])
    # On an explicit mesh the type of the tables says it already.
    explicit = AxisType.Explicit in mesh.axis_types
    vmapped = jax.vmap(psi, spmd_axis_name=None if explicit else seeds)
    x = place(mesh, spec, tables)
    result = jax.jit(vmapped)(x)
    assert_placed(result, mesh, spec)
    expected = np.stack([alone.psi, alone.psi_of_second])
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=3e-7)
    if tuple(spec)[1:2] in ((), (None,)):
        assert collectives(vmapped, x) == []


@pytest.mark.parametrize("check_vma", [True, False], ids=["checked", "unchecked"])
def test_psi_inside_shard_map(alone, mesh, check_vma):
    def gradient(x):
        return jax.grad(lambda x: jnp.sum(psi(x) ** 2) / 2)(x)

    x = place(mesh, P(None, "columns"), table())
    for function, expected in ((psi, alone.psi), (gradient, alone.psi_of_psi)):
        mapped = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=P(None, "columns"),
            out_specs=P(None, "columns"),
            check_vma=check_vma,
        )
        assert collectives(mapped, x) == []
        result = jax.jit(mapped)(x)
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=3e-7)


@places({**OVER_BOTH, **ONE_OF_EACH})
def test_every_function_of_smoothing(alone, mesh, spec):
    x = place(mesh, spec, table())
    for name, function in SMOOTHING.items():
        result = jax.jit(function)(x)
        if name in ("iterative", "exact"):
            assert_placed(result, mesh, spec)
        jax.tree.map(
            lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-5),
            result,
            alone.smoothing[name],
        )


# ---------------------------------------------------------------- optimizers


LAYOUTS = {
    # The key of the graph, the leaves of a table, where each leaf then lies, and the
    # axis of its rows.
    "plain": ("item", lambda x: {"item": x}, lambda spec: spec, 0),
    "joint": (
        ("user", "item"),
        lambda x: {"item": x[16:], "user": x[:16]},
        lambda spec: spec,
        0,
    ),
    "transposed": (
        "item",
        lambda x: {"item": x.T},
        lambda spec: P(*reversed((*spec, None, None)[:2])),
        1,
    ),
}


def layouts_and_places(plain, others):
    """A plain table in every place of ``plain``, the other layouts in fewer."""
    cases = {
        f"{name}-{place}": (layout, spec)
        for name, layout in LAYOUTS.items()
        for place, spec in (plain if name == "plain" else others).items()
    }
    return pytest.mark.parametrize("layout, spec", cases.values(), ids=cases.keys())


def make(layout, every: int = 1) -> Any:
    return sevo.sevo_adamw(
        0.05,
        {layout[0]: GRAPH},
        beta=0.9,
        weight_decay=0.1,
        row_axis=layout[3],
        every=every,
    )


def make_step(tx):
    def step(params, state, grads, **extra_args) -> Any:
        updates, state = tx.update(grads, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    return step


def gradients(step: int) -> np.ndarray:
    """Half of the rows are idle."""
    rng = np.random.default_rng([step, 3])
    return table(step) * (rng.random((NUM_NODES, 1)) < 0.5)


# Rows drawn by a batch, with repetitions; more than half of the table is idle.
BATCH = np.random.default_rng(0).integers(0, NUM_NODES // 2, 32)


def batch_gradient() -> np.ndarray:
    """Of half the sum of squares of the rows drawn."""
    return np.bincount(BATCH, minlength=NUM_NODES)[:, None].astype(np.float32) * table()


def trajectory(table_gradients, every=1):
    """Tables after each step of an optimizer on one device."""
    tx = make(LAYOUTS["plain"], every)
    step = jax.jit(make_step(tx))
    params = {"item": jnp.asarray(table())}
    state, tables = tx.init(params), []
    for grads in table_gradients:
        params, state = step(params, state, {"item": jnp.asarray(grads)})
        tables.append(np.asarray(params["item"]))
    return tables


def tree_on(mesh, layout, spec, array):
    _, leaves, spec_of, _ = layout
    tree = {
        name: place(mesh, spec_of(spec), leaf) for name, leaf in leaves(array).items()
    }
    return {**tree, "bias": place(mesh, P(), np.ones(WIDTH, np.float32))}


def assert_tables_placed(tree, mesh, layout, spec):
    """Every leaf of two dimensions, of parameters and moments alike."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim == 2]
    assert len(leaves) >= 3
    for leaf in leaves:
        assert_placed(leaf, mesh, layout[2](spec))


@layouts_and_places(EVERYWHERE, ONE_OF_EACH)
def test_trajectory_is_that_of_a_single_device(alone, mesh, layout, spec):
    tx = make(layout)
    params = tree_on(mesh, layout, spec, table())
    state = tx.init(params)
    assert_tables_placed((params, state), mesh, layout, spec)
    step = jax.jit(make_step(tx), donate_argnums=(0, 1))
    for i, expected in enumerate(alone.trajectory):
        grads = tree_on(mesh, layout, spec, gradients(i))
        params, state = step(params, state, grads)
        assert_tables_placed((params, state), mesh, layout, spec)
        for name, leaf in layout[1](expected).items():
            np.testing.assert_allclose(params[name], leaf, rtol=1e-6, atol=1e-6)


@places(ONE_OF_EACH)
def test_jitted_init(alone, mesh, spec):
    layout = LAYOUTS["plain"]
    tx, params = make(LAYOUTS["plain"]), tree_on(mesh, LAYOUTS["plain"], spec, table())
    state = jax.jit(tx.init)(params)
    if AxisType.Explicit in mesh.axis_types:
        assert_tables_placed((params, state), mesh, layout, spec)
    # An automatic mesh gives constants no sharding under jit (with optax.adam as with
    # this); from the first step on the moments follow the parameters.
    grads = tree_on(mesh, layout, spec, gradients(0))
    params, state = jax.jit(make_step(tx))(params, state, grads)
    assert_tables_placed((params, state), mesh, layout, spec)
    expected = alone.trajectory[0]
    np.testing.assert_allclose(params["item"], expected, rtol=1e-6, atol=1e-6)


@layouts_and_places(OVER_WIDTH, {"width": OVER_WIDTH["width"]})
def test_update_of_a_table_sharded_over_width(mesh, layout, spec):
    tx, params = make(layout), tree_on(mesh, layout, spec, table())
    grads, state = tree_on(mesh, layout, spec, gradients(0)), tx.init(params)
    step = make_step(tx)
    # Whether a row is idle is one bit, which devices that hold its parts must share.
    for shape in collectives(step, params, state, grads):
        for part in re.findall(r"\w+\[[\d,]*\]", shape):
            assert re.fullmatch(r"pred\[\d+\]", part)
    rows = {
        name: jnp.ones(leaf.shape[leaf.shape.index(WIDTH) - 1], bool)
        for name, leaf in layout[1](table()).items()
    }

    def step_with_rows(params, state, grads, rows):
        return step(params, state, grads, active_rows=rows)

    assert collectives(step_with_rows, params, state, grads, rows) == []


@places(OVER_WIDTH)
def test_uncorrected_update_needs_no_communication(mesh, spec):
    layout = LAYOUTS["plain"]
    for tx in (
        sevo.sevo_adamw(0.05, {"item": GRAPH}, moment_correction=False),
        sevo.sevo_adam(0.05, {"item": GRAPH}, weight_decay=0.1),
        sevo.sevo_sgd(0.05, {"item": GRAPH}, momentum=0.9, nesterov=True),
    ):
        params = tree_on(mesh, layout, spec, table())
        grads = tree_on(mesh, layout, spec, gradients(0))
        assert collectives(make_step(tx), params, tx.init(params), grads) == []


@places(ONE_OF_EACH)
def test_graph_as_an_argument(alone, mesh, spec):
    layout = LAYOUTS["plain"]
    tx, params = make(LAYOUTS["plain"]), tree_on(mesh, layout, spec, table())
    grads = tree_on(mesh, layout, spec, gradients(0))
    expected = alone.trajectory[0]
    step = jax.jit(lambda graph, *args: make_step(tx)(*args, graphs={"item": graph}))
    for operator in (GRAPH, place(mesh, P(), GRAPH)):
        updated, state = step(operator, params, tx.init(params), grads)
        assert_tables_placed((updated, state), mesh, layout, spec)
        np.testing.assert_allclose(updated["item"], expected, rtol=1e-6, atol=1e-6)


@layouts_and_places(ONE_OF_EACH, OVER_BOTH)
def test_eager_update(alone, mesh, layout, spec):
    tx, params = make(layout), tree_on(mesh, layout, spec, table())
    grads = tree_on(mesh, layout, spec, gradients(0))
    params, state = make_step(tx)(params, tx.init(params), grads)
    assert_tables_placed((params, state), mesh, layout, spec)
    for name, leaf in layout[1](alone.trajectory[0]).items():
        np.testing.assert_allclose(params[name], leaf, rtol=1e-6, atol=1e-6)


@layouts_and_places(ONE_OF_EACH, OVER_BOTH)
def test_propagation_once_in_a_window(mesh, layout, spec):
    tx = make(layout, every=2)
    alone = trajectory([gradients(i) for i in range(4)], every=2)
    params = tree_on(mesh, layout, spec, table())
    state, step = tx.init(params), jax.jit(make_step(tx), donate_argnums=(0, 1))
    for i, expected in enumerate(alone):
        params, state = step(params, state, tree_on(mesh, layout, spec, gradients(i)))
        # What is pending is placed as the table is, too.
        assert_tables_placed((params, state), mesh, layout, spec)
        for name, leaf in layout[1](expected).items():
            np.testing.assert_allclose(params[name], leaf, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "user, item",
    [
        (P("rows"), P()),
        (P(), P("rows")),
        (P("rows", "columns"), P(None, "columns")),
        (P("columns"), P("rows")),
        (P(("rows", "columns")), P(None, "columns")),
    ],
    ids=str,
)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_parts_of_a_joint_table_that_are_placed_differently(
    alone, mesh, user, item, wrap
):
    layout = LAYOUTS["joint"]
    specs, tx = {"user": user, "item": item}, make(LAYOUTS["joint"])

    def on_mesh(array):
        leaves = layout[1](array)
        return {name: place(mesh, specs[name], leaf) for name, leaf in leaves.items()}

    params = on_mesh(table())
    step, state = wrap(make_step(tx)), tx.init(params)
    for i, expected in enumerate(alone.trajectory[:3]):
        params, state = step(params, state, on_mesh(gradients(i)))
        for name, leaf in layout[1](expected).items():
            if AxisType.Explicit in mesh.axis_types:
                assert_placed(params[name], mesh, specs[name])
            np.testing.assert_allclose(params[name], leaf, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "spec", [P("rows"), P(None, None, "columns"), P("rows", None, "columns")], ids=str
)
def test_a_stack_of_tables(alone, mesh, spec):
    tx = make(LAYOUTS["plain"])

    def on_mesh(array):
        return {"item": place(mesh, spec, np.stack([array, array]))}

    params = on_mesh(table())
    state = tx.init(params)
    step = jax.jit(make_step(tx))
    for i, expected in enumerate(alone.trajectory[:3]):
        params, state = step(params, state, on_mesh(gradients(i)))
        assert_placed(params["item"], mesh, spec)
        for item in np.asarray(params["item"]):
            np.testing.assert_allclose(item, expected, rtol=1e-6, atol=1e-6)


def test_data_parallel_gradients(alone, mesh):
    """A batch over all devices, one table on each: their sum decides what is idle."""
    explicit = AxisType.Explicit in mesh.axis_types
    batch = P(("rows", "columns"))
    tx = make(LAYOUTS["plain"])

    @jax.jit
    def step(params, state, rows):
        def loss(params):
            drawn = (
                params["item"].at[rows].get(out_sharding=batch if explicit else None)
            )
            return jnp.sum(drawn**2) / 2

        return make_step(tx)(params, state, jax.grad(loss)(params))

    params = {"item": place(mesh, P(), table())}
    params, _ = step(params, tx.init(params), place(mesh, batch, BATCH))
    assert_placed(params["item"], mesh, P())
    np.testing.assert_allclose(params["item"], alone.batch_step, rtol=1e-6, atol=1e-6)
