"""The item graph of a log that is never held whole: ``sevo-jax graph --stream``."""

from collections.abc import Iterator

from sevo_jax.cli._options import DataOptions
from sevo_jax.data.sequences import Sequences
from sevo_jax.data.split import training_part
from sevo_jax.data.streaming import read_item_ids, stream
from sevo_jax.graphs.kinds import GraphConfig


def training_sequences(
    data: DataOptions, config: GraphConfig
) -> tuple[Iterator[Sequences], list[str]]:
    """The training part of the sequences, in chunks, and the ids of the items.

    Raises:
      ValueError: an option is for other files; or as `sevo_jax.data.stream`.
    """
    if data.data is None:
        raise ValueError("--stream needs the Parquet files of a log: add --data")
    for name in ("format", "delimiter", "skip_bad", "k_core"):
        if getattr(data, name) not in (None, False):
            raise ValueError(
                f"--{name.replace('_', '-')} has no effect with --stream, which reads "
                "Parquet files as they are: leave it out, and filter the files before"
            )
    if config.kind != "item-item":
        raise ValueError(
            f"--kind is {config.kind}, but --stream builds item-item alone"
        )
    columns = {
        "user": _column(data.user_column),
        "item": _column(data.item_column),
        "timestamp": _column(data.timestamp_column),
    }
    item_ids = read_item_ids(data.data, **columns)
    chunks = stream(data.data, len(item_ids), item_ids=item_ids, **columns)
    return map(training_part, chunks), [str(name) for name in item_ids.tolist()]


def _column(given: str | None) -> str | int | None:
    return int(given) if given is not None and given.isdecimal() else given
