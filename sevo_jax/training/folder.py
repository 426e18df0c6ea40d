"""The folder of a run: its files by name, and who may write them."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sevo_jax._digests import digest, id_digest
from sevo_jax._files import locked, replace_text, replacing
from sevo_jax.data.sequences import Sequences
from sevo_jax.data.split import LeaveOneOut
from sevo_jax.training.checkpoint import Checkpoint, CheckpointError, Checkpoints
from sevo_jax.training.known import Known


class RunFolder:
    """The files of a run. Only this class knows what they are called.

    `run.json` says what is run, `data.json` where its data came from, `ids.json` what
    users and items are called there, and `split.npz` how it was split. `metrics.jsonl`
    and `tensorboard/` have what was measured, `checkpoints/` the state of the run, of
    which the last is kept, and `result.json` the result at the end.

    Args:
      path: the folder, which need not exist.
      source: JSON values that say where the data came from; None if there is nothing
        to say.
    """

    def __init__(self, path: str | Path, source: Mapping[str, Any] | None = None):
        self.path = Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = Checkpoints(self.path / "checkpoints")
        self._run = self.path / "run.json"
        self._source = self.path / "data.json"
        self._ids = self.path / "ids.json"
        self._split = self.path / "split.npz"
        self._result = self.path / "result.json"
        self._new_source = source
        # What process 0 finds out as long as it has the folder.
        self._check: Callable[[], None] = lambda: None

    @property
    def has_checkpoint(self) -> bool:
        """Whether a run left a checkpoint to resume from."""
        return bool(self.checkpoints.epochs)

    @contextlib.contextmanager
    def claimed(self, *, resume: bool) -> Iterator[None]:
        """Makes this process the only one that writes here while the block runs.

        Args:
          resume: whether a run is to go on, or one is to begin.

        Raises:
          CheckpointError: if there is nothing to resume.
          FileExistsError: if there is a run where one is to begin, or another process
            writes here.
        """
        if resume:
            self.check_resumable()
        with locked(self.path) as self._check:
            if resume:
                self.checkpoints.clean()
            elif self.has_checkpoint or self._result.exists():
                raise FileExistsError(
                    f"{self.path} holds a run already: choose another directory, or "
                    "resume it"
                )
            yield

    def describe(self, about: Mapping[str, Any], split: LeaveOneOut) -> None:
        """Writes what is run, as JSON values, and on what data."""
        _write(self._run, about)
        log = split.log
        ids = {"users": log.user_ids.tolist(), "items": log.item_ids.tolist()}
        replace_text(self._ids, json.dumps(ids))
        with replacing(self._split) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                values=split.train.values,
                offsets=split.train.offsets,
                valid=split.valid,
                test=split.test,
            )
        if self._new_source is not None:
            _write(self._source, self._new_source)

    def save(
        self, epoch: int, about: Mapping[str, Any], parts: Mapping[str, Any]
    ) -> None:
        """Writes a checkpoint, as `Checkpoints.save`.

        Raises:
          FileNotFoundError: in process 0, if the folder has been removed meanwhile.
        """
        self._check()
        self.checkpoints.save(epoch, about, parts)

    def check_resumable(self) -> None:
        """Makes sure that there is a checkpoint.

        Raises:
          CheckpointError: if there is none.
        """
        if not self.has_checkpoint:
            # A comparison has its runs in folders of its own.
            inside = sorted(self.path.glob("*/checkpoints"))
            such = f" such as {inside[0].parent}" if inside else ""
            raise CheckpointError(
                f"there is no checkpoint under {self.path}: give the folder of a run"
                f"{such}, or begin one there"
            )

    def last_checkpoint(self) -> Checkpoint:
        """The last checkpoint, found to be as it was written.

        Raises:
          CheckpointError: if there is none, or it is corrupt.
        """
        self.check_resumable()
        return self.checkpoints.last()

    def known(self, dataset: Mapping[str, Any]) -> Known:
        """The users and items of the run.

        Args:
          dataset: the fingerprint of its data.

        Raises:
          CheckpointError: if the files are missing or not as they were written.
        """
        ids = _read(self._ids)
        users, items = ids.get("users"), ids.get("items")
        if not (isinstance(users, list) and isinstance(items, list)):
            users, items = [], []
        try:
            with np.load(self._split) as arrays:
                parts = [
                    arrays[name] for name in ("values", "offsets", "valid", "test")
                ]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{self._split} is damaged: {error}. {_AGAIN}"
            ) from error
        for path, found, written in (
            (self._ids, id_digest(users, items), dataset["ids"]),
            (self._split, digest(*parts), dataset["split"]),
        ):
            if found != written:
                raise CheckpointError(f"{path} is damaged: not as written. {_AGAIN}")
        return Known(users, items, Sequences(*parts[:2]), dataset["name"])

    @property
    def source(self) -> dict[str, Any] | None:
        """JSON values that say where the data came from, if anybody said so."""
        return _read(self._source) if self._source.exists() else None

    @property
    def result(self) -> dict[str, Any] | None:
        """What `write_result` was given; None while the run is unfinished."""
        return _read(self._result) if self._result.exists() else None

    def drop_result(self) -> None:
        """Removes the result of a run that goes on."""
        self._check()
        self._result.unlink(missing_ok=True)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes JSON values as the result of the run."""
        self._check()
        _write(self._result, result)


_AGAIN = "Resume the run, which writes it anew"


def _write(path: Path, values: Mapping[str, Any]) -> None:
    replace_text(path, json.dumps(values, indent=2) + "\n")


def _read(path: Path) -> dict[str, Any]:
    """A JSON table.

    Raises:
      CheckpointError: if the file is missing or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is damaged: it holds no table")
    return values
