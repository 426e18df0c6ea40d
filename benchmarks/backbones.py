"""An epoch of each backbone on Beauty, and what SEvo adds to it.

    python benchmarks/backbones.py

The paper's recipes, trained as ``sevo-jax train`` does. AdamW and SEvo-AdamW take
turns, three epochs at a time; the first turn, which compiles, is not counted. Writes
``results/backbones-cpu.json`` or ``-gpu``.
"""

import dataclasses
import statistics

from harness import load, save

from sevo_jax.training import RECIPES, Trainer

BACKBONES = ("mf-bpr-ui", "mf-bpr-ii", "gru4rec", "sasrec", "stosa", "bert4rec")
TURNS = 2


def main() -> None:
    split = load("beauty")
    results = {}
    print(f"{'':10} {'AdamW s':>8} {'SEvo s':>8} {'SEvo costs':>11}")
    for backbone in BACKBONES:
        recipe = RECIPES[f"{backbone}-beauty"]
        recipe = dataclasses.replace(recipe, epochs=3, eval_every=3)
        trainers = {
            name: Trainer(recipe.with_optimizer(name), split)
            for name in ("adamw", "sevo_adamw")
        }
        seconds = {name: [] for name in trainers}
        for turn in range(TURNS + 1):
            for name, trainer in trainers.items():
                result = trainer.run(progress=False)
                if turn:
                    seconds[name].append(result.seconds_per_epoch)
        plain, sevo = (statistics.median(each) for each in seconds.values())
        results[backbone] = {
            "seconds an epoch": seconds,
            "SEvo costs": sevo / plain - 1,
        }
        print(f"{backbone:10} {plain:8.2f} {sevo:8.2f} {sevo / plain - 1:11.0%}")
    print("written to", save("backbones", results))


if __name__ == "__main__":
    main()
