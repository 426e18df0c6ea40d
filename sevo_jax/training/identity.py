"""What determines the numbers of a run, and so tells it from others."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import sevo_jax
from sevo_jax._digests import digest, id_digest
from sevo_jax.data.split import LeaveOneOut
from sevo_jax.training.checkpoint import CheckpointError
from sevo_jax.training.mesh import describe_mesh
from sevo_jax.training.processes import gather


def fingerprint(split: LeaveOneOut) -> dict[str, Any]:
    """What tells one dataset, or another split of it, from another.

    Args:
      split: the data.

    Returns:
      `name`, `num_users`, `num_items`, `num_interactions` and three hashes: `sha256`
      of the sequences and the original ids, `ids` of the latter alone, and `split` of
      what is trained on, validated and tested.
    """
    log = split.log
    ids = id_digest(log.user_ids.tolist(), log.item_ids.tolist())
    return {
        "name": log.name,
        "num_users": log.num_users,
        "num_items": log.num_items,
        "num_interactions": log.num_interactions,
        "sha256": digest(log.sequences.values, log.sequences.offsets, ids),
        "ids": ids,
        "split": digest(
            split.train.values, split.train.offsets, split.valid, split.test
        ),
    }


def program_digest(
    function: Callable[..., Any], *arguments: Any, **options: Any
) -> str:
    """The SHA-256 of a function's program for arrays, or for what is shaped like them.

    It tells functions that do something else apart, their constants included.
    """
    return digest(jax.jit(function).lower(*arguments, **options).as_text())


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"sevo_jax": sevo_jax.__version__} | {
        name: importlib.metadata.version(name) for name in packages
    }


def settings() -> dict[str, Any]:
    """Settings of JAX that change what its generators draw, or the precision."""
    names = ("default_prng_impl", "threefry_partitionable", "enable_x64")
    return {name: getattr(jax.config, f"jax_{name}") for name in names}


def machine(mesh: Mesh) -> dict[str, Any]:
    """What the numbers of a run depend on in their rounding alone.

    Args:
      mesh: the devices that train.
    """
    return {
        "processor": _processor(),
        "cores": _cores(),
        "device": mesh.devices.flat[0].device_kind,
        "mesh": describe_mesh(mesh),
        "matmul_precision": getattr(jax.config, "jax_default_matmul_precision"),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def check_same(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuses a checkpoint of another run.

    Args:
      saved: nested tables of what the checkpoint is of.
      asked: the same of the run at hand.

    Raises:
      CheckpointError: naming each entry that differs, with both values.
    """
    found = [
        f"{name} was {was!r:.80} and is {now!r:.80}"
        for name, was, now in differences(saved, asked)
    ]
    if found:
        raise CheckpointError(
            f"the checkpoint is of another run: {'; '.join(found)}. Give what it was "
            "made with, or another directory"
        )


def check_processes(values: Mapping[str, Any]) -> None:
    """Makes sure that all processes of a run were given the same; all call this.

    Args:
      values: nested tables of JSON values that determine what a process does.

    Raises:
      ValueError: in every process, naming each entry that differs.
    """
    first, *others = map(json.loads, gather(json.dumps(values)))
    found = [
        f"{name} is {one!r:.80} in process 0 and {other!r:.80} in process {process}"
        for process, table in enumerate(others, start=1)
        for name, one, other in differences(first, table)
    ]
    if found:
        raise ValueError(
            f"the processes were given different things: {'; '.join(found[:8])}. Give "
            "all the same options and data"
        )


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """The entries of nested tables that differ: name, value, other value."""
    one, other = _flat(one), _flat(other)
    return [
        (name, one.get(name), other.get(name))
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]


def _cores() -> int | None:
    """Those that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
