"""Figure 6 of the paper: SEvo-AdamW with and without the correction of the moments.

    python experiments/figure6.py run
    python experiments/figure6.py run --only gru4rec-beauty
    python experiments/figure6.py draw

For each backbone the improvement over AdamW, in the mean of all metrics and of the data
sets that have both runs, over the seeds that all three have.
"""

import study
from matplotlib.figure import Figure
from paper import BACKBONES, DATASETS
from study import Cell
from tables import improvements

from sevo_jax.reports import plots

WAYS = {
    "without correction": {"optimizer.moment_correction": False},
    "with correction": {},
}
CELLS = [
    Cell(f"{about.label}, {label}", changes, backbone, dataset)
    for dataset in DATASETS
    for backbone, about in BACKBONES.items()
    for label, changes in WAYS.items()
]


def draw(quick: bool) -> Figure:
    """Bars of the mean improvement of both, a pair a backbone."""
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    ylabel = "mean improvement over AdamW (%)"
    study.style(axes, "Correction of the moments", "", ylabel)
    pairs = {backbone: _pairs(backbone, quick) for backbone in BACKBONES}
    for index, label in enumerate(WAYS):
        heights = [
            100 * sum(pair[index] for pair in each) / len(each) if each else 0.0
            for each in pairs.values()
        ]
        places = [place + 0.4 * index - 0.2 for place in range(len(pairs))]
        bars = axes.bar(places, heights, 0.38, color=plots.COLOURS[index], label=label)
        axes.bar_label(bars, [f"{each:.1f}" if each else "" for each in heights])
    ticks = [
        f"{BACKBONES[name].label}\n{len(each) or 'no'} data sets"
        for name, each in pairs.items()
    ]
    axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axes.axhline(0, color="black", lw=0.6)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _pairs(backbone: str, quick: bool) -> list[list[float]]:
    """The improvements of both ways, on each data set of which all runs are there."""
    pairs = []
    for dataset in DATASETS:
        cells = [Cell("", each, backbone, dataset) for each in WAYS.values()]
        plain, *found = (cell.results(quick) for cell in (cells[0].plain, *cells))
        seeds = plain.keys() & found[0].keys() & found[1].keys()
        if seeds:
            gains = [improvements(plain, each, seeds).values() for each in found]
            pairs.append([sum(each) / len(each) for each in gains])
    return pairs


def main() -> None:
    study.main(__doc__, "figure6", CELLS, draw)


if __name__ == "__main__":
    main()
