"""A run read back from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sevo_jax import CSROperator
from sevo_jax.data.split import LeaveOneOut
from sevo_jax.models import MODELS, Recommender
from sevo_jax.training.checkpoint import CheckpointError
from sevo_jax.training.folder import RunFolder
from sevo_jax.training.identity import check_same, fingerprint
from sevo_jax.training.known import Known
from sevo_jax.training.recipe import Recipe
from sevo_jax.training.run import Progress


@dataclass(frozen=True, eq=False)
class SavedRun:
    """A run read back from its directory.

    Attributes:
      model: the recommender with the best parameters so far.
      recipe: what is run.
      seed: its seed.
      dataset: the `fingerprint` of its data.
      known: its users and items by their ids.
      epoch: how many epochs were trained at the last checkpoint.
      best_epoch: how many were when the best parameters were kept.
      result: what `RunResult.to_dict` gave; None while the run is unfinished.
    """

    model: Any
    recipe: Recipe
    seed: int
    dataset: dict[str, Any]
    known: Known
    epoch: int
    best_epoch: int
    result: dict[str, Any] | None

    def check(self, split: LeaveOneOut) -> None:
        """Makes sure that the run was on the data of `split`, split likewise.

        Other data can be served too, with users and items as `known` has them.

        Raises:
          CheckpointError: naming what differs.
        """
        saved, asked = dict(self.dataset), fingerprint(split)
        # The same data under another file name are the same data.
        del saved["name"], asked["name"]
        check_same({"dataset": saved}, {"dataset": asked})

    def is_of(self, split: LeaveOneOut) -> bool:
        """Whether `check` lets `split` pass."""
        try:
            self.check(split)
        except CheckpointError:
            return False
        return True


def load(run_dir: str | Path) -> SavedRun:
    """Reads a finished or unfinished run back, with its best parameters.

    Args:
      run_dir: the `output` of `train`.

    Returns:
      The model and what it was trained with.

    Raises:
      CheckpointError: if there is no checkpoint in the directory, or it or the result
        is corrupt.
    """
    folder = RunFolder(run_dir)
    while True:
        last = folder.checkpoints.epochs[-1:]
        try:
            return _load(folder)
        except (CheckpointError, OSError):
            # A run that is training puts a newer checkpoint in the place of the one
            # that is being read.
            if folder.checkpoints.epochs[-1:] in (last, []):
                raise


def _load(folder: RunFolder) -> SavedRun:
    checkpoint = folder.last_checkpoint()
    identity = checkpoint.about["identity"]
    progress = Progress(**checkpoint.about["progress"])
    recipe = Recipe.from_dict(identity["recipe"])
    known, result = folder.known(identity["dataset"]), folder.result

    def build() -> Recommender:
        kind, config = MODELS[recipe.model], recipe.architecture
        dataset = identity["dataset"]
        sizes = _Sizes(dataset["num_users"], dataset["num_items"])
        graphs = {
            name: _empty_graph(**size) for name, size in identity["propagated"].items()
        }
        model = kind.for_data(sizes, config, graphs=graphs, rngs=nnx.Rngs(0))
        return model.for_ranking()

    graphdef, values = nnx.split(nnx.eval_shape(build))
    best = jax.tree.map(jnp.array, checkpoint.arrays(best=values)["best"])
    return SavedRun(
        model=nnx.merge(graphdef, best),
        recipe=recipe,
        seed=identity["seed"],
        dataset=identity["dataset"],
        known=known,
        epoch=progress.epoch,
        best_epoch=progress.best_epoch,
        result=result,
    )


@dataclass(frozen=True)
class _Sizes:
    num_users: int
    num_items: int


def _empty_graph(num_nodes: int, num_entries: int) -> CSROperator:
    """The shapes of a graph; what it holds comes from the checkpoint."""
    indices = jnp.zeros(num_entries, jnp.int32)
    return CSROperator(
        weights=jnp.zeros(num_entries),
        columns=indices,
        row_starts=jnp.zeros(num_nodes + 1, jnp.int32),
        rows=indices,
        num_nodes=num_nodes,
    )
