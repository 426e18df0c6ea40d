"""Figure 5 of the paper: (a) other optimizers, (b) the two approximations of psi.

    python experiments/figure5.py run --only sasrec-beauty
    python experiments/figure5.py table
    python experiments/figure5.py draw

(a) SASRec with SGD (momentum 0.9), Adam and AdamW, with and without SEvo. Each of the
six is tuned by itself: of three learning rates, `RATES`, that with the best validation
NDCG@10 after a quarter of the epochs, from seed 0; then it is trained for all. SGD and
Adam have no weight decay, AdamW that of the recipe. (b) SEvo-AdamW with the rescaled
Neumann series and with the iterative form, for several beta.
"""

import argparse
import dataclasses

import study
from jobs import Job, do
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paper import DATASETS
from study import Cell

from sevo_jax.reports import plots

SHOWN = ("beauty", "ml-1m")
RATES = {
    "sgd": (0.3, 1.0, 3.0),
    "adam": (5e-4, 1e-3, 5e-3),
    "adamw": (5e-4, 1e-3, 5e-3),
}
OPTIMIZERS = [prefix + name for name in RATES for prefix in ("", "sevo_")]
SEARCH_SHARE = 4
BETAS = {
    "beauty": (0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999),
    "ml-1m": (0.5, 0.9, 0.99),
}
APPROXIMATIONS = ("neumann", "iterative")


def tuned(dataset: str, optimizer: str, rate: float) -> Cell:
    """A candidate of (a)."""
    changes = {"optimizer.name": optimizer, "optimizer.learning_rate": rate}
    if "adamw" not in optimizer:
        changes["optimizer.weight_decay"] = 0.0
    if "sgd" in optimizer:
        changes["optimizer.momentum"] = 0.9
    return Cell(f"{optimizer}, rate {rate:g}", changes, dataset=dataset)


def search_job(cell: Cell, quick: bool) -> Job:
    """The short run that a candidate is chosen by."""
    job = cell.job(0, quick)
    epochs = max(1, job.recipe.epochs // SEARCH_SHARE)
    recipe = dataclasses.replace(job.recipe, epochs=epochs)
    folder = job.folder if quick else study.FOLDER
    rate = f"lr{recipe.optimizer.learning_rate:g}"
    name = f"search-sasrec-{cell.dataset}-{recipe.optimizer.name}-{rate}"
    return dataclasses.replace(job, name=name, recipe=recipe, folder=folder, test=False)


def chosen(dataset: str, optimizer: str, quick: bool) -> Cell | None:
    """What the search finds; None while it is not done."""
    scores = {}
    for rate in RATES[optimizer.removeprefix("sevo_")]:
        cell = tuned(dataset, optimizer, rate)
        result = search_job(cell, quick).result()
        if result is None:
            return None
        scores[rate] = -1.0 if "diverged" in result else result["valid"]["NDCG@10"]
    return tuned(dataset, optimizer, max(scores, key=scores.__getitem__))


def run_tuned(options: argparse.Namespace) -> None:
    """The search of (a), and the runs of what it finds."""
    work = study.QUICK / "work" if options.quick else options.work
    for dataset in SHOWN:
        if f"sasrec-{dataset}".startswith(tuple(options.only)):
            for optimizer in OPTIMIZERS:
                for rate in RATES[optimizer.removeprefix("sevo_")]:
                    do(
                        [search_job(tuned(dataset, optimizer, rate), options.quick)],
                        work,
                    )
                cell = chosen(dataset, optimizer, options.quick)
                study.run([cell] if cell else [], options)


def approximated(dataset: str, approximation: str, beta: float) -> Cell:
    """A point of (b)."""
    changes = {"optimizer.approximation": approximation, "optimizer.beta": beta}
    return Cell(f"{approximation}, β = {beta:g}", changes, dataset=dataset)


CELLS = [
    approximated(dataset, approximation, beta)
    for dataset, betas in BETAS.items()
    for approximation in APPROXIMATIONS
    for beta in betas
]


def draw(quick: bool) -> Figure:
    """A row a data set: bars of the optimizers, curves of the approximations.

    Of the seeds that all in a panel have.
    """
    figure = Figure(figsize=(11, 3.6 * len(SHOWN)), layout="constrained")
    for dataset, row in zip(SHOWN, figure.subplots(len(SHOWN), 2), strict=True):
        title = DATASETS[dataset]
        study.style(row[0], f"{title}: optimizers, tuned", "", "test NDCG@10")
        study.style(row[1], f"{title}: approximations", "β", "test NDCG@10")
        _bars(row[0], dataset, quick)
        cells = {
            (approximation, place): approximated(dataset, approximation, beta)
            for approximation in APPROXIMATIONS
            for place, beta in enumerate(BETAS[dataset])
        }
        points = study.means(cells, "NDCG@10", quick)
        for index, approximation in enumerate(APPROXIMATIONS):
            own = {
                x: mean for (each, x), mean in points.items() if each == approximation
            }
            study.curve(row[1], own, index, approximation)
        row[1].set_xticks(range(len(BETAS[dataset])), map(str, BETAS[dataset]))
        study.legend(row[1])
    return figure


def _bars(axes: Axes, dataset: str, quick: bool) -> None:
    found = {name: chosen(dataset, name, quick) for name in OPTIMIZERS}
    cells = {name: cell for name, cell in found.items() if cell is not None}
    means = study.means(cells, "NDCG@10", quick)
    for place, optimizer in enumerate(OPTIMIZERS):
        mean = means.get(optimizer)
        bars = axes.bar(place, mean or 0.0, color=plots.COLOURS[place % 2])
        label = "not run" if mean is None else f"{mean:.4f}"
        axes.bar_label(bars, [label], fontsize=8)
    axes.set_xticks(range(len(OPTIMIZERS)), OPTIMIZERS, fontsize=8)


def all_cells() -> list[Cell]:
    """(b), and of (a) what the search has found, each with SEvo beside its own."""
    cells = list(CELLS)
    for dataset in SHOWN:
        for name in RATES:
            plain, ours = (chosen(dataset, p + name, False) for p in ("", "sevo_"))
            cells += [plain] if plain else []
            cells += [dataclasses.replace(ours, baseline=plain)] if ours else []
    return cells


def main() -> None:
    study.main(__doc__, "figure5", all_cells(), draw, run_more=run_tuned)


if __name__ == "__main__":
    main()
