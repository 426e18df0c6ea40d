"""`sevo-jax train`: one run, with checkpoints."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sevo_jax.cli._graph_files import as_graphs, remembered
from sevo_jax.cli._options import option, parse
from sevo_jax.cli._runs import (
    RecipeOptions,
    as_options,
    check_output,
    check_seeds,
    check_taken,
    preset,
    run_folder,
)
from sevo_jax.data.split import leave_one_out
from sevo_jax.reports.comparison import format_metrics
from sevo_jax.training import (
    OptimizerConfig,
    RunFolder,
    Trainer,
    connect,
    fingerprint,
)
from sevo_jax.training.identity import check_processes
from sevo_jax.training.processes import is_first, on_first
from sevo_jax.training.profiling import format_phases, profile


@dataclass(frozen=True)
class NamedOptimizer(OptimizerConfig):
    """The optimizer; it takes those of the options that it has."""

    name: Annotated[str, tyro.conf.arg(name="optimizer")] = OptimizerConfig.name
    """sevo_adamw, sevo_adam, sevo_sgd, adam_l2 (the decay is in the gradient), or any
    optimizer of optax: adamw, lion, ..."""


@dataclass(frozen=True, kw_only=True)
class Train(RecipeOptions):
    """Train one model, and print its metrics at the best epoch.

    the output folder gets:
      checkpoints, for --resume, evaluate and recommend; metrics as JSON lines and for
      TensorBoard; result.json

    --profile DIR writes before that where the time of an epoch goes:
      a trace of a warm epoch, for https://ui.perfetto.dev and TensorBoard, and
      phases.json, which is also printed: the seconds of drawing, forward, backward,
      optimizer (of SEvo's: its parts) and evaluation, and how they are measured

    examples:
      sevo-jax train --epochs 10
      sevo-jax train --epochs 10 --profile runs/profile
      sevo-jax train --data ratings.csv --k-core 5 --optimizer sevo_adamw --beta 0.9
      sevo-jax train --data beauty.txt --output runs/beauty --resume
      sevo-jax train --data beauty.txt --graph items.npz
    """

    seed: Annotated[
        int, option("Seed of the initial values, the samples and the dropout.")
    ] = 0
    output: Annotated[
        Path | None,
        option("Folder of the run.", "DIR", "runs/MODEL-DATA-OPTIMIZER-seedN"),
    ] = None
    resume: Annotated[
        tyro.conf.FlagCreatePairsOff[bool], option("Go on with a run that was stopped.")
    ] = False
    profile: Annotated[
        Path | None,
        option(
            "Folder for a profile of an epoch. It is made on copies, with the work of "
            "about 30 epochs, and then the run goes as it does without it.",
            "DIR",
            "no profile",
        ),
    ] = None
    distributed: Annotated[
        tuple[str, int, int] | Literal["auto"] | None,
        option(
            "Train with other processes, which are given the same options: the address "
            "of the first, how many there are, and which this is, from 0; auto finds "
            "these out on Slurm, Open MPI, Kubernetes and Cloud TPU. --mesh is of the "
            "devices of all.",
            "HOST:PORT PROCESSES ID",
            "alone",
        ),
    ] = None
    optimizer: tyro.conf.OmitArgPrefixes[NamedOptimizer]


def train(args: Sequence[str]) -> None:
    """Runs ``sevo-jax train`` with `args`."""
    name, recipe = preset(args)
    default = Train(recipe=name, **as_options(recipe, NamedOptimizer))
    options = parse(Train, "train", args, default)
    check_seeds(options.seed)
    check_taken(options.optimizer, recipe, [options.optimizer.name])
    files = options.graph_files(recipe)
    if options.profile is not None and options.profile.is_file():
        raise ValueError(f"--profile is {options.profile}, a file: choose a folder")
    if options.profile is not None and options.distributed is not None:
        raise ValueError("--profile is of one process: leave out --distributed")
    recipe = options.build()
    split = leave_one_out(options.data.load())
    title = f"{recipe.model}-{split.log.name}-{recipe.optimizer.name}"
    output = options.output or Path("runs", f"{title}-seed{options.seed}")
    if options.distributed is not None:
        known: Any = () if options.distributed == "auto" else options.distributed
        connect(*known)
        names = ("seed", "mesh", "resume", "graphs")
        values = {name: getattr(options, name) for name in names}
        check_processes(
            {
                "recipe": recipe.to_dict(),
                "dataset": fingerprint(split),
                "output": str(output.absolute()),
                **values,
            }
        )
    mesh = options.devices()
    on_first(lambda: check_output(output, options.resume))
    files = files or remembered(RunFolder(output))
    folder = run_folder(output, options.data, files)
    trainer = Trainer(recipe, split, graphs=as_graphs(files), mesh=mesh)
    if options.profile is not None:
        print(f"profiling to {options.profile}", file=sys.stderr)
        measured = profile(trainer, options.profile, seed=options.seed)
        print(f"{format_phases(measured)}\n{measured['method']}\n")
    if is_first():
        print(f"writing to {output}", file=sys.stderr)
    result = trainer.run(
        seed=options.seed,
        output=folder,
        resume=options.resume and folder.has_checkpoint,
    )
    if not is_first():
        return
    print(
        f"{result.model} on {result.dataset}, {result.optimizer}, seed {result.seed}, "
        f"best epoch {result.best_epoch} of {recipe.epochs}"
    )
    print(f"protocol: {result.protocol}")
    print(format_metrics({"valid": result.valid, "test": result.test}))
