"""Tables and operators split by rows, on meshes of eight virtual CPU devices."""

import re
from operator import matmul
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import sevo_jax as sevo

NUM_NODES, WIDTH = 48, 16
COLLECTIVE = re.compile(
    r"= (?P<shape>\S+|\([^)]*\)) (?P<kind>all-gather|all-reduce|all-to-all"
    r"|collective-permute|collective-broadcast|reduce-scatter)(?:-start)?\("
)


def make_mesh(axis_type=AxisType.Auto) -> Mesh:
    devices = np.array(jax.devices("cpu")[:8]).reshape(2, 4)
    return Mesh(devices, ("rows", "columns"), axis_types=(axis_type,) * 2)


# A mesh of two by four devices, and where the table lies on it.
PLACES = {
    "auto-rows": (AxisType.Auto, P("rows")),
    "auto-rows_and_width": (AxisType.Auto, P("rows", "columns")),
    "auto-all_rows": (AxisType.Auto, P(("rows", "columns"), None)),
    "explicit-rows": (AxisType.Explicit, P("rows")),
    "explicit-rows_and_width": (AxisType.Explicit, P("rows", "columns")),
}


@pytest.fixture(params=PLACES.values(), ids=list(PLACES))
def placed(request):
    axis_type, spec = request.param
    return make_mesh(axis_type), spec


@pytest.fixture
def mesh():
    return make_mesh()


@pytest.fixture(scope="module")
def dense(random_graph):
    """A graph with isolated nodes, self-loops, and a block that only receives."""
    return random_graph(7, NUM_NODES, density=0.1, isolated=(0, 5), self_loops=True)


def table(seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(NUM_NODES, WIDTH)).astype(dtype)


def place(mesh, spec, array):
    return jax.device_put(array, NamedSharding(mesh, spec))


def split(dense, mesh, spec) -> sevo.ShardedGraphOperator:
    return sevo.shard_rows(scipy.sparse.csr_array(dense), NamedSharding(mesh, spec))


def psi(graph, x):
    return sevo.smoothing.neumann(graph, x, 0.9, 3)


def collectives(function, *args) -> list[tuple[str, str]]:
    """Shape and kind of everything that devices exchange in the compiled program."""
    return COLLECTIVE.findall(str(jax.jit(function).lower(*args).compile().as_text()))


def assert_placed(array, mesh, spec):
    assert array.sharding.is_equivalent_to(NamedSharding(mesh, spec), array.ndim)


def num_blocks(mesh, spec) -> int:
    axes = spec[0] if isinstance(spec[0], tuple) else (spec[0],)
    return int(np.prod([mesh.shape[axis] for axis in axes]))


# ------------------------------------------------------------------ the operator


def test_each_device_holds_its_own_block(dense, oracle, placed):
    mesh, spec = placed
    graph = split(dense, mesh, spec)
    blocks = num_blocks(mesh, spec)
    size = NUM_NODES // blocks
    expected = oracle.normalised(dense)
    owner = {
        shard.device: shard.index[0].start // size
        for shard in place(mesh, P(spec[0]), table()).addressable_shards
        if blocks > 1
    }
    for leaf in jax.tree.leaves(graph):
        assert leaf.shape[0] == blocks
        for shard in leaf.addressable_shards:
            assert shard.data.shape == (1, *leaf.shape[1:])
            assert shard.index[0].start == owner[shard.device]
    # Entry by entry, from the fields alone.
    sends, width = np.asarray(graph.sends), graph.sends.shape[2]
    weights, columns, rows, starts = (
        np.asarray(part)
        for part in (graph.weights, graph.columns, graph.rows, graph.row_starts)
    )
    found = np.zeros((NUM_NODES, NUM_NODES))
    for b in range(blocks):
        for i in range(size):
            for k in range(starts[b, i], starts[b, i + 1]):
                column, row = columns[b, k], b * size + i
                assert rows[b, k] == i
                if column < size:
                    found[row, b * size + column] += weights[b, k]
                else:
                    source, position = divmod(column - size, width)
                    found[row, source * size + sends[source, b, position]] += weights[
                        b, k
                    ]
            part = columns[b, starts[b, i] : starts[b, i + 1]]
            assert (np.diff(part) > 0).all()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)


def test_only_rows_that_cross_are_sent(dense, mesh):
    graph = split(dense, mesh, P("columns"))
    size = NUM_NODES // 4
    needed = [
        [
            set(np.flatnonzero(dense[b * size : (b + 1) * size].any(axis=0)))
            & set(range(s * size, (s + 1) * size))
            for b in range(4)
        ]
        for s in range(4)
    ]
    most = max(len(needed[s][b]) for s in range(4) for b in range(4) if s != b)
    assert graph.sends.shape == (4, 4, most)
    assert graph.halo == 3 * most < NUM_NODES - size
    sends = np.asarray(graph.sends)
    for s in range(4):
        assert not sends[s, s].any()
        for b in set(range(4)) - {s}:
            rows = sends[s, b, : len(needed[s][b])] + s * size
            assert set(rows.tolist()) == needed[s][b]


def test_a_graph_with_locality_crosses_little(oracle):
    """A ring of neighbours: one row to either side."""
    n = 64
    ring = np.zeros((n, n))
    ring[np.arange(n), (np.arange(n) + 1) % n] = 1
    ring += ring.T
    mesh = Mesh(np.array(jax.devices("cpu")[:8]), ("rows",))
    graph = split(ring, mesh, P("rows"))
    assert graph.halo == 7
    x = table().repeat(2, axis=0)[:n]
    expected = oracle.neumann(ring, x.astype(np.float64), 0.9, 3)
    result = jax.jit(psi)(graph, place(mesh, P("rows"), x))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    shuffled = np.random.default_rng(0).permutation(n)
    assert split(ring[shuffled][:, shuffled], mesh, P("rows")).halo > 7


def test_blocks_without_any_exchange(oracle, random_graph):
    """Communities that lie in one block each; and a mesh of one device."""
    dense = np.kron(np.eye(4), random_graph(0, 12))
    for devices, spec in ((4, P("rows")), (1, P("rows"))):
        mesh = Mesh(np.array(jax.devices("cpu")[:devices]), ("rows",))
        graph, x = split(dense, mesh, spec), place(mesh, spec, table())
        assert graph.halo == 0
        assert collectives(psi, graph, x) == []
        expected = oracle.neumann(dense, table(dtype=np.float64), 0.9, 3)
        np.testing.assert_allclose(
            jax.jit(psi)(graph, x), expected, rtol=1e-5, atol=1e-6
        )


def test_repr_and_entries(dense, mesh):
    graph = split(dense, mesh, P("rows"))
    assert repr(graph) == (
        f"ShardedGraphOperator({NUM_NODES} nodes in 2 blocks, halo {graph.halo})"
    )
    half = NUM_NODES // 2
    most = max(np.count_nonzero(dense[:half]), np.count_nonzero(dense[half:]))
    assert graph.num_entries == 2 * most
    assert sevo.prepare(graph) is graph


# ------------------------------------------------------------------ the product


def test_psi_against_the_definition(dense, oracle, placed):
    check_psi(dense, oracle, "float32", *placed)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_psi_in_other_precisions(dense, oracle, dtype, mesh):
    check_psi(dense, oracle, dtype, mesh, P("rows", "columns"))


def check_psi(dense, oracle, dtype, mesh, spec):
    with jax.enable_x64(dtype == "float64"):
        graph, x = split(dense, mesh, spec), place(mesh, spec, table(dtype=dtype))
        result = jax.jit(psi)(graph, x)
        assert result.dtype == dtype
        assert_placed(result, mesh, spec)
        expected = oracle.neumann(dense, np.asarray(x, np.float64), 0.9, 3)
        error = 8 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(
            np.asarray(result, np.float64), expected, rtol=error, atol=error
        )


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_psi_outside_jit(dense, oracle, axis_type):
    mesh, spec = make_mesh(axis_type), P("rows", "columns")
    result = psi(split(dense, mesh, spec), place(mesh, spec, table()))
    assert_placed(result, mesh, spec)
    expected = oracle.neumann(dense, table(dtype=np.float64), 0.9, 3)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_only_the_halo_is_exchanged(dense, placed):
    mesh, spec = placed
    graph, x = split(dense, mesh, spec), place(mesh, spec, table())
    blocks = num_blocks(mesh, spec)
    width = WIDTH // (4 if "columns" in spec[1:] else 1)
    # What each device exchanges, itself included: no row more than the lists say.
    part = f"f32[1,{graph.sends.shape[2]},{width}]"

    def gradient(graph, x):
        return jax.vjp(lambda x: psi(graph, x), x)[1](x)[0]

    for function in (psi, gradient):
        found = collectives(function, graph, x)
        assert [kind for _, kind in found] == ["all-to-all"] * 3
        for shape, _ in found:
            shapes = re.sub(r"\{[\d,]*\}|/\*.*?\*/", "", shape).strip("()")
            assert shapes.split(", ") == [part] * blocks
    # The measure itself: without lists, the whole table is gathered.
    whole = sevo.prepare(scipy.sparse.csr_array(dense))
    assert "all-gather" in [kind for _, kind in collectives(psi, whole, x)]


def test_gradient_is_the_product_itself(dense, oracle, placed):
    mesh, spec = placed
    graph, x = split(dense, mesh, spec), place(mesh, spec, table())
    cotangent = place(mesh, spec, table(1))

    @jax.jit
    def gradient(x, cotangent):
        return jax.vjp(lambda x: matmul(graph, x), x)[1](cotangent)[0]

    result = gradient(x, cotangent)
    assert_placed(result, mesh, spec)
    expected = oracle.normalised(dense) @ table(1, np.float64)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_every_function_of_smoothing(dense, mesh):
    spec = P("rows", "columns")
    alone, graph = sevo.prepare(scipy.sparse.csr_array(dense)), split(dense, mesh, spec)
    x = place(mesh, spec, table())
    for function in (
        lambda g, x: sevo.smoothing.iterative(g, x, 0.4, 2),
        lambda g, x: sevo.smoothing.exact(g, x, 0.9),
        lambda g, x: sevo.smoothing.smoothness(g, x),
        lambda g, x: sevo.smoothing.effect(g, x, psi(g, x)),
    ):
        jax.tree.map(
            lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-5),
            jax.jit(function)(graph, x),
            function(alone, jnp.asarray(table())),
        )


def test_vmap_over_seeds(dense, oracle, mesh):
    graph = split(dense, mesh, P("columns"))
    tables = np.stack([table(), table(1)])
    x = place(mesh, P(None, "columns"), tables)
    result = jax.jit(jax.vmap(psi, (None, 0)))(graph, x)
    assert_placed(result, mesh, P(None, "columns"))
    for seed in range(2):
        expected = oracle.neumann(dense, table(seed, np.float64), 0.9, 3)
        np.testing.assert_allclose(result[seed], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [45, NUM_NODES])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_several_tables(axis_type, n, random_graph, oracle):
    """By a leading axis, [seeds, n, d], inside of jit and outside, with a gradient."""
    dense, mesh = random_graph(1, n, density=0.2), make_mesh(axis_type)
    graph = split(dense, mesh, P("columns"))
    tables = np.random.default_rng(0).normal(size=(2, 3, n, WIDTH))
    # JAX places no rows that do not divide among the devices.
    place_of_rows = "columns" if n == NUM_NODES else None
    x = place(mesh, P(None, None, place_of_rows), tables.astype(np.float32))
    normalised = oracle.normalised(dense)
    for product in (matmul, jax.jit(matmul)):
        np.testing.assert_allclose(
            product(graph, x), normalised @ tables, rtol=1e-5, atol=1e-6
        )
    gradient = jax.jit(jax.grad(lambda x: (matmul(graph, x) ** 2).sum() / 2))(x)
    expected = normalised @ (normalised @ tables)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


def test_room_for_more_edges_is_left_out(dense, mesh):
    sharding = NamedSharding(mesh, P("rows"))
    adjacency = scipy.sparse.csr_array(dense)
    roomy = sevo.prepare(adjacency, capacity=2 * adjacency.nnz)
    jax.tree.map(
        np.testing.assert_array_equal,
        sevo.shard_rows(roomy, sharding),
        sevo.shard_rows(adjacency, sharding),
    )


@pytest.mark.parametrize("n", [45, 3])
def test_number_of_nodes_that_does_not_divide(n, random_graph, oracle, mesh):
    """The last block, or several, are partly or wholly made of rows without edges."""
    dense = random_graph(1, n, density=0.5)
    graph = split(dense, mesh, P("columns"))
    assert graph.num_nodes == n and (np.diff(graph.row_starts) >= 0).all()
    x = np.random.default_rng(0).normal(size=(n, WIDTH))
    expected = oracle.neumann(dense, x, 0.9, 3)
    placed = place(mesh, P(), x.astype(np.float32))
    result = jax.jit(psi)(graph, placed)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def elsewhere(monkeypatch):
    """The path of GPU and TPU, taken here."""

    def portable(*args, cpu, default):
        return default(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", portable)
    # Programs are found again by their shapes.
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("path", ["here", "elsewhere"])
def test_nan_does_not_spread_to_nodes_without_an_edge_to_it(mesh, path, request):
    """What fills up a block adds nothing, not even zero times a NaN."""
    star = np.zeros((NUM_NODES, NUM_NODES))
    star[1, 2:20] = star[2:20, 1] = star[40, 41] = star[41, 40] = 1
    graph = split(star, mesh, P("columns"))
    x = table()
    x[[0, 12, 24, 36]] = np.nan
    if path == "elsewhere":
        request.getfixturevalue("elsewhere")
        assert (np.diff(graph.rows) >= 0).all()
    result = np.asarray(jax.jit(matmul)(graph, place(mesh, P("columns"), x)))
    # Node 1 alone has a neighbour, 12, that is not a number.
    assert np.flatnonzero(np.isnan(result).any(axis=1)).tolist() == [1]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_another_platform_gets_a_portable_program(dense, mesh, platform):
    graph, x = split(dense, mesh, P("columns")), place(mesh, P("columns"), table())
    traced = jax.jit(psi).trace(graph, x)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "cpu_csr" not in program and "CustomSPMDPartitioning" not in program
    assert "stablehlo.all_to_all" in program
    assert "stablehlo.all_gather" not in program


@pytest.mark.usefixtures("elsewhere")
def test_gather_and_segment_sum_gives_the_same(dense, oracle, mesh):
    graph, x = split(dense, mesh, P("columns")), place(mesh, P("columns"), table())
    result = jax.jit(psi)(graph, x)
    expected = oracle.neumann(dense, table(dtype=np.float64), 0.9, 3)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ optimizers


def gradients(step: int) -> np.ndarray:
    """Half of the rows are idle."""
    idle = np.random.default_rng([step, 3]).random((NUM_NODES, 1)) < 0.5
    return np.where(idle, 0, table(step)).astype(np.float32)


def make_step(tx):
    def step(params, state, grads, graph) -> Any:
        updates, state = tx.update(grads, state, params, graphs={"item": graph})
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


@pytest.fixture(scope="module")
def trajectory(dense):
    """Tables after each of twenty steps on one device."""
    graph = sevo.prepare(scipy.sparse.csr_array(dense))
    tx = sevo.sevo_adamw(0.05, {"item": graph}, beta=0.9, weight_decay=0.1)
    step, params = make_step(tx), {"item": jnp.asarray(table())}
    state, tables = tx.init(params), []
    for i in range(20):
        params, state = step(params, state, {"item": jnp.asarray(gradients(i))}, graph)
        tables.append(np.asarray(params["item"]))
    return tables


def check_trajectory(expected, graph, transposed=False):
    mesh, spec = graph.sharding.mesh, graph.sharding.spec
    tx = sevo.sevo_adamw(
        0.05, {"item": graph}, beta=0.9, weight_decay=0.1, row_axis=int(transposed)
    )
    rows, width = (*spec, None)[:2]
    leaf_spec = P(width, rows) if transposed else P(rows, width)

    def on_mesh(array):
        return {"item": place(mesh, leaf_spec, array.T if transposed else array)}

    step, params = make_step(tx), on_mesh(table())
    state = tx.init(params)
    for i, alone in enumerate(expected):
        params, state = step(params, state, on_mesh(gradients(i)), graph)
        tables = [leaf for leaf in jax.tree.leaves((params, state)) if leaf.ndim == 2]
        assert len(tables) == 3
        for leaf in tables:
            assert_placed(leaf, mesh, leaf_spec)
        found = np.asarray(params["item"])
        found = found.T if transposed else found
        np.testing.assert_allclose(found, alone, rtol=1e-6, atol=1e-6)


def test_trajectory_is_that_of_a_single_device(dense, trajectory, placed):
    check_trajectory(trajectory, split(dense, *placed))


def test_trajectory_of_a_transposed_table(dense, trajectory, mesh):
    graph = split(dense, mesh, P("rows", "columns"))
    check_trajectory(trajectory, graph, transposed=True)


def test_joint_table(dense, trajectory, mesh):
    """Users and items, of which the rows are stacked: each leaf is split by itself."""
    spec, names = P("rows"), ("user", "item")
    graph = split(dense, mesh, spec)
    tx = sevo.sevo_adamw(0.05, {names: graph}, beta=0.9, weight_decay=0.1)

    def on_mesh(array):
        return {
            "user": place(mesh, spec, array[:16]),
            "item": place(mesh, spec, array[16:]),
        }

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = on_mesh(table())
    params, _ = step(params, tx.init(params), on_mesh(gradients(0)))
    stacked = np.concatenate([params["user"], params["item"]])
    np.testing.assert_allclose(stacked, trajectory[0], rtol=1e-6, atol=1e-6)
    for leaf in params.values():
        assert_placed(leaf, mesh, spec)


# ------------------------------------------------------------------ errors


def test_errors(dense, mesh):
    graph = scipy.sparse.csr_array(dense)
    shard_rows: Any = sevo.shard_rows
    with pytest.raises(TypeError, match="must be a jax.sharding.NamedSharding .* Mesh"):
        shard_rows(graph, mesh)
    for spec in (P(), P(None, "columns"), P(None, None)):
        with pytest.raises(ValueError, match="does not split the rows"):
            shard_rows(graph, NamedSharding(mesh, spec))
    with pytest.raises(ValueError, match="users"):  # of JAX
        shard_rows(graph, NamedSharding(mesh, P("users")))
    with pytest.raises(ValueError, match="not symmetric"):
        shard_rows(
            scipy.sparse.csr_array(np.triu(dense)), NamedSharding(mesh, P("rows"))
        )
    operator = split(dense, mesh, P("rows"))
    with pytest.raises(TypeError, match="is split already"):
        shard_rows(operator, NamedSharding(mesh, P("rows")))
    with pytest.raises(TypeError, match="the adjacency is traced"):
        jax.jit(lambda g: shard_rows(g, operator.sharding).weights)(sevo.prepare(graph))
    with pytest.raises(ValueError, match=r"shape \(50, 16\), its graph 48 nodes"):
        psi(operator, jnp.ones((50, WIDTH)))
    with pytest.raises(ValueError, match="item has 50 rows .* its graph has 48 nodes"):
        sevo.scale_by_sevo({"item": operator}).init({"item": jnp.ones((50, WIDTH))})


def test_a_split_operator_is_not_saved(dense, mesh, tmp_path):
    save: Any = sevo.graphs.save
    with pytest.raises(TypeError, match="save the adjacency"):
        save(tmp_path / "graph.npz", split(dense, mesh, P("rows")))


# ------------------------------------------------------------------ joint tables


def test_leaves_of_a_joint_table_are_smoothed_where_they_are(placed):
    """Of 31 and 17 rows, filled up with zeros: only rows that are linked move."""
    mesh, spec = placed
    path = np.diag(np.ones(NUM_NODES - 1), 1)
    graph = scipy.sparse.csr_array(path + path.T)
    blocks, sizes = num_blocks(mesh, spec), (31, 17)
    rows = np.split(table(), [31])
    filled = [np.pad(part, ((0, -len(part) % blocks), (0, 0))) for part in rows]
    key = ("users", "items")
    alone = sevo.scale_by_sevo({key: graph})
    updates: Any = dict(zip(key, rows, strict=True))
    expected: Any = alone.update(updates, alone.init(updates))[0]

    op = sevo.shard_rows(graph, NamedSharding(mesh, spec), leaves=sizes)
    assert op.num_nodes == sum(len(part) for part in filled)
    tx = sevo.scale_by_sevo({key: op})
    updates = {
        name: place(mesh, spec, part) for name, part in zip(key, filled, strict=True)
    }
    state = tx.init(updates)

    def update(updates, op):
        return tx.update(updates, state, graphs={key: op})[0]

    smoothed = jax.jit(update)(updates, op)
    for name, size in zip(key, sizes, strict=True):
        assert_placed(smoothed[name], mesh, spec)
        np.testing.assert_allclose(
            np.asarray(smoothed[name])[:size], expected[name], rtol=1e-5, atol=1e-6
        )
        assert not np.any(np.asarray(smoothed[name])[size:])
    assert "all-gather" not in {kind for _, kind in collectives(update, updates, op)}
    # Of the same nodes, but of other leaves.
    whole: Any = {"table": np.concatenate(filled)}
    others: Any = (({key[::-1]: op}, updates), ({"table": op}, whole))
    for other, tree in others:
        with pytest.raises(ValueError, match=r"split it for leaves of .*leaves="):
            sevo.scale_by_sevo(other).init(tree)


def test_leaves_must_add_up_to_the_graph(dense, mesh):
    sharding = NamedSharding(mesh, P("rows"))
    with pytest.raises(ValueError, match="leaves of 40, 9 rows .* graph of 48 nodes"):
        sevo.shard_rows(scipy.sparse.csr_array(dense), sharding, leaves=(40, 9))
