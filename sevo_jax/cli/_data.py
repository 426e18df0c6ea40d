"""`sevo-jax data`: statistics of a log, conversion, and data sets by name."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sevo_jax.cli._options import DataOptions, option, parse
from sevo_jax.cli._plugin import PluginOption
from sevo_jax.data.fetching import SOURCES, fetch, find_source
from sevo_jax.data.log import InteractionLog
from sevo_jax.data.log_statistics import statistics
from sevo_jax.data.readers import read
from sevo_jax.data.writers import check_written, write


@dataclass(frozen=True, kw_only=True)
class Data:
    """Statistics of an interaction log; with --output also its conversion.

    data sets by name:
      sevo-jax data fetch NAME downloads one of the paper's; see its --help

    examples:
      sevo-jax data --data reviews_Beauty.json.gz --k-core 5
      sevo-jax data --data ratings.dat --k-core 5 --output ml-1m.txt
      sevo-jax data --data u.csv --user-column 0 --item-column 1 --timestamp-column 3
      zcat log.csv.gz | sevo-jax data --data - --format csv
    """

    output: Annotated[
        Path | None,
        option(
            "Write the log here: .txt, .csv, .tsv, .parquet or .inter. Ids stay as "
            "they are, timestamps become positions.",
            "FILE",
            "none",
        ),
    ] = None
    plugin: PluginOption = None
    data: tyro.conf.OmitArgPrefixes[DataOptions] = field(default_factory=DataOptions)


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Download a data set of the paper and make its log, NAME.txt.

    An interrupted download is gone on from. The log is the 5-core, in the order of
    time, and is checked against the paper's numbers of users, items and interactions.

    examples:
      sevo-jax data fetch beauty --output data
      sevo-jax compare --data data/beauty.txt --recipe sasrec-beauty
    """

    name: Annotated[
        str,
        tyro.conf.Positional,
        option(f"Which one: {', '.join(SOURCES)}.", "NAME"),
    ]
    output: Annotated[Path, option("Folder for the raw file and the log.", "DIR")] = (
        Path("data")
    )
    source: Annotated[
        str | None,
        option(
            "A folder, or the address of one, that has the raw file.",
            "FOLDER",
            "its makers' site",
        ),
    ] = None


def data(args: Sequence[str]) -> None:
    """Runs ``sevo-jax data`` with `args`."""
    if args[:1] == ["fetch"]:
        wanted = parse(Fetch, "data fetch", args[1:])
        print(find_source(wanted.name).terms, file=sys.stderr)
        path = fetch(wanted.name, wanted.output, source=wanted.source)
        print(f"{path}\n{_describe(read(path))}")
        return
    options = parse(Data, "data", args)
    if options.output is not None:
        check_written(options.output)
        _check_other(options.output, options.data.data)
    log = options.data.load()
    if options.output is not None:
        write(log, options.output)
    print(_describe(log))


def _check_other(output: Path, data: str | None) -> None:
    """Refuses to write a log to the file that it is read from."""
    if data is not None and output.exists() and Path(data).exists():
        if output.samefile(data):
            raise ValueError(
                f"--output is {output}, the log itself, whose times and other columns "
                "would be lost: choose another file"
            )


def _describe(log: InteractionLog) -> str:
    figures = statistics(log)
    share = figures.items_never_in_train / figures.num_items
    rows = {
        "users": f"{figures.num_users:,}",
        "items": f"{figures.num_items:,}",
        "interactions": f"{figures.num_interactions:,}",
        "density": f"{figures.density:.4%}",
        "repeats": f"{100 * figures.repeats:.3g} %",
        "mean length": f"{figures.mean_length:.2f}",
        "train interactions": f"{figures.num_train:,}",
        "valid users": f"{figures.num_valid:,}",
        "test users": f"{figures.num_test:,}",
        "items never in train": f"{figures.items_never_in_train:,} ({share:.2%})",
    }
    return "\n".join(
        [f"{log.name}, split by leave-one-out"]
        + [f"{label:<22}{value}" for label, value in rows.items()]
    )
