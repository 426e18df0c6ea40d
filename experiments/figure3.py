"""Figure 3 of the paper, and what it is for: quality on Beauty against its cost.

    python benchmarks/backbones.py
    python experiments/table3.py run --only lightgcn-beauty sasrec-beauty
    python experiments/figure3.py table
    python experiments/figure3.py draw

The benchmark measures an epoch and a ranking of all users of the nine models, the runs
of Table 3 say how many epochs each needs and how good it is then. Together: is a
backbone with SEvo as good as a graph model, and sooner?
"""

import argparse
import json
from typing import NamedTuple

import study
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from paper import BACKBONES, GRAPH_MODELS, RESULTS
from table3 import MODELS, OPTIMIZERS, cell
from tables import column, markdown, spread

from sevo_jax.reports import plots
from sevo_jax.reports.comparison import Spread

# What `benchmarks/backbones.py` measured.
SECONDS = RESULTS.parents[1] / "benchmarks" / "results" / "backbones-cpu.json"
LABELS = {"adamw": "AdamW", "sevo_adamw": "SEvo-AdamW"}
PICTURE = RESULTS / "figure3.png"


class Row(NamedTuple):
    """A model with an optimizer.

    Attributes:
      ndcg: test NDCG@10 by seed.
      epoch: seconds to train one.
      epochs: until the best one by validation, the mean over the seeds.
      ranking: seconds to rank all users.
    """

    ndcg: dict[int, float]
    epoch: float
    epochs: float
    ranking: float

    @property
    def minutes(self) -> float:
        """Of training until the best epoch."""
        return self.epochs * self.epoch / 60

    @property
    def mean(self) -> float:
        """Test NDCG@10 over the seeds."""
        return Spread.of([*self.ndcg.values()]).mean


def rows() -> dict[tuple[str, str], Row]:
    """What is trained and measured both, by model and optimizer."""
    measured = json.loads(SECONDS.read_text())["results"]["backbones"]
    found = {}
    for model, about in MODELS.items():
        for optimizer, runs in zip(OPTIMIZERS, cell(model, "beauty"), strict=True):
            # One of MF-BPR's graphs stands for both where there is none.
            if optimizer == "adamw" and about.plain != model:
                continue
            label, seconds = LABELS[optimizer], measured.get(model)
            if runs and seconds:
                epochs = [each["best_epoch"] for each in runs.values()]
                found[model, optimizer] = Row(
                    column(runs, "NDCG@10"),
                    seconds["training"][f"sevo_jax, {label}"]["median"],
                    sum(epochs) / len(epochs),
                    seconds["ranking"][f"sevo_jax, {label}"]["median"],
                )
    return found


def table() -> list[list[str]]:
    """Quality and cost of what there is, the best first."""
    lines = [
        [
            "Beauty",
            "test NDCG@10",
            "seconds an epoch",
            "best epoch",
            "minutes until then",
            "seconds a ranking",
        ]
    ]
    ordered = sorted(rows().items(), key=lambda item: -item[1].mean)
    for (model, optimizer), row in ordered:
        numbers = f"{row.epoch:.2f}", f"{row.epochs:.0f}", f"{row.minutes:.1f}"
        name = f"{MODELS[model].label}, {LABELS[optimizer]}"
        lines.append([name, spread(row.ndcg), *numbers, f"{row.ranking:.2f}"])
    return lines


def page() -> str:
    """Picture and table, and what is missing, in Markdown."""
    parts = [f"![figure3](results/{PICTURE.name})"] * PICTURE.exists()
    parts.append(markdown(table()))
    found = {model for model, _ in rows()}
    missing = [about.label for name, about in MODELS.items() if name not in found]
    if missing:
        parts.append(f"Not trained or not measured yet: {', '.join(missing)}.")
    return "\n\n".join(parts)


def draw() -> Figure:
    """Test NDCG@10 against the minutes until the best epoch."""
    figure = Figure(figsize=(8.5, 5.0), layout="constrained")
    axes = figure.subplots()
    study.style(
        axes,
        "Beauty, two CPU cores",
        "minutes of training until the best epoch (logarithmic)",
        "test NDCG@10",
    )
    found = rows()
    for index, models in enumerate((BACKBONES, GRAPH_MODELS)):
        kind = ("backbone", "graph model")[index]
        for optimizer, label in LABELS.items():
            points = [found[m, optimizer] for m in models if (m, optimizer) in found]
            if points:
                axes.plot(
                    [row.minutes for row in points],
                    [row.mean for row in points],
                    "os"[index],
                    color=plots.COLOURS[index],
                    mfc="white" if optimizer == "adamw" else None,
                    label=f"{kind}, {label}",
                )
    for model, about in MODELS.items():
        ends = [
            found[each]
            for each in ((about.plain, "adamw"), (model, "sevo_adamw"))
            if each in found
        ]
        if ends:
            axes.plot(
                [row.minutes for row in ends],
                [row.mean for row in ends],
                color="#999999",
                lw=0.8,
                zorder=0,
            )
            # Above, these would meet what is said of MF-BPR (I-I) and LESSR.
            below = model in ("mf-bpr-ui", "stosa")
            axes.annotate(
                about.label,
                (ends[-1].minutes, ends[-1].mean),
                xytext=(6, -12 if below else 5),
                textcoords="offset points",
                fontsize=8,
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 1)))
    axes.margins(x=0.12)
    study.legend(axes, loc="lower left")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("table", "draw"))
    if parser.parse_args().command == "draw":
        plots.save(draw(), PICTURE)
        print("written to", PICTURE)
    else:
        print(markdown(table()))


if __name__ == "__main__":
    main()
