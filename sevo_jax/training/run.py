"""What a run comes to, and what it leaves in its directory."""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from sevo_jax import GraphOperator
from sevo_jax.data.split import LeaveOneOut
from sevo_jax.models import MODELS, Recommender
from sevo_jax.training.checkpoint import Checkpoints, check_same, fingerprint
from sevo_jax.training.recipe import Recipe


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
      seconds_per_epoch: median over the epochs of the time to train one.
      seconds: duration of the run, compilation, evaluation and checkpoints included;
        of a resumed run, of what counts: up to the checkpoint, and from there on.
      losses: mean training loss of each epoch.
      parts: the means of its named parts in each epoch; empty where it has none.
      history: a table an evaluation: `epoch`, `loss` (of the epoch before; None at
        epoch 0), `valid` (metrics), `smoothness` (summed over the smoothed tables;
        None where there are none), `relative_smoothness` (divided by the squared
        norm) and `seconds`.
      recipe: what was run.
      trained: the model with the best parameters.
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
      best: validation metric of those; below any metric before the first.
      losses: mean training loss of each epoch.
      parts: the means of its named parts in each epoch.
      epoch_seconds: time to train each epoch.
      history: as `RunResult.history`.
      seconds: duration of the run so far.
    """

    epoch: int = 0
    best_epoch: int = 0
    best: float = -1.0
    losses: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def evaluated(self) -> bool:
        """Whether the parameters of `epoch` have been evaluated."""
        return bool(self.history) and self.history[-1]["epoch"] == self.epoch

    @property
    def seconds_per_epoch(self) -> float:
        """The median, which the epoch that compiles does not move."""
        return statistics.median(self.epoch_seconds)


@dataclass(frozen=True, eq=False)
class SavedRun:
    """A run read back from its directory.

    Attributes:
      model: the recommender with the best parameters so far.
      recipe: what is run.
      seed: its seed.
      dataset: the `fingerprint` of its data.
      epoch: how many epochs were trained at the last checkpoint.
      best_epoch: how many were when the best parameters were kept.
      result: what `RunResult.to_dict` gave; None while the run is unfinished.
    """

    model: Any
    recipe: Recipe
    seed: int
    dataset: dict[str, Any]
    epoch: int
    best_epoch: int
    result: dict[str, Any] | None

    def check(self, split: LeaveOneOut) -> None:
        """Makes sure that items mean to the model what they mean in `split`.

        Raises:
          CheckpointError: naming what differs, if the run was on other data.
        """
        saved, asked = dict(self.dataset), fingerprint(split)
        # The same data under another file name are the same data.
        del saved["name"], asked["name"]
        check_same({"dataset": saved}, {"dataset": asked})


def load(run_dir: str | Path) -> SavedRun:
    """Reads a finished or unfinished run back, with its best parameters.

    Args:
      run_dir: the `output` of `train`.

    Returns:
      The model and what it was trained with.

    Raises:
      CheckpointError: if there is no checkpoint in the directory or it is corrupt.
    """
    run_dir = Path(run_dir)
    with Checkpoints(run_dir, create=False) as checkpoints:
        about = checkpoints.about()
        identity, progress = about["identity"], Progress(**about["progress"])
        recipe = Recipe.from_dict(identity["recipe"])

        def build() -> Recommender:
            kind, config = MODELS[recipe.model], recipe.architecture
            dataset = identity["dataset"]
            sizes = _Sizes(dataset["num_users"], dataset["num_items"])
            graphs = {
                name: _empty_graph(**size)
                for name, size in identity["propagated"].items()
            }
            model = kind.for_data(sizes, config, graphs=graphs, rngs=nnx.Rngs(0))
            return model.for_ranking()

        graphdef, values = nnx.split(nnx.eval_shape(build))
        best = checkpoints.arrays(best=values)["best"]
    finished = run_dir / "result.json"
    return SavedRun(
        model=nnx.merge(graphdef, best),
        recipe=recipe,
        seed=identity["seed"],
        dataset=identity["dataset"],
        epoch=progress.epoch,
        best_epoch=progress.best_epoch,
        result=json.loads(finished.read_text()) if finished.exists() else None,
    )


@dataclass(frozen=True)
class _Sizes:
    num_users: int
    num_items: int


def _empty_graph(num_nodes: int, num_entries: int) -> GraphOperator:
    """The shapes of a graph; what it holds comes from the checkpoint."""
    indices = jnp.zeros(num_entries, jnp.int32)
    return GraphOperator(
        weights=jnp.zeros(num_entries),
        columns=indices,
        row_starts=jnp.zeros(num_nodes + 1, jnp.int32),
        rows=indices,
        num_nodes=num_nodes,
    )
