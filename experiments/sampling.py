"""How an epoch's samples are drawn: as this library does and as the authors do.

    python experiments/sampling.py run --backbone gru4rec --dataset beauty
    python experiments/sampling.py run --backbone bert4rec --dataset toys --seeds 0 1
    python experiments/sampling.py table --backbone gru4rec --dataset beauty

GRU4Rec: the authors draw every prefix of a sequence as a sample of its own; by default
this library passes once over a user's items for all of the user's prefixes, as
`sevo_jax.models.GRU4Rec` says.

BERT4Rec: by default an epoch has every user once. The authors load with four processes,
each of which shuffles all users on its own and takes every fourth: an epoch has a user
Binomial(4, 1/4) times, three of ten not at all. Theirs is so for every backbone.

Both train by the paper's recipe, with another `sampling` in it. Runs are resumable and
may be done side by side, as those of ``table3.py``, which the library's own are; the
others go to ``results/sampling``.
"""

import argparse
import dataclasses
from pathlib import Path

from jobs import Job, do
from paper import DATASETS, NUMBERS, RESULTS
from table3 import COLUMNS, authors_spreads, job, spreads

FOLDER = RESULTS / "sampling"
OPTIMIZERS = ("sevo_adamw", "adamw")
# The recipe's `sampling` that draws samples as the authors do.
AUTHORS = {"gru4rec": "prefix", "bert4rec": "loaders"}


def authors_job(backbone: str, dataset: str, optimizer: str, seed: int) -> Job:
    """The run of Table 3, but on samples drawn as the authors do."""
    run = job(backbone, dataset, optimizer, seed)
    sampling = AUTHORS[backbone]
    architecture = dataclasses.replace(run.recipe.architecture, sampling=sampling)
    recipe = dataclasses.replace(run.recipe, architecture=architecture)
    name = f"{run.name}-{sampling}"
    return dataclasses.replace(run, name=name, recipe=recipe, folder=FOLDER)


def table(backbone: str, dataset: str) -> str:
    """Both ways, over the seeds there are."""
    lines = [_row("", COLUMNS)]
    for optimizer in OPTIMIZERS:
        for way, make in (("ours", job), (AUTHORS[backbone], authors_job)):
            jobs = [make(backbone, dataset, optimizer, seed) for seed in range(5)]
            group = {each.seed: result for each in jobs if (result := each.result())}
            if group:
                label = f"{optimizer}, {way}, {len(group)} seeds"
                lines.append(_row(label, spreads(group)))
    authors = NUMBERS["with"][f"{backbone}-{dataset}"]
    lines.append(_row("the authors, SEvo, 5 seeds", authors_spreads(authors)))
    return "\n".join(lines)


def _row(label, cells):
    return f"{label:32}" + "".join(f"{cell:>18}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--backbone", choices=AUTHORS, default="gru4rec")
    parser.add_argument("--dataset", choices=DATASETS, default="beauty")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS)
    parser.add_argument("--work", type=Path, default=Path("runs/table3"))
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
