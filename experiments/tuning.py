"""A fair comparison: both optimizers with hyper-parameters chosen the same way.

    python experiments/tuning.py run
    python experiments/tuning.py run --only sasrec --seeds 0 1 2
    python experiments/tuning.py run --dataset tools --only gru4rec
    python experiments/tuning.py table

The paper does not publish the settings of its plain backbones, and its recipes were
chosen for SEvo. Here a backbone is tuned on a dataset with AdamW and with SEvo-AdamW,
with the same budget. The search starts from the recipe and changes one hyper-parameter
after another, in the order of `GRID`, each time keeping the value with the best
validation NDCG@10. A run of the search has a quarter of the recipe's epochs, with STOSA
and BERT4Rec an eighth, and the seed 0, and its test metrics are not even written down.
So short a run favours what learns fast (high learning rates); therefore what the search
finds and the recipe are both trained for all epochs, and again the better validation
NDCG@10 decides. That is then trained from each seed.

Runs are resumable and may be done side by side, as those of ``table3.py``; results go
to ``results/tuning``. `table` prints what was chosen, and the test metrics beside those
of the recipes (``results/table3``), as far as there are any.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
from jobs import Job, do, results_of
from paper import BACKBONES, DATASETS, RESULTS, recipe_of
from table3 import SEEDS
from table3 import job as recipe_job
from tables import change, column, markdown, seeds, spread, text

from sevo_jax.training import Recipe

FOLDER = RESULTS / "tuning"
OPTIMIZERS = ("adamw", "sevo_adamw")
GRID = {
    "weight_decay": (0.01, 0.1, 0.5),
    "dropout": (0.2, 0.4, 0.6),
    "learning_rate": (5e-4, 1e-3, 5e-3),
}
# A run of the search has one in so many of a recipe's epochs.
SEARCH_SHARE = dict.fromkeys(BACKBONES, 4) | {"stosa": 8, "bert4rec": 8}
SELECTION = "NDCG@10"


def value_of(recipe: Recipe, name: str) -> float | None:
    """A hyper-parameter of `GRID`; None where the model has none of the name."""
    if name != "dropout":
        return getattr(recipe.optimizer, name)
    return getattr(recipe.architecture, _dropout_field(recipe), None)


def with_value(recipe: Recipe, name: str, value: float) -> Recipe:
    """`recipe` with another value of a hyper-parameter."""
    if name == "dropout":
        part, changes = "architecture", {_dropout_field(recipe): value}
    else:
        part, changes = "optimizer", {name: value}
    changed = dataclasses.replace(getattr(recipe, part), **changes)
    return dataclasses.replace(recipe, **{part: changed})


def _dropout_field(recipe: Recipe) -> str:
    return "hidden_dropout" if recipe.model == "stosa" else "dropout"


def describe(recipe: Recipe) -> str:
    """The values of the grid's hyper-parameters, for people and file names."""
    values = {name: value_of(recipe, name) for name in GRID}
    short = {"weight_decay": "wd", "dropout": "drop", "learning_rate": "lr"}
    return "-".join(
        f"{short[name]}{value:g}" for name, value in values.items() if value is not None
    )


def search_job(backbone: str, dataset: str, recipe: Recipe) -> Job:
    """A run of the search."""
    short = dataclasses.replace(recipe, epochs=recipe.epochs // SEARCH_SHARE[backbone])
    optimizer = recipe.optimizer.name
    name = f"search-{backbone}-{dataset}-{optimizer}-{describe(recipe)}"
    return Job(name, short, dataset, 0, FOLDER, test=False)


def final_job(backbone: str, dataset: str, recipe: Recipe, seed: int) -> Job:
    """A run of what the search chose: the recipe's own, where it is the recipe."""
    optimizer = recipe.optimizer.name
    backbone = _of_one_graph(backbone, optimizer)
    if recipe == recipe_of(backbone, dataset, optimizer):
        return recipe_job(backbone, dataset, optimizer, seed)
    name = f"{backbone}-{dataset}-{optimizer}-{describe(recipe)}"
    return Job(name, recipe, dataset, seed, FOLDER)


def _of_one_graph(backbone: str, optimizer: str) -> str:
    """Which graph makes no difference to AdamW: one of MF-BPR's serves both."""
    return BACKBONES[backbone].plain if optimizer == "adamw" else backbone


def chosen(
    backbone: str, dataset: str, optimizer: str, work: Path | None = None
) -> Recipe | None:
    """Of the recipe and what the search finds, the better; None if that is not known.

    Args:
      backbone: one of `BACKBONES`.
      dataset: one of the paper's.
      optimizer: one of `OPTIMIZERS`.
      work: folder to do missing runs in; None does none.
    """
    backbone = _of_one_graph(backbone, optimizer)
    recipe = recipe_of(backbone, dataset, optimizer)
    found = _search(backbone, dataset, recipe, work)
    if found is None:
        return None
    # The recipe first: of equals, it stays.
    return _best(
        [recipe, found], lambda each: final_job(backbone, dataset, each, 0), work
    )


def _search(
    backbone: str, dataset: str, recipe: Recipe, work: Path | None
) -> Recipe | None:
    """What the short runs find, from `recipe` on."""
    best = recipe
    for name, values in GRID.items():
        current = value_of(best, name)
        if current is None:
            continue
        # The current value first: of equals, it stays.
        candidates = [
            with_value(best, name, value)
            for value in (current, *(value for value in values if value != current))
        ]
        best = _best(candidates, lambda each: search_job(backbone, dataset, each), work)
        if best is None:
            return None
    return best


def _best(
    candidates: list[Recipe], job_of: Callable[[Recipe], Job], work: Path | None
) -> Recipe | None:
    """The first with the best validation metric; None if a run of theirs is missing."""
    scores = []
    for candidate in candidates:
        job = job_of(candidate)
        if work is not None:
            do([job], work)
        result = job.result()
        if result is None:  # not done, or another process is at it
            return None
        scores.append(result["valid"][SELECTION])
    return candidates[scores.index(max(scores))]


def table(dataset: str) -> list[list[str]]:
    """What was chosen and its test NDCG@10, the recipe's where it is the recipe."""
    rows = [["backbone", "AdamW", "SEvo-AdamW", "SEvo over AdamW"]]
    for backbone, about in BACKBONES.items():
        cells, found = [], []
        for optimizer in OPTIMIZERS:
            recipe = chosen(backbone, dataset, optimizer)
            if recipe is None:
                cells.append("search not done")
                continue
            finals = (final_job(backbone, dataset, recipe, seed) for seed in SEEDS)
            results = results_of(finals)
            own = recipe_of(_of_one_graph(backbone, optimizer), dataset, optimizer)
            found.append(column(results, SELECTION))
            notes = [describe_change(own, recipe)]
            notes += [seeds(results)] * (len(results) > 1)
            cells.append(f"{spread(found[-1])} ({', '.join(notes)})")
        last = change(*found) if len(found) == len(OPTIMIZERS) else "unknown"
        rows.append([about.label, *cells, last])
    return rows


def describe_change(own: Recipe, recipe: Recipe) -> str:
    """What differs from the paper's recipe, for people."""
    short = {"weight_decay": "decay", "dropout": "dropout", "learning_rate": "rate"}
    changed = [
        f"{short[name]} {value_of(recipe, name):g}"
        for name in GRID
        if value_of(recipe, name) != value_of(own, name)
    ]
    return ", ".join(changed) or "the recipe"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--dataset", choices=DATASETS, default="beauty")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=BACKBONES, default=BACKBONES)
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--markdown", action="store_true", help="the table of README")
    options = parser.parse_args()
    if options.command == "table":
        print((markdown if options.markdown else text)(table(options.dataset)))
        return
    for backbone in options.only:
        for optimizer in OPTIMIZERS:
            recipe = chosen(backbone, options.dataset, optimizer, options.work)
            if recipe is None:
                continue
            jobs = [
                final_job(backbone, options.dataset, recipe, seed)
                for seed in options.seeds
            ]
            together = jax.default_backend() != "cpu"
            for group in [jobs] if together else [[job] for job in jobs]:
                do(group, options.work)


if __name__ == "__main__":
    main()
