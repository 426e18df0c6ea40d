"""Writes the tables of the documents from the stored results.

    python experiments/documents.py

A table stands between two comments, ``<!-- begin NAME -->`` and ``<!-- end NAME -->``,
where NAME is one of `PARTS`.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

# For the tables on speed.
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import every
import figure3
import figure4
import figure5
import figure6
import figure7
import figure8
import losses
import multiplex
import pending
import study
import summary
import table3
import table4
import table5
import tuning
from paper import GRAPH_MODELS
from tables import markdown

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / name
    for name in (
        "README.md",
        "experiments/README.md",
        "docs/large.md",
        "docs/speed.md",
        "docs/warehouse.md",
        "docs/when-it-helps.md",
    )
]
PARTS: dict[str, Callable[[], str]] = {
    "table3-short": lambda: markdown(table3.short_table()),
    "progress": lambda: markdown(table3.progress()),
    "table3": table3.table_in_markdown,
    "graph-models": lambda: markdown(table3.graph_models()),
    "table3-averages": lambda: markdown(table3.average_improvements()),
    "table3-all": lambda: f"```\n{table3.table()}\n```",
    **{
        f"tuning-{dataset}": lambda dataset=dataset: markdown(tuning.table(dataset))
        for dataset in ("beauty", "tools")
    },
    "tuning-graph-models": lambda: markdown(tuning.table("beauty", GRAPH_MODELS)),
    "tuning-tried": lambda: markdown(tuning.tried("beauty", GRAPH_MODELS)),
    **{
        name: lambda name=name, cells=cells: study.page(name, cells())
        for name, cells in {
            "table4": lambda: table4.CELLS,
            "figure4": lambda: figure4.CELLS,
            "figure5": figure5.all_cells,
            "figure6": lambda: figure6.CELLS,
            "figure7": lambda: figure7.CELLS,
            "table5": lambda: table5.CELLS,
            "figure8": lambda: figure8.CELLS,
            "every": lambda: every.CELLS,
            "multiplex": lambda: multiplex.CELLS,
        }.items()
    },
    "figure3": figure3.page,
    "losses": losses.page,
    "pending": lambda: markdown(pending.table()),
    "every-table": lambda: markdown(study.table(every.CELLS)),
    "smoothing": summary.smoothing,
    "backbones": summary.backbones,
    "prefixes": summary.prefixes,
    "objectives": summary.objectives,
    "windows": summary.windows,
    "step": summary.step,
    "training": summary.training,
    "large": summary.large,
    "end-to-end": summary.end_to_end,
    "end-to-end-log": summary.end_to_end_log,
    "billion": summary.billion,
    "engines": summary.engines,
}
"""What can stand in a document, by name."""


def filled(text: str) -> str:
    """A document with its tables as the results have them.

    Raises:
      KeyError: if there is no part of a name.
      ValueError: if a part does not end.
    """

    def part(match: re.Match[str]) -> str:
        begin, name, end = match["begin"], match["name"], match["end"]
        return f"{begin}\n{PARTS[name]()}\n{end}"

    pattern = (
        r"(?P<begin><!-- begin (?P<name>\S+) -->)\n.*?"
        r"(?P<end><!-- end (?P=name) -->)"
    )
    filled, count = re.subn(pattern, part, text, flags=re.DOTALL)
    if count != text.count("<!-- begin "):
        raise ValueError("a part that begins does not end")
    return filled


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text()))


if __name__ == "__main__":
    main()
