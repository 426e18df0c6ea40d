"""Beyond the paper: quality where SEvo propagates every k steps only.

    python experiments/every.py run --only sasrec-beauty --seeds 0 1 2
    python experiments/every.py run
    python experiments/every.py table
    python experiments/every.py draw

``sevo_adamw(every=k)`` sums what goes to neighbours over k steps and propagates it
once, for a k-th of the work. SASRec on Beauty for k up to 32; the others for k = 8.
"""

import study
from matplotlib.figure import Figure
from paper import BACKBONES
from study import Cell
from tables import column

from sevo_jax.reports import plots

STEPS = (1, 2, 4, 8, 16, 32)
OTHERS = ("gru4rec", "mf-bpr-ui", "mf-bpr-ii", "stosa")


def cell(backbone: str, every: int) -> Cell:
    """A backbone on Beauty with propagation every so many steps."""
    label = f"{BACKBONES[backbone].label}, k = {every}"
    return Cell(label, {"optimizer.every": every}, backbone)


CELLS = [cell("sasrec", every) for every in STEPS]
CELLS += [cell(backbone, every) for backbone in OTHERS for every in (1, 8)]


def draw(quick: bool) -> Figure:
    """Validation and test NDCG@10 of SASRec by k, beside AdamW."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    study.style(axes, "SASRec on Beauty", "propagation every k steps", "NDCG@10")
    for index, name in enumerate(("valid NDCG@10", "NDCG@10")):
        label = "validation" if name.startswith("valid") else "test"
        points = {every: cell("sasrec", every).mean(name, quick) for every in STEPS}
        known = {every: mean for every, mean in points.items() if mean is not None}
        study.curve(axes, known, index, label)
        plain = column(cell("sasrec", 1).plain(quick), name)
        if plain:
            level = sum(plain.values()) / len(plain)
            colour = plots.COLOURS[index]
            axes.axhline(level, ls=":", color=colour, label=f"{label}, AdamW")
    axes.set_xscale("log", base=2)
    axes.set_xticks(STEPS, [str(every) for every in STEPS])
    study.legend(axes)
    return figure


def main() -> None:
    study.main(__doc__, "every", CELLS, draw)


if __name__ == "__main__":
    main()
