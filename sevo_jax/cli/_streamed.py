"""The item graph of a log that is never held whole: ``sevo-jax graph --stream``."""

from collections.abc import Iterator
from typing import Any

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
    columns: Any = data.parquet_columns("--stream", config.kind)
    assert data.data is not None
    item_ids = read_item_ids(data.data, **columns)
    chunks = stream(data.data, len(item_ids), item_ids=item_ids, **columns)
    return map(training_part, chunks), [str(name) for name in item_ids.tolist()]
