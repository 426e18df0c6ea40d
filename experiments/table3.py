"""Table 3 of the paper: the five backbones with and without SEvo.

    python experiments/table3.py run
    python experiments/table3.py run --only mf-bpr stosa-beauty --seeds 0
    python experiments/table3.py table

`run` trains what has no result yet, the most valuable runs first, and writes one file a
run into ``results/table3``. It can be stopped at any time and started again, and
several can work side by side (on parts of a machine's processors, say): none repeats
or disturbs what another does. `table` prints what there is beside the paper's numbers
and the authors' own, and what is missing. Its last column is of the validation targets,
by which the epoch is chosen: it tells a model that differs from the authors' (both
NDCG@10 do) from chance in the test targets. How likely chance is, the row "p of the
same mean" says: Student's t-test of our seeds and the authors' five.

Without SEvo means AdamW with the hyper-parameters of the SEvo run: those of the paper's
plain backbones are unpublished.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import jax
from jobs import Job, do
from paper import BACKBONES, DATASETS, NUMBERS, RESULTS, recipe_of
from scipy import stats

from sevo_jax.reports.comparison import METRICS, Spread, paired_difference

FOLDER = RESULTS / "table3"
VALID = "valid NDCG@10"
COLUMNS = (*METRICS, VALID)
NUM_AUTHORS_SEEDS = 5


def job(backbone: str, dataset: str, optimizer: str, seed: int) -> Job:
    """The run of a cell of the table: the paper's recipe with that optimizer."""
    recipe = recipe_of(backbone, dataset, optimizer)
    return Job(f"{backbone}-{dataset}-{optimizer}", recipe, dataset, seed, FOLDER)


def jobs(seeds: list[int]) -> Iterator[list[Job]]:
    """All runs, in groups that train together: on an accelerator the seeds of a cell.

    On a CPU each by itself, a first seed of everything before the second of anything.
    """
    cells = [
        (backbone, dataset, optimizer)
        for dataset in DATASETS
        for backbone in BACKBONES
        for optimizer in ("sevo_adamw", "adamw")
        if optimizer != "adamw" or BACKBONES[backbone].plain == backbone
    ]
    if jax.default_backend() == "cpu":
        yield from ([job(*cell, seed)] for seed in seeds for cell in cells)
    else:
        yield from ([job(*cell, seed) for seed in seeds] for cell in cells)


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
        lines += ["", f"{dataset:<20}" + "".join(f"{name:>18}" for name in COLUMNS)]
        improvements = []
        for backbone in BACKBONES:
            recipe = f"{backbone}-{dataset}"
            of = BACKBONES[backbone]
            plain = results.get((f"{of.plain}-{dataset}", "adamw"), {})
            sevo = results.get((recipe, "sevo_adamw"), {})
            without = NUMBERS["without"][f"{of.paper}-{dataset}"]
            authors = NUMBERS["with"][recipe]
            lines.append(backbone)
            lines.append(_row("AdamW, paper", [f"{without[m]:.4f}" for m in METRICS]))
            if plain:
                lines.append(_row(f"AdamW, {_seeds(plain)}", spreads(plain)))
            else:
                missing.append(f"{recipe} adamw")
            lines.append(_row("SEvo, authors", authors_spreads(authors)))
            if sevo:
                lines.append(_row(f"SEvo, {_seeds(sevo)}", spreads(sevo)))
                cells = [f"{_same_mean(sevo, m, authors[m]):.2g}" for m in COLUMNS]
                lines.append(_row("p of the same mean", cells))
            else:
                missing.append(f"{recipe} sevo_adamw")
            shared = sorted(plain.keys() & sevo.keys())
            if shared:
                pairs = {
                    m: [[_metric(each[s], m) for s in shared] for each in (plain, sevo)]
                    for m in COLUMNS
                }
                differences = {m: paired_difference(*pairs[m]) for m in COLUMNS}
                improvements.append(differences["NDCG@10"].improvement)
                cells = map(_difference, differences.values())
                lines.append(_row("SEvo over AdamW", cells))
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


def _metric(result: dict, name: str) -> float:
    """A column's number of a run's result."""
    if name == VALID:
        return result["valid"]["NDCG@10"]
    return result["test"][name]


def spreads(group: dict[int, dict]) -> list[str]:
    """The columns of a group of results, by seed."""
    columns = [
        Spread.of([_metric(each, name) for each in group.values()]) for name in COLUMNS
    ]
    if len(group) == 1:
        return [f"{spread.mean:.4f}" for spread in columns]
    return [f"{spread.mean:.4f} ± {spread.std:.4f}" for spread in columns]


def authors_spreads(authors: dict[str, dict]) -> list[str]:
    """The columns of the authors' own runs of a cell."""
    return [f"{authors[m]['mean']:.4f} ± {authors[m]['std']:.4f}" for m in COLUMNS]


def _same_mean(group: dict[int, dict], name: str, authors: dict[str, float]) -> float:
    """The p-value of a t-test with equal variances, which one seed is enough for."""
    values = [_metric(each, name) for each in group.values()]
    spread = Spread.of(values)
    ours = (spread.mean, spread.std if len(values) > 1 else 0.0, len(values))
    theirs = (authors["mean"], authors["std"], NUM_AUTHORS_SEEDS)
    return stats.ttest_ind_from_stats(*ours, *theirs).pvalue


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
    for group in jobs(options.seeds):
        wanted = tuple(options.only)
        do([job for job in group if job.name.startswith(wanted)], options.work)


if __name__ == "__main__":
    main()
