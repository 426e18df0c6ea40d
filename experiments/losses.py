"""SEvo with the losses of today: both optimizers tuned alike, and where it helps.

    python experiments/losses.py run --only sasrec-ce-tools zero-block
    python experiments/losses.py run --only sasrec-ce-beauty --seeds 0 1 2
    python experiments/losses.py table
    python experiments/losses.py draw

The paper trains with one negative a target. Here SASRec, GRU4Rec, the zero-block model
and BSARec have the softmax over all items. The map shows the gain by SEvo of SASRec
against the number of negatives (binary cross-entropy with one; a softmax over 1, 8, 64
or 512 drawn items; all items), against the share of the users that there are, and by
the popularity of the target in training, five groups of equally many users.

At each point AdamW and SEvo-AdamW (BSARec: Adam and SEvo-Adam) have a search of the
same number of trials (``points.py``). SEvo has one more hyper-parameter, beta, and so
many fewer learning rates. A trial has half of the recipe's epochs and the seed 0; only
validation NDCG@10 counts, and the test metrics are not even written down. What is found
and where the search began are trained for all epochs, and the better is, from each
seed. Both stop once validation no longer improves, where the recipe does. SASRec on
Beauty is also trained with a beta that goes to 0 by the last epoch, in a line or along
a cosine, beside one that stays, for all epochs each; and with Muon on its matrices.
Runs are resumable and may be done side by side; trials and runs go to
``results/losses``, and the paper's own recipe is the run of Table 3.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib
import paper
import study
import tables
from jobs import Job, do, num_diverged, results_of, train
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paper import DATASETS, RESULTS
from points import (
    KINDS,
    MAPPED,
    PERCENTS,
    Point,
    all_points,
    by_negatives,
    settings,
    with_all,
)
from table3 import SEEDS

import sevo_jax as sevo
from sevo_jax.data import LeaveOneOut
from sevo_jax.evaluation import Evaluator, measure
from sevo_jax.models import Recommender
from sevo_jax.training import load
from sevo_jax.training.optimizers import SEVO

METRIC = "NDCG@10"
GROUPS = 5
BY_POPULARITY = "NDCG@10 by popularity"
VARIANTS = {
    "constant": "β constant, to the last epoch",
    "linear": "β linear to 0",
    "cosine": "β cosine to 0",
    "muon": "Muon on matrices",
}


def sevo_adamw_muon(
    learning_rate, graphs, b1=0.9, b2=0.999, weight_decay=0.1, *, beta=0.99
) -> optax.GradientTransformationExtraArgs:
    """SEvo-AdamW on tables and vectors, Muon on the matrices between them.

    Muon's updates are scaled to the size of Adam's, so that the learning rate and the
    decay of the one fit the other: Liu et al., "Muon is scalable for LLM training",
    2025.
    """

    def label(path, leaf):
        is_table = "embedding" in jax.tree_util.keystr(path)
        return "muon" if leaf.ndim == 2 and not is_table else "sevo"

    ours = sevo.sevo_adamw(
        learning_rate, graphs, b1=b1, b2=b2, weight_decay=weight_decay, beta=beta
    )
    muon = optax.contrib.muon(
        learning_rate, weight_decay=weight_decay, consistent_rms=0.2
    )
    both = optax.partition(
        {"sevo": ours, "muon": muon},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
    return optax.with_extra_args_support(both)


SEVO["sevo_adamw_muon"] = sevo_adamw_muon


def varied(variant: str, seed: int, quick: bool) -> Job | None:
    """SASRec on Beauty as the search found it, with one of `VARIANTS`."""
    point = with_all("beauty")
    recipe = point.chosen("sevo", quick)
    if recipe is None:
        return None
    changes: dict[str, Any] = {}
    if variant == "muon":
        changes = {"name": "sevo_adamw_muon"}
    elif variant != "constant":
        epochs = recipe.epochs // study.QUICK_SHARE if quick else recipe.epochs
        changes = {"beta_schedule": variant, "beta_epochs": float(max(1, epochs))}
    if variant != "muon":
        # They end where beta does, not before.
        recipe = dataclasses.replace(recipe, patience=None)
    optimizer = dataclasses.replace(recipe.optimizer, **changes)
    recipe = dataclasses.replace(recipe, optimizer=optimizer)
    job = point.job("sevo", recipe, seed, quick)
    return dataclasses.replace(job, name=f"{job.name}-{variant}")


def train_by_popularity(
    jobs: Sequence[Job], work: Path
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """As `jobs.train`, with the test metric by the popularity of the target."""
    for job, values in train(jobs, work):
        if "diverged" not in values:
            model = load(work / job.full_name).model
            values[BY_POPULARITY] = by_popularity(model, paper.load(job.dataset))
        yield job, values


def by_popularity(model: Recommender, split: LeaveOneOut) -> list[float]:
    """Test NDCG@10 of five equal groups of users, the rarest targets first.

    How popular an item is, its interactions in training say.
    """
    evaluator = Evaluator(model, split, "test")
    ranks = evaluator.ranks(model)
    counts = np.bincount(split.train.values, minlength=split.num_items)
    order = np.argsort(counts[split.test[evaluator.users]], kind="stable")
    groups = np.array_split(order, GROUPS)
    return [measure(ranks[group], [METRIC])[METRIC] for group in groups]


def run(options: argparse.Namespace) -> None:
    """The searches, and the runs of what they find."""
    work = study.QUICK / "work" if options.quick else options.work
    for point in all_points():
        if not point.name.startswith(tuple(options.only)):
            continue
        for kind in KINDS:
            recipe = point.chosen(kind, options.quick, work, train_by_popularity)
            if recipe is None:  # Another process is at it.
                continue
            jobs = [
                point.job(kind, recipe, seed, options.quick) for seed in options.seeds
            ]
            together = jax.default_backend() != "cpu"
            for group in [jobs] if together else [[job] for job in jobs]:
                do(group, work, train_by_popularity)
    if with_all("beauty").name.startswith(tuple(options.only)):
        for variant in VARIANTS:
            for seed in options.seeds:
                job = varied(variant, seed, options.quick)
                do([job] if job else [], work)


def table(quick: bool = False) -> list[list[str]]:
    """Test NDCG@10 of both optimizers with what the searches chose."""
    rows = [["data", "", *KINDS.values(), "SEvo over AdamW", "AdamW's best validation"]]
    for point in all_points():
        found = {kind: point.results(kind, quick) for kind in KINDS}
        cells = [_cell(point, kind, each, quick) for kind, each in found.items()]
        change = reached = ""
        if all(found.values()):
            columns = (tables.column(each, METRIC) for each in found.values())
            change = tables.change(*columns)
            reached = when_reached(found["plain"], found["sevo"])
        title = DATASETS[point.dataset]
        rows.append([title, point.label, *cells, change, reached])
    for variant, label in VARIANTS.items():
        jobs = (varied(variant, seed, quick) for seed in SEEDS)
        found = results_of(job for job in jobs if job)
        if found:
            mean = tables.spread(tables.column(found, METRIC))
            cell = f"{mean} ({tables.seeds(found)})"
            rows.append(["Beauty", f"SASRec, {label}", "", cell, "", ""])
    return rows


def _cell(point: Point, kind: str, found: dict[int, dict], quick: bool) -> str:
    recipe = point.chosen(kind, quick)
    if recipe is None:
        return "search not done"
    lost = num_diverged(point.job(kind, recipe, seed, quick) for seed in SEEDS)
    if not found:
        return tables.seeds_run(0, lost)
    notes = " ".join(settings(recipe, kind))
    mean = tables.spread(tables.column(found, METRIC))
    diverged = f", {lost} diverged" if lost else ""
    return f"{mean} ({notes}; {tables.seeds(found)}{diverged})"


def when_reached(plain: dict[int, dict], sevo: dict[int, dict]) -> str:
    """After which epoch AdamW has its best validation metric, and SEvo as much.

    Of each seed that both have. Seconds would be of processors that other runs share.
    """
    shared = sorted(plain.keys() & sevo.keys())
    if not shared:
        return ""
    texts = []
    for results in (plain, sevo):
        epochs = []
        for seed in shared:
            best = max(plain[seed][tables.VALID].values())
            curve = results[seed][tables.VALID].items()
            reached = [int(epoch) for epoch, value in curve if value >= best]
            epochs.append(str(min(reached)) if reached else "never")
        texts.append(", ".join(epochs))
    return f"epoch {texts[0]}; SEvo {texts[1]}"


def page() -> str:
    """Picture and table of what there is, and what is missing, in Markdown."""
    head, *rows = table()
    missing = ("search not done", "not run")
    gaps = [row for row in rows if row[2] in missing and row[3] in missing]
    parts = ["![losses](results/losses.png)"] * (RESULTS / "losses.png").exists()
    done = [row for row in rows if row not in gaps]
    parts += [tables.markdown([head, *done])] * bool(done)
    if gaps:
        names = "; ".join(f"{title}, {label}" for title, label, *_ in gaps)
        parts.append(f"Not run yet: {names}.")
    return "\n\n".join(parts)


def scores(point: Point, group: int | None = None, quick: bool = False) -> np.ndarray:
    """Test NDCG@10 of both optimizers, `[2, seeds]`, with the seeds that both have.

    Of one group of users, or of all.
    """
    found = [point.results(kind, quick) for kind in KINDS]
    shared = sorted(found[0].keys() & found[1].keys())
    values = [
        each[seed]["test"][METRIC]
        if group is None
        else each[seed][BY_POPULARITY][group]
        for each in found
        for seed in shared
    ]
    return np.reshape(values, (2, len(shared)))


def draw(quick: bool) -> Figure:
    """The map: a row a data set of which something is known, a panel a question."""
    rows = {dataset: _panels(dataset, quick) for dataset in MAPPED}
    known = {
        dataset: panels
        for dataset, panels in rows.items()
        if any(each.size for places in panels.values() for each in places.values())
    }
    rows = known or rows
    figure = Figure(figsize=(13, 3.6 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for (dataset, panels), row in zip(rows.items(), grid, strict=True):
        for axes, (xlabel, places) in zip(row, panels.items(), strict=True):
            title = f"SASRec on {DATASETS[dataset]}"
            study.style(axes, title, xlabel, f"SEvo over AdamW, {METRIC}, %")
            _gains(axes, places)
    return figure


def _panels(dataset: str, quick: bool) -> dict[str, dict[str, np.ndarray]]:
    """The scores at each place of each panel."""
    all_items = with_all(dataset)
    return {
        "negatives of a target": {
            name: scores(point, quick=quick)
            for name, point in by_negatives(dataset).items()
        },
        "share of users": {
            f"{percent} %": scores(with_all(dataset, percent), quick=quick)
            for percent in PERCENTS
        },
        "popularity of the target, rarest first": {
            str(group + 1): scores(all_items, group, quick) for group in range(GROUPS)
        },
    }


def _gains(axes: Axes, places: Mapping[str, np.ndarray]) -> None:
    """The gain of the means at each place, and of each seed."""
    axes.set_xticks(range(len(places)), list(places))
    axes.set_xlim(-0.3, len(places) - 0.7)  # Also where some of it is not known.
    axes.axhline(0, color="black", lw=0.6)
    # The line has gaps where it is not known.
    means = dict.fromkeys(range(len(places)), np.nan)
    for place, (plain, smooth) in enumerate(places.values()):
        if plain.size and plain.all():
            means[place] = 100 * (smooth.mean() / plain.mean() - 1)
            each = 100 * (smooth / plain - 1)
            axes.scatter([place] * len(each), each, s=12, color="grey", alpha=0.7)
    if not np.isnan(list(means.values())).all():
        study.curve(axes, means, 0, "of the means; grey: each seed")
    study.legend(axes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table", "draw"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=[""], help="points that begin so")
    parser.add_argument(
        "--quick", action="store_true", help="a twentieth of the epochs"
    )
    parser.add_argument("--markdown", action="store_true", help="the table in Markdown")
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"))
    options = parser.parse_args()
    if options.command == "run":
        run(options)
    elif options.command == "table":
        write = tables.markdown if options.markdown else tables.text
        print(write(table(options.quick)))
    else:
        study.save(draw(options.quick), "losses", options.quick)


if __name__ == "__main__":
    main()
