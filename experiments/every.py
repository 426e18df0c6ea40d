"""Beyond the paper: quality where SEvo propagates every k steps only.

    python experiments/every.py run --only sasrec-beauty --seeds 0 1 2
    python experiments/every.py run
    python experiments/every.py table
    python experiments/every.py draw

``sevo_adamw(every=k)`` sums what goes to neighbours over k steps and propagates it
once, for a k-th of the work. SASRec on Beauty for k up to 32; the others for k = 8.
`draw` puts beside it what an epoch costs, as ``benchmarks/windows.py`` measured it.
"""

import json

import study
from matplotlib.figure import Figure
from paper import BACKBONES, RESULTS
from study import Cell

from sevo_jax.reports import plots

STEPS = (1, 2, 4, 8, 16, 32)
# What `benchmarks/windows.py` measured.
COST = RESULTS.parents[1] / "benchmarks" / "results" / "windows-cpu.json"
OTHERS = ("gru4rec", "mf-bpr-ui", "mf-bpr-ii", "stosa")


def cell(backbone: str, every: int) -> Cell:
    """A backbone on Beauty with propagation every so many steps."""
    label = f"{BACKBONES[backbone].label}, k = {every}"
    return Cell(label, {"optimizer.every": every}, backbone)


CELLS = [cell("sasrec", every) for every in STEPS]
CELLS += [cell(backbone, every) for backbone in OTHERS for every in (1, 8)]


def draw(quick: bool) -> Figure:
    """NDCG@10 of SASRec by k, of the seeds that all points have, and AdamW's.

    Beside it what SEvo adds to the seconds of an epoch.
    """
    figure = Figure(figsize=(11, 4.0), layout="constrained")
    quality, cost = figure.subplots(1, 2)
    study.style(quality, "SASRec on Beauty", "propagation every k steps", "NDCG@10")
    for index, name in enumerate(("valid NDCG@10", "NDCG@10")):
        label = "validation" if name.startswith("valid") else "test"
        cells = {k: cell("sasrec", k) for k in STEPS}
        # AdamW in the place of k = 0.
        points = study.means({0: cells[1].plain} | cells, name, quick)
        level = points.pop(0, None)
        study.curve(quality, points, index, label)
        if level is not None:
            colour = plots.COLOURS[index]
            quality.axhline(level, ls=":", color=colour, label=f"{label}, AdamW")
    study.style(
        cost,
        "An epoch on Beauty, two CPU cores",
        "propagation every k steps",
        "SEvo adds to an epoch of AdamW, %",
    )
    measured = COST.exists() and json.loads(COST.read_text())["results"]["backbones"]
    for index, (name, each) in enumerate((measured or {}).items()):
        added = {int(k): 100 * share for k, share in each["SEvo adds"].items()}
        study.curve(cost, added, index, BACKBONES[name].label)
    ticks = (0, 5, 10, 20, 50, 100, 200, 400)
    cost.set_yscale("symlog", linthresh=10)
    cost.set_yticks(ticks, [str(tick) for tick in ticks])
    cost.minorticks_off()
    for axes in (quality, cost):
        axes.set_xscale("log", base=2)
        axes.set_xticks(STEPS, [str(every) for every in STEPS])
    quality.margins(y=0.3)
    study.legend(quality, loc="lower center", ncols=2)
    study.legend(cost, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main() -> None:
    study.main(__doc__, "every", CELLS, draw)


if __name__ == "__main__":
    main()
