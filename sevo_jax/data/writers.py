"""Writing interaction logs to files, in the formats that can be read back."""

from __future__ import annotations

import os

from sevo_jax.data.formats import FORMATS, of_ending
from sevo_jax.data.formats.source import Source
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
    file = Source(path)
    write_format = FORMATS[of_ending(file.where, file.ending)].write
    if write_format is None or file.packing:
        endings = [each.endings[0] for each in FORMATS.values() if each.write]
        raise ValueError(
            f"{path}: logs are written as {', '.join(endings)}, not compressed: choose "
            "one of these endings"
        )
    write_format(log, path)
