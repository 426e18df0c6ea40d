"""Graphs on disk in parts: equal to whole ones, refused when not whole themselves."""

import json
import shutil

import jax
import numpy as np
import pytest
import scipy.sparse
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import sevo_jax as sevo
from sevo_jax import graphs, operators
from sevo_jax.graphs import GraphParts, _build_parts, _edges, _parts
from sevo_jax.operators import _adjacency, _blocks

pyarrow = pytest.importorskip("pyarrow")

from pyarrow import parquet  # noqa: E402

from sevo_jax.data import stream  # noqa: E402

NUM_ITEMS = 24


def walks(seed=0):
    """Sequences with repeats and self-loops; some items are in none."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, NUM_ITEMS - 3, rng.integers(0, 12)).tolist() for _ in range(40)
    ]


def assert_equal(parts, whole):
    whole = operators.as_csr(whole)
    found = parts.rows(0, parts.num_nodes)
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert found.dtype == np.float32
    assert (parts.num_nodes, parts.num_entries) == (whole.shape[0], whole.nnz)
    np.testing.assert_allclose(parts.degrees, whole.sum(axis=1), rtol=1e-6)


@pytest.fixture
def parts(tmp_path):
    return graphs.cooccurrence_parts(
        tmp_path / "items", walks(), NUM_ITEMS, num_parts=5, max_hop=3
    )


OPTIONS = {
    "one part": (1, {}),
    "a row each": (NUM_ITEMS, {"max_hop": 2}),
    "more parts than rows": (100, {"weighting": "frequency", "max_hop": 3}),
    "uneven": (7, {"max_hop": 3, "max_len": 5, "keep": "first"}),
    "padding": (4, {"item_offset": 1, "num_nodes": 31}),
}


@pytest.mark.parametrize(("num_parts", "options"), OPTIONS.values(), ids=OPTIONS)
def test_the_same_graph_as_in_memory(tmp_path, monkeypatch, num_parts, options):
    # Files are read back by several batches.
    monkeypatch.setattr(_build_parts, "_BATCH", 8)
    built = graphs.cooccurrence_parts(
        tmp_path / "items", iter(walks()), NUM_ITEMS, num_parts=num_parts, **options
    )
    assert_equal(built, graphs.cooccurrence(walks(), NUM_ITEMS, **options))
    # Opened again; and nothing else is left.
    assert_equal(
        GraphParts(tmp_path / "items"),
        graphs.cooccurrence(walks(), NUM_ITEMS, **options),
    )
    names = {path.name for path in (tmp_path / "items").iterdir()}
    assert len(names) == built.num_parts + 1 and "parts.json" in names
    assert [path.name for path in tmp_path.iterdir()] == ["items"]


def test_from_a_stream(tmp_path):
    sequences = [row for row in walks() if row]
    users = np.repeat(np.arange(len(sequences)), list(map(len, sequences)))
    table = pyarrow.table({"user": users, "item": np.concatenate(sequences)})
    parquet.write_table(table, tmp_path / "log.parquet", row_group_size=20)
    chunks = stream(tmp_path / "log.parquet", num_items=NUM_ITEMS)
    built = graphs.cooccurrence_parts(tmp_path / "g", chunks, NUM_ITEMS, num_parts=3)
    assert_equal(built, graphs.cooccurrence(sequences, NUM_ITEMS))


def write_edges(path, num_edges=80, **changes):
    rng = np.random.default_rng(1)
    pairs = np.unique(np.sort(rng.integers(0, NUM_ITEMS, (num_edges, 2))), axis=0)
    rng.shuffle(pairs)
    # One of them is no edge, as its weight is 0.
    weights = np.round(rng.random(len(pairs)), 2) * (np.arange(len(pairs)) > 0)
    columns = {"i": pairs[:, 0], "j": pairs[:, 1], "weight": weights} | changes
    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("offset", [0, 2])
def test_edges(tmp_path, monkeypatch, offset):
    path = write_edges(tmp_path / "edges.parquet")
    options = {"item_offset": offset, "num_nodes": NUM_ITEMS + 5}
    whole = graphs.from_edges(path, NUM_ITEMS, **options)
    built = graphs.from_edges_parts(
        tmp_path / "g", path, NUM_ITEMS, num_parts=4, **options
    )
    assert_equal(built, whole)
    # Where a matrix holds too little, the message names this way.
    monkeypatch.setattr(_edges, "_MOST", 20)
    with pytest.raises(ValueError, match="in parts, from_edges_parts"):
        graphs.from_edges(path, NUM_ITEMS)


@pytest.mark.parametrize("offset", [0, 3])
def test_an_edge_that_is_there_twice(tmp_path, offset):
    columns = {"i": [7, 0, 7], "j": [9, 1, 9], "weight": [1.0, 1.0, 2.0]}
    path = write_edges(tmp_path / "edges.parquet", **columns)
    with pytest.raises(ValueError, match="the items 7 and 9 is there twice"):
        graphs.from_edges_parts(
            tmp_path / "g", path, NUM_ITEMS, num_parts=3, item_offset=offset
        )
    assert [path.name for path in tmp_path.iterdir()] == ["edges.parquet"]


# ------------------------------------------------------------------ over devices


def psi(graph, x):
    return sevo.smoothing.neumann(graph, x, 0.9, 3)


@pytest.mark.parametrize("num_nodes", [NUM_ITEMS, 29])
@pytest.mark.parametrize("spec", [P("rows"), P(("rows", "width")), P("rows", "width")])
def test_psi_of_parts_over_devices(tmp_path, spec, num_nodes):
    devices = np.array(jax.devices("cpu")[:8]).reshape(4, 2)
    sharding = NamedSharding(Mesh(devices, ("rows", "width")), spec)
    options = {"max_hop": 2, "num_nodes": num_nodes}
    whole = graphs.cooccurrence(walks(), NUM_ITEMS, **options)
    parts = graphs.cooccurrence_parts(
        tmp_path / "g", walks(), NUM_ITEMS, num_parts=5, **options
    )
    split = sevo.shard_rows(parts, sharding)
    x = np.random.default_rng(2).normal(size=(num_nodes, 6)).astype(np.float32)
    expected = psi(sevo.prepare(whole), jax.numpy.asarray(x))
    placed = jax.device_put(x, sharding) if num_nodes == NUM_ITEMS else x
    np.testing.assert_allclose(
        jax.jit(psi)(split, placed), expected, rtol=1e-6, atol=1e-6
    )
    # As of the whole graph, in every array.
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-6),
        split,
        sevo.shard_rows(whole, sharding),
    )


def test_no_more_is_read_than_a_block(parts, monkeypatch):
    read = []

    def rows(self, begin, end, original=GraphParts.rows):
        read.append((begin, end))
        return original(self, begin, end)

    monkeypatch.setattr(GraphParts, "rows", rows)
    mesh = Mesh(np.array(jax.devices("cpu")[:8]), ("rows",))
    sevo.shard_rows(parts, NamedSharding(mesh, P("rows")))
    assert set(read) == {(begin, begin + 3) for begin in range(0, 24, 3)}


# ------------------------------------------------------------------ errors


def test_a_graph_past_the_limit(parts, tmp_path, monkeypatch):
    whole = parts.rows(0, parts.num_nodes)
    mesh = Mesh(np.array(jax.devices("cpu")[:2]), ("rows",))
    sharding = NamedSharding(mesh, P("rows"))
    monkeypatch.setattr(_adjacency, "_MOST", 50)
    for use in (sevo.prepare, lambda graph: sevo.shard_rows(graph, sharding)):
        with pytest.raises(ValueError, match="in parts, .*cooccurrence_parts.*devices"):
            use(whole)
    # The parts themselves are split, until a block is too large.
    assert sevo.shard_rows(parts, sharding).num_nodes == NUM_ITEMS
    monkeypatch.setattr(_blocks, "_MOST", 50)
    with pytest.raises(ValueError, match="2 blocks .* split it over more devices"):
        sevo.shard_rows(parts, sharding)
    monkeypatch.setattr(_parts, "_MOST", 20)
    with pytest.raises(ValueError, match="at most 20, .* more parts"):
        graphs.cooccurrence_parts(tmp_path / "g", walks(), NUM_ITEMS, num_parts=2)
    assert not (tmp_path / "g").exists()
    # Of few entries, but many nodes.
    few = graphs.cooccurrence_parts(tmp_path / "few", [[0, 1]], NUM_ITEMS, num_parts=1)
    monkeypatch.setattr(_adjacency, "_MOST", 20)
    with pytest.raises(ValueError, match="2 entries and 24 nodes; .* at most 20"):
        sevo.prepare(few.rows(0, NUM_ITEMS))
    monkeypatch.setattr(_blocks, "_MOST", 10)
    with pytest.raises(ValueError, match="counts 12 rows .* at most 10"):
        sevo.shard_rows(few, sharding)


def test_what_consumes_whole_graphs_names_the_way(parts, tmp_path):
    for use in (sevo.prepare, lambda graph: graphs.save(tmp_path / "x", graph)):
        with pytest.raises(TypeError, match=r"sevo_jax.shard_rows\(parts, sharding\)"):
            use(parts)
    with pytest.raises(ValueError, match="one part of a graph, load its folder"):
        graphs.load(tmp_path / "items" / "part-00001.npz")
    with pytest.raises(ValueError, match="it is a folder; .*GraphParts, for sevo_jax"):
        graphs.load(tmp_path / "items")


def test_no_edges(tmp_path):
    built = graphs.cooccurrence_parts(tmp_path / "g", [[1], []], 4, num_parts=2)
    assert built.num_entries == 0
    mesh = Mesh(np.array(jax.devices("cpu")[:2]), ("rows",))
    with pytest.raises(ValueError, match="graph of 4 nodes has no edges"):
        sevo.shard_rows(built, NamedSharding(mesh, P("rows")))


def test_nothing_stays_of_a_build_that_fails(tmp_path):
    def sequences():
        yield [0, 1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        graphs.cooccurrence_parts(tmp_path / "g", sequences(), 2, num_parts=2)
    with pytest.raises(ValueError, match="item 9, outside"):
        graphs.cooccurrence_parts(tmp_path / "g", [[0, 9]], 2, num_parts=2)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="no folder .*none, create it first"):
        graphs.cooccurrence_parts(tmp_path / "none" / "g", [[0]], 1, num_parts=1)
    with pytest.raises(ValueError, match="num_parts must be at least 1, not 0"):
        graphs.cooccurrence_parts(tmp_path / "g", [[0]], 1, num_parts=0)
    (tmp_path / "g").mkdir()
    with pytest.raises(FileExistsError, match="is there already"):
        graphs.cooccurrence_parts(tmp_path / "g", [[0]], 1, num_parts=1)


def test_parts_that_are_missing_changed_or_of_another_graph(parts, tmp_path):
    folder, other = tmp_path / "items", tmp_path / "other"
    graphs.cooccurrence_parts(other, walks(1), NUM_ITEMS, num_parts=5)
    part = folder / "part-00002.npz"
    original = part.read_bytes()
    shutil.copy(other / part.name, part)
    for use in (lambda: GraphParts(folder), lambda: parts.rows(10, 12)):
        with pytest.raises(ValueError, match="part-00002.npz: it is not the part that"):
            use()
    # A weight, and not the checksum of it.
    at = original.index(np.asarray(parts.rows(0, 0).data).tobytes() or b"data.npy")
    damaged = bytearray(original)
    begin = original.index(b"data.npy", at)
    damaged[begin + 150] ^= 1
    part.write_bytes(damaged)
    with pytest.raises(ValueError, match="cannot load the graph .*part-00002.npz"):
        GraphParts(folder).rows(0, NUM_ITEMS)
    part.unlink()
    with pytest.raises(FileNotFoundError, match="no part-00002.npz, which is one of"):
        GraphParts(folder)
    part.write_bytes(original)
    assert GraphParts(folder).num_entries == parts.num_entries
    with pytest.raises(IndexError, match="rows 3 to 25 are not among the 24"):
        parts.rows(3, 25)


def test_what_is_no_graph_in_parts(parts, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        GraphParts(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no graph in parts, as it has no"):
        GraphParts(tmp_path / "empty")
    manifest = tmp_path / "items" / "parts.json"
    good = json.loads(manifest.read_text())
    first, second, *rest = good["parts"]
    for change, message in (
        ({"format": "other"}, "not written by this package"),
        ({"version": 2}, "version 2, but this release reads 1: upgrade"),
        ({"parts": []}, "not in order"),
        ({"parts": good["parts"][::-1]}, "not in order"),
        ({"parts": [second, *rest], "num_nodes": NUM_ITEMS - 5}, "not in order"),
        ({"parts": [first, first], "num_nodes": 10}, "not in order"),
        ({"parts": [first, second | {"begin": 6}, *rest]}, "it has another shape"),
        ({"parts": [{"file": "x"}]}, "cannot load the graph"),
        ({"num_nodes": 99}, "other rows than it says"),
    ):
        manifest.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=message):
            GraphParts(tmp_path / "items").rows(0, NUM_ITEMS)
    manifest.write_text("no")
    with pytest.raises(ValueError, match="cannot load the graph"):
        GraphParts(tmp_path / "items")
    assert isinstance(parts.rows(0, 3), scipy.sparse.csr_array)
