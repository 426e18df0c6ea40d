"""Graphs on disk: one ``.npz`` file a graph, without pickle, which can be mapped."""

import math
import os
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, overload

import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCOO

from sevo_jax import _messages, operators
from sevo_jax._digests import id_digest
from sevo_jax._files import check_folder, replacing

Ids: TypeAlias = Collection[int | str] | np.ndarray
"""What users or items are called, in the order of their numbers."""

# Formats are equally long.
_FORMAT, PART = "sevo_jax.graph", "sevo_jax.parts"
_VERSION = 1
# Little-endian whatever the machine.
_LABELS = {"format": f"<U{len(_FORMAT)}", "version": "<i8"}
_ARRAYS = {"shape": "<i8", "indptr": "<i8", "indices": "<i4", "data": "<f4"}
# Hashes of what the nodes are called, where it is known.
_IDS = {"items": "<U64", "users": "<U64"}
_DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in (_LABELS | _ARRAYS | _IDS | {"degrees": "<f8"}).items()
}
# Where a mapped array may begin; JAX's own alignment.
_ALIGNMENT = 64


def save(
    path: str | os.PathLike[str],
    adjacency: operators.Adjacency,
    *,
    items: Ids | None = None,
    users: Ids | None = None,
) -> None:
    """Writes a graph to a file that :func:`load` reads back.

    The file is an uncompressed NumPy archive of the arrays of the compressed sparse
    row form (``shape``, ``indptr``, ``indices``, ``data``) with a ``format`` and a
    ``version``, each array aligned so that it can be mapped into memory. It appears
    whole or not at all: a reader never sees half of it, and an existing file is kept
    until the new one is complete.

    Args:
      path: the file, in an existing folder; ``.npz`` by custom, nothing is
        appended to the name.
      adjacency: the graph ``[n, n]``, as ``prepare`` takes it but not prepared; its
        weights are stored in float32.
      items: the ids of all items in the order of their numbers, such as
        ``log.item_ids``. A hash of them goes into the file, so that the graph is not
        taken for one of other items, or of the same in another order.
      users: likewise, for a graph whose nodes are users too.

    Raises:
      FileNotFoundError: if the folder does not exist.
      TypeError: if ``adjacency`` is no graph, or has been prepared.
      ValueError: if ``adjacency`` is not square, an index is out of range, a weight
        does not fit in float32, or there are more ids than nodes.

    Examples:
      >>> import pathlib, tempfile
      >>> import sevo_jax as sevo
      >>> graph = sevo.graphs.cooccurrence([[0, 1, 2]], num_items=3)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "items.npz")
      ...     sevo.graphs.save(path, graph, items=["hat", "gloves", "scarf"])
      ...     print(sevo.graphs.load(path).todense())
      ...     try:
      ...         sevo.graphs.load(path, items=["gloves", "hat", "scarf"])
      ...     except ValueError as error:
      ...         print(str(error).partition(": ")[2])
      [[0. 1. 0.]
       [1. 0. 1.]
       [0. 1. 0.]]
      it is of other items than the given, or of the same in another order
    """
    check_folder(path)
    if isinstance(adjacency, operators.GraphOperator):
        raise TypeError(
            "a prepared graph is normalised, and would be normalised again after "
            "load: save the adjacency that prepare was given"
        )
    matrix = operators.in_float32(operators.canonical(operators.as_csr(adjacency)))
    arrays = {name: getattr(matrix, name) for name in _ARRAYS}
    ids = {
        name: ids
        for name, ids in (("items", items), ("users", users))
        if ids is not None
    }
    num_ids, num_nodes = sum(map(len, ids.values())), matrix.shape[0]
    if num_ids > num_nodes:
        raise ValueError(
            f"the graph has {num_nodes} nodes, but {num_ids} ids are given for them"
        )
    arrays |= {name: id_digest(each) for name, each in ids.items()}
    with replacing(path) as temporary:
        write_archive(temporary, _FORMAT, arrays)


def write_archive(path: Path, kind: str, arrays: dict[str, Any]) -> str:
    """Writes a new file of arrays, in one of the formats of this package.

    Returns:
      The checksums of its arrays, as :func:`checksums`.
    """
    contents = {"format": kind, "version": _VERSION} | arrays
    with open(path, "xb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            _write(file, archive, name, np.asarray(content, _DTYPES[name]))
        return checksums(archive)


def checksums(archive: zipfile.ZipFile) -> str:
    """The checksum of each array of an archive, which tell it from others."""
    return " ".join(f"{info.CRC:08x}" for info in archive.infolist())


def _write(
    file: BinaryIO, archive: zipfile.ZipFile, name: str, array: np.ndarray
) -> None:
    """Adds an array to an archive as ``np.savez`` does, but aligned in the file."""
    header = repr(np.lib.format.header_data_from_array_1_0(array))
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        # The format lets a header be as long as one likes, for just this purpose.
        end = file.tell() + np.lib.format.MAGIC_LEN + 2 + len(header) + 1
        header += " " * (-end % _ALIGNMENT) + "\n"
        member.write(np.lib.format.magic(1, 0) + len(header).to_bytes(2, "little"))
        member.write(header.encode("ascii"))
        flat = np.ascontiguousarray(array).reshape(-1)
        member.write(flat.view(np.uint8).data)


@overload
def load(
    path: str | os.PathLike[str],
    *,
    mmap: Literal[False] = False,
    items: Ids | None = None,
    users: Ids | None = None,
) -> BCOO: ...
@overload
def load(
    path: str | os.PathLike[str],
    *,
    mmap: Literal[True],
    items: Ids | None = None,
    users: Ids | None = None,
) -> scipy.sparse.csr_array: ...
def load(
    path: str | os.PathLike[str],
    *,
    mmap: bool = False,
    items: Ids | None = None,
    users: Ids | None = None,
) -> BCOO | scipy.sparse.csr_array:
    """Reads a graph that :func:`save` wrote, equal to it bit for bit.

    Nothing in the file is executed (no pickle), and its arrays are checked before
    they become a graph: all of it is read once for that, through the system's file
    cache.

    Args:
      path: the file.
      mmap: whether to leave the entries in the file. ``prepare(load(path,
        mmap=True))`` is then the way to an operator that needs the least memory.
      items: the ids of the items that the graph is to be of, in the order of their
        numbers. A file that was saved without ids is taken as it is.
      users: likewise.

    Returns:
      The adjacency ``[n, n]``, as it was saved: a BCOO of arrays in memory, or with
      ``mmap`` a float32 SciPy CSR array of which ``indices`` and ``data`` are the
      mapped file, read-only. Only the row pointers are copied (they are stored with
      64 bits and used with 32); in files of releases before this one, whose arrays
      are not aligned, so is the rest.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged, no graph of this package, of a newer version,
        or of other items or users.

    Examples:
      See :func:`save`.
    """
    if os.path.isdir(path):
        raise ValueError(
            f"cannot load the graph {path}: it is a folder; a graph in parts is opened "
            "by sevo_jax.graphs.GraphParts, for sevo_jax.shard_rows"
        )
    with open(path, "rb") as file:
        try:
            matrix = _read(file, {"items": items, "users": users})
            return matrix if mmap else operators.bcoo_from_scipy(matrix)
        # Damaged bytes make zipfile and NumPy raise errors of many kinds and lengths.
        except Exception as error:
            reason = str(error).partition("\n")[0][:200] or type(error).__name__
            raise ValueError(f"cannot load the graph {path}: {reason}") from error


def _read(file: BinaryIO, ids: Mapping[str, Ids | None]) -> scipy.sparse.csr_array:
    """Returns the matrix in an open file, refusing one that is not as it should be."""
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    if not {f"{name}.npy" for name in _LABELS} <= set(names):
        raise ValueError(f"not written by save(): it holds {_messages.listed(names)}")
    if (found := read_array(file, archive, "format").tolist()) != _FORMAT:
        hint = ": it is one part of a graph, load its folder" * (found == PART)
        raise ValueError(f"not written by save(), by its format{hint}")
    version = read_array(file, archive, "version").tolist()
    if version != _VERSION:
        raise ValueError(
            f"its format has version {version}, but this release reads {_VERSION}: "
            "upgrade sevo_jax, or save the graph again"
        )
    for name, given in ids.items():
        if given is not None and f"{name}.npy" in names:
            if read_array(file, archive, name).tolist() != id_digest(given):
                raise ValueError(
                    f"it is of other {name} than the given, or of the same in another "
                    "order"
                )
    return read_rows(file, archive, square=True)


def read_rows(
    file: BinaryIO, archive: zipfile.ZipFile, *, square: bool = False
) -> scipy.sparse.csr_array:
    """The matrix of an open archive, checked; its entries are mapped."""
    shape, indptr, indices, data = (read_array(file, archive, name) for name in _ARRAYS)
    sides = shape.tolist()
    # SciPy's own check lets some broken row pointers pass, and its compiled code
    # then writes out of bounds.
    sound = (
        shape.shape == (2,)
        and min(sides) >= 0
        and (sides[0] == sides[1] or not square)
        and indptr.shape == (sides[0] + 1,)
        and indptr[0] == 0
        and (np.diff(indptr) >= 0).all()
        and indices.shape == data.shape == (indptr[-1],)
        and (indices.size == 0 or 0 <= indices.min() <= indices.max() < sides[1])
    )
    if not sound:
        raise ValueError(
            f"its arrays do not describe the rows of a {'square ' * square}matrix"
        )
    # SciPy has one type for both kinds of indices, and would copy the others.
    if indptr[-1] <= np.iinfo(np.int32).max:
        indptr = indptr.astype(np.int32)
    return scipy.sparse.csr_array((data, indices, indptr), shape=tuple(sides))


def read_array(file: BinaryIO, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of the archive in ``file``, checked and mapped.

    None is unpacked, so that a file takes no more memory than its own size.
    """
    dtype = _DTYPES[name]
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0) or info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is not stored as save() does: save it again")
        shape, _, found = np.lib.format.read_array_header_1_0(member)
        header_size = member.tell()
        if found != dtype:
            raise ValueError(f"{name} is {found}, not {dtype}")
        if math.prod(shape) * dtype.itemsize != info.file_size - header_size:
            raise ValueError(f"{name} has not the size that its shape {shape} says")
        # At its end zipfile compares the checksum.
        while member.read(2**20):
            pass
    # In front of a member stand 30 bytes, the last 4 of which are the lengths of what
    # follows: its name and extra fields.
    file.seek(info.header_offset + 26)
    lengths = np.frombuffer(file.read(4), "<u2")
    begin = info.header_offset + 30 + int(lengths.sum()) + header_size
    array = np.asarray(np.memmap(file, dtype, "r", begin, shape))
    return array if array.flags.aligned else array.copy()
