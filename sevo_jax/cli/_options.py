"""What the commands share: reading options, and the data that they name."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from sevo_jax.data.filtering import k_core
from sevo_jax.data.log import InteractionLog
from sevo_jax.data.readers import FORMATS, read
from sevo_jax.data.synthetic import planted

Command = TypeVar("Command")


def option(help: str, metavar: str | None = None, default: str | None = None) -> Any:
    """Annotation of an option: what `--help` says of it.

    Args:
      help: what it is.
      metavar: what stands for its value.
      default: what it is when left out, if the field's default does not tell.
    """
    hint = None if default is None else f"(default: {default})"
    return tyro.conf.arg(help=help, metavar=metavar, help_behavior_hint=hint)


@dataclass(frozen=True)
class DataOptions:
    """The interactions that the command reads."""

    data: Annotated[
        Path | None,
        option(
            "File of interactions: .txt (lines of a user and its items, oldest first), "
            ".csv, .tsv, .parquet, .inter (RecBole), .dat (MovieLens) or .json (Amazon "
            "reviews); all but .parquet also with .gz.",
            "PATH",
            "a synthetic log that is built in",
        ),
    ] = None
    format: Annotated[
        str | None,
        option(f"Format of the file: {', '.join(FORMATS)}.", "NAME", "by its name"),
    ] = None
    user_column: Annotated[
        str | None, option("Column of the users.", "NAME", "user or a usual synonym")
    ] = None
    item_column: Annotated[
        str | None, option("Column of the items.", "NAME", "item or a usual synonym")
    ] = None
    timestamp_column: Annotated[
        str | None,
        option("Column of the times.", "NAME", "timestamp or a usual synonym"),
    ] = None
    k_core: Annotated[
        int | None,
        option(
            "Drop users and items of fewer than K interactions until none is left; "
            "the paper's K is 5.",
            "K",
            "keep all",
        ),
    ] = None

    def load(self) -> InteractionLog:
        """Reads the log, or draws the built-in one.

        Raises:
          OSError: the file cannot be read.
          ValueError: as `sevo_jax.data.readers.read` and `k_core`.
        """
        if self.data is not None:
            log = read(
                self.data,
                format=self.format,
                user=self.user_column,
                item=self.item_column,
                timestamp=self.timestamp_column,
            )
        elif self == DataOptions(k_core=self.k_core):
            log = planted()
        else:
            raise ValueError("a format or columns are given without a file: add --data")
        return log if self.k_core is None else k_core(log, self.k_core)


def parse(
    command: type[Command],
    prog: str,
    args: Sequence[str],
    default: Any = None,
) -> Command:
    """Reads a command's options; `default` holds what is not given.

    Raises:
      SystemExit: with status 2 after options that do not parse, 0 after ``--help``.
    """
    return tyro.cli(
        command,
        prog=f"sevo-jax {prog}",
        description=inspect.getdoc(command),
        args=list(args),
        default=default,
        config=(tyro.conf.HelptextFromCommentsOff,),
    )
