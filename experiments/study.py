"""A study: the paper's recipe with one thing changed at a time, and what comes of it.

Its runs are jobs like those of Table 3, and none is done twice: a run is named by what
it changes, in whichever study, and one that changes nothing is the run of Table 3.
"""

import argparse
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jax
import table3
from jobs import Job, do, num_diverged, results_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paper import DATASETS, RESULTS, recipe_of
from tables import change, column, markdown, seeds_run, spread, text

from sevo_jax.reports import plots
from sevo_jax.training import Recipe

FOLDER = RESULTS / "studies"
QUICK = Path("runs/quick")
# A quick run has one in so many of a recipe's epochs.
QUICK_SHARE = 20
COLUMNS = ("HR@1", "HR@10", "NDCG@10", "valid NDCG@10")
Place = TypeVar("Place", bound=Hashable)


@dataclass(frozen=True)
class Cell:
    """Runs of one recipe on one data set.

    Attributes:
      label: what it is called in the table.
      changes: fields of the paper's SEvo recipe with other values, `part.field`.
      backbone: whose recipe.
      dataset: on what.
      paper: test NDCG@10 in the paper, where it can be read.
      baseline: the same without SEvo; AdamW with the same hyper-parameters if None.
    """

    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = "sasrec"
    dataset: str = "beauty"
    paper: float | None = None
    baseline: "Cell | None" = None

    @property
    def recipe(self) -> Recipe:
        """The paper's with the changes."""
        recipe = recipe_of(self.backbone, self.dataset, "sevo_adamw")
        parts: dict[str, dict[str, Any]] = {}
        for name, value in self.changes.items():
            part, _, key = name.partition(".")
            parts.setdefault(part, {})[key] = value
        # All of a part at once: some fields go together only.
        changed = {
            part: dataclasses.replace(getattr(recipe, part), **values)
            for part, values in parts.items()
        }
        return dataclasses.replace(recipe, **changed)

    def job(self, seed: int, quick: bool = False) -> Job:
        """The run from a seed; a quick one goes elsewhere, it is no evidence."""
        base = Cell("", {}, self.backbone, self.dataset).recipe
        names = [
            _describe(name, value)
            for name, value in self.changes.items()
            if value != _value(base, name)
        ]
        name = "-".join([self.backbone, self.dataset, *names])
        recipe = self.recipe
        if quick:
            epochs = max(1, recipe.epochs // QUICK_SHARE)
            recipe = dataclasses.replace(recipe, epochs=epochs)
            return Job(name, recipe, self.dataset, seed, QUICK / "results")
        for optimizer in table3.OPTIMIZERS:
            job = table3.job(self.backbone, self.dataset, optimizer, seed)
            if job.recipe == recipe:
                return job
        return Job(name, recipe, self.dataset, seed, FOLDER)

    def results(self, quick: bool = False) -> dict[int, dict]:
        """What there is, by seed."""
        return results_of(self.job(seed, quick) for seed in table3.SEEDS)

    def diverged(self, quick: bool = False) -> int:
        """How many runs ended in a loss that is not finite."""
        return num_diverged(self.job(seed, quick) for seed in table3.SEEDS)

    @property
    def plain(self) -> "Cell":
        """Without SEvo."""
        if self.baseline is not None:
            return self.baseline
        backbone = table3.MODELS[self.backbone].plain
        return Cell("AdamW", {"optimizer.name": "adamw"}, backbone, self.dataset)


def run(cells: Iterable[Cell], options: argparse.Namespace) -> None:
    """Trains what has no result yet, a first seed of everything before a second.

    What a cell is compared with, too.
    """
    wanted = [
        each
        for cell in cells
        if f"{cell.backbone}-{cell.dataset}".startswith(tuple(options.only))
        for each in (cell, cell.plain)
    ]
    jobs = [
        [cell.job(seed, options.quick) for seed in options.seeds] for cell in wanted
    ]
    if jax.default_backend() == "cpu":
        jobs = [[job] for group in zip(*jobs, strict=True) for job in group]
    for group in jobs:
        do(group, QUICK / "work" if options.quick else options.work)


def table(cells: Iterable[Cell], quick: bool = False) -> list[list[str]]:
    """Test and validation metrics, what SEvo adds, and the paper's NDCG@10."""
    rows = [["data", "", "seeds", *COLUMNS, "SEvo adds", "the paper"]]
    for cell in cells:
        paper = "" if cell.paper is None else f"{cell.paper:.4f}"
        found, title = cell.results(quick), DATASETS[cell.dataset]
        state = seeds_run(len(found), cell.diverged(quick))
        if not found:
            gaps = [""] * len(COLUMNS)
            rows.append([title, cell.label, state, *gaps, "", paper])
            continue
        numbers = [spread(column(found, name)) for name in COLUMNS]
        gain, plain = "", cell.plain.results(quick)
        if plain and cell.recipe.optimizer.name.startswith("sevo"):
            gain = change(column(plain, "NDCG@10"), column(found, "NDCG@10"))
        rows.append([title, cell.label, state, *numbers, gain, paper])
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    return rows


def page(name: str, cells: Iterable[Cell]) -> str:
    """Picture and table of what there is, and what is missing, in Markdown."""
    head, *rows = table(cells)
    done = [row for row in rows if row[2] != "not run"]
    gaps: dict[str, list[str]] = {}
    for title, label, state, *_ in rows:
        if state == "not run":
            gaps.setdefault(title, []).append(label)
    parts = [f"![{name}](results/{name}.png)"] * (RESULTS / f"{name}.png").exists()
    parts += [markdown([head, *done])] * bool(done)
    if gaps:
        missing = (f"{title} ({'; '.join(each)})" for title, each in gaps.items())
        parts.append(f"Not run yet: {', '.join(missing)}.")
    return "\n\n".join(parts)


def means(
    cells: Mapping[Place, Cell], name: str, quick: bool = False
) -> dict[Place, float]:
    """A column's mean of each cell that has run, over the seeds that all of them have.

    A mean of other seeds beside them would show what the seeds do.
    """
    found = {place: column(cell.results(quick), name) for place, cell in cells.items()}
    found = {place: numbers for place, numbers in found.items() if numbers}
    shared = set.intersection(*map(set, found.values())) if found else set()
    return {
        place: sum(numbers[seed] for seed in shared) / len(shared)
        for place, numbers in found.items()
        if shared
    }


def main(
    doc: str | None,
    name: str,
    cells: Sequence[Cell],
    draw: Callable[[bool], Figure] | None = None,
    *,
    run_more: Callable[[argparse.Namespace], None] | None = None,
) -> None:
    """The command of a study: `run`, `table` and, where there is a picture, `draw`."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = ("run", "table") + ("draw",) * (draw is not None)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--only", nargs="+", default=[""], help="BACKBONE-DATA that begin so"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a twentieth of the epochs"
    )
    parser.add_argument("--markdown", action="store_true", help="the table in Markdown")
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"))
    options = parser.parse_args()
    if options.command == "run":
        run(cells, options)
        if run_more is not None:
            run_more(options)
    elif options.command == "table":
        print((markdown if options.markdown else text)(table(cells, options.quick)))
    elif draw is not None:
        save(draw(options.quick), name, options.quick)


def save(figure: Figure, name: str, quick: bool) -> None:
    """Writes a picture; one of quick runs says so, and goes elsewhere."""
    if quick:
        note = f"quick: 1/{QUICK_SHARE} of the epochs"
        figure.suptitle(note, color="#D55E00", fontsize=9)
    path = (QUICK if quick else RESULTS) / f"{name}.png"
    plots.save(figure, path)
    print("written to", path)


def style(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """The look of a panel."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def curve(axes: Axes, points: Mapping[int, float], index: int, label: str) -> None:
    """The `index`-th curve of a panel; nothing where there is no point."""
    if points:
        axes.plot(
            list(points),
            list(points.values()),
            plots.STYLES[index % len(plots.STYLES)],
            marker="o" if len(points) <= 10 else None,
            ms=4,
            color=plots.COLOURS[index],
            label=label,
        )


def legend(axes: Axes, **place: Any) -> None:
    """The legend of a panel, or that there is nothing in it."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, **place)
    else:
        axes.text(0.5, 0.5, "not run", ha="center", transform=axes.transAxes)


def _value(recipe: Recipe, name: str) -> Any:
    part, _, key = name.partition(".")
    return getattr(getattr(recipe, part), key)


def _describe(name: str, value: Any) -> str:
    """A change in the name of a file."""
    key = name.partition(".")[2]
    if isinstance(value, bool):
        return key if value else f"no-{key}"
    # Of a file only what it is called: its folder is of this machine.
    is_number = isinstance(value, int | float)
    return f"{key}{value:g}" if is_number else Path(str(value)).stem
