"""What a reader is asked for besides the file, and what it cannot read in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sevo_jax._messages import listed
from sevo_jax.data.formats.columns import option

# Warnings go to stderr unless logging is set up otherwise.
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
            _logger.warning(
                "%s: skipped %d malformed lines or rows, the first: %s",
                *(where, self._count, self._first),
            )

    def nothing_left(self, where: str) -> ValueError:
        """Returns the error of a file in which nothing can be read."""
        reason = f", only what is malformed, first {self._first}" if self._count else ""
        return ValueError(f"{where}: the file has no interactions{reason}")


def warn_of_order(where: str, names: Sequence[str]) -> None:
    """Warns that the interactions are taken in the order of the file.

    Args:
      where: what messages begin with.
      names: the columns, one of which may hold times by a name that is not usual.
    """
    _logger.warning(
        "%s: none of %s is known to hold times, so the order of the file is taken for "
        "that of time; if one does, give %s",
        *(where, listed(names), option("timestamp")),
    )


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
