"""Graphs from files in place of a recipe's own: the values of ``--graph``."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

import tyro

from sevo_jax._leaves import LeafName
from sevo_jax._messages import listed
from sevo_jax.training import CheckpointError, GraphConfig, RunFolder

GraphFiles: TypeAlias = Mapping[str, Path]
"""Files by the name of their table; by "" for those that the model smooths."""

GraphOption: TypeAlias = Annotated[
    tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]],
    tyro.conf.arg(
        name="graph",
        help="Smooth over this graph, which `sevo-jax graph --output` wrote, and build "
        "none; or over several, each for the table NAME, or for tables that are the "
        "nodes of one graph, NAME+NAME: user_embedding+item_embedding=FILE.",
        metavar="[NAME=]FILE [NAME=FILE ...]",
        help_behavior_hint="(default: the one that --graph.* describe)",
    ),
]


def graph_files(given: tuple[tuple[str, ...], ...]) -> GraphFiles:
    """Reads the values of ``--graph``, which may be given several times.

    Raises:
      ValueError: it is not clear which table a graph is for.

    Examples:
      >>> files = graph_files((("users=u.npz", "items=i.npz"),))
      >>> {name: str(path) for name, path in files.items()}
      {'users': 'u.npz', 'items': 'i.npz'}
    """
    values = [value for group in given for value in group]
    files = dict(map(_name_and_path, values))
    clear = files and all(files.values()) and (len(files) == 1 or "" not in files)
    if given and not (clear and len(files) == len(values)):
        raise ValueError(
            f"--graph is {listed(values) or 'empty'}: give one FILE, or NAME=FILE for "
            "each table, none twice"
        )
    return {name: Path(path) for name, path in files.items()}


def as_graphs(files: GraphFiles) -> Path | Mapping[LeafName, Path] | None:
    """The files as `Trainer` takes graphs."""
    if "" in files:
        return files[""]
    keys = {name: tuple(name.split("+")) for name in files}
    by_name = {key if key[1:] else key[0]: files[name] for name, key in keys.items()}
    return by_name or None


def check_unused(files: GraphFiles, asked: GraphConfig, usual: GraphConfig) -> None:
    """Refuses options about how a graph is built where none is.

    Args:
      files: the graphs that are given.
      asked: what the options say.
      usual: what they say if they are left out.
    """
    names = [field.name for field in dataclasses.fields(GraphConfig)]
    # Of a graph without a name, the kind says what its nodes are.
    changed = [
        f"--graph.{name.replace('_', '-')}"
        for name in names
        if getattr(asked, name) != getattr(usual, name)
        and not (name == "kind" and "" in files)
    ]
    if files and changed:
        raise ValueError(
            f"{listed(changed)} would change nothing, as --graph gives the graph: "
            "leave out one or the other"
        )


def remembered(folder: RunFolder) -> GraphFiles:
    """The files of the run in `folder`; none if there is no run.

    Raises:
      CheckpointError: what the run remembers is damaged.
    """
    files = (folder.source or {}).get("graphs", {})
    if not isinstance(files, dict) or not all(
        isinstance(p, str) for p in files.values()
    ):
        raise CheckpointError(
            f"{folder.path} does not say what its graphs are: its note of them is "
            "damaged. Give them again, --graph"
        )
    return {name: Path(path) for name, path in files.items()}


def _name_and_path(value: str) -> tuple[str, str]:
    name, _, path = value.partition("=")
    # The path of a file may hold the sign too.
    if "=" not in value or Path(value).exists():
        return "", value
    return name, path if all(name.split("+")) else ""
