"""`sevo-jax compare`: one recipe, several optimizers, several seeds."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from sevo_jax._files import locked, replace_text
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
from sevo_jax.reports import plots
from sevo_jax.reports.comparison import (
    RUN_KEYS,
    format_table,
    read_results,
    write_results,
)
from sevo_jax.training import OptimizerConfig, RunFolder, RunResult, Trainer


@dataclass(frozen=True)
class SharedOptimizer(OptimizerConfig):
    """What the optimizers share; each takes those that it has."""

    name: tyro.conf.Suppress[str] = OptimizerConfig.name


@dataclass(frozen=True, kw_only=True)
class Compare(RecipeOptions):
    """Train one recipe with several optimizers and seeds, and compare them.

    the table has, for each metric:
      the mean and the sample standard deviation over the seeds, the change against
      the first optimizer, and the p-value of a paired t-test

    the output folder gets:
      results.json, table.txt, training_loss.png, validation.png, smoothness.png, and
      OPTIMIZER-seedN with the checkpoints of each run, for evaluate and recommend

    examples:
      sevo-jax compare
      sevo-jax compare --data beauty.txt --recipe sasrec-beauty --output runs/beauty
      sevo-jax compare --optimizers adamw sevo_adamw lion --seeds 0 1 2 3 4
      sevo-jax compare --epochs 100 --beta 0.9 --output runs/beta-0.9
      sevo-jax compare --data log.csv --graph.kind attributes --graph.attributes g.csv
    """

    optimizers: Annotated[
        tuple[str, ...],
        option(
            "Optimizers, the first being the baseline: sevo_adamw, sevo_adam, "
            "sevo_sgd, adam_l2 (the decay is in the gradient) or any of optax.",
            "NAME [NAME ...]",
        ),
    ] = ("adamw", "sevo_adamw")
    seeds: Annotated[
        tuple[int, ...],
        option("Seeds; each optimizer is trained with each.", "N [N ...]"),
    ] = (0, 1, 2)
    output: Annotated[
        Path | None,
        option("Folder for the results.", "DIR", "runs/compare-MODEL-DATA"),
    ] = None
    resume: Annotated[
        tyro.conf.FlagCreatePairsOff[bool],
        option("Go on with a comparison that was stopped, or add to one."),
    ] = False
    optimizer: tyro.conf.OmitArgPrefixes[SharedOptimizer]

    def __post_init__(self):
        for name in ("optimizers", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(
                    f"--{name} is {' '.join(map(str, values)) or 'empty'}: give at "
                    "least one, none twice"
                )


def compare(args: Sequence[str]) -> None:
    """Runs ``sevo-jax compare`` with `args`."""
    name, recipe = preset(args)
    default = Compare(recipe=name, **as_options(recipe, SharedOptimizer))
    options = parse(Compare, "compare", args, default)
    check_seeds(*options.seeds)
    check_taken(options.optimizer, recipe, options.optimizers)
    files = options.graph_files(recipe)
    recipe = options.build()
    split = leave_one_out(options.data.load())
    output = options.output or Path("runs", f"compare-{recipe.model}-{split.log.name}")
    check_output(output, options.resume)
    mesh = options.devices()
    for folder in output.glob("*-seed*"):
        files = files or remembered(RunFolder(folder))

    def folder_of(name: str, seed: int) -> RunFolder:
        return run_folder(output / f"{name}-seed{seed}", options.data, files)

    # All of them before the first run: a wrong name should not show after hours.
    trainers = {
        name: Trainer(
            recipe.with_optimizer(name), split, graphs=as_graphs(files), mesh=mesh
        )
        for name in options.optimizers
    }
    with locked(output):
        check_output(output, options.resume)
        print(f"writing to {output}", file=sys.stderr)
        there = _there(output / "results.json", trainers, options.seeds)
        results: list[RunResult] = []
        for result in _train(trainers, options.seeds, folder_of):
            results.append(result)
            there.pop((result.optimizer, result.seed), None)
            entries = [_entry(each) for each in results]
            write_results(output / "results.json", [*entries, *there.values()])
        table = format_table([_entry(each) for each in results])
        replace_text(output / "table.txt", table + "\n")
        _draw(results, recipe.evaluation.selection, output)
    print(table)


def _there(
    path: Path, optimizers: Iterable[str], seeds: Iterable[int]
) -> dict[tuple[str, int], Mapping[str, Any]]:
    """The runs of a comparison that goes on, by optimizer and seed.

    Raises:
      ValueError: if one of them is not asked for: table and pictures would lose it.
    """
    there = {
        (entry["optimizer"], entry["seed"]): entry
        for entry in (read_results(path) if path.exists() else [])
    }
    for name, asked, at in (("optimizers", optimizers, 0), ("seeds", seeds, 1)):
        known = dict.fromkeys(key[at] for key in there)
        if not known.keys() <= set(asked):
            raise ValueError(
                f"{path} has runs of the {name} {' '.join(map(str, known))}: give them "
                f"too, --{name}, with those that are added"
            )
    return there


def _train(
    trainers: dict[str, Trainer],
    seeds: Sequence[int],
    folder_of: Callable[[str, int], RunFolder],
) -> Iterator[RunResult]:
    if jax.default_backend() != "cpu":
        yield from _train_together(trainers, seeds, folder_of)
        return
    total = len(seeds) * len(trainers)
    number = 0
    # Seed by seed: stopped half-way, the runs there are make pairs.
    for seed in seeds:
        for name, trainer in trainers.items():
            number += 1
            folder = folder_of(name, seed)
            yield trainer.run(
                seed=seed,
                output=folder,
                resume=folder.has_checkpoint,
                label=f"[{number}/{total}] {name}, seed {seed}",
            )


def _train_together(
    trainers: dict[str, Trainer],
    seeds: Sequence[int],
    folder_of: Callable[[str, int], RunFolder],
) -> Iterator[RunResult]:
    """All seeds of an optimizer in one program, which an accelerator has room for."""
    for number, (name, trainer) in enumerate(trainers.items(), start=1):
        folders = [folder_of(name, seed) for seed in seeds]
        left = [folder.has_checkpoint for folder in folders]
        # Seeds that were added to a comparison start anew, by themselves.
        for resume in (True, False):
            chosen = [i for i, each in enumerate(left) if each == resume]
            if not chosen:
                continue
            yield from trainer.run_together(
                [seeds[i] for i in chosen],
                outputs=[folders[i] for i in chosen],
                resume=resume,
                label=f"[{number}/{len(trainers)}] {name}, {len(chosen)} seeds",
            )


def _entry(result: RunResult) -> dict:
    return {key: getattr(result, key) for key in RUN_KEYS}


def _draw(results: Sequence[RunResult], selection: str, output: Path) -> None:
    def curves(series: Callable[[RunResult], dict[int, float]]):
        names = dict.fromkeys(result.optimizer for result in results)
        return {
            name: plots.Curves.of(
                [series(result) for result in results if result.optimizer == name]
            )
            for name in names
        }

    def loss(result: RunResult) -> dict[int, float]:
        return dict(enumerate(result.losses, start=1))

    def metric(result: RunResult) -> dict[int, float]:
        return {each["epoch"]: each["valid"][selection] for each in result.history}

    def smoothness(result: RunResult) -> dict[int, float]:
        return {each["epoch"]: each["relative_smoothness"] for each in result.history}

    about = f"{results[0].model}, {results[0].dataset}"
    for name, figure in {
        "training_loss": plots.training_loss(curves(loss), about),
        "validation": plots.validation(curves(metric), selection, about),
        "smoothness": plots.smoothness(curves(smoothness), about),
    }.items():
        plots.save(figure, output / f"{name}.png")
