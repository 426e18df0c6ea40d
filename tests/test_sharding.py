"""The library on meshes of eight virtual CPU devices, automatic and explicit."""

import functools
import re

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
    r"= (?P<shape>\S+) (?:all-gather|all-reduce|all-to-all|collective-permute"
    r"|collective-broadcast|reduce-scatter)(?:-start)?\("
)

# Where the table lies on a mesh of two by four devices.
OVER_WIDTH = {"width": P(None, "columns"), "both_axes": P(None, ("rows", "columns"))}
OVER_ROWS = {"rows": P("rows"), "all_rows": P(("rows", "columns"), None)}
OVER_BOTH = {"rows_and_width": P("rows", "columns")}
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


@functools.cache
def expected_psi() -> np.ndarray:
    return np.asarray(psi(jnp.asarray(table())))


def place(mesh, spec, array):
    return jax.device_put(array, NamedSharding(mesh, spec))


def collectives(function, *args) -> list[str]:
    """Shapes of everything that devices exchange in the compiled program."""
    return COLLECTIVE.findall(jax.jit(function).lower(*args).compile().as_text())


def assert_placed(array, mesh, spec):
    assert array.sharding.is_equivalent_to(NamedSharding(mesh, spec), array.ndim)


# ---------------------------------------------------------------- smoothing


@places(EVERYWHERE)
def test_psi_is_exact_and_keeps_the_sharding(mesh, spec):
    x = place(mesh, spec, table())
    for function in (psi, jax.jit(psi)):
        result = function(x)
        assert_placed(result, mesh, spec)
        np.testing.assert_allclose(result, expected_psi(), rtol=1e-6, atol=3e-7)


@places(OVER_WIDTH)
def test_psi_of_a_table_sharded_over_width_needs_no_communication(mesh, spec):
    x = place(mesh, spec, table())
    assert collectives(psi, x) == []
    # The measure itself: rows can only be smoothed by moving them.
    assert collectives(psi, place(mesh, P("rows"), table())) != []


@places(OVER_WIDTH)
def test_gradient_through_psi_needs_no_communication(mesh, spec):
    def gradient(x, cotangent):
        return jax.vjp(psi, x)[1](cotangent)[0]

    x = place(mesh, spec, table())
    assert collectives(gradient, x, x) == []
    result = jax.jit(gradient)(x, x)
    assert_placed(result, mesh, spec)
    np.testing.assert_allclose(result, expected_psi(), rtol=1e-6, atol=3e-7)


@places(EVERYWHERE)
@pytest.mark.parametrize("seeds", [None, "rows"], ids=["whole", "seeds_over_rows"])
def test_vmap_over_seeds(mesh, spec, seeds):
    if seeds and "rows" in str(spec):
        pytest.skip("an axis of the mesh shards one dimension only")
    spec = P(seeds, *spec)
    tables = np.stack([table(), table(1)])
    vmapped = jax.vmap(psi, spmd_axis_name=seeds)
    x = place(mesh, spec, tables)
    result = jax.jit(vmapped)(x)
    assert_placed(result, mesh, spec)
    expected = np.stack([expected_psi(), psi(jnp.asarray(tables[1]))])
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=3e-7)
    if tuple(spec)[1:2] in ((), (None,)):
        assert collectives(vmapped, x) == []


@pytest.mark.parametrize("check_vma", [True, False], ids=["checked", "unchecked"])
def test_psi_inside_shard_map(mesh, check_vma):
    def gradient(x):
        return jax.grad(lambda x: jnp.sum(psi(x) ** 2) / 2)(x)

    x = place(mesh, P(None, "columns"), table())
    for function, expected in (
        (psi, expected_psi()),
        (gradient, psi(jnp.asarray(expected_psi()))),
    ):
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


@places(EVERYWHERE)
def test_every_function_of_smoothing(mesh, spec):
    functions = {
        "iterative": lambda x: sevo.smoothing.iterative(GRAPH, x, 0.4, 2),
        "exact": lambda x: sevo.smoothing.exact(GRAPH, x, 0.9),
        "smoothness": lambda x: sevo.smoothing.smoothness(GRAPH, x),
        "compare": lambda x: sevo.smoothing.compare(GRAPH, x, psi(x)),
    }
    x = place(mesh, spec, table())
    for name, function in functions.items():
        result = jax.jit(function)(x)
        if name in ("iterative", "exact"):
            assert_placed(result, mesh, spec)
        expected = function(jnp.asarray(table()))
        for actual, wanted in (
            zip(result, expected, strict=True)
            if (isinstance(result, tuple))
            else [(result, expected)]
        ):
            np.testing.assert_allclose(actual, wanted, rtol=2e-5, atol=2e-5)


# ---------------------------------------------------------------- optimizers


LAYOUTS = {
    # name of the graph, how a table is made into leaves, how a spec is for a leaf
    "plain": ("item", lambda x: {"item": x}, lambda spec: spec),
    "joint": (
        ("user", "item"),
        lambda x: {"item": x[16:], "user": x[:16]},
        lambda spec: spec,
    ),
    "transposed": (
        "item",
        lambda x: {"item": x.T},
        lambda spec: P(*reversed((*spec, None, None)[:2])),
    ),
}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


def make(names):
    return sevo.sevo_adamw(0.05, {names: GRAPH}, beta=0.9, weight_decay=0.1)


def make_step(tx):
    def step(params, state, grads, **extra_args):
        updates, state = tx.update(grads, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    return step


def gradients(step: int) -> np.ndarray:
    """Half of the rows are idle."""
    rng = np.random.default_rng([step, 3])
    return table(step) * (rng.random((NUM_NODES, 1)) < 0.5)


@functools.cache
def single_device_trajectory(num_steps: int = 20):
    """Tables after each step on one device."""
    tx = make("item")
    step = jax.jit(make_step(tx))
    params = {"item": jnp.asarray(table()), "bias": jnp.zeros(WIDTH)}
    state, tables = tx.init(params), []
    for i in range(num_steps):
        grads = {"item": jnp.asarray(gradients(i)), "bias": jnp.ones(WIDTH)}
        params, state = step(params, state, grads)
        tables.append(np.asarray(params["item"]))
    return tables


def tree_on(mesh, layout, spec, array):
    _, leaves, spec_of = layout
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


@places(EVERYWHERE)
def test_trajectory_is_that_of_a_single_device(mesh, layout, spec):
    tx = make(layout[0])
    params = tree_on(mesh, layout, spec, table())
    state = tx.init(params)
    assert_tables_placed((params, state), mesh, layout, spec)
    step = jax.jit(make_step(tx), donate_argnums=(0, 1))
    params["bias"] = place(mesh, P(), np.zeros(WIDTH, np.float32))
    for i, expected in enumerate(single_device_trajectory()):
        grads = tree_on(mesh, layout, spec, gradients(i))
        params, state = step(params, state, grads)
        assert_tables_placed((params, state), mesh, layout, spec)
        for name, leaf in layout[1](expected).items():
            np.testing.assert_allclose(params[name], leaf, rtol=1e-6, atol=1e-6)


@places({**OVER_WIDTH, **OVER_ROWS})
def test_jitted_init(mesh, spec):
    layout = LAYOUTS["plain"]
    tx, params = make("item"), tree_on(mesh, LAYOUTS["plain"], spec, table())
    state = jax.jit(tx.init)(params)
    if AxisType.Explicit in mesh.axis_types:
        assert_tables_placed((params, state), mesh, layout, spec)
    # An automatic mesh gives constants no sharding under jit (with optax.adam as with
    # this); from the first step on the moments follow the parameters.
    grads = tree_on(mesh, layout, spec, gradients(0))
    params, state = jax.jit(make_step(tx))(params, state, grads)
    assert_tables_placed((params, state), mesh, layout, spec)
    expected = single_device_trajectory()[0]
    np.testing.assert_allclose(params["item"], expected, rtol=1e-6, atol=1e-6)


@places(OVER_WIDTH)
def test_update_of_a_table_sharded_over_width(mesh, layout, spec):
    tx, params = make(layout[0]), tree_on(mesh, layout, spec, table())
    grads, state = tree_on(mesh, layout, spec, gradients(0)), tx.init(params)
    step = make_step(tx)
    # Whether a row is idle is one bit, which devices that hold its parts must share.
    for shape in collectives(step, params, state, grads):
        assert re.match(r"pred\[\d+\]", shape)
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


@places(EVERYWHERE)
def test_graph_as_an_argument(mesh, spec):
    layout = LAYOUTS["plain"]
    tx, params = make("item"), tree_on(mesh, layout, spec, table())
    params["bias"] = place(mesh, P(), np.zeros(WIDTH, np.float32))
    grads = tree_on(mesh, layout, spec, gradients(0))
    expected = single_device_trajectory()[0]
    step = jax.jit(lambda graph, *args: make_step(tx)(*args, graphs={"item": graph}))
    for operator in (GRAPH, place(mesh, P(), GRAPH)):
        updated, state = step(operator, params, tx.init(params), grads)
        assert_tables_placed((updated, state), mesh, layout, spec)
        np.testing.assert_allclose(updated["item"], expected, rtol=1e-6, atol=1e-6)


@places({**OVER_WIDTH, **OVER_ROWS})
def test_eager_update(mesh, layout, spec):
    tx, params = make(layout[0]), tree_on(mesh, layout, spec, table())
    grads = tree_on(mesh, layout, spec, gradients(0))
    params, state = make_step(tx)(params, tx.init(params), grads)
    assert_tables_placed((params, state), mesh, layout, spec)
    for name, leaf in layout[1](single_device_trajectory()[0]).items():
        np.testing.assert_allclose(params[name], leaf, rtol=1e-6, atol=1e-6)


def test_data_parallel_gradients(mesh):
    """Batches on different devices, one replicated table: the sum of their gradients
    decides which rows are idle."""
    explicit = AxisType.Explicit in mesh.axis_types
    out_sharding = P(("rows", "columns")) if explicit else None
    tx = make("item")
    rows = np.random.default_rng(0).integers(0, NUM_NODES // 2, 32)

    def step(params, state, rows):
        def loss(params):
            batch = params["item"].at[rows].get(out_sharding=out_sharding)
            return jnp.mean(batch**2)

        grads = jax.grad(loss)(params)
        return make_step(tx)(params, state, grads)

    single = {"item": jnp.asarray(table())}
    params = {"item": place(mesh, P(), table())}
    sharded_rows = place(mesh, P(("rows", "columns")), rows)
    params, state = jax.jit(step)(params, tx.init(params), sharded_rows)
    grads = jax.grad(lambda p: jnp.mean(p["item"][rows] ** 2))(single)
    expected, _ = make_step(tx)(single, tx.init(single), grads)
    np.testing.assert_allclose(params["item"], expected["item"], rtol=1e-6, atol=1e-6)
    assert_placed(params["item"], mesh, P())
