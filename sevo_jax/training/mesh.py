"""Devices of a run: axes that split batches, the width of tables, and their rows."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sevo_jax._leaves import is_named

MESH_AXES = ("data", "width", "rows")


def make_mesh(data: int = 1, width: int = 1, rows: int = 1) -> Mesh:
    """The first `data * width * rows` devices, by the axes `data`, `width`, `rows`.

    Args:
      data: over how many devices each batch is split, at least 1. Every one of them
        holds all parameters (or its share of the tables), and the gradients are
        summed over them.
      width: over how many devices the columns of the smoothed tables and of their
        moments are split, at least 1. SEvo's smoothing needs no communication then.
      rows: over how many devices the rows of all tables, of their moments and of the
        graphs are split, at least 1. No device ever holds a whole table.

    Raises:
      ValueError: if there are fewer devices, or several processes and more devices.
        On a CPU `jax_num_cpu_devices` says how many each process has, and must be set
        before JAX is first used.

    Examples:
      >>> mesh = make_mesh()
      >>> mesh.axis_names, mesh.devices.shape
      (('data', 'width', 'rows'), (1, 1, 1))
    """
    shape = (data, width, rows)
    named = ", ".join(map("{}={}".format, MESH_AXES, shape))
    if min(shape) < 1:
        raise ValueError(f"the mesh is {named}: each must be at least 1")
    devices, size = jax.devices(), math.prod(shape)
    if len(devices) < size:
        raise ValueError(
            f"the mesh is {named}, but there are {len(devices)} devices "
            f"({devices[0].device_kind}); on a CPU, jax.config.update("
            f"'jax_num_cpu_devices', {size}) before JAX is used makes more"
        )
    if jax.process_count() > 1 and len(devices) > size:
        raise ValueError(
            f"the mesh is {named}, but the {jax.process_count()} processes "
            f"have {len(devices)} devices: it must be of all of them"
        )
    chosen = np.array(devices[:size]).reshape(shape)
    return Mesh(chosen, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def describe_mesh(mesh: Mesh) -> str:
    """A mesh in words, as the option `--mesh` takes it.

    Examples:
      >>> describe_mesh(make_mesh())
      'data=1'
    """
    sizes = [f"{name}={size}" for name, size in mesh.shape.items() if size > 1]
    return ",".join(sizes or ["data=1"])


def split_batches(mesh: Mesh, batches: Any) -> Any:
    """Puts arrays `[steps, rows, ...]` on the devices, split by rows if that fits."""

    def put(x: Any) -> jax.Array:
        return _put(x, mesh, _fitting(mesh, (None, "data"), np.shape(x)))

    return jax.tree.map(put, batches)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Splits arrays `[rows, ...]` by rows."""
    return NamedSharding(mesh, P("data"))


def split_tables(
    mesh: Mesh, tree: Any, smoothed: Collection[str], by_rows: Collection[str] = ()
) -> Any:
    """Puts parameters, moments or graphs on the devices.

    Args:
      mesh: made by `make_mesh`.
      tree: a pytree of arrays.
      smoothed: names or paths of tables `[..., n, width]`; a leaf below one of them is
        split by its columns where that fits.
      by_rows: likewise of tables that are split by their rows. Every leaf that is not
        split is on all devices.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _put(
            leaf, mesh, table_spec(mesh, path, leaf, smoothed, by_rows)
        ),
        tree,
    )


def table_spec(
    mesh: Mesh,
    path: tuple[Any, ...],
    leaf: Any,
    smoothed: Collection[str],
    by_rows: Collection[str],
) -> P:
    """How `split_tables` splits a leaf."""
    spec: list[str | None] = [None] * leaf.ndim
    if leaf.ndim >= 2:
        spec[-2] = "rows" if is_named(path, by_rows) else None
        spec[-1] = "width" if is_named(path, smoothed) else None
    return _fitting(mesh, spec, leaf.shape)


def fetch(mesh: Mesh, x: jax.Array) -> np.ndarray:
    """An array on the host, whichever processes hold its parts."""
    return np.asarray(_put(x, mesh, P()))


def _fitting(mesh: Mesh, names: Sequence[str | None], shape: Sequence[int]) -> P:
    """A split by those axes of the mesh that divide an array's evenly."""
    # An axis of one device is left out, as it is in what a compiled epoch returns: a
    # sharding written otherwise would have the next epoch compiled anew.
    fitting = [
        name if name and mesh.shape[name] > 1 and size % mesh.shape[name] == 0 else None
        for name, size in zip(names, shape)
    ]
    while fitting and fitting[-1] is None:
        fitting.pop()
    return P(*fitting)


def _put(x: Any, mesh: Mesh, spec: P) -> jax.Array:
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable or _spans_processes(x):
        return jax.device_put(x, sharding)
    # Every process has the same array and takes its parts from it. device_put would
    # compare them first, in step with whatever else the processes exchange.
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _spans_processes(x: Any) -> bool:
    return isinstance(x, jax.Array) and not x.is_fully_addressable
