"""How an epoch's samples are drawn: as this library does and as the authors do.

    python experiments/sampling.py run --backbone gru4rec --dataset beauty
    python experiments/sampling.py run --backbone bert4rec --dataset toys --seeds 0 1
    python experiments/sampling.py table --backbone gru4rec --dataset beauty

GRU4Rec, SR-GNN, LESSR: the authors draw every prefix of a sequence as a sample of its
own; by default this library passes once over a user's items for all of the user's
prefixes, as `sevo_jax.models.GRU4Rec` and the others say.

BERT4Rec: by default an epoch has every user once. The authors load with four processes,
each of which shuffles all users on its own and takes every fourth: an epoch has a user
Binomial(4, 1/4) times, three of ten not at all. Theirs is so for every backbone.

Both train by the paper's recipe, with another `sampling` in it. Runs are resumable and
may be done side by side, as those of ``table3.py``, which the library's own are; the
others go to ``results/sampling``.
"""

import argparse
from pathlib import Path

from jobs import do, results_of
from paper import BACKBONES, DATASETS, NUMBERS
from table3 import (
    AUTHORS_SAMPLING,
    OPTIMIZERS,
    SEEDS,
    authors_job,
    authors_spreads,
    job,
)
from tables import COLUMNS, column, seeds, spread, text

from sevo_jax.evaluation import PAPER_METRICS


def table(backbone: str, dataset: str) -> str:
    """Both ways, over the seeds there are."""
    rows = [["", *COLUMNS]]
    for optimizer in OPTIMIZERS:
        ways = {"by default": job, AUTHORS_SAMPLING[backbone]: authors_job}
        for way, make in ways.items():
            found = results_of(
                make(backbone, dataset, optimizer, seed) for seed in SEEDS
            )
            if found:
                label = f"{optimizer}, {way}, {seeds(found)}"
                rows.append([label, *(spread(column(found, m)) for m in COLUMNS)])
    if backbone in BACKBONES:
        rows.append(["the authors, SEvo, 5 seeds", *authors_spreads(backbone, dataset)])
    else:
        paper = NUMBERS["without"][f"{backbone}-{dataset}"]
        rows.append(["the paper", *(f"{paper[m]:.4f}" for m in PAPER_METRICS), ""])
    return text(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--backbone", choices=AUTHORS_SAMPLING, default="gru4rec")
    parser.add_argument("--dataset", choices=DATASETS, default="beauty")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS)
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"))
    options = parser.parse_args()
    if options.command == "run":
        for seed in options.seeds:
            for optimizer in options.optimizers:
                run = (options.backbone, options.dataset, optimizer, seed)
                do([job(*run)], options.work)
                do([authors_job(*run)], options.work)
    print(table(options.backbone, options.dataset))


if __name__ == "__main__":
    main()
