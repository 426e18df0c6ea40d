"""`sevo-jax evaluate` and `sevo-jax recommend`: what a trained model is good for."""

import csv
import dataclasses
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from sevo_jax import evaluation
from sevo_jax._files import replacing
from sevo_jax.cli._options import DataOptions, option, parse
from sevo_jax.cli._runs import recall
from sevo_jax.data.log import InteractionLog
from sevo_jax.data.sequences import Sequences
from sevo_jax.data.split import LeaveOneOut, leave_one_out
from sevo_jax.reports.comparison import format_metrics, write_results
from sevo_jax.training import RunFolder, SavedRun, load

_RunFolder = Annotated[
    Path,
    tyro.conf.Positional,
    option("Folder of a run, which train or compare wrote.", "RUN"),
]
_Seen = Annotated[
    Literal["mask", "keep"] | None,
    option(
        "Whether items in a user's history are left out of the user's ranking (mask) "
        "or stay in (keep).",
        default="as in training",
    ),
]
_TrainedOn = tyro.conf.OmitArgPrefixes[DataOptions]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a trained model: metrics on the validation and the test items.

    the parameters:
      the best so far by the run's metric of selection, of a finished or an unfinished
      run

    the data:
      where the run remembers it to be, unless options of data are given

    example:
      sevo-jax evaluate runs/compare-sasrec-synthetic/sevo_adamw-seed0
    """

    run: _RunFolder
    metrics: Annotated[
        tuple[str, ...],
        option(
            "HR, Recall, NDCG or MRR with a cut-off, such as HR@10, the latter two "
            "also without one.",
            "NAME [NAME ...]",
            "as in training",
        ),
    ] = ()
    seen: _Seen = None
    output: Annotated[
        Path | None,
        option("Write the metrics as JSON too.", "FILE", "print them only"),
    ] = None
    data: _TrainedOn = field(default_factory=DataOptions)


@dataclass(frozen=True, kw_only=True)
class Recommend:
    """The best items for users, from a trained model.

    the table has the columns:
      user, item, rank (from 1) and score, users and items as the data call them

    the data:
      where the run remembers it to be, unless options of data are given; a user's
      whole history is the input

    examples:
      sevo-jax recommend runs/beauty/sevo_adamw-seed0 --users 17 42 --top 5
      sevo-jax recommend runs/beauty/sevo_adamw-seed0 --output top.parquet
    """

    run: _RunFolder
    users: Annotated[
        tuple[str, ...], option("Ids of users, as in the data.", "ID [ID ...]", "all")
    ] = ()
    top: Annotated[int, option("How many items for each user.", "N")] = 10
    seen: _Seen = None
    output: Annotated[
        Path | None,
        option("A .csv or .parquet file for the table.", "FILE", "print it as CSV"),
    ] = None
    data: _TrainedOn = field(default_factory=DataOptions)


def evaluate(args: Sequence[str]) -> None:
    """Runs ``sevo-jax evaluate`` with `args`."""
    options = parse(Evaluate, "evaluate", args)
    saved, split = _open(options.run, options.data)
    config = saved.recipe.evaluation
    config = dataclasses.replace(
        config,
        metrics=options.metrics or config.metrics,
        seen=options.seen or config.seen,
    )
    parts = {
        "valid": evaluation.evaluate(saved.model, split, "valid", config),
        "test": evaluation.evaluate(saved.model, split, "test", config),
    }
    protocol = evaluation.describe(split, config, eval_every=saved.recipe.eval_every)
    entry = {
        "model": saved.recipe.model,
        "optimizer": saved.recipe.optimizer.name,
        "dataset": split.log.name,
        "seed": saved.seed,
        "protocol": protocol,
        "best_epoch": saved.best_epoch,
        **parts,
    }
    if options.output is not None:
        write_results(options.output, [entry])
    print(
        f"{entry['model']} on {entry['dataset']}, {entry['optimizer']}, "
        f"seed {saved.seed}, epoch {saved.best_epoch} of {saved.epoch} trained"
    )
    print(f"protocol: {protocol}")
    print(format_metrics(parts))


def recommend(args: Sequence[str]) -> None:
    """Runs ``sevo-jax recommend`` with `args`."""
    options = parse(Recommend, "recommend", args)
    if options.output is not None and options.output.suffix not in _WRITERS:
        raise ValueError(
            f"{options.output}: recommendations are written as {' or '.join(_WRITERS)}"
        )
    saved, split = _open(options.run, options.data)
    if not 1 <= options.top <= split.num_items:
        raise ValueError(
            f"--top is {options.top}: choose 1 to {split.num_items}, the number of "
            "items"
        )
    seen = options.seen or saved.recipe.evaluation.seen
    columns = _columns(saved, split.log, options.users, options.top, seen)
    if options.output is None:
        sys.stdout.write(_csv(columns))
        return
    with replacing(options.output) as temporary:
        _WRITERS[options.output.suffix](temporary, columns)


def _open(run: Path, data: DataOptions) -> tuple[SavedRun, LeaveOneOut]:
    saved = load(run)
    split = leave_one_out(recall(data, RunFolder(run)).load())
    saved.check(split)
    return saved, split


def _columns(
    saved: SavedRun,
    log: InteractionLog,
    users: Sequence[str],
    top: int,
    seen: Literal["mask", "keep"],
) -> dict[str, np.ndarray]:
    rows = _rows(log, users)
    histories = Sequences.from_lists(log.sequences[row] for row in rows)
    items, scores = evaluation.recommend(
        saved.model, histories, top, users=rows, seen=seen
    )
    # A user who has seen nearly everything gets fewer.
    found = items >= 0
    ranks = np.broadcast_to(np.arange(1, top + 1), items.shape)
    return {
        "user": np.repeat(log.user_ids[rows], found.sum(axis=1)),
        "item": log.item_ids[items[found]],
        "rank": ranks[found],
        "score": scores[found],
    }


def _rows(log: InteractionLog, users: Sequence[str]) -> np.ndarray:
    if not users:
        return np.arange(log.num_users)
    known = {str(name): row for row, name in enumerate(log.user_ids.tolist())}
    unknown = [name for name in users if name not in known]
    if unknown:
        raise ValueError(
            f"{log.name!r} has no user {', '.join(unknown[:5])}; its {log.num_users} "
            f"users are such as {', '.join(list(known)[:3])}"
        )
    return np.array([known[name] for name in users])


def _csv(columns: dict[str, np.ndarray]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    # NumPy's own shortest form of a float32; as a Python float it has false digits.
    scores = columns["score"].astype(np.str_)
    listed = [column.tolist() for column in {**columns, "score": scores}.values()]
    writer.writerows(zip(*listed, strict=True))
    return text.getvalue()


def _write_csv(path: Path, columns: dict[str, np.ndarray]) -> None:
    path.write_text(_csv(columns), encoding="utf-8")


def _write_parquet(path: Path, columns: dict[str, np.ndarray]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)


_WRITERS = {".csv": _write_csv, ".parquet": _write_parquet}
