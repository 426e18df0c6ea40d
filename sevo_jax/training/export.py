"""A trained model as files that need neither this package nor Flax."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from sevo_jax._files import is_empty, replace_text, replacing
from sevo_jax.data.sequences import Sequences
from sevo_jax.training.saved import SavedRun

PLATFORMS = ("cpu", "cuda", "tpu")
_FORMATS = ("parquet", "npz")


def export(
    saved: SavedRun, folder: str | os.PathLike[str], *, format: str = "parquet"
) -> None:
    """Writes a model's tables and its scorer into a new folder.

    ``items.parquet`` has a row an item, in the order of the scores: its id (``id``)
    and a column for each table of items, a parameter with a row for each of them and a
    part of its path that begins with ``item``; ``users.parquet``, of a model that knows
    its users, likewise. With
    ``format="npz"`` they are ``items.npz`` and ``users.npz``, with the same names.

    ``scorer.bin`` is a program of :mod:`jax.export` for CPU, GPU and TPU that holds the
    parameters: ``jax.export.deserialize(data).call(inputs)`` scores all items for
    ``inputs`` int32 ``[b, cells]``, for any ``b``. ``scorer.json`` says what they are:

    * ``cells``;
    * ``first_item`` and ``last_cells``, for a model that reads histories: a row is the
      last items of a user, each by its row in the table of items plus ``first_item``,
      the oldest first, then ``last_cells``, and zeros in front;
    * for a model that knows its users ``"inputs": "users"``: a row is that of the user
      in the table of users.

    Args:
      saved: what :func:`load` gave.
      folder: to write into; made, or empty.
      format: ``"parquet"`` or ``"npz"``.

    Raises:
      ValueError: for another format.
      FileExistsError: if the folder has files.
    """
    if format not in _FORMATS:
        raise ValueError(f"format is {format!r}: choose {' or '.join(_FORMATS)}")
    folder = Path(folder)
    if folder.exists() and not is_empty(folder):
        raise FileExistsError(f"{folder} is not empty: choose another folder")
    model, known = saved.model, saved.known
    program, about = _scorer(model), _about(model)
    folder.mkdir(parents=True, exist_ok=True)
    write = {"parquet": _write_parquet, "npz": np.savez}[format]
    try:
        for name, ids in (("items", known.item_ids), ("users", known.user_ids)):
            if name == "items" or model.knows_users:
                columns = {"id": np.asarray(ids), **_tables(model, name)}
                with replacing(folder / f"{name}.{format}") as temporary:
                    _write(write, temporary, columns)
        replace_text(folder / "scorer.json", json.dumps(about, indent=1) + "\n")
        with replacing(folder / "scorer.bin") as temporary:
            temporary.write_bytes(program)
    except BaseException:
        # A part of it would keep the next attempt out.
        for path in folder.iterdir():
            path.unlink()
        raise


def _scorer(model: Any) -> bytes:
    graphdef, state = nnx.split(model)

    # A model may ask how many rows there are: it sees one, whatever `b` is.
    @jax.vmap
    def score(row: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).score(row[None])[0]

    (batch,) = jax.export.symbolic_shape("b")
    row = _longest(model, 0)
    inputs = jax.ShapeDtypeStruct((batch, *row.shape[1:]), row.dtype)
    # Of a model that propagates as it scores: the kernel of `op @ x` on a CPU, of which
    # JAX does not promise that programs of other versions find it.
    allowed = [jax.export.DisabledSafetyCheck.custom_call("cpu_csr_sparse_dense_ffi")]
    exported = jax.export.export(
        jax.jit(score), platforms=PLATFORMS, disabled_checks=allowed
    )(inputs)
    return bytes(exported.serialize())


def _longest(model: Any, item: int) -> np.ndarray:
    """The inputs of one user, who has had an item more often than a row has cells."""
    length = getattr(model.config, "max_len", 1)
    history = Sequences.from_lists([[item] * length])
    return np.asarray(model.inputs(history, users=np.zeros(1, int)))


def _about(model: Any) -> dict[str, Any]:
    cells = int(_longest(model, 0).shape[1])
    if model.knows_users:
        return {"inputs": "users", "cells": cells}
    # What a row ends with that no item changes.
    first, second = (_longest(model, item)[0] for item in (0, 1))
    end = int(np.flatnonzero(first != second)[-1]) + 1
    return {
        "inputs": "items",
        "cells": cells,
        "first_item": int(first[end - 1]),
        "last_cells": first[end:].tolist(),
    }


def _tables(model: Any, of: str) -> dict[str, np.ndarray]:
    """The parameters called after items, or users, with a row for each of them."""
    offset = model.item_offset if of == "items" else 0
    num_rows = offset + (model.num_items if of == "items" else model.num_users)
    return {
        "/".join(map(str, path)): np.asarray(leaf[...])[offset:]
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))
        # By the name too: a table of positions may have as many rows.
        if any(str(name).startswith(of.removesuffix("s")) for name in path)
        and leaf.ndim == 2
        and len(leaf) == num_rows
    }


def _write(
    write: Callable[..., Any], path: Path, columns: Mapping[str, np.ndarray]
) -> None:
    # NumPy would give another ending to a name.
    with path.open("wb") as file:
        write(file, **columns)


def _write_parquet(file: Any, **columns: np.ndarray) -> None:
    import pyarrow
    from pyarrow import parquet

    arrays = {
        name: pyarrow.array(column)
        if column.ndim == 1
        else pyarrow.FixedSizeListArray.from_arrays(column.ravel(), column.shape[1])
        for name, column in columns.items()
    }
    parquet.write_table(pyarrow.table(arrays), file)
