"""The results of many runs as one table."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_COMMON = ("model", "optimizer", "dataset", "seed", "best_epoch", "seconds_per_epoch")


def read_runs(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One row for each finished run in a folder, and in the folders in it.

    Args:
      folder: runs of ``sevo-jax train`` and ``compare`` are somewhere in it.

    Returns:
      Rows in the order of their paths, all with the same keys: ``run`` (the path
      below `folder`), ``model``, ``optimizer``, ``dataset``, ``seed``, ``best_epoch``,
      ``seconds_per_epoch``; each field of the recipes in which the runs differ, such as
      ``optimizer.beta``; the metrics, such as ``valid NDCG@10`` and ``test HR@1``; and
      ``protocol``, by which they were measured. What a run does not have is None.

    Raises:
      ValueError: if there is no finished run, or a file of one is no result.

    Examples:
      >>> read_runs("runs")  # doctest: +SKIP
      >>> pandas.DataFrame(read_runs("runs"))  # doctest: +SKIP
    """
    paths = sorted(Path(folder).rglob("result.json"))
    if not paths:
        raise ValueError(f"{folder} has no finished run (no result.json)")
    results = {path.parent: _read(path) for path in paths}
    recipes = {path: dict(_flat(each["recipe"])) for path, each in results.items()}
    fields = dict.fromkeys(key for recipe in recipes.values() for key in recipe)
    differing = [
        name
        for name in fields
        if name not in ("model", "optimizer.name")
        and len({json.dumps(recipe.get(name)) for recipe in recipes.values()}) > 1
    ]
    metrics = dict.fromkeys(
        (part, name)
        for part in ("valid", "test")
        for each in results.values()
        for name in each[part]
    )
    return [
        {"run": str(path.relative_to(folder))}
        | {name: each[name] for name in _COMMON}
        | {name: recipes[path].get(name) for name in differing}
        | {f"{part} {name}": each[part].get(name) for part, name in metrics}
        | {"protocol": each["protocol"]}
        for path, each in results.items()
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        needed = (*_COMMON, "recipe", "valid", "test", "protocol")
        return {name: result[name] for name in needed}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no result of a run: {error!r}") from error


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
