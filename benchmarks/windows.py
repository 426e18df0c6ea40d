"""Seconds of an epoch where SEvo propagates once in k steps, beside AdamW, on Beauty.

    python benchmarks/windows.py
    python benchmarks/windows.py --only sasrec gru4rec

Each backbone by the paper's recipe with ``adamw`` and with ``sevo_adamw(every=k)``. The
compiled epochs take turns on batches that are drawn already; the first turn, which
compiles, is not counted. Needs ``sevo-jax[train]``. Prints a table and, if no backbone
is left out, writes ``results/windows-PLATFORM.json``, which ``experiments/every.py``
draws.
"""

import argparse
import dataclasses
from typing import Any

from harness import is_short, save, time_in_turns
from paper import BACKBONES, load, recipe_of

from sevo_jax.data import LeaveOneOut
from sevo_jax.training import Recipe, Trainer
from sevo_jax.training.mesh import split_batches

STEPS = (1, 4, 8, 16)
# Seconds for a backbone, after which no round begins.
AT_MOST = 150
ADAMW = "adamw"


class Epoch:
    """The compiled epoch of a recipe, over and over."""

    def __init__(self, recipe: Recipe, split: LeaveOneOut):
        self.trainer = Trainer(recipe, split)
        self.state = self.trainer.start(0)
        self.batches = split_batches(self.trainer.mesh, self.trainer.epochs(0)[0])

    def __call__(self) -> Any:
        self.state, losses = self.trainer.train_epoch(
            self.state, self.batches, seed=0, epoch=0
        )
        return losses


def recipe_with(backbone: str, every: int) -> Recipe:
    """The paper's, with propagation every so many steps."""
    recipe = recipe_of(backbone, "beauty", "sevo_adamw")
    optimizer = dataclasses.replace(recipe.optimizer, every=every)
    return dataclasses.replace(recipe, optimizer=optimizer)


def measure(backbone: str, split: LeaveOneOut, rounds: int) -> dict[str, Any]:
    """Seconds of an epoch, and what SEvo adds to it for each k."""
    recipes = {ADAMW: recipe_of(backbone, "beauty", ADAMW)}
    recipes |= {f"every {k}": recipe_with(backbone, k) for k in STEPS}
    epochs = {name: Epoch(recipe, split) for name, recipe in recipes.items()}
    seconds = time_in_turns(epochs, rounds=rounds, at_most=AT_MOST)
    plain = seconds[ADAMW]["median"]
    added = {k: seconds[f"every {k}"]["median"] / plain - 1 for k in STEPS}
    return {"seconds": seconds, "SEvo adds": added}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=[""], help="backbones whose names begin so"
    )
    parser.add_argument(
        "--rounds", type=int, default=15, help="turns that count, at most"
    )
    options = parser.parse_args()
    chosen = [name for name in BACKBONES if name.startswith(tuple(options.only))]
    if not chosen:
        parser.error(f"--only: choose of {', '.join(BACKBONES)}")
    split = load("beauty")
    print(f"{'seconds of an epoch':<19}{ADAMW:>10}", end="")
    print("".join(f"{f'every {k}':>18}" for k in STEPS))
    results = {}
    for name in chosen:
        results[name] = measure(name, split, options.rounds)
        seconds, added = results[name]["seconds"], results[name]["SEvo adds"]
        cells = "".join(
            f"{seconds[f'every {k}']['median']:9.3f} {added[k]:+8.1%}" for k in STEPS
        )
        label = BACKBONES[name].label
        print(f"{label:<19}{seconds[ADAMW]['median']:10.3f}{cells}", flush=True)
    results = {"rounds": options.rounds, "backbones": results}
    path = save("windows", results, short=is_short(parser, options))
    print("written to", path)


if __name__ == "__main__":
    main()
