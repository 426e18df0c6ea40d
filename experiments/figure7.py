"""Figure 7 of the paper: which interactions say that two items are alike.

    python experiments/figure7.py run --only sasrec-beauty
    python experiments/figure7.py draw

SASRec with SEvo-AdamW. (a) The graph is made of the first or the last K items of each
user. (b) Items are neighbours up to H steps apart, each pair counted once (frequency)
or 1 / distance. A star marks the paper's default.
"""

from collections.abc import Mapping
from typing import Any

import study
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paper import DATASETS
from study import Cell

LENGTHS = {"beauty": (2, 3, 5, 10, 20, 50), "ml-1m": (2, 10, 50, 200)}
HOPS = {"beauty": (1, 2, 3, 4, 5), "ml-1m": (1, 2, 5)}
SERIES = {
    "a": ("max_len", LENGTHS, "keep", ("first", "last")),
    "b": ("max_hop", HOPS, "weighting", ("frequency", "distance")),
}


def series(panel: str, dataset: str, way: str) -> Mapping[int, Cell]:
    """The cells of a curve, by K or H."""
    name, values, option, _ = SERIES[panel]
    cells = {}
    for value in values[dataset]:
        changes: dict[str, Any] = {f"graph.{name}": value, f"graph.{option}": way}
        if name == "max_hop" and value == 1:
            # Both weights are 1.
            changes[f"graph.{option}"] = "distance"
        letter = {"max_len": "K", "max_hop": "H"}[name]
        cells[value] = Cell(f"{letter} = {value}, {way}", changes, dataset=dataset)
    return cells


CELLS = [
    cell
    for dataset in LENGTHS
    for panel, (*_, ways) in SERIES.items()
    for way in ways
    for cell in series(panel, dataset, way).values()
]


def draw(quick: bool) -> Figure:
    """A row a data set: (a) and (b), test NDCG@10 of the seeds that all points have."""
    figure = Figure(figsize=(9, 3.4 * len(LENGTHS)), layout="constrained")
    titles = {"a": "first or last K items", "b": "paths up to H steps"}
    rows = figure.subplots(len(LENGTHS), 2)
    for dataset, row in zip(LENGTHS, rows, strict=True):
        for (panel, title), axes in zip(titles.items(), row, strict=True):
            title = f"{DATASETS[dataset]}: {title}"
            study.style(axes, title, "K" if panel == "a" else "H", "test NDCG@10")
            _curves(axes, panel, dataset, quick)
            study.legend(axes)
    return figure


def _curves(axes: Axes, panel: str, dataset: str, quick: bool) -> None:
    _, values, _, ways = SERIES[panel]
    cells = {
        (way, value): cell
        for way in ways
        for value, cell in series(panel, dataset, way).items()
    }
    points = study.means(cells, "NDCG@10", quick)
    for index, way in enumerate(ways):
        own = {value: mean for (each, value), mean in points.items() if each == way}
        study.curve(axes, own, index, way)
    graph = Cell("", dataset=dataset).recipe.graph
    way, place = (
        ("last", graph.max_len) if panel == "a" else ("distance", graph.max_hop)
    )
    if place is not None and (way, place) in points:
        axes.plot(place, points[way, place], "*", color="black", ms=11, zorder=0)
    # Those that are not run, too.
    places = values[dataset]
    if panel == "a":
        axes.set_xscale("log")
    axes.set_xlim(min(places) * 0.9, max(places) * 1.1)
    axes.set_xticks(places, map(str, places))
    axes.minorticks_off()


def main() -> None:
    study.main(__doc__, "figure7", CELLS, draw)


if __name__ == "__main__":
    main()
