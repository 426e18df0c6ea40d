"""A fair comparison: both optimizers with hyper-parameters chosen the same way.

    python experiments/tuning.py run
    python experiments/tuning.py run --only sasrec --seeds 0 1 2
    python experiments/tuning.py run --dataset tools --only gru4rec
    python experiments/tuning.py table

The paper does not publish the settings of its plain backbones, and its recipes were
chosen for SEvo. Here a backbone is tuned on a dataset with AdamW and with SEvo-AdamW,
with the same budget. The search starts from the recipe and changes one hyper-parameter
after another, in the order of `GRIDS`, each time keeping the value with the best
validation NDCG@10. A run of the search has the seed 0 and a quarter of the recipe's
epochs, or the `SEARCH_SHARE` of it, and its test metrics are not even written down.
So short a run favours what learns fast (high learning rates); therefore what the search
finds and the recipe are both trained for all epochs, and again the better validation
NDCG@10 decides. That is then trained from each seed.

The settings of the paper's graph models are unpublished too: ``--only lightgcn
--optimizers adamw`` searches theirs, from `START` on where the recipe holds by now what
was found.

Runs are resumable and may be done side by side, as those of ``table3.py``; results go
to ``results/tuning``. `table` prints what was chosen, and the test metrics beside those
of the recipes (``results/table3``), as far as there are any.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import table3
from jobs import Job, Train, do, results_of, train
from paper import BACKBONES, DATASETS, RESULTS, Backbone, recipe_of
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
RATES = GRID["learning_rate"]
GRIDS: dict[str, dict[str, tuple[float, ...]]] = dict.fromkeys(BACKBONES, GRID) | {
    "lightgcn": {
        "regularization": (1e-4, 1e-3, 1e-2),
        "num_hops": (2, 3, 4),
        "learning_rate": RATES,
    },
    "sr-gnn": {
        "weight_decay": (0.01, 0.1, 0.5),
        "num_steps": (1, 2),
        "learning_rate": RATES,
    },
    "lessr": {
        "weight_decay": (1e-6, 1e-2, 0.1),
        "dropout": (0.3, 0.5, 0.7),
        "num_blocks": (2, 3, 4),
        "learning_rate": RATES,
    },
    "maerec": {
        "dropout": (0.1, 0.3, 0.5),
        "num_blocks": (1, 2, 3),
        "learning_rate": RATES,
        "weight_decay": (0.0, 0.1, 0.5),
        # Last, as a reconstruction takes most of the time of a run.
        "reconstruction_weight": (0.0, 0.01, 0.1),
    },
}
START: dict[str, dict[str, float]] = {
    "sr-gnn": {"learning_rate": 1e-3, "weight_decay": 0.1},
}
"""Where the search of a recipe began that holds what it found."""
# A run of the search has one in so many of a recipe's epochs.
SEARCH_SHARE = dict.fromkeys(table3.MODELS, 4)
SEARCH_SHARE |= {"stosa": 8, "bert4rec": 8, "lightgcn": 20, "lessr": 20}
SHORT = {
    "weight_decay": ("wd", "decay"),
    "dropout": ("drop", "dropout"),
    "learning_rate": ("lr", "rate"),
    "beta": ("beta", "beta"),
    "regularization": ("reg", "regularization"),
    "num_hops": ("hops", "hops"),
    "num_steps": ("steps", "steps"),
    "num_blocks": ("blocks", "blocks"),
    "reconstruction_weight": ("rec", "reconstruction"),
}
"""Of a hyper-parameter, what it is called in files and by people."""
SELECTION = "NDCG@10"


def _place(recipe: Recipe, name: str) -> tuple[str, str]:
    """The part of a recipe and its field that hold a hyper-parameter."""
    if hasattr(recipe.optimizer, name):
        return "optimizer", name
    if recipe.model in ("stosa", "bsarec") and name == "dropout":
        return "architecture", "hidden_dropout"
    return "architecture", name


def value_of(recipe: Recipe, name: str) -> float | None:
    """A hyper-parameter; None where the model has none of the name."""
    part, field = _place(recipe, name)
    return getattr(getattr(recipe, part), field, None)


def with_value(recipe: Recipe, name: str, value: float) -> Recipe:
    """`recipe` with another value of a hyper-parameter."""
    part, field = _place(recipe, name)
    changed = dataclasses.replace(getattr(recipe, part), **{field: value})
    return dataclasses.replace(recipe, **{part: changed})


def describe(backbone: str, recipe: Recipe) -> str:
    """The values of the grid's hyper-parameters, in the name of a file."""
    values = {name: value_of(recipe, name) for name in GRIDS[backbone]}
    return "-".join(
        f"{SHORT[name][0]}{value:g}"
        for name, value in values.items()
        if value is not None
    )


def search_job(backbone: str, dataset: str, recipe: Recipe) -> Job:
    """A run of the search."""
    short = dataclasses.replace(recipe, epochs=recipe.epochs // SEARCH_SHARE[backbone])
    optimizer = recipe.optimizer.name
    name = f"search-{backbone}-{dataset}-{optimizer}-{describe(backbone, recipe)}"
    return Job(name, short, dataset, 0, FOLDER, test=False)


def final_job(backbone: str, dataset: str, recipe: Recipe, seed: int) -> Job:
    """A run of what the search chose: the recipe's own, where it is the recipe."""
    optimizer = recipe.optimizer.name
    backbone = _of_one_graph(backbone, optimizer)
    if recipe == recipe_of(backbone, dataset, optimizer):
        return recipe_job(backbone, dataset, optimizer, seed)
    name = f"{backbone}-{dataset}-{optimizer}-{describe(backbone, recipe)}"
    return Job(name, recipe, dataset, seed, FOLDER)


def _of_one_graph(backbone: str, optimizer: str) -> str:
    """Which graph makes no difference to AdamW: one of MF-BPR's serves both."""
    return table3.MODELS[backbone].plain if optimizer == "adamw" else backbone


def chosen(
    backbone: str, dataset: str, optimizer: str, work: Path | None = None
) -> Recipe | None:
    """Of the recipe and what the search finds, the better; None if that is not known.

    Args:
      backbone: one of Table 3's.
      dataset: one of the paper's.
      optimizer: one of `OPTIMIZERS`.
      work: folder to do missing runs in; None does none.
    """
    backbone = _of_one_graph(backbone, optimizer)
    start = recipe_of(backbone, dataset, optimizer)
    for name, value in START.get(backbone, {}).items():
        start = with_value(start, name, value)
    found = _search(backbone, dataset, start, work)
    if found is None:
        return None
    # Where it started first: of equals, that stays.
    return best_of(
        [start, found], lambda each: final_job(backbone, dataset, each, 0), work
    )


def best_of(
    candidates: list[Recipe],
    job_of: Callable[[Recipe], Job],
    work: Path | None,
    train: Train = train,
) -> Recipe | None:
    """The first with the best validation metric; None if a run of theirs is missing."""
    scores = []
    for candidate in candidates:
        job = job_of(candidate)
        if work is not None:
            do([job], work, train)
        result = job.result()
        if result is None:  # not done, or another process is at it
            return None
        scores.append(-1.0 if "diverged" in result else result["valid"][SELECTION])
    return candidates[scores.index(max(scores))]


def _search(
    backbone: str, dataset: str, recipe: Recipe, work: Path | None
) -> Recipe | None:
    """What the short runs find, from `recipe` on."""
    best = recipe
    for name, values in GRIDS[backbone].items():
        current = value_of(best, name)
        if current is None:
            continue
        # The current value first: of equals, it stays.
        candidates = [
            with_value(best, name, value)
            for value in (current, *(value for value in values if value != current))
        ]
        best = best_of(
            candidates, lambda each: search_job(backbone, dataset, each), work
        )
        if best is None:
            return None
    return best


def table(dataset: str, models: Mapping[str, Backbone] = BACKBONES) -> list[list[str]]:
    """What was chosen and its test NDCG@10, the recipe's where it is the recipe."""
    rows = [["backbone", "AdamW", "SEvo-AdamW", "SEvo over AdamW"]]
    for backbone, about in models.items():
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
            notes = [describe_change(backbone, own, recipe)]
            notes += [seeds(results)] * (len(results) > 1)
            cells.append(f"{spread(found[-1])} ({', '.join(notes)})")
        last = change(*found) if len(found) == len(OPTIMIZERS) else "unknown"
        rows.append([about.label, *cells, last])
    return rows


def tried(dataset: str, models: Mapping[str, Backbone]) -> list[list[str]]:
    """What the searches with AdamW tried: settings and metrics of all stored runs."""
    rows = [["backbone", "settings", "epochs at most", "validation", "test"]]
    for backbone, about in models.items():
        own = recipe_job(backbone, dataset, "adamw", 0).path
        trials = sorted(FOLDER.glob(f"search-{backbone}-{dataset}-adamw-*.json"))
        finals = sorted(FOLDER.glob(f"{backbone}-{dataset}-adamw-*-seed0.json"))
        for path in (*trials, *finals, *[own] * own.exists()):
            result = json.loads(path.read_text())
            recipe = Recipe.from_dict(result["recipe"])
            values = {name: value_of(recipe, name) for name in GRIDS[backbone]}
            settings = (f"{SHORT[name][1]} {value:g}" for name, value in values.items())
            metrics = (
                f"{result[part][SELECTION]:.4f}" if part in result else ""
                for part in ("valid", "test")
            )
            row = [about.label, ", ".join(settings), str(recipe.epochs), *metrics]
            rows.append(row)
    return rows


def describe_change(backbone: str, own: Recipe, recipe: Recipe) -> str:
    """What differs from the recipe, for people."""
    changed = [
        f"{SHORT[name][1]} {value_of(recipe, name):g}"
        for name in GRIDS[backbone]
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
    parser.add_argument("--only", nargs="+", choices=table3.MODELS, default=BACKBONES)
    parser.add_argument(
        "--optimizers", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS
    )
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--markdown", action="store_true", help="the table of README")
    options = parser.parse_args()
    if options.command == "table":
        models = {name: table3.MODELS[name] for name in options.only}
        print((markdown if options.markdown else text)(table(options.dataset, models)))
        return
    for backbone in options.only:
        for optimizer in options.optimizers:
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
