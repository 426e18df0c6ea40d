"""Devices of a run: one axis splits batches, another the width of tables."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sevo_jax._leaves import is_named


def make_mesh(data: int = 1, width: int = 1) -> Mesh:
    """The first `data * width` devices, by the axes `data` and `width`.

    Args:
      data: over how many devices each batch is split, at least 1. Every one of them
        holds all parameters (or its share of their width), and the gradients are
        summed over them.
      width: over how many devices the columns of the smoothed tables and of their
        moments are split, at least 1. SEvo's smoothing needs no communication then.

    Raises:
      ValueError: if there are fewer devices, or several processes and more devices.
        On a CPU `jax_num_cpu_devices` says how many each process has, and must be set
        before JAX is first used.

    Examples:
      >>> mesh = make_mesh()
      >>> mesh.axis_names, mesh.devices.shape
      (('data', 'width'), (1, 1))
    """
    if min(data, width) < 1:
        raise ValueError(f"the mesh is {data} x {width}: both must be at least 1")
    devices = jax.devices()
    if len(devices) < data * width:
        raise ValueError(
            f"the mesh is {data} x {width}, but there are {len(devices)} devices "
            f"({devices[0].device_kind}); on a CPU, jax.config.update("
            f"'jax_num_cpu_devices', {data * width}) before JAX is used makes more"
        )
    if jax.process_count() > 1 and len(devices) > data * width:
        raise ValueError(
            f"the mesh is {data} x {width}, but the {jax.process_count()} processes "
            f"have {len(devices)} devices: it must be of all of them"
        )
    chosen = np.array(devices[: data * width]).reshape(data, width)
    return Mesh(chosen, ("data", "width"), axis_types=(AxisType.Auto,) * 2)


def split_batches(mesh: Mesh, batches: Any) -> Any:
    """Puts arrays `[steps, rows, ...]` on the devices, split by rows if that fits."""
    return jax.tree.map(lambda x: _put(x, mesh, P(None, "data")), batches)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Splits arrays `[rows, ...]` by rows."""
    return NamedSharding(mesh, P("data"))


def split_tables(mesh: Mesh, tree: Any, tables: Collection[str]) -> Any:
    """Puts parameters, moments or graphs on the devices.

    Args:
      mesh: made by `make_mesh`.
      tree: a pytree of arrays.
      tables: names or paths of tables `[..., n, width]`; a leaf below one of them is
        split by its columns where that fits, every other one is on all devices.
    """

    def put(path: tuple[Any, ...], leaf: Any) -> Any:
        is_table = leaf.ndim >= 2 and is_named(path, tables)
        spec = [None] * (leaf.ndim - 1) + ["width"] if is_table else []
        return _put(leaf, mesh, P(*spec))

    return jax.tree_util.tree_map_with_path(put, tree)


def fetch(mesh: Mesh, x: jax.Array) -> np.ndarray:
    """An array on the host, whichever processes hold its parts."""
    return np.asarray(_put(x, mesh, P()))


def _put(x: Any, mesh: Mesh, spec: P) -> jax.Array:
    # An axis of one device is left out, as it is in what a compiled epoch returns: a
    # sharding written otherwise would have the next epoch compiled anew.
    names = [name if name and mesh.shape[name] > 1 else None for name in spec]
    while names and names[-1] is None:
        names.pop()
    fits = all(
        name is None or (axis < x.ndim and x.shape[axis] % mesh.shape[name] == 0)
        for axis, name in enumerate(names)
    )
    sharding = NamedSharding(mesh, P(*names) if fits else P())
    if sharding.is_fully_addressable or _spans_processes(x):
        return jax.device_put(x, sharding)
    # Every process has the same array and takes its parts from it. device_put would
    # compare them first, in step with whatever else the processes exchange.
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _spans_processes(x: Any) -> bool:
    return isinstance(x, jax.Array) and not x.is_fully_addressable
