"""``--plugin``: a module of the user's, which is imported before options are read.

The names that it adds, and the hyper-parameters of its models, are options themselves.
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from sevo_jax.cli._options import option

PluginOption = Annotated[
    str | None,
    option(
        "Module, or .py file, of your own to import first: it registers models "
        "(sevo_jax.models.register), or adds graphs, optimizers, metrics or formats.",
        "MODULE",
        "none",
    ),
]


def load_plugin(args: Sequence[str]) -> None:
    """Imports what ``--plugin`` names, if it is among `args`.

    Raises:
      ValueError: there is no such module, or it cannot import what it needs.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--plugin", nargs="?")
    plugin = parser.parse_known_args(args)[0].plugin
    if plugin is None:
        return
    try:
        if plugin.endswith(".py"):
            _run_file(Path(plugin))
        else:
            # As with python -m: a module of the folder that one is in.
            sys.path.insert(0, "")
            importlib.import_module(plugin)
    except (ImportError, OSError) as error:
        raise ValueError(f"--plugin {plugin} cannot be imported: {error}") from error


def _run_file(path: Path) -> None:
    # Under a name that no other module has.
    name = f"sevo_jax_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
