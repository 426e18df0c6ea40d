"""Figure 8 of the paper: the movies by their embeddings, coloured by genre.

    pip install -e ".[train,experiments]"
    python experiments/figure8.py run
    python experiments/figure8.py draw

SASRec on MovieLens-1M with genres as prior knowledge, the runs of Table 5: UMAP (the
defaults of umap-learn, seed 0) of the item tables for beta = 0, 0.5 and 0.99. The 18
genres are in the paper's six groups. A movie is of the group that most of its genres
are of; if several are, of the first of them as listed here.
"""

import argparse
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import study
from jobs import Job, do, trained
from matplotlib.figure import Figure
from paper import DATASETS, GENRES, RESULTS
from study import Cell
from table5 import BASELINE, GENRE_CELLS

from sevo_jax.reports import plots
from sevo_jax.training import load

CELLS = [BASELINE, *GENRE_CELLS]
GROUPS = (
    ("Thriller", "Crime", "Action", "Adventure"),
    ("Horror", "Mystery", "Film-Noir"),
    ("War", "Drama", "Romance"),
    ("Comedy", "Musical", "Children's", "Animation"),
    ("Fantasy", "Sci-Fi"),
    ("Western", "Documentary"),
)
SUFFIX = "-umap"


def umap_job(cell: Cell, seed: int, quick: bool = False) -> Job:
    """The points of a run."""
    job = cell.job(seed, quick)
    folder = job.folder if quick else RESULTS / "umap"
    return dataclasses.replace(job, name=job.name + SUFFIX, folder=folder)


def project(jobs: Sequence[Job], work: Path) -> Iterator[tuple[Job, dict[str, Any]]]:
    """The items of trained models in two dimensions, which are trained if need be."""
    # Of the extra `experiments`, and slow to import.
    from umap import UMAP  # pyright: ignore[reportMissingImports]

    for job in jobs:
        name = job.name.removesuffix(SUFFIX)
        folder = trained(dataclasses.replace(job, name=name), work)
        if folder is None:
            continue
        saved = load(folder)
        table = saved.model.item_embedding[saved.model.item_offset :]
        points: Any = UMAP(random_state=0, n_jobs=1).fit_transform(np.asarray(table))
        yield (
            job,
            {
                "dataset": job.dataset,
                "seed": job.seed,
                "epochs": saved.best_epoch,
                "points": np.round(points, 2).astype(float).tolist(),
                "groups": groups_of(saved.known.item_ids),
            },
        )


def groups_of(items: Sequence[Any]) -> list[int]:
    """The group of each item, by its id."""
    genres = json.loads(GENRES.read_text())
    return [group_of(genres[str(item)]) for item in items]


def group_of(genres: Sequence[str]) -> int:
    """The group that most of the genres are of."""
    counts = [len(set(group) & set(genres)) for group in GROUPS]
    return counts.index(max(counts))


def run_umap(options: argparse.Namespace) -> None:
    """The points of all runs."""
    work = study.QUICK / "work" if options.quick else options.work
    for cell in CELLS:
        if f"{cell.backbone}-{cell.dataset}".startswith(tuple(options.only)):
            for seed in options.seeds:
                do([umap_job(cell, seed, options.quick)], work, project)


def draw(quick: bool) -> Figure:
    """A panel a beta, of seed 0."""
    figure = Figure(figsize=(4.6 * len(CELLS), 4.8), layout="constrained")
    for cell, axes in zip(CELLS, figure.subplots(1, len(CELLS)), strict=True):
        study.style(axes, f"{DATASETS[cell.dataset]}: {cell.label}", "", "")
        axes.set_xticks([])
        axes.set_yticks([])
        result = umap_job(cell, 0, quick).result()
        if result is None:
            study.legend(axes)
            continue
        points, groups = np.array(result["points"]), np.array(result["groups"])
        for number, (group, colour) in enumerate(zip(GROUPS, plots.COLOURS)):
            shown = points[groups == number]
            axes.scatter(*shown.T, s=4, lw=0, color=colour, label=", ".join(group))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=3, markerscale=3
        )
    return figure


def main() -> None:
    if "run" in sys.argv[1:] and importlib.util.find_spec("umap") is None:
        raise SystemExit('UMAP is missing: pip install -e ".[train,experiments]"')
    study.main(__doc__, "figure8", CELLS, draw, run_more=run_umap)


if __name__ == "__main__":
    main()
