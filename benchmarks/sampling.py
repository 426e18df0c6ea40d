"""GRU4Rec trained on whole sequences beside prefixes one by one: the final quality.

    python benchmarks/sampling.py run --dataset beauty --seeds 0
    python benchmarks/sampling.py table --dataset beauty

The authors draw every prefix of a sequence as a sample of its own; by default this
library passes once over a user's items for all of the user's prefixes, as
`sevo_jax.models.GRU4Rec` says. Both train by the paper's recipe, with SEvo-AdamW and
with AdamW. Runs are resumable and may be done side by side, as those of ``table3.py``,
which the runs on whole sequences are; the others go to ``results/sampling``.
"""

import argparse
import dataclasses
from pathlib import Path

from harness import RESULTS
from jobs import Job, do
from table3 import PAPER, job

from sevo_jax.training.compare import METRICS, Spread

FOLDER = RESULTS / "sampling"
OPTIMIZERS = ("sevo_adamw", "adamw")


def prefix_job(dataset: str, optimizer: str, seed: int) -> Job:
    """The run of Table 3, but on prefixes one by one."""
    whole = job("gru4rec", dataset, optimizer, seed)
    architecture = dataclasses.replace(whole.recipe.architecture, sampling="prefix")
    recipe = dataclasses.replace(whole.recipe, architecture=architecture)
    name = f"{whole.name}-prefix"
    return dataclasses.replace(whole, name=name, recipe=recipe, folder=FOLDER)


def table(dataset: str) -> str:
    """Test metrics of both samplings, over the seeds there are."""
    lines = [f"{'':28}" + "".join(f"{name:>18}" for name in METRICS)]
    for optimizer in OPTIMIZERS:
        for name, make in (
            ("sequences", lambda *cell: job("gru4rec", *cell)),
            ("prefixes", prefix_job),
        ):
            jobs = [make(dataset, optimizer, seed) for seed in range(5)]
            results = [result for each in jobs if (result := each.result())]
            if results:
                cells = "".join(
                    f"{_spread([result['test'][m] for result in results]):>18}"
                    for m in METRICS
                )
                label = f"{optimizer}, {name}, {len(results)} seeds"
                lines.append(f"{label:28}{cells}")
    authors = PAPER["with"][f"gru4rec-{dataset}"]
    cells = (f"{authors[m]['mean']:.4f} ± {authors[m]['std']:.4f}" for m in METRICS)
    lines.append(
        f"{'the authors, SEvo, 5 seeds':28}" + "".join(f"{cell:>18}" for cell in cells)
    )
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    spread = Spread.of(values)
    return f"{spread.mean:.4f}" + (f" ± {spread.std:.4f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--dataset", default="beauty")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS)
    parser.add_argument("--work", type=Path, default=Path("runs/table3"))
    options = parser.parse_args()
    if options.command == "run":
        for seed in options.seeds:
            for optimizer in options.optimizers:
                for make in (lambda *cell: job("gru4rec", *cell), prefix_job):
                    do([make(options.dataset, optimizer, seed)], options.work)
    print(table(options.dataset))


if __name__ == "__main__":
    main()
