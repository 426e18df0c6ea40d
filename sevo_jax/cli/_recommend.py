"""`sevo-jax recommend`: the best items of a trained model."""

import codecs
import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from sevo_jax import evaluation
from sevo_jax._files import check_folder, replacing
from sevo_jax._messages import listed
from sevo_jax.cli._options import DataOptions, option, parse
from sevo_jax.cli._plugin import PluginOption
from sevo_jax.cli._runs import STANDARD_INPUT
from sevo_jax.cli._served import (
    RunPath,
    SeenOption,
    ServedData,
    say,
    served_log,
    translated,
)
from sevo_jax.data.log import InteractionLog
from sevo_jax.models import MODELS
from sevo_jax.training import RunFolder, SavedRun, load
from sevo_jax.training.known import Translated, take_users


@dataclass(frozen=True, kw_only=True)
class Recommend:
    """The best items for users, from a trained model.

    the table has the columns:
      user, item, rank (from 1) and score, users and items as the data call them; with
      --sequences the number of the line, from 1, in the place of the user

    the data:
      those that the run remembers; an option of data replaces what it remembers of
      that option alone; another log is read whole, without the run's --k-core. A user's
      whole history is the input. Users may be new, but for mf-bpr and lightgcn; items
      that the run does not know are skipped

    examples:
      sevo-jax recommend runs/beauty/sevo_adamw-seed0 --users 17 42 --top 5
      sevo-jax recommend runs/beauty/sevo_adamw-seed0 --data today.txt --users 80001
      echo B004756YJA B004ZT0SSG | sevo-jax recommend runs/beauty/sevo_adamw-seed0
        --sequences -
      sevo-jax recommend runs/beauty/sevo_adamw-seed0 --output top.parquet
    """

    run: RunPath
    users: Annotated[
        tuple[str, ...], option("Ids of users, as in the data.", "ID [ID ...]", "all")
    ] = ()
    sequences: Annotated[
        Path | None,
        option(
            "Sequences in the place of users: a file with one a line, of items as the "
            "data call them, the oldest first, separated by tabs or spaces; - is "
            "standard input.",
            "FILE",
            "none",
        ),
    ] = None
    top: Annotated[int, option("How many items for each user.", "N")] = 10
    seen: SeenOption = None
    output: Annotated[
        Path | None,
        option("A .csv or .parquet file for the table.", "FILE", "print it as CSV"),
    ] = None
    plugin: PluginOption = None
    data: ServedData = field(default_factory=DataOptions)


def recommend(args: Sequence[str]) -> None:
    """Runs ``sevo-jax recommend`` with `args`."""
    options = parse(Recommend, "recommend", args)
    if options.output is not None and options.output.suffix not in _WRITERS:
        raise ValueError(
            f"{options.output}: recommendations are written as {' or '.join(_WRITERS)}"
        )
    if options.output is not None:
        check_folder(options.output)
    if options.sequences is not None and (
        options.users or options.data != DataOptions()
    ):
        raise ValueError(
            "--sequences are given instead of users: leave out --users and the "
            "options of data"
        )
    saved = load(options.run)
    num_items = len(saved.known.item_ids)
    if not 1 <= options.top <= num_items:
        raise ValueError(
            f"--top is {options.top}: choose 1 to {num_items}, the number of items"
        )
    if options.sequences is not None:
        title, log = "line", _read_sequences(saved, options.sequences)
    else:
        folder = RunFolder(options.run)
        log, asked = served_log(saved, folder, options.data, whole=True)
        title = "user"
        if options.users:
            log = take_users(log, _rows(log, options.users, asked.k_core))
    columns = _columns(
        saved,
        translated(saved, log),
        title,
        options.top,
        options.seen or saved.recipe.evaluation.seen,
    )
    if options.output is None:
        _print(_csv(columns))
        return
    with replacing(options.output) as temporary:
        _WRITERS[options.output.suffix](temporary, columns)


def _read_sequences(saved: SavedRun, path: Path) -> InteractionLog:
    """Lines of items as a log, whose users are the numbers of the lines."""
    if MODELS[saved.recipe.model].knows_users:
        raise ValueError(
            f"{saved.recipe.model} knows users by a table of its own, and cannot serve "
            "--sequences: name users that it was trained on with --users"
        )
    is_file = path != STANDARD_INPUT
    name = str(path) if is_file else "standard input"
    data = path.read_bytes() if is_file else sys.stdin.buffer.read()
    lines, items = [], []
    for number, line in enumerate(
        data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1
    ):
        # As bytes, which know no other white space: an id may hold it.
        found = map(bytes.strip, line.split(b"\t")) if b"\t" in line else line.split()
        try:
            items += [item.decode() for item in found if item]
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}:{number}: is not UTF-8: {error.reason}"
            ) from error
        lines += [number] * (len(items) - len(lines))
    if not items:
        raise ValueError(f"{name} has no items")
    return InteractionLog.from_columns(lines, items, name=name)


def _columns(
    saved: SavedRun,
    found: Translated,
    title: str,
    top: int,
    seen: Literal["mask", "keep"],
) -> dict[str, np.ndarray]:
    log = found.log
    items, scores = evaluation.recommend(
        saved.model, log.sequences, top, users=found.users, seen=seen
    )
    given = items >= 0
    few = np.count_nonzero(~given.all(axis=1))
    if few:
        say(
            f"{few} of {len(given)} {title}s get fewer than {top} items: all others "
            "are in the history (--seen keep recommends them too)"
        )
    ranks = np.broadcast_to(np.arange(1, top + 1), items.shape)
    return {
        title: np.repeat(log.user_ids, given.sum(axis=1)),
        "item": log.item_ids[items[given]],
        "rank": ranks[given],
        "score": scores[given],
    }


def _rows(log: InteractionLog, users: Sequence[str], k: int | None) -> np.ndarray:
    known = {str(name): row for row, name in enumerate(log.user_ids.tolist())}
    unknown = [name for name in users if name not in known]
    if unknown:
        core = f" of {k} interactions (--k-core 1 keeps all)" if k and k > 1 else ""
        raise ValueError(
            f"{log.name!r} has no user {listed(unknown)}{core}; its {log.num_users} "
            f"users are such as {listed(list(known)[:3])}"
        )
    return np.array([known[name] for name in users])


def _print(text: str) -> None:
    """Prints ids as they are or, where standard output has no sign for one, nothing."""
    # None where it has been redirected within the process.
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"standard output is {encoding}, which cannot hold "
            f"{text[error.start]!r}: give --output, or set PYTHONIOENCODING=utf-8"
        ) from error
    sys.stdout.write(text)


def _csv(columns: dict[str, np.ndarray]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    # NumPy's own shortest form of a float32; as a Python float it has false digits.
    scores = columns["score"].astype(np.str_)
    lists = [column.tolist() for column in {**columns, "score": scores}.values()]
    writer.writerows(zip(*lists, strict=True))
    return text.getvalue()


def _write_csv(path: Path, columns: dict[str, np.ndarray]) -> None:
    path.write_text(_csv(columns), encoding="utf-8")


def _write_parquet(path: Path, columns: dict[str, np.ndarray]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)


_WRITERS = {".csv": _write_csv, ".parquet": _write_parquet}
