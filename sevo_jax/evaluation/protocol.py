"""How a model is measured: which metrics, over which items, and this in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences
from sevo_jax.data.split import LeaveOneOut
from sevo_jax.evaluation.metrics import PAPER_METRICS, parse

Part = Literal["valid", "test"]
"""Which item of a user is the target."""
Seen = Literal["mask", "keep"]
"""Whether the items in a user's history are left out of the user's ranking."""

_SEEN = {
    "mask": " with seen ones masked",
    "keep": ", seen ones among them",
}


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and how.

    Raises:
      ValueError: if there is no such metric, or a field has no such value.

    Examples:
      >>> EvaluationConfig(metrics=("HR@20", "MRR")).measured
      ('HR@20', 'MRR', 'NDCG@10')
    """

    metrics: tuple[str, ...] = PAPER_METRICS
    """Metrics to report: HR, Recall, NDCG or MRR with a cut-off, such as HR@10, the
    latter two also without one."""
    selection: str = "NDCG@10"
    """Metric on the validation items that chooses the best epoch."""
    seen: Seen = "mask"
    """Whether items in a user's history are left out (mask) of the user's ranking and
    recommendations or stay in (keep). A target is always ranked."""

    def __post_init__(self):
        is_list = not isinstance(self.metrics, str)
        _checks.require_field(self, "metrics", is_list, "a list of names")
        object.__setattr__(self, "metrics", tuple(self.metrics))
        for name in self.measured:
            parse(name)
        _checks.one_of(self, "seen", tuple(_SEEN))

    @property
    def measured(self) -> tuple[str, ...]:
        """The metrics, the one that selects among them."""
        return tuple(dict.fromkeys((*self.metrics, self.selection)))


def targets_and_histories(
    split: LeaveOneOut, part: Part
) -> tuple[Int[np.ndarray, " users"], Sequences]:
    """The target of each user, -1 where there is none, and what came before it.

    Args:
      split: the data.
      part: of `"valid"` the history is the train items; of `"test"` the validation
        item is one more.

    Raises:
      ValueError: if `part` is neither.
    """
    _checks.require(part in ("valid", "test"), "part", part, "'valid' or 'test'")
    if part == "valid":
        return split.valid, split.train
    return split.test, split.train.append(split.valid)


def describe(
    split: LeaveOneOut,
    config: EvaluationConfig,
    parts: Sequence[Part] = ("valid", "test"),
    *,
    eval_every: int | None = None,
    patience: int | None = None,
) -> str:
    """The protocol in words.

    Args:
      split: the data.
      config: what is measured, and how.
      parts: what of the split is measured.
      eval_every: epochs between two validations, if the model is of the best epoch.
      patience: validations after which training stops, if none of them is better.

    Examples:
      >>> from sevo_jax.data import leave_one_out
      >>> from sevo_jax.data.synthetic import planted
      >>> words = describe(leave_one_out(planted()), EvaluationConfig(), ["test"])
      >>> words.split("; ")[:2]  # doctest: +NORMALIZE_WHITESPACE
      ['leave-one-out, full ranking of 1931 items with seen ones masked',
       "of 2,458 test targets 0 are in the user's history and are ranked all the same"]
    """
    sizes, repeats = zip(*(_counts(split, part) for part in parts), strict=True)
    counted = " and ".join(
        f"{size:,} {part}" for size, part in zip(sizes, parts, strict=True)
    )
    words = [
        f"leave-one-out, full ranking of {split.num_items} items{_SEEN[config.seen]}",
        f"of {counted} targets {' and '.join(f'{each:,}' for each in repeats)} are in "
        "the user's history and are ranked all the same",
        "ties at their mean rank",
        "mean over users",
    ]
    if eval_every is not None:
        best = f"best epoch by validation {config.selection} every {eval_every} epochs"
        if patience is not None:
            best += f", until {patience} in a row are not better"
        words.append(best)
    if "test" in parts:
        words.append("test input includes the validation item")
    return "; ".join(words)


def _counts(split: LeaveOneOut, part: Part) -> tuple[int, int]:
    """How many targets there are, and how many are in the history of their user."""
    targets, histories = targets_and_histories(split, part)
    repeated = histories.values == targets[histories.rows]
    return int(np.sum(targets >= 0)), np.unique(histories.rows[repeated]).size
