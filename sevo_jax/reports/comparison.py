"""Optimizers beside each other: means over seeds, paired tests, the printed table.

A *run* here is one entry of ``results.json``: a mapping with the keys of
`RUN_KEYS`. Everything below is plain arithmetic on lists of runs; nothing trains.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from sevo_jax._files import replace_text

RUN_KEYS = (
    "model",
    "optimizer",
    "dataset",
    "seed",
    "protocol",
    "best_epoch",
    "valid",
    "test",
    "seconds_per_epoch",
    "versions",
    "machine",
)

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of one quantity over the seeds.

    Attributes:
      mean: arithmetic mean.
      std: sample standard deviation (``ddof=1``), NaN for fewer than two values.
    """

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of `values`, at least one."""
        std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), std)


@dataclass(frozen=True)
class Difference:
    """How one optimizer's metric differs from the baseline's, seed by seed.

    Attributes:
      improvement: ``mean / baseline_mean - 1``, a fraction; NaN where the
        baseline's mean is 0.
      p_value: two-sided paired t-test over the seeds, NaN for fewer than two
        seeds or when no seed differs.
    """

    improvement: float
    p_value: float


def paired_difference(baseline: Sequence[float], other: Sequence[float]) -> Difference:
    """Relative improvement of `other` over `baseline` and its paired t-test.

    Args:
      baseline: one value a seed.
      other: the same seeds' values, in the same order.

    Returns:
      The `Difference`; its p-value is `scipy.stats.ttest_rel`'s.

    Examples:
      >>> difference = paired_difference([1.0, 2.0, 3.0], [2.0, 3.0, 5.0])
      >>> round(difference.improvement, 3), round(difference.p_value, 3)
      (0.667, 0.057)
    """
    before = np.asarray(baseline, float)
    after = np.asarray(other, float)
    base = before.mean()
    improvement = float(after.mean() / base - 1.0) if base != 0.0 else math.nan
    return Difference(improvement, _paired_p_value(before, after))


def _paired_p_value(before: np.ndarray, after: np.ndarray) -> float:
    differences = after - before
    # The t-statistic divides by the spread of the differences: below rounding it is
    # noise, and SciPy warns. All equal means certain (0) or nothing to test (NaN).
    if differences.size < 2 or not differences.any():
        return math.nan
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return 0.0
    return float(scipy.stats.ttest_rel(after, before).pvalue)


def by_optimizer(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Groups runs by optimizer, in order of appearance, each sorted by seed.

    Raises:
      ValueError: no runs, a seed twice, or optimizers with different seeds: a paired
        test needs the same ones.
    """
    if not runs:
        raise ValueError("there are no runs to compare")
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run["optimizer"], []).append(run)
    for name, group in groups.items():
        group.sort(key=lambda run: run["seed"])
        seeds = [run["seed"] for run in group]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"optimizer {name!r} has a seed twice: {seeds}")
    seeds = {name: [run["seed"] for run in group] for name, group in groups.items()}
    if len({tuple(row) for row in seeds.values()}) > 1:
        raise ValueError(
            f"the optimizers were run with different seeds ({seeds}): the paired test "
            "needs the same seeds for each"
        )
    return groups


def format_table(runs: Sequence[Run]) -> str:
    """The comparison as aligned text: what `sevo-jax compare` prints.

    The first optimizer that appears is the baseline of the columns "change" and "p".

    Args:
      runs: entries of ``results.json``, one model and one dataset.

    Returns:
      Several lines, without a final newline.

    Raises:
      ValueError: as `by_optimizer`.
    """
    groups = by_optimizer(runs)
    first = runs[0]
    seeds = [run["seed"] for run in next(iter(groups.values()))]
    rows = [_heading(list(groups), len(seeds) > 1)]
    for split in ("test", "valid"):
        rows += [_metric_row(groups, split, metric) for metric in first[split]]
        rows.append([])
    rows.append(_plain_row(groups, "best_epoch", "best epoch", "{:.0f}"))
    rows.append(_plain_row(groups, "seconds_per_epoch", "seconds per epoch", "{:.3f}"))
    listed = " ".join(str(seed) for seed in seeds)
    return "\n".join(
        [
            f"{first['model']} on {first['dataset']}, seeds {listed}",
            f"protocol: {first['protocol']}",
            "",
            *_align(rows),
            *_overheads(groups),
        ]
    )


def format_metrics(parts: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics of one model as aligned text, a row a part of the split."""
    names = list(next(iter(parts.values())))
    rows = [["", *names]]
    rows += [
        [part, *(f"{metrics[name]:.4f}" for name in names)]
        for part, metrics in parts.items()
    ]
    return "\n".join(_align(rows))


def _heading(optimizers: list[str], spread: bool) -> list[str]:
    shown = "mean ± sample std" if spread else "one seed"
    cells = [f"({shown})", optimizers[0]]
    for name in optimizers[1:]:
        cells += [name, "change", "p (paired t)"]
    return cells


def _metric_row(groups: dict[str, list[Run]], split: str, metric: str) -> list[str]:
    values = {
        name: [run[split][metric] for run in group] for name, group in groups.items()
    }
    (_, baseline), *others = values.items()
    cells = [f"{split} {metric}", _spread_text(Spread.of(baseline), "{:.4f}")]
    for _, other in others:
        difference = paired_difference(baseline, other)
        cells += [
            _spread_text(Spread.of(other), "{:.4f}"),
            _or_dash(100.0 * difference.improvement, "{:+.1f} %"),
            _or_dash(difference.p_value, "{:.2g}"),
        ]
    return cells


def _plain_row(
    groups: dict[str, list[Run]], key: str, label: str, pattern: str
) -> list[str]:
    cells = [label]
    for index, group in enumerate(groups.values()):
        cells.append(_spread_text(Spread.of([run[key] for run in group]), pattern))
        cells += ["", ""] if index else []
    return cells


def _overheads(groups: dict[str, list[Run]]) -> list[str]:
    """What each optimizer costs beside the first."""
    (first, baseline), *others = (
        (name, Spread.of([run["seconds_per_epoch"] for run in group]).mean)
        for name, group in groups.items()
    )
    return [
        f"an epoch of {name} takes {seconds / baseline:.2f} times that of {first}"
        for name, seconds in others
        if baseline > 0
    ]


def _spread_text(spread: Spread, pattern: str) -> str:
    mean = pattern.format(spread.mean)
    if math.isnan(spread.std):
        return mean
    return f"{mean} ± {pattern.format(spread.std)}"


def _or_dash(value: float, pattern: str) -> str:
    return "-" if math.isnan(value) else pattern.format(value)


def _align(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*filter(None, rows))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def write_results(path: str | os.PathLike[str], runs: Sequence[Run]) -> None:
    """Writes `runs` as a JSON list, replacing the file in one step."""
    text = json.dumps(list(runs), indent=2, ensure_ascii=False)
    replace_text(Path(path), text + "\n")


def read_results(path: str | os.PathLike[str]) -> list[Run]:
    """Reads the runs of a comparison, which `write_results` wrote.

    Raises:
      ValueError: the file is not a JSON list of runs with the keys `RUN_KEYS`.
    """
    try:
        runs = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(runs, list):
        raise ValueError(f"{path} holds no list of runs; move it away and start again")
    for index, run in enumerate(runs):
        missing = [key for key in RUN_KEYS if key not in run]
        if missing:
            raise ValueError(f"{path}: run {index} lacks {', '.join(missing)}")
    return runs
