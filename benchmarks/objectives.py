"""Seconds of an epoch of SASRec by the loss it is trained with.

    python benchmarks/objectives.py

Beauty by the recipe of `sasrec-ce-beauty`, with AdamW and with SEvo-AdamW: the
published loss with one negative a target, softmax and binary losses over drawn items,
and the softmax over all 12,101. The compiled epochs take turns on batches that are
drawn already; the first turn, which compiles, is not counted. Needs
``sevo-jax[train]``. Prints a table and writes ``results/objectives-PLATFORM.json``.
"""

import argparse
import dataclasses
from typing import Any

from harness import is_short, save, time_in_turns
from paper import load
from windows import Epoch

from sevo_jax.training import Recipe, find_recipe

OPTIMIZERS = ("adamw", "sevo_adamw")
LOSSES: dict[str, dict[str, Any]] = {
    "bce": {"loss": "bce"},
    "bpr": {"loss": "bpr"},
    "sampled, 64": {"loss": "sampled", "num_negatives": 64},
    "sampled, 512": {"loss": "sampled", "num_negatives": 512},
    "gbce, 64": {"loss": "gbce", "num_negatives": 64, "calibration": 0.75},
    "ce": {"loss": "ce"},
}


def recipe_with(loss: str, optimizer: str) -> Recipe:
    """The recipe with another loss and optimizer."""
    recipe = find_recipe("sasrec-ce-beauty").with_optimizer(optimizer)
    architecture = dataclasses.replace(recipe.architecture, **LOSSES[loss])
    return dataclasses.replace(recipe, architecture=architecture)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns that count")
    options = parser.parse_args()
    split = load("beauty")
    candidates = {
        f"{loss} {optimizer}": Epoch(recipe_with(loss, optimizer), split)
        for loss in LOSSES
        for optimizer in OPTIMIZERS
    }
    seconds = time_in_turns(candidates, rounds=options.rounds)
    heads = "".join(f"{head:>15}" for head in (*OPTIMIZERS, "times bce's"))
    print(f"{'seconds of an epoch':<20}{heads}")
    for loss in LOSSES:
        row = [seconds[f"{loss} {optimizer}"]["median"] for optimizer in OPTIMIZERS]
        times = row[0] / seconds["bce adamw"]["median"]
        print(f"{loss:<20}{row[0]:15.2f}{row[1]:15.2f}{times:15.1f}")
    results = {"rounds": options.rounds, "seconds": seconds}
    path = save("objectives", results, short=is_short(parser, options))
    print("written to", path)


if __name__ == "__main__":
    main()
