"""Table 3 of the paper: graph models, and the five backbones with and without SEvo.

    python experiments/table3.py run
    python experiments/table3.py run --only mf-bpr stosa-beauty --seeds 0
    python experiments/table3.py table
    python experiments/table3.py table --markdown
    python experiments/table3.py draw

`run` trains what has no result yet, the most valuable runs first, and writes one file a
run into ``results/table3``. It can be stopped at any time and started again, and
several can work side by side (on parts of a machine's processors, say): none repeats
or disturbs what another does. `table` prints what there is beside the paper's numbers
and the authors' own, and what is missing. Its last column is of the validation targets,
by which the epoch is chosen: it tells a model that differs from the authors' (both
NDCG@10 do) from chance in the test targets. How likely chance is, the row "p of the
same mean" says: Student's t-test of our seeds and the authors' five. With
``--markdown`` it prints NDCG@10 alone. `draw` draws how SASRec learns on Beauty with
either optimizer, into ``docs/validation.png``.

Without SEvo means AdamW with the hyper-parameters of the SEvo run: those of the paper's
plain backbones are unpublished. SEvo on a graph model is not in the paper.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
from jobs import Job, do, num_diverged, results_of
from matplotlib.figure import Figure
from paper import BACKBONES, DATASETS, GRAPH_MODELS, NUMBERS, RESULTS, recipe_of
from scipy import stats
from tables import (
    COLUMNS,
    VALID,
    Results,
    change,
    column,
    improvements,
    markdown,
    percent,
    seeds,
    seeds_run,
    spread,
    spread_of,
    text,
)

from sevo_jax.evaluation import PAPER_METRICS
from sevo_jax.reports import plots
from sevo_jax.reports.comparison import Spread

FOLDER = RESULTS / "table3"
MODELS = GRAPH_MODELS | BACKBONES
PICTURE = Path(__file__).parents[1] / "docs" / "validation.png"
OPTIMIZERS = ("sevo_adamw", "adamw")
SEEDS = range(5)
NUM_AUTHORS_SEEDS = 5
# The recipe's `sampling` that draws samples as the authors do.
AUTHORS_SAMPLING = {
    "gru4rec": "prefix",
    "bert4rec": "loaders",
    "sr-gnn": "prefix",
    "lessr": "prefix",
}


def job(backbone: str, dataset: str, optimizer: str, seed: int) -> Job:
    """The run of a cell of the table: the paper's recipe with that optimizer."""
    recipe = recipe_of(backbone, dataset, optimizer)
    return Job(f"{backbone}-{dataset}-{optimizer}", recipe, dataset, seed, FOLDER)


def authors_job(backbone: str, dataset: str, optimizer: str, seed: int) -> Job:
    """The run of a cell, but on samples drawn as the authors do."""
    run = job(backbone, dataset, optimizer, seed)
    sampling = AUTHORS_SAMPLING[backbone]
    architecture = dataclasses.replace(run.recipe.architecture, sampling=sampling)
    recipe = dataclasses.replace(run.recipe, architecture=architecture)
    folder = RESULTS / "sampling"
    name = f"{run.name}-{sampling}"
    return dataclasses.replace(run, name=name, recipe=recipe, folder=folder)


def jobs(seeds: list[int]) -> Iterator[list[Job]]:
    """All runs, in groups that train together: on an accelerator the seeds of a cell.

    On a CPU each by itself, a first seed of everything before the second of anything.
    """
    cells = [
        (backbone, dataset, optimizer)
        for dataset in DATASETS
        for backbone, about in MODELS.items()
        for optimizer in OPTIMIZERS
        if optimizer != "adamw" or about.plain == backbone
    ]
    if jax.default_backend() == "cpu":
        yield from ([job(*cell, seed)] for seed in seeds for cell in cells)
    else:
        yield from ([job(*cell, seed) for seed in seeds] for cell in cells)


def cell_jobs(backbone: str, dataset: str, make=job) -> tuple[list[Job], list[Job]]:
    """The runs with SEvo and without it."""
    plain = MODELS[backbone].plain
    return (
        [make(backbone, dataset, "sevo_adamw", seed) for seed in SEEDS],
        [make(plain, dataset, "adamw", seed) for seed in SEEDS],
    )


def cell(backbone: str, dataset: str, make=job) -> tuple[Results, Results]:
    """What there is with SEvo and without it."""
    sevo, plain = cell_jobs(backbone, dataset, make)
    return results_of(sevo), results_of(plain)


def authors_spreads(backbone: str, dataset: str) -> list[str]:
    """The columns of the authors' own runs of a cell."""
    authors = NUMBERS["with"][f"{backbone}-{dataset}"]
    return [spread_of(authors[name]["mean"], authors[name]["std"]) for name in COLUMNS]


def table() -> str:
    """All metrics of what there is, in the order of the paper's table."""
    parts, missing = [], []
    for dataset in DATASETS:
        rows = [[dataset, *COLUMNS]]
        for backbone, about in MODELS.items():
            sevo, plain = cell(backbone, dataset)
            paper = NUMBERS["without"][f"{about.paper}-{dataset}"]
            rows.append([backbone, *[""] * len(COLUMNS)])
            rows.append(
                ["  AdamW, paper", *(f"{paper[m]:.4f}" for m in PAPER_METRICS), ""]
            )
            if plain:
                rows.append([f"  AdamW, {seeds(plain)}", *_spreads(plain)])
            authors = NUMBERS["with"].get(f"{backbone}-{dataset}")
            if authors:
                rows.append(["  SEvo, authors", *authors_spreads(backbone, dataset)])
            if sevo:
                rows.append([f"  SEvo, {seeds(sevo)}", *_spreads(sevo)])
            if sevo and authors:
                rows.append(["  p of the same mean", *_same_means(sevo, authors)])
            if sevo and plain:
                changes = (change(column(plain, m), column(sevo, m)) for m in COLUMNS)
                rows.append(["  SEvo over AdamW", *changes])
            missing += [
                f"{backbone}-{dataset} {optimizer}"
                for optimizer, found in zip(OPTIMIZERS, (sevo, plain), strict=True)
                if not found
            ]
        parts.append(text(rows))
    parts.append(text(average_improvements()))
    parts.append(f"missing: {', '.join(missing) or 'nothing'}")
    return "\n\n".join(parts)


def table_in_markdown() -> str:
    """NDCG@10 of what there is, and which cells there are not yet."""
    rows = [
        ["data", "backbone", "seeds", "SEvo-AdamW", "the authors"]
        + ["AdamW", "the paper", "SEvo over AdamW"]
    ]
    missing: dict[str, list[str]] = {}
    for dataset, title in DATASETS.items():
        for backbone, about in BACKBONES.items():
            compared = [spread_of(*_authors(backbone, dataset)), _paper(about, dataset)]
            for number, (note, make) in enumerate(_ways(backbone)):
                # The authors train one way, the first.
                authors, paper = ["", ""] if number else compared
                label = about.label + note
                runs = cell_jobs(backbone, dataset, make)
                both = [results_of(each) for each in runs]
                counts = [
                    seeds_run(len(found), num_diverged(each))
                    for found, each in zip(both, runs, strict=True)
                ]
                if counts == ["not run"] * 2:
                    missing.setdefault(title, []).append(label)
                    continue
                sevo, plain = (column(each, "NDCG@10") for each in both)
                rows.append(
                    [title, label, " and ".join(dict.fromkeys(counts))]
                    + [spread(sevo) if sevo else "", authors]
                    + [spread(plain) if plain else "", paper]
                    + [change(plain, sevo) if plain and sevo else ""]
                )
    gaps = (f"on {title} {', '.join(each)}" for title, each in missing.items())
    return f"{markdown(rows)}\n\nNot run yet: {'; '.join(gaps) or 'nothing'}."


def graph_models() -> list[list[str]]:
    """NDCG@10 of the graph models beside the paper's, and with SEvo on top."""
    rows = [["data", "model", "seeds", "AdamW", "the paper", "over the paper"]]
    rows[0] += ["SEvo-AdamW", "SEvo over AdamW"]
    for dataset, title in DATASETS.items():
        for model, about in GRAPH_MODELS.items():
            found = cell(model, dataset)
            sevo, plain = (column(each, "NDCG@10") for each in found)
            paper = NUMBERS["without"][f"{model}-{dataset}"]["NDCG@10"]
            counts = {str(len(each)): None for each in (plain, sevo) if each}
            row = [title, about.label, " and ".join(counts) or "none"]
            row += [spread(plain) if plain else "not run", f"{paper:.4f}"]
            over = sum(plain.values()) / len(plain) / paper - 1 if plain else None
            row += ["" if over is None else percent(over)]
            row += [spread(sevo) if sevo else "not run"]
            rows.append([*row, change(plain, sevo) if plain and sevo else ""])
    return rows


def short_table() -> list[list[str]]:
    """Test NDCG@10 on Beauty of one backbone of each kind, as README shows it."""
    rows = [["Amazon Beauty", "seeds", "AdamW", "SEvo-AdamW", "change"]]
    for backbone in ("mf-bpr-ii", "gru4rec", "sasrec", "stosa", "bert4rec"):
        sevo, plain = (column(each, "NDCG@10") for each in cell(backbone, "beauty"))
        counts = " and ".join(map(str, {len(plain): None, len(sevo): None}))
        gain = change(plain, sevo)
        label = BACKBONES[backbone].label
        rows.append([label, counts, spread(plain), spread(sevo), gain])
    return rows


def progress() -> list[list[str]]:
    """Validation NDCG@10 of SASRec on Beauty after some epochs, of the same seeds."""
    epochs = (5, 10, 15, 25, 50, 100, 200)
    rows = [["epochs", *map(str, epochs)]]
    for name, curve in _curves("sasrec", "beauty").items():
        points = dict(zip(curve.epochs, curve.values.T, strict=True))
        cells = [spread(dict(enumerate(points[epoch]))) for epoch in epochs]
        rows.append([name, *cells])
    return rows


def draw() -> Figure:
    """Validation NDCG@10 of SASRec on Beauty through training."""
    return plots.validation(_curves("sasrec", "beauty"), "NDCG@10", "SASRec, Beauty")


def _curves(backbone: str, dataset: str) -> dict[str, plots.Curves]:
    """Validation NDCG@10 by epoch, of the seeds that both optimizers have."""
    sevo, plain = cell(backbone, dataset)
    shared = sorted(sevo.keys() & plain.keys())
    return {
        label: plots.Curves.of(
            [{int(e): v for e, v in found[seed][VALID].items()} for seed in shared]
        )
        for label, found in (("AdamW", plain), ("SEvo-AdamW", sevo))
    }


def average_improvements() -> list[list[str]]:
    """As the paper's last row: the mean over all data sets and metrics."""
    rows = [["mean improvement", "here", "the paper", "the paper, same data sets"]]
    for backbone, about in BACKBONES.items():
        for label, make in _ways(backbone):
            ours, paper = {}, {}
            for dataset in DATASETS:
                sevo, plain = cell(backbone, dataset, make)
                shared = sevo.keys() & plain.keys()
                if shared:
                    gains = improvements(plain, sevo, shared)
                    ours |= {f"{dataset} {name}": each for name, each in gains.items()}
                for metric in PAPER_METRICS:
                    with_sevo = NUMBERS["with"][f"{backbone}-{dataset}"][metric]["mean"]
                    without = NUMBERS["without"][f"{about.paper}-{dataset}"][metric]
                    paper[f"{dataset} {metric}"] = with_sevo / without - 1
            same = {key: paper[key] for key in ours}
            cells = [_mean_percent(each) for each in (ours, paper, same)]
            datasets = len(ours) // len(PAPER_METRICS)
            rows.append([f"{about.label}{label}, {datasets} data sets", *cells])
    return rows


def _ways(backbone: str) -> list[tuple[str, Callable[..., Job]]]:
    """How a backbone is trained; GRU4Rec first as the authors train it."""
    if backbone == "gru4rec":
        return [(", prefixes", authors_job), (", sequences", job)]
    return [("", job)]


def _mean_percent(improvements: Mapping[str, float]) -> str:
    if not improvements:
        return "not run"
    return percent(sum(improvements.values()) / len(improvements))


def _authors(backbone: str, dataset: str) -> tuple[float, float]:
    authors = NUMBERS["with"][f"{backbone}-{dataset}"]["NDCG@10"]
    return authors["mean"], authors["std"]


def _paper(about, dataset: str) -> str:
    return f"{NUMBERS['without'][f'{about.paper}-{dataset}']['NDCG@10']:.4f}"


def _spreads(results: Results) -> list[str]:
    return [spread(column(results, name)) for name in COLUMNS]


def _same_means(results: Results, authors: Mapping[str, Mapping]) -> list[str]:
    """p-values of t-tests with equal variances, which one seed is enough for."""
    cells = []
    for name in COLUMNS:
        found = Spread.of(list(column(results, name).values()))
        ours = (found.mean, found.std if len(results) > 1 else 0.0, len(results))
        theirs = (authors[name]["mean"], authors[name]["std"], NUM_AUTHORS_SEEDS)
        cells.append(f"{stats.ttest_ind_from_stats(*ours, *theirs).pvalue:.2g}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table", "draw"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--only", nargs="+", default=[""], help="runs whose names begin so"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--markdown", action="store_true", help="NDCG@10 alone")
    options = parser.parse_args()
    if options.command == "table":
        print(table_in_markdown() if options.markdown else table())
        return
    if options.command == "draw":
        plots.save(draw(), PICTURE)
        print("written to", PICTURE)
        return
    for group in jobs(options.seeds):
        wanted = tuple(options.only)
        do([job for job in group if job.name.startswith(wanted)], options.work)


if __name__ == "__main__":
    main()
