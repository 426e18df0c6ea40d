"""What is pending when a run ends: validation as it is, and with it propagated.

    python experiments/pending.py run
    python experiments/pending.py table

Goes on from the last checkpoints of SASRec's runs on Beauty with propagation every k
steps (those of ``every.py``, trained anew where they are not in the folder), for k - 1
steps more, so that all but the last step of a window is pending. Then validation
NDCG@10 of the parameters as they are, and of those that propagating it at once would
give. What has been measured is left alone. Writes ``results/pending.json``.
"""

import argparse
import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import every
import jax
import jax.numpy as jnp
from flax import nnx
from jobs import trained
from paper import RESULTS, load
from study import Cell
from tables import markdown

import sevo_jax as sevo
from sevo_jax._files import replace_text
from sevo_jax.training import Trainer
from sevo_jax.training.epoch import TrainState

PATH = RESULTS / "pending.json"
STEPS = [k for k in every.STEPS if k > 1]


def measure(cell: Cell, work: Path) -> dict[str, float]:
    """NDCG@10 when k - 1 steps are pending, and when they no longer are."""
    job = cell.job(0)
    k = job.recipe.optimizer.every
    trainer = Trainer(job.recipe, load(job.dataset))
    with contextlib.ExitStack() as stack:
        # A copy, as opening a run writes to it.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        shutil.copytree(work / job.full_name, folder)
        run = trainer._open(stack, 0, folder, True, False, "")
        epoch, state = run.progress.epoch, run.state
    batches = jax.tree.map(lambda x: x[: k - 1], trainer.epochs(0)[epoch])
    state, _ = trainer.train_epoch(state, batches, seed=0, epoch=epoch)
    params = propagated(trainer, state)
    return {
        "steps pending": k - 1,
        **{
            name: trainer.measure(trainer.model(each))["valid"]["NDCG@10"]
            for name, each in (
                ("as it is", state),
                ("propagated", state._replace(params=params)),
            )
        },
    }


def propagated(trainer: Trainer, state: TrainState) -> nnx.State:
    """The parameters after an update of zeros that flushes what is pending."""
    optimizer = trainer.recipe.optimizer
    smooth = sevo.scale_by_sevo(
        trainer.smoothing,
        beta=optimizer.beta,
        num_layers=optimizer.num_layers,
        every=optimizer.every,
    )
    is_sevo = lambda x: isinstance(x, sevo.ScaleBySevoState)  # noqa: E731
    leaves = jax.tree.leaves(state.opt_state, is_leaf=is_sevo)
    (pending,) = filter(is_sevo, leaves)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    beyond, _ = smooth.update(zeros, pending, flush=True)
    if not any(map(jnp.any, jax.tree.leaves(beyond))):
        raise RuntimeError("nothing is pending")
    return jax.tree.map(
        lambda x, step: x - optimizer.learning_rate * step, state.params, beyond
    )


def table() -> list[list[str]]:
    """Validation NDCG@10 by k."""
    rows = [["k", "steps pending", "as it is", "propagated"]]
    for k in STEPS:
        each = stored().get(str(k))
        values = ["not run", ""]
        if each is not None:
            values = [f"{each[name]:.4f}" for name in ("as it is", "propagated")]
        rows.append([str(k), str(k - 1), *values])
    return rows


def stored() -> dict[str, Any]:
    """What has been measured, by k."""
    return json.loads(PATH.read_text()) if PATH.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"))
    arguments = parser.parse_args()
    if arguments.command == "run":
        for k in STEPS:
            cell = every.cell("sasrec", k)
            if str(k) in stored() or trained(cell.job(0), arguments.work) is None:
                continue
            results = stored() | {str(k): measure(cell, arguments.work)}
            replace_text(PATH, json.dumps(results, indent=1) + "\n")
    print(markdown(table()))


if __name__ == "__main__":
    main()
