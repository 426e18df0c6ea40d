"""`sevo-jax evaluate`: metrics of a trained model."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np

from sevo_jax import evaluation
from sevo_jax._files import check_folder
from sevo_jax.cli._options import DataOptions, option, parse
from sevo_jax.cli._plugin import PluginOption
from sevo_jax.cli._served import (
    RunPath,
    SeenOption,
    ServedData,
    say,
    served_log,
    translated,
)
from sevo_jax.data.split import LeaveOneOut, leave_one_out
from sevo_jax.reports.comparison import format_metrics, write_results
from sevo_jax.training import RunFolder, SavedRun, load
from sevo_jax.training.known import Translated, honest


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a trained model: metrics on the validation and the test items.

    the parameters:
      the best so far by the run's metric of selection, of a finished or an unfinished
      run

    the data:
      those that the run remembers; an option of data replaces what it remembers of
      that option alone. In another log, such as today's, items that the run does not
      know are skipped, and users whose item it was trained on are left out

    examples:
      sevo-jax evaluate runs/compare-sasrec-synthetic/sevo_adamw-seed0
      sevo-jax evaluate runs/beauty/sevo_adamw-seed0 --data today.txt
    """

    run: RunPath
    metrics: Annotated[
        tuple[str, ...],
        option(
            "HR, Recall, NDCG or MRR with a cut-off, such as HR@10, the latter two "
            "also without one.",
            "NAME [NAME ...]",
            "as in training",
        ),
    ] = ()
    seen: SeenOption = None
    output: Annotated[
        Path | None,
        option("Write the metrics as JSON too.", "FILE", "print them only"),
    ] = None
    plugin: PluginOption = None
    data: ServedData = field(default_factory=DataOptions)


def evaluate(args: Sequence[str]) -> None:
    """Runs ``sevo-jax evaluate`` with `args`."""
    options = parse(Evaluate, "evaluate", args)
    if options.output is not None:
        check_folder(options.output)
    saved = load(options.run)
    log, _ = served_log(saved, RunFolder(options.run), options.data, whole=False)
    split, rows, other = leave_one_out(log), None, ""
    if not saved.is_of(split):
        found = translated(saved, log)
        split, rows = _honest(saved, found), found.users
        other = "; of another log than the run was trained on"
    config = saved.recipe.evaluation
    config = dataclasses.replace(
        config,
        metrics=options.metrics or config.metrics,
        seen=options.seen or config.seen,
    )
    parts = {
        part: evaluation.evaluate(saved.model, split, part, config, rows=rows)
        for part in ("valid", "test")
    }
    protocol = evaluation.describe(
        split,
        config,
        eval_every=saved.recipe.eval_every,
        patience=saved.recipe.patience,
    )
    if config.seen != saved.recipe.evaluation.seen:
        protocol += f"; the epoch was chosen with --seen {saved.recipe.evaluation.seen}"
    protocol += other
    entry = {
        "model": saved.recipe.model,
        "optimizer": saved.recipe.optimizer.name,
        "dataset": split.log.name,
        "seed": saved.seed,
        "protocol": protocol,
        "best_epoch": saved.best_epoch,
        **parts,
    }
    print(
        f"{entry['model']} on {entry['dataset']}, {entry['optimizer']}, "
        f"seed {saved.seed}, epoch {saved.best_epoch} of {saved.epoch} trained"
    )
    print(f"protocol: {protocol}")
    print(format_metrics(parts))
    if options.output is not None:
        write_results(options.output, [entry])


def _honest(saved: SavedRun, found: Translated) -> LeaveOneOut:
    """The split without targets that the run was trained on, which is said."""
    split = leave_one_out(found.log)
    left = honest(saved.known, found.users, split)
    for part in ("valid", "test"):
        before, after = getattr(split, part), getattr(left, part)
        if (before >= 0).any() and (after < 0).all():
            raise ValueError(
                f"the run was trained on every {part} item of {split.log.name!r}: give "
                "the log and split that it was trained with, or a later log"
            )
        seen = np.sum((before >= 0) & (after < 0))
        if seen:
            say(
                f"{seen} of {np.sum(before >= 0)} users are left out of {part}: the "
                "run was trained on their item"
            )
    return left
