"""How results are written: numbers over seeds, their differences, and tables."""

from collections.abc import Iterable, Mapping, Sequence

from sevo_jax.evaluation import PAPER_METRICS
from sevo_jax.reports.comparison import Spread, paired_difference

VALID = "valid NDCG@10"
COLUMNS = (*PAPER_METRICS, VALID)
"""Test metrics, and the validation metric by which the epoch is chosen."""

Results = Mapping[int, dict]
"""Results of one cell by seed."""


def column(results: Results, name: str) -> dict[int, float]:
    """The number in a column of each seed."""
    if name == VALID:
        return {seed: each["valid"]["NDCG@10"] for seed, each in results.items()}
    return {seed: each["test"][name] for seed, each in results.items()}


def spread(numbers: Mapping[int, float]) -> str:
    """The mean over the seeds, with the sample standard deviation of several."""
    found = Spread.of(list(numbers.values()))
    return spread_of(found.mean, found.std if len(numbers) > 1 else None)


def spread_of(mean: float, std: float | None) -> str:
    """A mean, and a standard deviation where there is one."""
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"


def change(before: Mapping[int, float], after: Mapping[int, float]) -> str:
    """By how much the seeds that both have improve, and p of a paired t-test."""
    shared = sorted(before.keys() & after.keys())
    if not shared:
        return "no seed in common"
    pairs = [[each[seed] for seed in shared] for each in (before, after)]
    found = paired_difference(*pairs)
    known = found.p_value == found.p_value
    p_value = f" (p = {found.p_value:.2g})" if known else ""
    return f"{percent(found.improvement)}{p_value}"


def percent(share: float) -> str:
    """A share as a change in percent."""
    return f"{100 * share:+.1f} %"


def seeds(results: Results) -> str:
    """Which seeds there are."""
    return f"seed{'s' * (len(results) > 1)} {' '.join(map(str, sorted(results)))}"


def seeds_run(done: int, diverged: int) -> str:
    """Of how many seeds a number is, and how many have none as they diverged."""
    if not diverged:
        return str(done) if done else "not run"
    return f"{done}, {diverged} diverged" if done else "diverged"


def improvements(
    before: Results, after: Results, seeds: Iterable[int]
) -> dict[str, float]:
    """By what share the mean over some seeds of each of the paper's metrics grows."""
    gains = {}
    for metric in PAPER_METRICS:
        one, two = (
            sum(column(each, metric)[seed] for seed in seeds)
            for each in (before, after)
        )
        gains[metric] = two / one - 1
    return gains


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(
        f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in line)}|" for line in lines
    )


def text(rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal: columns aligned, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [
            cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
