"""What a reader is asked for besides the file, and what it cannot read in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

_logger = logging.getLogger("sevo_jax.data")


class Faults:
    """The lines or rows of a file that cannot be read.

    The first one ends the reading; or, if they are to be skipped, it is remembered and
    all are counted.

    Args:
      skip: whether to skip them.
    """

    def __init__(self, skip: bool = False):
        self.skip = skip
        self._count = 0
        self._first = ""

    def add(self, where: str, message: str, count: int = 1) -> None:
        """Notes a fault, which the file has `count` times.

        Raises:
          ValueError: faults are not to be skipped.
        """
        if not self.skip:
            raise ValueError(
                f"{where}: {message} (skip_bad=True, --skip-bad leaves out what cannot "
                "be read)"
            )
        self._first = self._first or f"{where}: {message}"
        self._count += count

    def report(self, where: str) -> None:
        """Warns of what was skipped: how much, and the first of it."""
        if self._count:
            warn(
                where,
                f"skipped {self._count} malformed lines or rows, the first: "
                f"{self._first}",
            )

    def nothing_left(self, where: str) -> ValueError:
        """Returns the error of a file in which nothing can be read."""
        reason = f", only what is malformed, first {self._first}" if self._count else ""
        return ValueError(f"{where}: the file has no interactions{reason}")


def warn(where: str, message: str) -> None:
    """Tells, on stderr unless logging is set up otherwise, how a file was taken."""
    _logger.warning("%s: %s", where, message)


@dataclass(frozen=True)
class Request:
    """How to read a file, where its name and its content do not tell.

    Attributes:
      columns: names or numbers of columns, by "user", "item" and "timestamp".
      delimiter: what stands between two columns; None to find it out.
      faults: what to do with what cannot be read.
    """

    columns: Mapping[str, str | int] = field(default_factory=dict)
    delimiter: str | None = None
    faults: Faults = field(default_factory=Faults)
