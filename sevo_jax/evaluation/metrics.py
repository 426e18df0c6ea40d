"""Ranking metrics: the mean over users of a gain of the target's rank."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import ArrayLike

METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "HR": np.ones_like,
    "Recall": np.ones_like,
    "NDCG": lambda rank: 1.0 / np.log2(rank + 1.0),
    "MRR": lambda rank: 1.0 / rank,
}
"""The metrics: what a user gains whose target, the only one, has a rank.

The rank counts from 1 and lies between two integers where the target is tied with other
items. With a cut-off, as in `NDCG@10`, ranks beyond it gain nothing.
"""

PAPER_METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10")
"""What the paper reports."""


def measure(
    ranks: ArrayLike, metrics: Iterable[str] = PAPER_METRICS
) -> dict[str, float]:
    """Metrics of the ranks of the users' targets.

    Args:
      ranks: 1-based ranks of the targets, `[num_users]`.
      metrics: names from `METRICS`, each with a cut-off (`HR@10`) or, where ranks far
        down gain little by themselves, without one (`MRR`).

    Returns:
      Metric by name, each in [0, 1].

    Raises:
      ValueError: if there are no ranks, a rank is below 1 or no number, there is no
        such metric, or one of your own is not finite.

    Examples:
      >>> measure([1, 3, 11], ["HR@5", "NDCG@10", "MRR@3"])
      {'HR@5': 0.6666666666666666, 'NDCG@10': 0.5, 'MRR@3': 0.4444444444444444}
    """
    ranks = np.asarray(ranks, float)
    if ranks.size == 0:
        raise ValueError("there are no ranks: no user has a target item")
    if not ranks.min() >= 1:
        raise ValueError(f"a rank is {ranks.min():g}: ranks count from 1, the best")
    measured = {}
    for name in metrics:
        gain, cutoff = parse(name)
        value = float(np.mean(np.where(ranks <= cutoff, gain(ranks), 0.0)))
        if not math.isfinite(value):
            raise ValueError(f"the metric {name} is {value}: its gain must be finite")
        measured[name] = value
    return measured


def parse(name: str) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """The gain and the cut-off that a metric's name stands for.

    Args:
      name: such as `NDCG@10` or `MRR`.

    Returns:
      An entry of `METRICS`, and the last rank that counts: infinity without a cut-off.

    Raises:
      ValueError: if there is no such metric, or it needs a cut-off.

    Examples:
      >>> parse("HR@10")[1], parse("MRR")[1]
      (10.0, inf)
    """
    found = re.fullmatch(r"([^@]+)(?:@([1-9][0-9]*))?", name)
    if found is None or found[1] not in METRICS:
        raise ValueError(
            f"there is no metric {name!r:.40}: choose from {', '.join(METRICS)}, with "
            "a cut-off as in NDCG@10, or import the module that adds it "
            "(--plugin MODULE)"
        )
    gain, cutoff = METRICS[found[1]], found[2]
    # It would be the same whatever the ranks are.
    if cutoff is None and gain(np.array(np.inf)) > 0:
        raise ValueError(f"{name} needs a cut-off, as in {name}@10")
    return gain, float(cutoff or "inf")
