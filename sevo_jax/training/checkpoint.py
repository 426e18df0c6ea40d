"""Checkpoints of a run: whole or not at all, and checked once when they are read."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sevo_jax._files import naming, sync
from sevo_jax.training.processes import is_first

_MANIFEST = "manifest.json"
_ABOUT = "about.json"
_SHAPES = "shapes.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, corrupt, or of another run."""


class Checkpoints:
    """The checkpoints of a run, of which the last is kept.

    A checkpoint is a directory named by its epoch: parts of arrays, written by Orbax,
    `shapes.json`, which lists theirs, `about.json`, and `manifest.json` with a checksum
    of every file. It is written beside its place, to the disk, and renamed, so a killed
    process leaves the one before. Where there are several processes, all of them save
    and restore; their number and devices may be others when it is restored.

    Args:
      directory: where they are; made by the first `save`.
    """

    def __init__(self, directory: str | Path):
        # Orbax takes absolute paths only.
        self._directory = Path(directory).absolute()

    @property
    def epochs(self) -> list[int]:
        """Epochs of the checkpoints, ascending: of several the last counts."""
        names = [path.name for path in self._directory.glob("*") if path.is_dir()]
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def last(self) -> Checkpoint:
        """The last checkpoint.

        Raises:
          CheckpointError: if there is none, or a file of it is not as it was written.
        """
        if not self.epochs:
            raise CheckpointError(f"there is no checkpoint under {self._directory}")
        return Checkpoint(self._directory / str(self.epochs[-1]))

    def save(
        self, epoch: int, about: Mapping[str, Any], parts: Mapping[str, Any]
    ) -> None:
        """Writes the checkpoint of `epoch` and drops all others.

        An interrupt meanwhile takes effect when the checkpoint is written.

        Args:
          epoch: how many epochs are trained.
          about: JSON values.
          parts: pytrees of arrays by name.

        Raises:
          OSError: naming the directory, if it cannot be written.
        """
        unfinished = self._directory / "unfinished"
        with _interrupts_later(), naming(self._directory):
            # Orbax has the other processes wait until the first has come to save.
            if is_first():
                self._directory.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(unfinished, ignore_errors=True)
            _write(unfinished, parts)
            if not is_first():
                return
            shapes = {
                name: [x.shape for x in jax.tree.leaves(tree)]
                for name, tree in parts.items()
            }
            for name, table in ((_ABOUT, about), (_SHAPES, shapes)):
                (unfinished / name).write_text(json.dumps(table), encoding="utf-8")
            manifest = json.dumps(_checksums(unfinished))
            (unfinished / _MANIFEST).write_text(manifest, encoding="utf-8")
            for path in (*unfinished.rglob("*"), unfinished):
                sync(path)
            os.replace(unfinished, self._directory / str(epoch))
            sync(self._directory)
            self.clean()

    def clean(self) -> None:
        """Drops all but the last checkpoint: what a killed process left."""
        shutil.rmtree(self._directory / "unfinished", ignore_errors=True)
        for epoch in self.epochs[:-1]:
            shutil.rmtree(self._directory / str(epoch))


class Checkpoint:
    """A checkpoint of which every file is as it was written.

    Attributes:
      about: its JSON table.

    Args:
      path: its directory.

    Raises:
      CheckpointError: if a file is missing or changed.
    """

    about: dict[str, Any]

    def __init__(self, path: Path):
        self._path = path
        try:
            manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
            found = _checksums(path)
            changed = sorted(
                name
                for name in manifest.keys() | found.keys()
                if manifest.get(name) != found.get(name)
            )
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is corrupt: {_MANIFEST}: {error}. {_REMEDY}"
            ) from error
        if changed:
            names = ", ".join(changed[:3]) + ", ..." * (len(changed) > 3)
            raise CheckpointError(
                f"{path} is corrupt: not as written: {names}. {_REMEDY}"
            )
        self.about = json.loads((path / _ABOUT).read_text(encoding="utf-8"))

    def arrays(self, **templates: Any) -> dict[str, Any]:
        """Parts of the checkpoint.

        Args:
          **templates: for the name of a part, a pytree of arrays or shapes like the
            one that was saved; tables that were or are split by rows have some rows
            of zeros more or less.

        Returns:
          The parts by name; what the template has split over devices is split
          likewise, everything else is on the host.

        Raises:
          CheckpointError: if the arrays are others than the templates.
        """
        with ocp.StandardCheckpointer() as orbax:
            return {
                name: self._restore(orbax, name, template)
                for name, template in templates.items()
            }

    def _restore(
        self, orbax: ocp.StandardCheckpointer, name: str, template: Any
    ) -> Any:
        path, parts = self._path / name, self.about.get("rows", 1)

        def wanted(x: Any) -> Any:
            # Else through the host: arrays that Orbax places are bound to their device,
            # those of a fresh run are not, and the epoch would be compiled anew.
            if isinstance(x, jax.Array) and not x.sharding.is_fully_replicated:
                return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            return np.empty(x.shape, x.dtype)

        try:
            # Orbax is not to look at shapes, as rows of zeros come and go.
            part = orbax.restore(path, jax.tree.map(wanted, template), strict=False)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} holds other arrays: {error}") from error
        shapes = json.loads((self._path / _SHAPES).read_text(encoding="utf-8"))[name]
        for shape, want in zip(shapes, jax.tree.leaves(template), strict=True):
            if not _fits(shape, want, parts):
                raise CheckpointError(
                    f"{path} holds other arrays: one of shape {tuple(shape)} where the "
                    f"model has {want.shape}"
                )
        return jax.tree.map(
            lambda x, want: x[tuple(map(slice, want.shape))], part, template
        )


_REMEDY = "Delete the directory of the run and train again"


def _write(directory: Path, parts: Mapping[str, Any]) -> None:
    try:
        # Not in the background: the arrays are donated to the next epoch, and nothing
        # may read them then.
        with _one_failure(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as orbax:
            for name, tree in parts.items():
                orbax.save(directory / name, args=ocp.args.StandardSave(tree))
    except ValueError as error:
        # The code of an OSError, from below Python.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


@contextlib.contextmanager
def _one_failure() -> Iterator[None]:
    """Keeps Orbax from printing the failure of each thread, besides raising one."""
    logs = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, hook = [log.level for log in logs], sys.unraisablehook
    for log in logs:
        log.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    try:
        yield
    except Exception:
        time.sleep(0.5)  # Until the other threads have failed too.
        gc.collect()  # What nobody asked for is told when it is thrown away.
        raise
    finally:
        sys.unraisablehook = hook
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _fits(shape: Sequence[int], want: Any, parts: int) -> bool:
    """Whether arrays differ by no more than the rows that fill a table up.

    Args:
      shape: of the one that was saved.
      want: what it is to be.
      parts: over how many devices the rows of the first were split.
    """
    split = [1] * want.ndim
    if isinstance(want, jax.Array):
        split = [
            whole // part
            for whole, part in zip(want.shape, want.sharding.shard_shape(want.shape))
        ]
    return len(shape) == want.ndim and all(
        -parts_now < saved - asked < parts
        for saved, asked, parts_now in zip(shape, want.shape, split)
    )


def _checksums(directory: Path) -> dict[str, int]:
    """CRC-32 of every file but the manifest, by its path in the directory."""
    return {
        path.relative_to(directory).as_posix(): zlib.crc32(path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / _MANIFEST
    }


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Holds an interrupt back to the end of the block: Orbax would break."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        signal.raise_signal(signal.SIGINT)
