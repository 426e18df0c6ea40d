"""Table 3 of the paper: the five backbones with and without SEvo.

    python benchmarks/table3.py run
    python benchmarks/table3.py run --only mf-bpr stosa-beauty --seeds 0
    python benchmarks/table3.py table

`run` trains what has no result yet, the most valuable runs first, and writes one file a
run into ``results/table3``. It can be stopped at any time and started again, and
several can work side by side (on parts of a machine's processors, say): none repeats
or disturbs what another does. `table` prints what there is beside the paper's numbers
and the authors' own, and what is missing.

Without SEvo means AdamW with the hyper-parameters of the SEvo run: those of the paper's
plain backbones are unpublished.
"""

import argparse
import contextlib
import fcntl
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from harness import RESULTS, load

from sevo_jax.training import RECIPES, RunResult, Trainer, has_checkpoint
from sevo_jax.training.compare import METRICS, Spread, paired_difference

FOLDER = RESULTS / "table3"
PAPER = json.loads((Path(__file__).parent / "paper_table3.json").read_text())
BACKBONES = ("mf-bpr-ui", "mf-bpr-ii", "gru4rec", "sasrec", "stosa", "bert4rec")
DATASETS = ("beauty", "toys", "ml-1m", "tools")


class Run(NamedTuple):
    """One run: a recipe, with which optimizer, from which seed."""

    backbone: str
    dataset: str
    optimizer: str
    seed: int

    @property
    def recipe(self) -> str:
        return f"{self.backbone}-{self.dataset}"

    @property
    def name(self) -> str:
        return f"{self.recipe}-{self.optimizer}-seed{self.seed}"

    @property
    def result(self) -> Path:
        return FOLDER / f"{self.name}.json"


def runs(seeds: list[int]) -> Iterator[list[Run]]:
    """All runs, in groups that train together: on an accelerator the seeds of a cell.

    On a CPU each by itself, a first seed of everything before the second of anything.
    """
    cells = [
        (backbone, dataset, optimizer)
        for dataset in DATASETS
        for backbone in BACKBONES
        for optimizer in ("sevo_adamw", "adamw")
        # The graph makes no difference to AdamW.
        if (backbone, optimizer) != ("mf-bpr-ii", "adamw")
    ]
    if jax.default_backend() == "cpu":
        yield from ([Run(*cell, seed)] for seed in seeds for cell in cells)
    else:
        yield from ([Run(*cell, seed) for seed in seeds] for cell in cells)


def train(group: list[Run], work: Path) -> None:
    """Trains runs of one cell, or goes on with them, unless another process is at it.

    On an accelerator all of them at once.
    """
    work.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        mine = [run for run in group if _claim(stack, work / f"{run.name}.lock")]
        mine = [run for run in mine if not run.result.exists()]
        if not mine:
            return
        recipe = RECIPES[mine[0].recipe].with_optimizer(mine[0].optimizer)
        trainer = Trainer(recipe, load(mine[0].dataset))
        for resume in (True, False):
            chosen = [run for run in mine if has_checkpoint(work / run.name) == resume]
            if not chosen:
                continue
            print(*(run.name for run in chosen), file=sys.stderr, flush=True)
            results = trainer.run_together(
                [run.seed for run in chosen],
                outputs=[work / run.name for run in chosen],
                resume=resume,
                label=f"{chosen[0].name}{' and more' * (len(chosen) > 1)}",
            )
            for run, result in zip(chosen, results, strict=True):
                _write(run, result)


def _claim(stack: contextlib.ExitStack, path: Path) -> bool:
    """Whether nobody else holds the lock, which `stack` gives back."""
    lock = stack.enter_context(open(path, "w"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(run: Run, result: RunResult) -> None:
    values = result.to_dict()
    values["valid NDCG@10"] = {
        each["epoch"]: each["valid"]["NDCG@10"] for each in values.pop("history")
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    run.result.write_text(json.dumps(values, indent=1) + "\n")


def table() -> str:
    """What there is, in the form of the paper's table, and what is missing."""
    results: dict[tuple[str, str], dict[int, dict]] = {}
    for path in sorted(FOLDER.glob("*.json")):
        name, seed = path.stem.rsplit("-seed", 1)
        recipe, optimizer = name.rsplit("-", 1)
        results.setdefault((recipe, optimizer), {})[int(seed)] = json.loads(
            path.read_text()
        )
    lines, missing = [], []
    for dataset in DATASETS:
        lines += ["", f"{dataset:<20}" + "".join(f"{name:>18}" for name in METRICS)]
        improvements = []
        for backbone in BACKBONES:
            recipe = f"{backbone}-{dataset}"
            plain = results.get((recipe.replace("-ii-", "-ui-"), "adamw"), {})
            sevo = results.get((recipe, "sevo_adamw"), {})
            paper = backbone.removesuffix("-ui").removesuffix("-ii")
            without = PAPER["without"][f"{paper}-{dataset}"]
            authors = PAPER["with"][recipe]
            lines.append(backbone)
            lines.append(_row("AdamW, paper", [f"{without[m]:.4f}" for m in METRICS]))
            if plain:
                lines.append(_row(f"AdamW, {_seeds(plain)}", _cells(plain)))
            else:
                missing.append(f"{recipe} adamw")
            cells = [
                f"{authors[m]['mean']:.4f} ± {authors[m]['std']:.4f}" for m in METRICS
            ]
            lines.append(_row("SEvo, authors", cells))
            if sevo:
                lines.append(_row(f"SEvo, {_seeds(sevo)}", _cells(sevo)))
            else:
                missing.append(f"{recipe} sevo_adamw")
            shared = sorted(plain.keys() & sevo.keys())
            if shared:
                pairs = {
                    m: [[each[s]["test"][m] for s in shared] for each in (plain, sevo)]
                    for m in METRICS
                }
                differences = [paired_difference(*pairs[m]) for m in METRICS]
                improvements.append(differences[-1].improvement)
                lines.append(_row("SEvo over AdamW", map(_difference, differences)))
        if improvements:
            mean = sum(improvements) / len(improvements)
            lines.append(
                f"mean improvement of NDCG@10 over {len(improvements)} backbones: "
                f"{mean:+.1%}"
            )
    lines += ["", f"missing: {', '.join(missing) or 'nothing'}"]
    return "\n".join(lines[1:])


def _seeds(group: dict[int, dict]) -> str:
    return f"seed {' '.join(map(str, sorted(group)))}"


def _cells(group: dict[int, dict]) -> list[str]:
    spreads = [
        Spread.of([each["test"][name] for each in group.values()]) for name in METRICS
    ]
    if len(group) == 1:
        return [f"{spread.mean:.4f}" for spread in spreads]
    return [f"{spread.mean:.4f} ± {spread.std:.4f}" for spread in spreads]


def _difference(difference) -> str:
    known = difference.p_value == difference.p_value
    p_value = f" p={difference.p_value:.2g}" if known else ""
    return f"{difference.improvement:+.1%}{p_value}"


def _row(label: str, cells) -> str:
    return f"  {label:<18}" + "".join(f"{cell:>18}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--only", nargs="+", default=[""], help="runs whose names begin so"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/table3"))
    options = parser.parse_args()
    if options.command == "table":
        print(table())
        return
    for group in runs(options.seeds):
        wanted = [run for run in group if run.name.startswith(tuple(options.only))]
        train([run for run in wanted if not run.result.exists()], options.work)


if __name__ == "__main__":
    main()
