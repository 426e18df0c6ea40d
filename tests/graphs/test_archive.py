"""Saved graphs come back bit for bit, and nothing else comes back at all."""

import errno
import io
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
import scipy.sparse

import sevo_jax
from sevo_jax import operators
from sevo_jax.graphs import (
    _archive,
    bipartite,
    cooccurrence,
    load,
    save,
    shared_attributes,
)


def bits(graph) -> tuple:
    data, indices = np.asarray(graph.data), np.asarray(graph.indices)
    return (
        graph.shape,
        graph.indices_sorted,
        graph.unique_indices,
        data.dtype,
        data.tobytes(),
        indices.dtype,
        indices.shape,
        indices.tobytes(),
    )


@pytest.fixture
def graph():
    return cooccurrence([[0, 1, 1, 3, 0, 2]], 4, max_hop=3, item_offset=1, num_nodes=7)


@pytest.fixture
def path(tmp_path, graph):
    path = tmp_path / "items.npz"
    save(path, graph)
    return path


@pytest.mark.parametrize(
    "graph",
    [
        cooccurrence([[0, 1, 1, 3, 0, 2]], 4, max_hop=3, item_offset=1, num_nodes=7),
        cooccurrence([[]], 3),
        shared_attributes([["a"], ["a"], ["b"]], 3),
        bipartite([0, 1], [2, 0], 2, 3),
    ],
    ids=["cooccurrence", "without entries", "attributes", "bipartite"],
)
def test_round_trip(tmp_path, to_dense, graph):
    path = tmp_path / "graph.npz"
    save(str(path), graph)
    loaded = load(str(path))
    to_dense(loaded)
    assert bits(loaded) == bits(graph)
    assert bits(operators.bcoo_from_scipy(load(str(path), mmap=True))) == bits(graph)


def owner(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def test_mapped(path, graph):
    """Entries stay in the file, aligned; only the row pointers are copied."""
    matrix = load(path, mmap=True)
    for array in (matrix.indices, matrix.data):
        assert isinstance(owner(array), np.memmap)
        assert array.ctypes.data % 64 == 0 and not array.flags.writeable
    assert matrix.data.dtype == np.float32 and matrix.has_canonical_format
    one, two = sevo_jax.prepare(matrix), sevo_jax.prepare(graph)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(left, right)


def test_mapped_outlives_its_file(path, graph):
    matrix = load(path, mmap=True)
    save(path, bipartite([0], [0], 1, 1))
    path.unlink()
    assert bits(operators.bcoo_from_scipy(matrix)) == bits(graph)


@pytest.mark.parametrize("mmap", [False, True])
def test_files_of_earlier_releases(path, graph, mmap):
    """They are plain archives of NumPy, and not aligned."""
    change(path)
    loaded = load(path, mmap=mmap)
    assert bits(operators.bcoo_from_scipy(loaded) if mmap else loaded) == bits(graph)
    arrays = np.asarray(loaded.data), np.asarray(loaded.indices)
    assert all(array.flags.aligned for array in arrays)


def test_any_reader_of_archives_reads_it(path, graph):
    with np.load(path) as archive:
        assert sorted(archive.files) == sorted(_archive._LABELS | _archive._ARRAYS)
        parts = (archive["data"], archive["indices"], archive["indptr"])
    matrix = scipy.sparse.csr_array(parts, shape=graph.shape)
    np.testing.assert_array_equal(matrix.toarray(), graph.todense())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_compressed(path):
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez_compressed(path, **arrays)
    with pytest.raises(ValueError, match="not stored as save.* does: save it again"):
        load(path)


def test_scipy_matrix_in_any_order(tmp_path, to_dense):
    """Duplicates add up and come back in order."""
    parts = ([1.0, 0.5, 1.5, 2], [2, 1, 1, 0], [0, 3, 3, 4])
    save(tmp_path / "graph.npz", scipy.sparse.csr_array(parts, shape=(3, 3)))
    mapped = load(tmp_path / "graph.npz", mmap=True)
    assert mapped.indices.tolist() == [1, 2, 0] and mapped.data.tolist() == [2, 1, 2]
    coo = scipy.sparse.coo_array(
        ([1.0, 0.5, 1.5], ([1, 0, 0], [0, 1, 1])), shape=(3, 3)
    )
    save(tmp_path / "graph.npz", coo + coo.T)
    loaded = to_dense(load(tmp_path / "graph.npz"))
    assert loaded.tolist() == [[0, 3, 0], [3, 0, 0], [0, 0, 0]]


def test_it_is_not_taken_for_a_graph_of_other_ids(tmp_path):
    path, graph = tmp_path / "both.npz", bipartite([0, 1], [2, 0], 2, 3)
    save(path, graph, items=["5", "7", "11"], users=["a", "b"])
    for given in ({}, {"items": np.array([5, 7, 11]), "users": ("a", "b")}):
        assert bits(load(path, **given)) == bits(graph)
    for given, what in (
        ({"items": ["7", "5", "11"]}, "other items than the given, or of the same in"),
        ({"items": ["5", "7"]}, "other items"),
        ({"items": ["5", "7", "11"], "users": ["b", "a"]}, "other users"),
        ({"users": []}, "other users"),
    ):
        with pytest.raises(
            ValueError, match=f"cannot load .*both.npz: it is of {what}"
        ):
            load(path, mmap=True, **given)
    # One that does not say is taken as it is.
    save(path, graph)
    assert bits(load(path, items=["other"])) == bits(graph)
    with pytest.raises(ValueError, match="has 5 nodes, but 6 ids are given"):
        save(path, graph, items=[1, 2, 3, 4], users=[1, 2])


def test_what_is_no_adjacency(tmp_path, graph):
    path = tmp_path / "graph.npz"
    with pytest.raises(TypeError, match="a prepared graph is normalised"):
        save(path, sevo_jax.prepare(graph))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="builtins.list"):
        save(path, [[0, 1], [1, 0]])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="square"):
        save(path, scipy.sparse.csr_array((2, 3)))
    assert not list(tmp_path.iterdir())


def test_name_is_taken_as_it_is(tmp_path, graph):
    save(tmp_path / "items", graph)
    assert [each.name for each in tmp_path.iterdir()] == ["items"]
    assert bits(load(tmp_path / "items")) == bits(graph)


def test_saving_again_replaces(path, graph):
    other = bipartite([0], [0], 1, 1)
    save(path, other)
    assert bits(load(path)) == bits(other)
    assert [each.name for each in path.parent.iterdir()] == ["items.npz"]


def test_failure_keeps_the_old_file(path, graph, monkeypatch):
    before = path.read_bytes()

    def full(file, archive, name, array):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_archive, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        save(path, graph)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["items.npz"]


def test_no_pickle(path):
    with np.load(path, allow_pickle=False) as archive:
        kinds = {archive[name].dtype.kind for name in archive.files}
    assert kinds <= set("iufU")


def test_missing(tmp_path, graph):
    with pytest.raises(FileNotFoundError, match="absent.npz"):
        load(tmp_path / "absent.npz")
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        save(tmp_path / "nowhere" / "items.npz", graph)


def test_every_damaged_byte_is_noticed(path):
    """A changed byte is refused, or lies where it does not matter."""
    whole, expected = path.read_bytes(), load(path, mmap=True)
    refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        # A new file: the other one is mapped.
        path.unlink()
        path.write_bytes(damaged)
        try:
            found = load(path, mmap=True)
            assert found.shape == expected.shape
            for name in ("data", "indices", "indptr"):
                one, two = getattr(found, name), getattr(expected, name)
                assert one.dtype == two.dtype and one.tobytes() == two.tobytes()
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > len(whole) // 2


def test_every_truncation_is_noticed(path):
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot load the graph .*items.npz"):
            load(path)


def change(path, **changes):
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays.update(changes)
    np.savez(path, **{name: each for name, each in arrays.items() if each is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(version=2), "version 2, but this release reads 1: upgrade"),
        (dict(version=None), "not written by save"),
        (dict(format="other"), "format is <U5, not <U14"),
        (dict(format="sevo_jax.other"), "not written by save"),
        (dict(version=np.array([1, 1])), "upgrade sevo_jax"),
        (dict(version=np.array("9" * 4000)), "version is <U4000, not int64"),
        (dict(format=None), "not written by save"),
        (dict(data=None), "data"),
        (dict(data=np.ones(14)), "data is float64, not float32"),
        (dict(data=np.ones(2, np.float32)), "do not describe"),
        (dict(data=np.ones((13, 1), np.float32)), "do not describe"),
        (dict(shape=np.array([2, 2])), "do not describe"),
        (dict(shape=np.array([7, 9])), "do not describe"),
        (dict(shape=np.array([-1, -1])), "do not describe"),
        (dict(shape=np.array([-1, -1]), indptr=np.array([], int)), "do not describe"),
        (dict(shape=np.array([2**63 - 1] * 2)), "do not describe"),
        (dict(shape=np.array(7)), "do not describe"),
        (dict(indptr=np.array([0, 99, 0, 0, 0, 0, 0, 0])), "do not describe"),
        (dict(indptr=np.array([0, 0, 0, 0, 0, 0, 0, 11])), "do not describe"),
        (dict(indptr=np.array([0, 13, 5, 13, 13, 13, 13, 13])), "do not describe"),
        (dict(indptr=np.array([1, 2, 3, 4, 5, 6, 7, 13])), "do not describe"),
        (dict(indices=np.ones(14, np.int32)), "do not describe"),
        (dict(indices=np.full(13, 7, np.int32)), "do not describe"),
        (dict(indices=np.full(13, -1, np.int32)), "do not describe"),
        (dict(data=np.array([{}], object)), "data is object, not float32"),
    ],
)
def test_altered_content(path, changes, message):
    change(path, **changes)
    with pytest.raises(ValueError, match=f"items.npz: .*{message}"):
        load(path)


def test_foreign_files(tmp_path):
    path = tmp_path / "foreign.npz"
    scipy.sparse.save_npz(path, scipy.sparse.eye_array(3, format="csr"))
    with pytest.raises(ValueError, match="not written by save.*indptr"):
        load(path)
    with open(path, "wb") as file:
        np.save(file, np.eye(3))
    with pytest.raises(ValueError, match="not a zip file"):
        load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "a text")
    with pytest.raises(ValueError, match="not written by save.*readme"):
        load(path)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(1000):
            archive.writestr(f"{number:0999d}", "")
    with pytest.raises(ValueError, match="foreign.npz: not written by save") as caught:
        load(path)
    assert len(str(caught.value)) < 400
    path.write_text("0 1 1.0\n")
    with pytest.raises(ValueError, match="cannot load the graph"):
        load(path)


def npy(array, **changes) -> bytes:
    """A file of NumPy whose header says something else than what it holds."""
    buffer = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | changes
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + array.tobytes()


@pytest.mark.parametrize("length", [12, 14])
def test_an_array_of_another_size_than_it_says(length, path):
    """Of a longer one the rest would be lost; after a shorter one are other bytes."""
    with np.load(path) as archive:
        members = {each: npy(archive[each]) for each in archive.files}
    members["data"] = npy(np.ones(length, np.float32), shape=(13,))
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in members.items():
            archive.writestr(f"{each}.npy", content)
    with pytest.raises(ValueError, match="data has not the size that its shape .13,"):
        load(path)


@pytest.mark.parametrize("form", ["unfolds", "boasts"])
@pytest.mark.parametrize("name", ["format", "version", "indptr", "data"])
def test_a_small_file_does_not_take_much_memory(name, form, path):
    with np.load(path) as archive:
        members = {each: npy(archive[each]) for each in archive.files}
        boast = npy(archive[name], shape=(2**28,))
    packed = zipfile.ZIP_DEFLATED if form == "unfolds" else zipfile.ZIP_STORED
    members[name] = npy(np.zeros(2**26, np.uint8)) if form == "unfolds" else boast
    with zipfile.ZipFile(path, "w", packed) as archive:
        for each, content in members.items():
            archive.writestr(f"{each}.npy", content)
    assert path.stat().st_size < 2**17
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="cannot load the graph .*items.npz"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_damaged_byte_of_a_larger_graph_is_noticed(tmp_path, rng):
    """It lies beyond what is read with the header of an array."""
    path = tmp_path / "graph.npz"
    save(path, cooccurrence(rng.integers(0, 3000, (300, 40)).tolist(), num_items=3000))
    damaged = bytearray(path.read_bytes())
    damaged[-20_000] ^= 0x40
    path.unlink()
    path.write_bytes(damaged)
    for mmap in (True, False):
        with pytest.raises(ValueError, match="CRC"):
            load(path, mmap=mmap)
