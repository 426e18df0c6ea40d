"""A run: while it goes, and what it comes to."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from flax import nnx

from sevo_jax.data.split import LeaveOneOut
from sevo_jax.samples import Epochs
from sevo_jax.training.checkpoint import CheckpointError
from sevo_jax.training.epoch import TrainState
from sevo_jax.training.folder import RunFolder
from sevo_jax.training.identity import check_same, differences
from sevo_jax.training.processes import is_first, on_first
from sevo_jax.training.recipe import Recipe
from sevo_jax.training.run_log import RunLog


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run came to. Metrics are means over users, each in [0, 1].

    Attributes:
      model: name of the recommender.
      optimizer: name of the optimizer.
      dataset: name of the log.
      seed: seed of initial values, batches, negatives and dropout.
      protocol: how the metrics were measured, in words.
      best_epoch: the epoch whose parameters were kept: how many were trained.
      valid: validation metrics of the best parameters, by name.
      test: test metrics of the best parameters, by name.
      seconds_per_epoch: median over the epochs of the time to train one, the first,
        which compiles, left out where there are others.
      seconds: duration of the run, compilation, evaluation and checkpoints included;
        of a resumed run, of what counts: up to the checkpoint, and from there on.
      losses: mean training loss of each epoch.
      parts: the means of its named parts in each epoch; empty where it has none.
      history: a table an evaluation: `epoch`, `loss` (of the epoch before; None at
        epoch 0), `valid` (metrics), `smoothness` (summed over the smoothed tables;
        None where there are none), `relative_smoothness` (divided by the squared
        norm; None where that is 0) and `seconds`.
      recipe: what was run.
      versions: of the libraries.
      machine: what it was run on.
      notes: what else there is to know, such as a change of the machine.
      trained: the model with the best parameters. Of tables split by their rows it
        holds the whole on the host; split over processes, it only ranks, and `load`
        reads the whole.
    """

    model: str
    optimizer: str
    dataset: str
    seed: int
    protocol: str
    best_epoch: int
    valid: dict[str, float]
    test: dict[str, float]
    seconds_per_epoch: float
    seconds: float
    losses: list[float]
    parts: list[dict[str, float]]
    history: list[dict[str, Any]]
    recipe: Recipe
    versions: dict[str, str]
    machine: dict[str, Any]
    notes: list[str]
    trained: Any = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All but the model, as JSON values."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "trained"]
        values = {name: getattr(self, name) for name in names}
        return values | {"recipe": self.recipe.to_dict()}


@dataclass
class Progress:
    """How far a run has come; with its arrays, all that it needs to go on.

    Attributes:
      epoch: how many epochs are trained.
      best_epoch: how many were when the best parameters were kept.
      best: validation metric of those; None before the first.
      losses: mean training loss of each epoch.
      parts: the means of its named parts in each epoch.
      epoch_seconds: time to train each epoch.
      history: as `RunResult.history`.
      seconds: duration of the run so far.
      notes: as `RunResult.notes`.
    """

    epoch: int = 0
    best_epoch: int = 0
    best: float | None = None
    losses: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def evaluated(self) -> bool:
        """Whether the parameters of `epoch` have been evaluated."""
        return bool(self.history) and self.history[-1]["epoch"] == self.epoch

    def impatient(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row have not been better."""
        later = [each for each in self.history if each["epoch"] > self.best_epoch]
        return patience is not None and len(later) >= patience

    def stopped_by(self, patience: int | None, selection: str) -> int | None:
        """The epoch after which a run of so little patience had ended before now."""
        best, waited = -math.inf, 0
        for record in self.history[:-1]:
            metric = record["valid"][selection]
            best, waited = (metric, 0) if metric > best else (best, waited + 1)
            if waited == patience:
                return record["epoch"]
        return None

    @property
    def seconds_per_epoch(self) -> float:
        """The median, without the first, which compiles, where there are others."""
        return statistics.median(self.epoch_seconds[1:] or self.epoch_seconds)


@dataclass
class Run:
    """A run while it goes.

    Attributes:
      seed: its seed.
      identity: what determines its numbers, as JSON values.
      machine: what they depend on in their rounding.
      protocol: how it is measured, in words.
      epochs: what it trains on.
      state: what an epoch changes.
      best: the best parameters so far.
      rows: over how many devices the rows of its tables are split.
      unscheduled: `best` and `progress` before an evaluation at the end of the run
        that a longer run does not make; None while there is none.
    """

    seed: int
    identity: dict[str, Any]
    machine: dict[str, Any]
    protocol: str
    epochs: Epochs
    state: TrainState
    best: nnx.State
    rows: int
    log: RunLog = field(init=False)
    unscheduled: tuple[nnx.State, Progress] | None = None
    progress: Progress = field(default_factory=Progress)
    folder: RunFolder | None = None
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Duration of the run so far."""
        return time.perf_counter() - self.began

    def open(
        self,
        stack: contextlib.ExitStack,
        folder: RunFolder,
        split: LeaveOneOut,
        *,
        epochs: int,
        resume: bool,
    ) -> None:
        """Begins the run in a folder, or goes on with the one that is there.

        Args:
          stack: gives the folder back.
          folder: where to save.
          split: the data.
          epochs: how many epochs to train in all.
          resume: whether to go on.

        Raises:
          CheckpointError: if it is of another run, or has trained for longer.
          Exception: as `RunFolder.claimed`.
        """
        on_first(lambda: stack.enter_context(folder.claimed(resume=resume)))
        if resume:
            self._restore(folder, epochs)
        if is_first():
            about = self._about()
            folder.describe({**about.pop("identity"), **about}, split)
        self.folder = folder

    def record(
        self,
        step_losses: np.ndarray,
        step_parts: Mapping[str, np.ndarray],
        seconds: float,
    ) -> None:
        """Notes an epoch that was trained.

        Args:
          step_losses: the loss of each step.
          step_parts: its parts at each step, by name.
          seconds: time to train the epoch.

        Raises:
          FloatingPointError: if a loss is not finite.
        """
        progress = self.progress
        if not np.isfinite(step_losses).all():
            step = int(np.argmin(np.isfinite(step_losses)))
            rate = self.identity["recipe"]["optimizer"]["learning_rate"]
            # An optimizer that is given has one of its own.
            said = "" if "optimizer" in self.identity else f" (learning rate {rate})"
            raise FloatingPointError(
                f"the loss is {step_losses[step]} at step {step} of epoch "
                f"{progress.epoch}{said}: the run has diverged, lower the learning rate"
            )
        loss = float(step_losses.mean())
        parts = {name: float(values.mean()) for name, values in step_parts.items()}
        progress.losses.append(loss)
        progress.parts.append(parts)
        progress.epoch_seconds.append(seconds)
        self.log.train(progress.epoch, loss, seconds, parts)
        progress.epoch += 1

    def save(self) -> None:
        """Writes a checkpoint, if the run has a folder."""
        if self.folder is None:
            return
        self.progress.seconds = self.seconds
        parts = {"training": self.state, "best": self.best}
        progress = asdict(self.progress)
        about = {**self._about(), "rows": self.rows, "progress": progress}
        if self.unscheduled is not None:
            parts["unscheduled"], progress = self.unscheduled
            about["unscheduled"] = {**asdict(progress), "seconds": self.seconds}
        self.folder.save(self.progress.epoch, about, parts)

    def _about(self) -> dict[str, Any]:
        return {
            "identity": self.identity,
            "machine": self.machine,
            "protocol": self.protocol,
        }

    def _restore(self, folder: RunFolder, epochs: int) -> None:
        checkpoint = folder.last_checkpoint()
        about = checkpoint.about
        check_same(_lasting(about["identity"]), _lasting(self.identity))
        trained = about["progress"]["epoch"]
        if epochs < trained:
            raise CheckpointError(
                f"the run in {folder.path} has trained {trained} epochs, and {epochs} "
                "are asked for: give as many or more"
            )
        best, progress = "best", about["progress"]
        if epochs > trained and "unscheduled" in about:
            best, progress = "unscheduled", about["unscheduled"]
        arrays = checkpoint.arrays(**{"training": self.state, best: self.best})
        self.state, self.best = arrays["training"], arrays[best]
        self.progress = Progress(**progress)
        recipe = Recipe.from_dict(self.identity["recipe"])
        selection = recipe.evaluation.selection
        stop = self.progress.stopped_by(recipe.patience, selection)
        if stop is not None:
            raise CheckpointError(
                f"the run in {folder.path} has trained {trained} epochs, and with "
                f"patience {recipe.patience} it ends after epoch {stop}: give a larger "
                "one"
            )
        if epochs > self.progress.epoch and not self.progress.impatient(
            recipe.patience
        ):
            on_first(folder.drop_result)
        changes = [
            f"{name} is {now!r}, not {was!r}"
            for name, was, now in differences(about["machine"], self.machine)
        ]
        if changes:
            self.progress.notes.append(
                f"resumed after epoch {trained} where {', '.join(changes)}: the "
                "numbers are those of an unbroken run up to rounding"
            )
        # As if the time before had just been spent.
        self.began -= self.progress.seconds


def _lasting(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change when a run goes on.

    How long it goes on may, and metrics, names and paths.
    """
    # Fields that a checkpoint is older than have their defaults.
    recipe = Recipe.from_dict(identity["recipe"]).to_dict()
    recipe |= {"epochs": None, "patience": None}
    recipe["graph"] = {**recipe["graph"], "attributes": None}
    recipe["evaluation"] = {**recipe["evaluation"], "metrics": None}
    return {
        **identity,
        "recipe": recipe,
        "dataset": {**identity["dataset"], "name": None},
    }
