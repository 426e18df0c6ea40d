"""What the commands that use a trained model share: its data, in its numbers."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from sevo_jax._messages import listed
from sevo_jax.cli._options import DataOptions, option
from sevo_jax.cli._runs import recall
from sevo_jax.data.log import InteractionLog
from sevo_jax.data.split import leave_one_out
from sevo_jax.models import MODELS
from sevo_jax.training import RunFolder, SavedRun
from sevo_jax.training.known import Translated

RunPath = Annotated[
    Path,
    tyro.conf.Positional,
    option("Folder of a run, which train or compare wrote.", "RUN"),
]
SeenOption = Annotated[
    Literal["mask", "keep"] | None,
    option(
        "Whether items in a user's history are left out of the user's ranking (mask) "
        "or stay in (keep).",
        default="as in training",
    ),
]
ServedData = tyro.conf.OmitArgPrefixes[DataOptions]


def served_log(
    saved: SavedRun, folder: RunFolder, data: DataOptions, *, whole: bool
) -> tuple[InteractionLog, DataOptions]:
    """The log that options and the run's memory name, and those options.

    Args:
      saved: the run.
      folder: its folder.
      data: the options that are given.
      whole: whether another log than the run's is taken without its filter.
    """
    asked = recall(data, folder)
    if data.data is not None and data.k_core is None and asked.k_core is not None:
        if whole:
            asked = dataclasses.replace(asked, k_core=None)
        else:
            say(
                f"the log is filtered by --k-core {asked.k_core}, as in training "
                "(--k-core 1 keeps all)"
            )
    log = asked.load()
    if folder.source is None and data.data is None:
        # Not the built-in one in the place of another.
        if not saved.is_of(leave_one_out(log)):
            raise ValueError(
                f"{folder.path} does not say what its data are: give --data and, if "
                "the log is filtered, --k-core"
            )
    return log, asked


def translated(saved: SavedRun, log: InteractionLog) -> Translated:
    """The log in the model's items, without what it cannot serve, which is said."""
    found = saved.known.translate(log)
    if found.skipped:
        say(
            f"{len(found.unknown_items)} of {log.num_items} items are unknown to the "
            f"run and skipped, with {found.skipped} of {log.num_interactions} "
            f"interactions: {listed(found.unknown_items)}"
        )
    if found.unserved:
        say(
            f"{len(found.unserved)} of {log.num_users} users have no other items and "
            f"are skipped: {listed(found.unserved)}"
        )
    served = found.users >= 0
    if not MODELS[saved.recipe.model].knows_users or served.all():
        return found
    new = listed([str(name) for name in found.log.user_ids[~served].tolist()])
    refusal = (
        f"{saved.recipe.model} knows users by a table of its own, and cannot serve "
        f"those that it was not trained on: {new}"
    )
    if not served.any():
        raise ValueError(refusal)
    say(f"{np.sum(~served)} of {served.size} users are skipped: {refusal}")
    return found.take(np.flatnonzero(served))


def say(text: str) -> None:
    """Prints a line beside the output."""
    print(f"sevo-jax: {text}", file=sys.stderr)
