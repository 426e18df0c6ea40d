"""Writing interaction logs to files, in the formats that can be read back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from sevo_jax._files import check_folder
from sevo_jax.data.formats import FORMATS
from sevo_jax.data.log import InteractionLog


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
      OSError: the file cannot be written.
      ValueError: the format is not one of these, or an id cannot be written in it so
        that it is read as it was.

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
    check_written(path)
    _writers()[Path(path).suffix.lower()](log, path)


def check_written(path: str | os.PathLike) -> None:
    """Refuses a file that a log could not be written to, before the work for it.

    Raises:
      FileNotFoundError: its folder is not there.
      ValueError: its ending is of no format that is written.
    """
    if Path(path).suffix.lower() not in _writers():
        raise ValueError(
            f"{path}: logs are written as {', '.join(_writers())}, not compressed: "
            "choose one of these endings"
        )
    check_folder(path)


def _writers() -> dict[str, Callable[[InteractionLog, str | os.PathLike], None]]:
    # Of now: a plugin may add formats.
    return {
        ending: each.write
        for each in FORMATS.values()
        if each.write is not None
        for ending in each.endings
    }
