"""What the losses of today are compared on, and the search of each optimizer there.

A point is a model with a loss on a data set, or on a share of its users. At each AdamW
and SEvo-AdamW have a search of the same number of trials: from the recipe on, one
hyper-parameter of `grid` after another, each time keeping the best. What it finds and
where it began are then trained to the end, as short runs may mislead, and the better is
chosen. Only validation decides.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import study
import table3
from jobs import Job, Train, results_of, train
from paper import RESULTS, recipe_of
from table3 import SEEDS
from tuning import SHORT, best_of, value_of, with_value

from sevo_jax.training import RECIPES, Recipe

FOLDER = RESULTS / "losses"
SEARCH_SHARE = 2
"""A trial has one in so many of a recipe's epochs."""
KINDS = {"plain": "AdamW", "sevo": "SEvo-AdamW"}


@dataclass(frozen=True)
class Point:
    """What both optimizers are tuned for.

    Attributes:
      label: what it is called.
      base: its recipes are called `<base>-<data set>`.
      dataset: on what.
      loss: fields of the recipe's architecture with other values.
      percent: of the users.
    """

    label: str
    base: str
    dataset: str
    loss: Mapping[str, Any] = field(default_factory=dict)
    percent: int = 100

    @property
    def name(self) -> str:
        """For file names."""
        parts = [self.base, self.dataset]
        if self.loss:
            parts.append("".join(map(str, self.loss.values())))
        if self.percent < 100:
            parts.append(f"users{self.percent}")
        return "-".join(parts)

    def recipe(self, kind: str) -> Recipe:
        """Where the search of an optimizer starts."""
        recipe = RECIPES[f"{self.base}-{self.dataset}"]
        architecture = dataclasses.replace(recipe.architecture, **self.loss)
        recipe = dataclasses.replace(recipe, architecture=architecture)
        names = {"plain": "adamw", "sevo": "sevo_adamw"}
        if recipe.optimizer.name == "adam_l2":
            names = {"plain": "adam_l2", "sevo": "sevo_adam"}
        return recipe.with_optimizer(names[kind])

    def job(self, kind: str, recipe: Recipe, seed: int, quick: bool) -> Job:
        """A run to the end: that of Table 3, where it is the paper's recipe."""
        optimizer = recipe.optimizer.name
        of_paper = self.base in table3.MODELS and self.percent == 100
        if of_paper and not quick:
            if recipe == recipe_of(self.base, self.dataset, optimizer):
                return table3.job(self.base, self.dataset, optimizer, seed)
        return self._job(kind, recipe, seed, quick)

    def _job(self, kind: str, recipe: Recipe, seed: int, quick: bool) -> Job:
        name = "-".join([self.name, kind, *settings(recipe, kind)])
        dataset = self.dataset
        if self.percent < 100:
            dataset += f"-users{self.percent}"
        folder = study.QUICK / "results" if quick else FOLDER
        if quick:
            epochs = max(1, recipe.epochs // study.QUICK_SHARE)
            recipe = dataclasses.replace(recipe, epochs=epochs)
        return Job(name, recipe, dataset, seed, folder)

    def trial(self, kind: str, recipe: Recipe, quick: bool) -> Job:
        """A run of the search."""
        job = self._job(kind, recipe, 0, quick)
        short = dataclasses.replace(
            job.recipe, epochs=max(1, job.recipe.epochs // SEARCH_SHARE)
        )
        return dataclasses.replace(
            job, name=f"search-{job.name}", recipe=short, test=False
        )

    def chosen(
        self, kind: str, quick: bool, work: Path | None = None, train: Train = train
    ) -> Recipe | None:
        """Of what the search finds and where it began, the better.

        Args:
          kind: of `KINDS`.
          quick: whether in quick runs.
          work: folder to do missing runs in; None does none.
          train: does the runs to the end, as for `jobs.do`.

        Returns:
          None if a run is missing.
        """
        start = best = self.recipe(kind)
        for name, values in grid(best, kind).items():
            others = (value for value in values if value != value_of(best, name))
            # The current value first: of equals, it stays.
            candidates = [best, *(with_value(best, name, value) for value in others)]
            best = best_of(candidates, lambda each: self.trial(kind, each, quick), work)
            if best is None:
                return None
        if best == start:
            return start
        return best_of(
            [start, best], lambda each: self.job(kind, each, 0, quick), work, train
        )

    def results(self, kind: str, quick: bool = False) -> dict[int, dict]:
        """What there is of the runs of what is found, by seed."""
        recipe = self.chosen(kind, quick)
        if recipe is None:
            return {}
        return results_of(self.job(kind, recipe, seed, quick) for seed in SEEDS)


def grid(recipe: Recipe, kind: str) -> dict[str, tuple[float, ...]]:
    """The values that a search tries, in its order; as many for both kinds."""
    rates = (5e-4, 1e-3, 2e-3)
    # A decay in the gradient is of another size.
    coupled = recipe.optimizer.name in ("adam_l2", "sevo_adam")
    betas: dict[str, tuple[float, ...]] = {"beta": (0.5, 0.9, 0.99)}
    return {
        "learning_rate": rates if kind == "sevo" else (2.5e-4, *rates, 4e-3),
        **(betas if kind == "sevo" else {}),
        "weight_decay": (0.0, 1e-5, 1e-4) if coupled else (0.0, 0.1, 0.5),
        "dropout": (0.3, 0.5, 0.7),
    }


def settings(recipe: Recipe, kind: str) -> list[str]:
    """The values of the grid's hyper-parameters."""
    return [
        f"{SHORT[name][0]}{value_of(recipe, name):g}" for name in grid(recipe, kind)
    ]


MODELS = {
    "sasrec-ce": "SASRec",
    "gru4rec-ce": "GRU4Rec",
    "zero-block": "zero-block",
    "bsarec": "BSARec",
}
TUNED = [
    Point(label, base, dataset)
    for dataset in ("beauty", "toys", "tools")
    for base, label in MODELS.items()
    if f"{base}-{dataset}" in RECIPES
]
MAPPED = ("beauty", "tools")
DRAWN = (1, 8, 64, 512)
PERCENTS = (10, 30, 100)


def with_all(dataset: str, percent: int = 100) -> Point:
    """SASRec with the softmax over all items."""
    label = "SASRec" if percent == 100 else f"SASRec, {percent} % of users"
    return Point(label, "sasrec-ce", dataset, percent=percent)


def by_negatives(dataset: str) -> dict[str, Point]:
    """The points of the map with different numbers of negatives."""
    points = {"BCE, 1": Point("SASRec, BCE", "sasrec", dataset)}
    for number in DRAWN:
        loss = {"loss": "sampled", "num_negatives": number}
        label = f"SASRec, {number} drawn"
        points[str(number)] = Point(label, "sasrec-ce", dataset, loss)
    return points | {"all": with_all(dataset)}


def all_points() -> list[Point]:
    """Each once: those of `TUNED`, and the others of the map."""
    points = {point.name: point for point in TUNED}
    for dataset in MAPPED:
        for point in by_negatives(dataset).values():
            points.setdefault(point.name, point)
        for percent in PERCENTS:
            point = with_all(dataset, percent)
            points.setdefault(point.name, point)
    return list(points.values())
