"""Figure 4 of the paper: (a) convergence, (b) smoothness through training.

    python experiments/figure4.py run
    python experiments/figure4.py draw

(a) The training loss of SASRec with SEvo as in Eq. 7, with SEvo that is not rescaled
(Eq. 6), and with plain AdamW, by the same hyper-parameters. (b) For several beta, how
smooth three tables are, J(X) / |X|^2: (I) the variation before the smoothing, (II)
after it, both of the first step of every fifth epoch, and (III) the embedding. The runs
of (b) are not checkpointed: what is stopped begins anew.
"""

import argparse

import numpy as np
import study
from jobs import do
from matplotlib.figure import Figure
from paper import DATASETS
from smoothness import TABLES, record, smoothness_job
from study import Cell

SHOWN = ("beauty", "ml-1m")
CELLS = [
    Cell(label, changes, dataset=dataset)
    for dataset in SHOWN
    for label, changes in (
        ("SEvo", {}),
        ("SEvo, not rescaled", {"optimizer.rescale": False}),
        ("AdamW", {"optimizer.name": "adamw"}),
    )
]
BETAS = (0.0, 0.5, 0.9, 0.99, 0.999)


def run_smoothness(options: argparse.Namespace) -> None:
    """The runs of (b)."""
    work = study.QUICK / "work" if options.quick else options.work
    for dataset in SHOWN:
        if f"sasrec-{dataset}".startswith(tuple(options.only)):
            for beta in BETAS:
                for seed in options.seeds:
                    do(
                        [smoothness_job(dataset, beta, seed, options.quick)],
                        work,
                        record,
                    )


def draw(quick: bool) -> Figure:
    """A row a data set: losses, and the smoothness of the three tables."""
    figure = Figure(figsize=(14, 3.4 * len(SHOWN)), layout="constrained")
    for dataset, row in zip(SHOWN, figure.subplots(len(SHOWN), 4), strict=True):
        title = f"{DATASETS[dataset]}: training loss"
        study.style(row[0], title, "epochs trained", "mean loss of the epoch (nats)")
        cells = [cell for cell in CELLS if cell.dataset == dataset]
        for index, cell in enumerate(cells):
            losses = [each["losses"] for each in cell.results(quick).values()]
            points = dict(enumerate(np.mean(losses, axis=0), 1)) if losses else {}
            study.curve(row[0], points, index, cell.label)
        for axes, (name, title) in zip(row[1:], TABLES.items(), strict=True):
            study.style(axes, title, "epochs trained", "J(X) / |X|² (lower: smoother)")
            for index, beta in enumerate(BETAS):
                result = smoothness_job(dataset, beta, 0, quick).result() or {name: {}}
                points = {int(epoch): each for epoch, each in result[name].items()}
                study.curve(axes, points, index, f"β = {beta:g}")
        for axes in row:
            study.legend(axes)
    return figure


def main() -> None:
    study.main(__doc__, "figure4", CELLS, draw, run_more=run_smoothness)


if __name__ == "__main__":
    main()
