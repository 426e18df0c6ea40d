"""What the commands about runs share: recipes as options, and the runs' folders."""

import argparse
import contextlib
import dataclasses
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from jax.sharding import Mesh

from sevo_jax._files import is_empty
from sevo_jax._messages import shown
from sevo_jax.cli._graph_files import (
    GraphFiles,
    GraphOption,
    check_unused,
    graph_files,
)
from sevo_jax.cli._options import DataOptions, option
from sevo_jax.cli._plugin import PluginOption
from sevo_jax.evaluation import EvaluationConfig
from sevo_jax.graphs.kinds import KINDS
from sevo_jax.models import MODELS
from sevo_jax.training import (
    RECIPES,
    CheckpointError,
    GraphConfig,
    OptimizerConfig,
    Recipe,
    RunFolder,
    find_recipe,
    read_recipe,
)
from sevo_jax.training.mesh import MESH_AXES, make_mesh
from sevo_jax.training.optimizers import takes
from sevo_jax.training.recipe import suggestion

STANDARD_INPUT = Path("-")

_RECIPE_FIELDS = [item.name for item in dataclasses.fields(Recipe)]


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """A recipe, each value of which is an option. Base of commands that train."""

    data: tyro.conf.OmitArgPrefixes[DataOptions] = field(default_factory=DataOptions)
    recipe: Annotated[
        str,
        option(
            "Hyper-parameters to start from; they are the defaults of all other "
            f"options: {', '.join(RECIPES)}; or a JSON file of them, such as the "
            "run.json of a run.",
            "NAME|FILE",
        ),
    ]
    model: Annotated[str, option(f"Recommender: {', '.join(MODELS)}.", "NAME")]
    epochs: Annotated[int, option("Passes over the training sequences.")]
    batch_size: Annotated[
        int,
        option(
            "Samples of a step: users, prefixes or triplets, as the model draws them."
        ),
    ]
    eval_every: Annotated[int, option("Epochs from one validation to the next.")]
    patience: Annotated[
        int | None,
        option("Validations without a better one after which training stops."),
    ]
    mesh: Annotated[
        str,
        option(
            "Devices to train on: over how many to split each batch (data=N), the "
            "width of the smoothed tables (width=N) and the rows of all tables and "
            "graphs (rows=N), one of these or several, separated by commas.",
            "AXIS=N,...",
        ),
    ] = "data=1"
    plugin: PluginOption = None
    # Which model it is, and so the class, is known when the command line is read.
    architecture: tyro.conf.OmitArgPrefixes[object]
    optimizer: Any
    graphs: GraphOption = ()
    graph: GraphConfig
    evaluation: tyro.conf.OmitArgPrefixes[EvaluationConfig]

    def __post_init__(self):
        mesh_axes(self.mesh)

    def build(self) -> Recipe:
        """The recipe that the options describe."""
        values = {name: getattr(self, name) for name in _RECIPE_FIELDS}
        optimizer = OptimizerConfig(**vars(self.optimizer))
        return Recipe(**{**values, "optimizer": optimizer})

    def graph_files(self, recipe: Recipe) -> GraphFiles:
        """The files that `--graph` names.

        Args:
          recipe: what the options start from.

        Raises:
          ValueError: it is not clear what they are for, or others have no effect.
        """
        files = graph_files(self.graphs)
        check_unused(files, self.graph, recipe.graph)
        return files

    def devices(self) -> Mesh:
        """The mesh that `--mesh` asks for; makes the devices of a CPU, if it can.

        Raises:
          ValueError: if there are not as many.
        """
        # Unless somebody has said how many, or JAX is in use and has its devices, or
        # other processes have a part of them.
        axes = mesh_axes(self.mesh)
        chosen = jax.config.jax_num_cpu_devices >= 1  # pyright: ignore
        if not chosen and not jax.distributed.is_initialized():
            with contextlib.suppress(RuntimeError):
                jax.config.update("jax_num_cpu_devices", math.prod(axes.values()))
        return make_mesh(**axes)


def mesh_axes(text: str) -> dict[str, int]:
    """What `--mesh` says: over how many devices to split what.

    Raises:
      ValueError: it says nothing of the kind.

    Examples:
      >>> mesh_axes("data=2,rows=4")
      {'data': 2, 'rows': 4}
    """
    pairs = [part.partition("=") for part in text.split(",")]
    axes = {name: int(size) for name, _, size in pairs if size.isdecimal()}
    if len(axes) < len(pairs) or not axes.keys() <= {*MESH_AXES} or 0 in axes.values():
        raise ValueError(
            f"--mesh is {shown(text)}: give numbers of devices for some of "
            f"{', '.join(MESH_AXES)}, each once, such as data=2,rows=4"
        )
    return axes


def preset(args: Sequence[str]) -> tuple[str, Recipe]:
    """The recipe to start from, by ``--recipe``, ``--model`` and ``--data``.

    It is found before the other options are read, so that it can be their default and
    ``--help`` shows its values. Without ``--recipe`` it is the one for the built-in
    log, or for data of the user's the one for Beauty. A model that has no recipe starts
    from the defaults of its `Config`.

    Returns:
      The recipe's name, or the model's if it has none, and the recipe.

    Raises:
      ValueError: there is no such recipe or model, or they do not go together.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--recipe", "--model", "--data"):
        parser.add_argument(name, nargs="?")
    given, _ = parser.parse_known_args(args)
    if given.model not in (None, *MODELS):
        raise ValueError(
            f"model {shown(given.model)}: {suggestion(given.model, MODELS)}"
        )
    if given.recipe is not None:
        is_file = given.recipe not in RECIPES and (
            given.recipe.endswith(".json") or Path(given.recipe).is_dir()
        )
        recipe = (read_recipe if is_file else find_recipe)(given.recipe)
        if given.model not in (None, recipe.model):
            raise ValueError(
                f"recipe {given.recipe!r} is for the model {recipe.model!r}, not "
                f"{given.model!r}: leave out --model or choose another --recipe"
            )
        return given.recipe, recipe
    model = given.model or Recipe.model
    dataset = "synthetic" if given.data is None else "beauty"
    # A model may have several for a dataset, by graph: the first one listed.
    for name, recipe in RECIPES.items():
        if recipe.model == model and name.endswith(f"-{dataset}"):
            return name, recipe
    smoothed = MODELS[model].smoothed
    if not smoothed:
        return model, Recipe(model).with_optimizer("adamw")
    kind = next(kind for kind in KINDS if KINDS[kind].links in smoothed)
    return model, Recipe(model, graph=GraphConfig(kind))


def as_options(recipe: Recipe, optimizer: type[OptimizerConfig]) -> dict[str, Any]:
    """The fields of `recipe` for `RecipeOptions`, its optimizer as an `optimizer`."""
    values = {name: getattr(recipe, name) for name in _RECIPE_FIELDS}
    return {**values, "optimizer": optimizer(**vars(recipe.optimizer))}


def check_taken(
    optimizer: OptimizerConfig, recipe: Recipe, names: Sequence[str]
) -> None:
    """Refuses hyper-parameters that were given and that no optimizer takes.

    Args:
      optimizer: what the options say.
      recipe: what they start from.
      names: the optimizers.

    Raises:
      ValueError: naming the option; or there is no such optimizer.
    """
    for parameter, value in vars(optimizer).items():
        given = value != getattr(recipe.optimizer, parameter)
        if given and not any(takes(name, parameter) for name in names):
            dashed = parameter.replace("_", "-")
            raise ValueError(
                f"--{dashed} has no effect with {' or '.join(names)}: leave it out, or "
                "choose another optimizer, such as sevo_adamw"
            )


def check_seeds(*seeds: int) -> None:
    """Refuses seeds that `Trainer.run` does not take, before anything is written."""
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"the seed is {seed}: choose 0 to {2**32 - 1}")


def check_output(output: Path, resume: bool) -> None:
    """Refuses a folder that holds something already.

    Raises:
      FileExistsError: unless `resume`.
    """
    if not resume and output.exists() and not (output.is_dir() and is_empty(output)):
        raise FileExistsError(
            f"{output} exists already: continue it with --resume, or choose another "
            "--output"
        )


def run_folder(path: Path, data: DataOptions, graphs: GraphFiles) -> RunFolder:
    """The folder of a run, which is to remember its data and graphs for `recall`."""
    values: dict[str, Any] = dataclasses.asdict(data)
    values["graphs"] = {name: str(file.resolve()) for name, file in graphs.items()}
    if data.data is not None:
        source = Path(data.data)
        values["data"] = str(source if source == STANDARD_INPUT else source.resolve())
    return RunFolder(path, values)


def recall(data: DataOptions, folder: RunFolder) -> DataOptions:
    """The options `data`; where one is not given, that of the run in `folder`.

    Raises:
      CheckpointError: what the run remembers is damaged.
      ValueError: it remembers a file that is not there.
    """
    values = folder.source
    if values is None:
        return data
    values.pop("graphs", None)
    hints = typing.get_type_hints(DataOptions)
    if values.keys() != hints.keys() or not all(
        isinstance(values[name], hint) for name, hint in hints.items()
    ):
        raise CheckpointError(
            f"{folder.path} does not say what its data are: its note of them is "
            "damaged. Resume the run, which writes it anew"
        )
    given = {
        item.name: getattr(data, item.name)
        for item in dataclasses.fields(data)
        if getattr(data, item.name) != item.default
    }
    asked = DataOptions(**{**values, **given})
    if data.data is None and asked.data and not Path(asked.data).exists():
        is_stream = Path(asked.data) == STANDARD_INPUT
        what = "standard input" if is_stream else asked.data
        raise ValueError(
            f"the run was trained on {what}, which is not there: give --data"
        )
    return asked
