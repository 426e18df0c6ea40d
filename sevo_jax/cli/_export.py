"""`sevo-jax export`: a trained model as files that need nothing of this package."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from sevo_jax.cli._options import option, parse
from sevo_jax.cli._plugin import PluginOption
from sevo_jax.cli._served import RunPath
from sevo_jax.training import export as write
from sevo_jax.training import load


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a trained model's tables and its scorer as files.

    the files:
      items.parquet: the ids of the items and their embeddings; users.parquet too, if
        the model knows its users
      scorer.bin: a program of jax.export that scores all items, for CPU, GPU and TPU;
        it needs jax alone, neither this package nor Flax
      scorer.json: what the program takes

    examples:
      sevo-jax export runs/beauty/sevo_adamw-seed0 --output exported
      sevo-jax export runs/beauty/sevo_adamw-seed0 --output exported --format npz
    """

    run: RunPath
    output: Annotated[Path, option("Folder to write into; new or empty.", "DIR")]
    format: Annotated[Literal["parquet", "npz"], option("Format of the tables.")] = (
        "parquet"
    )
    plugin: PluginOption = None


def export(args: Sequence[str]) -> None:
    """Runs ``sevo-jax export`` with `args`."""
    options = parse(Export, "export", args)
    write(load(options.run), options.output, format=options.format)
