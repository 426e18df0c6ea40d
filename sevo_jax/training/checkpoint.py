"""Checkpoints of a run: whole or not at all, and resumed by no other run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

import sevo_jax
from sevo_jax.data.split import LeaveOneOut
from sevo_jax.training.processes import is_first


class CheckpointError(ValueError):
    """A checkpoint that is missing, corrupt, or of another run."""


def fingerprint(split: LeaveOneOut) -> dict[str, Any]:
    """What tells one dataset from another: its counts and a hash of all it holds.

    Args:
      split: the data; the hash covers the sequences and the original ids.

    Returns:
      `name`, `num_users`, `num_items`, `num_interactions` and `sha256`.
    """
    log = split.log
    digest = hashlib.sha256()
    for array in (log.sequences.values, log.sequences.offsets):
        digest.update(np.ascontiguousarray(array).tobytes())
    for ids in (log.user_ids, log.item_ids):
        digest.update("\n".join(map(str, ids.tolist())).encode())
    return {
        "name": log.name,
        "num_users": log.num_users,
        "num_items": log.num_items,
        "num_interactions": log.num_interactions,
        "sha256": digest.hexdigest(),
    }


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"sevo_jax": sevo_jax.__version__} | {
        name: importlib.metadata.version(name) for name in packages
    }


def has_checkpoint(run_dir: str | Path) -> bool:
    """Whether a run left a checkpoint in `run_dir` to resume from."""
    return bool(_epochs(Path(run_dir) / "checkpoints"))


class Checkpoints:
    """The checkpoints of one run directory, of which the last is kept.

    A checkpoint is a directory named by its epoch: `training` (the arrays that
    training goes on with) and `best` (the best parameters), both written by Orbax,
    `about.json`, and `manifest.json` with a checksum of every file. It is written
    beside its place and renamed, so a killed process leaves the one before. Where
    there are several processes, all of them save and restore; their number and devices
    may be others when it is restored.

    Args:
      run_dir: directory of the run; the checkpoints are in its `checkpoints/`.
      create: whether the run is new; if not, it must have a checkpoint.

    Raises:
      CheckpointError: if it has none.
    """

    def __init__(self, run_dir: str | Path, *, create: bool):
        if not create and not has_checkpoint(run_dir):
            raise CheckpointError(
                f"there is no checkpoint under {run_dir}: give the output directory "
                "of a run, or train it from the start, without resuming"
            )
        # Orbax takes absolute paths only.
        self._directory = Path(run_dir).absolute() / "checkpoints"
        self._directory.mkdir(parents=True, exist_ok=True)
        self._orbax = ocp.StandardCheckpointer()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._orbax.close()

    def save(
        self, epoch: int, *, training: Any, best: Any, about: Mapping[str, Any]
    ) -> None:
        """Writes the checkpoint of `epoch` and drops all others.

        Args:
          epoch: how many epochs are trained.
          training: a pytree of arrays.
          best: a pytree of arrays.
          about: JSON values.
        """
        unfinished = self._directory / "unfinished"
        # Orbax has the other processes wait until the first has come to save.
        if is_first():
            shutil.rmtree(unfinished, ignore_errors=True)
        for name, tree in (("training", training), ("best", best)):
            self._orbax.save(unfinished / name, tree)
            # The arrays are donated to the next epoch: nothing may still read them.
            self._orbax.wait_until_finished()
        if not is_first():
            return
        (unfinished / "about.json").write_text(json.dumps(about), encoding="utf-8")
        manifest = json.dumps(_checksums(unfinished))
        (unfinished / "manifest.json").write_text(manifest, encoding="utf-8")
        os.replace(unfinished, self._directory / str(epoch))
        for other in _epochs(self._directory):
            if other != epoch:
                shutil.rmtree(self._directory / str(other))

    def about(self) -> dict[str, Any]:
        """The JSON table of the last checkpoint.

        Raises:
          CheckpointError: if a file of the checkpoint is not as it was written.
        """
        return json.loads((self._verified() / "about.json").read_text(encoding="utf-8"))

    def arrays(self, **templates: Any) -> dict[str, Any]:
        """Parts of the last checkpoint.

        Args:
          **templates: for `training` or `best`, a pytree of arrays or shapes like the
            one that was saved.

        Returns:
          The parts by name, on the default device.

        Raises:
          CheckpointError: if a file of the checkpoint is not as it was written, or
            the arrays are others than the templates.
        """
        path = self._verified()
        parts = {}
        for name, template in templates.items():
            # Through the host: arrays that Orbax places are bound to their device,
            # those of a fresh run are not, and the epoch would be compiled anew.
            template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), template)
            try:
                part = self._orbax.restore(path / name, template)
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"{path / name} holds other arrays: {error}"
                ) from error
            for leaf, want in zip(
                jax.tree.leaves(part), jax.tree.leaves(template), strict=True
            ):
                # Orbax lets the shape of a NumPy template pass, whatever it is.
                if leaf.shape != want.shape:
                    raise CheckpointError(
                        f"{path / name} holds other arrays: one of shape {leaf.shape} "
                        f"where the model has {want.shape}"
                    )
            parts[name] = jax.tree.map(jnp.array, part)
        return parts

    def _verified(self) -> Path:
        path = self._directory / str(max(_epochs(self._directory)))
        try:
            text = (path / "manifest.json").read_text(encoding="utf-8")
            manifest, found = json.loads(text), _checksums(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is corrupt: {error}") from error
        if manifest != found:
            names = sorted(
                name
                for name in manifest.keys() | found.keys()
                if manifest.get(name) != found.get(name)
            )
            raise CheckpointError(
                f"{path} is corrupt: not as written: {', '.join(names)}. Delete the "
                "directory of the run and train again"
            )
        return path


def check_same(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuses a checkpoint of another run.

    Args:
      saved: nested tables of what the checkpoint is of.
      asked: the same of the run at hand.

    Raises:
      CheckpointError: naming each entry that differs, with both values.
    """
    saved, asked = _flat(saved), _flat(asked)
    differences = [
        f"{name} was {saved.get(name)!r} and is {asked.get(name)!r}"
        for name in sorted(saved.keys() | asked.keys())
        if saved.get(name) != asked.get(name)
    ]
    if differences:
        raise CheckpointError(
            f"the checkpoint is of another run: {'; '.join(differences)}. Give what "
            "it was made with, or another directory"
        )


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _epochs(directory: Path) -> list[int]:
    return [int(path.name) for path in directory.glob("*") if path.name.isdigit()]


def _checksums(directory: Path) -> dict[str, int]:
    """CRC-32 of every file but the manifest, by its path in the directory."""
    return {
        path.relative_to(directory).as_posix(): zlib.crc32(path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / "manifest.json"
    }
