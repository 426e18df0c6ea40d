"""What the commands share: reading options, and the data that they name."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import tyro

from sevo_jax.data.filtering import k_core
from sevo_jax.data.formats import FORMATS
from sevo_jax.data.log import InteractionLog
from sevo_jax.data.readers import read
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
        str | None,
        option(
            "Interactions: .txt (lines of a user and its items, oldest first, or of "
            "user and item), .csv, .tsv, .parquet or a folder of it, .inter (RecBole), "
            ".dat and .data (MovieLens), .json and .jsonl (one review a line); all of "
            "them also with .gz, .bz2, .xz, .zst or .zip; - for standard input.",
            "PATH",
            "a synthetic log that is built in",
        ),
    ] = None
    format: Annotated[
        str | None,
        option(f"Format of the file: {', '.join(FORMATS)}.", "NAME", "by its name"),
    ] = None
    user_column: Annotated[
        str | None,
        option(
            "Column of the users; in a table without header its number, from 0.",
            "NAME|N",
            "user_id or a usual synonym",
        ),
    ] = None
    item_column: Annotated[
        str | None,
        option(
            "Column of the items, likewise.", "NAME|N", "item_id or a usual synonym"
        ),
    ] = None
    timestamp_column: Annotated[
        str | None,
        option(
            "Column of the times, likewise; without one the order of the file is taken "
            "for that of time.",
            "NAME|N",
            "timestamp or a usual synonym",
        ),
    ] = None
    delimiter: Annotated[
        str | None,
        option("What cuts a line of a table into columns.", "TEXT", "found out"),
    ] = None
    skip_bad: Annotated[
        bool,
        option(
            "Leave out lines that cannot be read, and say how many they are and the "
            "first of them."
        ),
    ] = False
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
                delimiter=self.delimiter,
                skip_bad=self.skip_bad,
            )
        elif self == DataOptions(k_core=self.k_core):
            log = planted()
        else:
            raise ValueError("options of a file are given without one: add --data")
        return log if self.k_core is None else k_core(log, self.k_core)

    def parquet_columns(self, option: str, kind: str) -> dict[str, str | int]:
        """The columns that are named, of Parquet files that `option` reads as they are.

        Raises:
          ValueError: there are no files, an option is for other files, or a graph of
            this kind is not built from them.
        """
        if self.data is None:
            raise ValueError(f"{option} needs the Parquet files of a log: add --data")
        for name in ("format", "delimiter", "skip_bad", "k_core"):
            if getattr(self, name) not in (None, False):
                raise ValueError(
                    f"--{name.replace('_', '-')} has no effect with {option}, which "
                    "reads Parquet files as they are: leave it out, and filter the "
                    "files before"
                )
        if kind != "item-item":
            raise ValueError(f"--kind is {kind}, but {option} builds item-item alone")
        given = {
            "user": self.user_column,
            "item": self.item_column,
            "timestamp": self.timestamp_column,
        }
        return {
            title: int(column) if column.isdecimal() else column
            for title, column in given.items()
            if column is not None
        }


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
