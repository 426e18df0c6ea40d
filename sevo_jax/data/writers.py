"""Writing interaction logs to files, in the formats that can be read back."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence

import numpy as np

from sevo_jax._files import replacing
from sevo_jax.data.log import InteractionLog
from sevo_jax.data.readers import detect_format


def write(log: InteractionLog, path: str | os.PathLike) -> None:
    """Writes a log with its original ids, in the format that the name tells.

    `*.txt` is sequence text; `*.csv`, `*.tsv` and `*.parquet` are tables with the
    columns `user`, `item` and `timestamp`; `*.inter` is a RecBole atomic file. The
    timestamp is the position in the user's sequence, from 0. `read` returns the same
    log; but ids that are text and all plain numbers come back as numbers, except
    from Parquet, and items without interactions are not written.

    The file appears whole or not at all, and replaces one that is there.

    Args:
      log: the log.
      path: the file to write.

    Raises:
      ValueError: the format is not one of these, or an id contains the character
        that separates ids in it.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from sevo_jax.data import InteractionLog, write
      >>> log = InteractionLog.from_columns([7, 7, 9], ["x", "y", "x"], name="tiny")
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write(log, Path(folder, "tiny.txt"))
      ...     print(Path(folder, "tiny.txt").read_text(), end="")
      7 x y
      9 x
    """
    writers = {
        "sequences": _write_sequences,
        "csv": _write_csv,
        "tsv": _write_tsv,
        "parquet": _write_parquet,
        "recbole": _write_recbole,
    }
    format = detect_format(path)
    if format not in writers or os.fspath(path).endswith(".gz"):
        raise ValueError(
            f"{path}: logs are written as .txt, .csv, .tsv, .parquet or .inter, "
            "not compressed: choose one of these endings"
        )
    writers[format](log, path)


def _write_sequences(log: InteractionLog, path: str | os.PathLike) -> None:
    for ids in (log.user_ids, log.item_ids):
        _refuse(path, ids, lambda entry: entry.split() != [entry], "white space")
    items = log.item_ids.astype(np.str_)
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for user, row in zip(log.user_ids.tolist(), log.sequences, strict=True):
            file.write(f"{user} {' '.join(items[row])}\n")


def _write_csv(log: InteractionLog, path: str | os.PathLike) -> None:
    _write_rows(log, path, ("user", "item", "timestamp"), delimiter=",")


def _write_tsv(log: InteractionLog, path: str | os.PathLike) -> None:
    _write_rows(log, path, ("user", "item", "timestamp"), delimiter="\t")


def _write_recbole(log: InteractionLog, path: str | os.PathLike) -> None:
    for ids in (log.user_ids, log.item_ids):
        _refuse(path, ids, lambda entry: not set("\t\r\n").isdisjoint(entry), "a tab")
    header = ("user_id:token", "item_id:token", "timestamp:float")
    _write_rows(
        log, path, header, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None
    )


def _write_rows(
    log: InteractionLog, path: str | os.PathLike, header: Sequence[str], **dialect
) -> None:
    columns = (column.tolist() for column in _columns(log))
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n", **dialect)
        writer.writerow(header)
        writer.writerows(zip(*columns, strict=True))


def _write_parquet(log: InteractionLog, path: str | os.PathLike) -> None:
    import pyarrow
    from pyarrow import parquet

    names = ("user", "item", "timestamp")
    table = pyarrow.table(
        {name: pyarrow.array(column) for name, column in zip(names, _columns(log))}
    )
    with replacing(path) as temporary:
        parquet.write_table(table, temporary)


def _columns(log: InteractionLog) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The original user and item ids and the position, one of each an interaction."""
    rows = log.sequences.rows
    positions = np.arange(len(rows)) - log.sequences.offsets[rows]
    return log.user_ids[rows], log.item_ids[log.sequences.values], positions


def _refuse(path, ids: np.ndarray, is_bad, what: str) -> None:
    for entry in ids.astype(np.str_).tolist():
        if is_bad(entry):
            raise ValueError(
                f"{path}: the id {entry!r} contains {what}, which separates ids in "
                "this format: write .csv or .parquet"
            )
