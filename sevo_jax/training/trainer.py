"""The training loop: train, validate every few epochs, keep the best, resume."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

import sevo_jax as sevo
from sevo_jax._leaves import LeafName, by_name
from sevo_jax.data.split import LeaveOneOut
from sevo_jax.evaluation import Evaluator, describe
from sevo_jax.graphs import kinds
from sevo_jax.models import MODELS, Recommender
from sevo_jax.samples import Epochs, ahead
from sevo_jax.training.epoch import (
    Graphs,
    Program,
    TrainState,
    same_shapes,
    split_model,
    train_epoch,
    train_epoch_together,
)
from sevo_jax.training.folder import RunFolder
from sevo_jax.training.identity import (
    check_processes,
    digest,
    fingerprint,
    machine,
    program_digest,
    settings,
    versions,
)
from sevo_jax.training.mesh import (
    fetch,
    make_mesh,
    row_sharding,
    split_batches,
    split_tables,
)
from sevo_jax.training.optimizers import SEVO, make_optimizer
from sevo_jax.training.processes import is_first
from sevo_jax.training.recipe import GraphConfig, OptimizerConfig, Recipe
from sevo_jax.training.run import Run, RunResult
from sevo_jax.training.run_log import RunLog
from sevo_jax.training.smoothed import (
    GivenGraphs,
    find_smoothed,
    read_graphs,
)


class Trainer:
    """Trains a recipe on a split, once a seed.

    Graph, evaluators and compiled programs are made once and serve all seeds. Several
    processes, joined by `sevo_jax.training.connect`, each make the same trainer on a
    mesh of all their devices, and get the same results; the first of them writes and
    shows progress.

    Args:
      recipe: what to run.
      split: the data.
      graphs: what SEvo smooths over, in place of the recipe's graph: a mapping from
        leaf names to adjacencies, as `sevo_jax.scale_by_sevo` takes it; or one
        adjacency, over the leaves that the model smooths over the recipe's kind. An
        adjacency may be the path of a file that `sevo_jax.graphs.save` wrote.
      optimizer: in place of the recipe's: an optax transformation, or a function that
        makes one of the graphs by leaf name. The graphs of the latter are arguments
        of the compiled program.
      mesh: devices to train on, from `make_mesh`; by default the first one.

    Raises:
      ValueError: if there is no such optimizer, a graph does not fit its table, or
        the data do not fit the model.

    Examples:
      >>> import dataclasses
      >>> from sevo_jax.data import leave_one_out
      >>> from sevo_jax.data.synthetic import planted
      >>> from sevo_jax.training import find_recipe
      >>> recipe = dataclasses.replace(find_recipe("sasrec-synthetic"), epochs=1)
      >>> trainer = Trainer(recipe, leave_one_out(planted()))
      >>> result = trainer.run(seed=0, progress=False)
      >>> sorted(result.test)
      ['HR@1', 'HR@10', 'HR@5', 'NDCG@10', 'NDCG@5']
    """

    def __init__(
        self,
        recipe: Recipe,
        split: LeaveOneOut,
        *,
        graphs: GivenGraphs | None = None,
        optimizer: Any = None,
        mesh: Mesh | None = None,
    ):
        self.mesh = make_mesh() if mesh is None else mesh
        self.recipe = recipe
        self.optimizer_name = recipe.optimizer.name if optimizer is None else "custom"
        self.split = split
        config = recipe.evaluation
        self.protocol = describe(split, config, eval_every=recipe.eval_every)
        kind = MODELS[recipe.model]
        smoothed = self._smoothed(kind, graphs)
        self.smoothing = split_tables(self.mesh, read_graphs(smoothed), ())
        self._propagated = {
            name: split_tables(self.mesh, sevo.prepare(self._build(config)), ())
            for name, config in kind.propagated(recipe.architecture).items()
        }
        self.optimizer = self._make_optimizer(optimizer)
        model = self.new_model(0)
        graphdef, params, model_graphs, _ = split_model(model)
        self.tables = find_smoothed(params, self.smoothing, smoothed)
        self.program = Program(graphdef, self.optimizer.update)
        self.graphs = Graphs(self.smoothing, model_graphs)
        self._given: dict[str, Any] = {}
        if graphs is not None:
            self._given["graphs"] = {
                str(name): digest(*jax.tree.leaves(graph))
                for name, graph in self.smoothing.items()
            }
        built = dict(kind.propagated(recipe.architecture))
        if graphs is None:
            built["smoothing"] = recipe.graph
        self._given["graph_files"] = {
            name: kinds.checksum(config) for name, config in built.items()
        }
        if optimizer is not None:
            state = jax.eval_shape(lambda: self.start(0))
            self._given["optimizer"] = program_digest(
                self.optimizer.update,
                state.params,
                state.opt_state,
                state.params,
                graphs=self.smoothing,
            )
        self._ranking = nnx.graphdef(model.for_ranking())
        rows = row_sharding(self.mesh)
        self._valid = Evaluator(model, split, "valid", config, sharding=rows)
        self._test = Evaluator(model, split, "test", config, sharding=rows)

    def run(
        self,
        *,
        seed: int = 0,
        output: str | Path | RunFolder | None = None,
        resume: bool = False,
        progress: bool = True,
        label: str = "",
    ) -> RunResult:
        """Trains for the recipe's epochs and measures the best parameters.

        Before each epoch whose number is a multiple of `recipe.eval_every`, epoch 0
        included, and once at the end, the validation items are ranked; parameters
        that beat all before by the recipe's metric of selection are kept, and their
        validation and test metrics are the result.

        Args:
          seed: in [0, 2**32); determines initial values, batches and dropout.
          output: directory of the run; it gets `run.json`, `metrics.jsonl`,
            `tensorboard/`, `checkpoints/` (one an evaluation, the last is kept) and,
            at the end, `result.json`. None writes nothing.
          resume: whether to go on from the checkpoint in `output`, with the same
            result, bit for bit, as if the run had never stopped. A finished run goes
            on where the recipe has more epochs.
          progress: whether to show progress on standard error.
          label: what to call the run there.

        Raises:
          ValueError: if the seed is out of range, or `resume` lacks an `output`.
          FileExistsError: if `output` holds a run and `resume` is false, or another
            process writes there.
          CheckpointError: if there is no checkpoint to resume, it is corrupt, it is of
            other data or another split, recipe, seed, version of the libraries or
            setting of JAX's generators and precision, or it has more epochs.
          FloatingPointError: if a loss or a score is not finite.
        """
        with contextlib.ExitStack() as stack:
            run = self._open(stack, seed, output, resume, progress, label)
            self._loop([run], self.recipe.epochs)
            return self._finish(run)

    def run_together(
        self,
        seeds: Sequence[int],
        *,
        outputs: Sequence[str | Path | RunFolder] | None = None,
        resume: bool = False,
        progress: bool = True,
        label: str = "",
    ) -> list[RunResult]:
        """As `run` with each of several seeds, but all in one compiled program.

        On a GPU, which a single run leaves mostly idle, this is faster than one after
        another; on a CPU it is slower. A run comes out as it does alone, up to
        rounding.

        Args:
          seeds: one a run, none twice.
          outputs: the directory of each run; None writes nothing.
          resume: whether to go on from the checkpoints in `outputs`; runs that were
            stopped at different epochs first catch up.
          progress: whether to show progress on standard error, that of the first run.
          label: what to call the runs there.

        Returns:
          A result for each seed. `seconds_per_epoch` is this run's share.

        Raises:
          ValueError: if a seed comes twice, or `outputs` are not as many as `seeds`.
          Exception: as `run`.
        """
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds are {list(seeds)}: give at least one, none twice")
        if outputs is not None and len(outputs) != len(seeds):
            raise ValueError(f"there are {len(seeds)} seeds and {len(outputs)} outputs")
        check_processes({"seeds": list(seeds)})
        with contextlib.ExitStack() as stack:
            runs = [
                self._open(stack, seed, output, resume, progress and not index, label)
                for index, (seed, output) in enumerate(
                    zip(seeds, outputs or [None] * len(seeds), strict=True)
                )
            ]
            furthest = max(run.progress.epoch for run in runs)
            for run in runs:
                if run.progress.epoch < furthest:
                    self._loop([run], furthest)
            self._loop(runs, self.recipe.epochs)
            return [self._finish(run) for run in runs]

    def _open(
        self,
        stack: contextlib.ExitStack,
        seed: int,
        output: str | Path | RunFolder | None,
        resume: bool,
        progress: bool,
        label: str,
    ) -> Run:
        """A run at its start, or where it was left; `stack` closes its files."""
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed is {seed}: it must be in [0, 2**32)")
        if resume and output is None:
            raise ValueError("resume=True needs output: the directory of the run")
        folder = RunFolder(output) if isinstance(output, str | Path) else output
        identity = self._identity(seed)
        check_processes(
            {
                **identity,
                "mesh": str(self.mesh.devices.shape),
                "output": folder and str(folder.path.absolute()),
                "resume": resume,
            }
        )
        state = self.start(seed)
        run = Run(
            seed,
            identity,
            machine(self.mesh),
            self.protocol,
            state,
            best=self._best(state),
        )
        if folder is not None:
            run.open(
                stack,
                folder,
                self.split,
                epochs=self.recipe.epochs,
                resume=resume,
            )
            if resume:
                run.state, run.best = self.place((run.state, run.best))
        run.log = stack.enter_context(
            RunLog(
                run.folder if is_first() else None,
                run.progress,
                epochs=self.recipe.epochs,
                selection=self.recipe.evaluation.selection,
                show=progress and is_first(),
                label=label,
            )
        )
        return run

    def _finish(self, run: Run) -> RunResult:
        result = self._result(run)
        if run.folder is not None and is_first():
            run.folder.write_result(result.to_dict())
        return result

    def new_model(self, seed: int) -> Recommender:
        """The model that a run with `seed` starts from."""
        return MODELS[self.recipe.model].for_data(
            self.split,
            self.recipe.architecture,
            graphs=self._propagated,
            rngs=nnx.Rngs(seed),
        )

    def optimizer_of(
        self, config: OptimizerConfig
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer that `config` names, over the graphs and epochs of this one."""
        steps = self.epochs(0).num_steps if config.follows_schedule else None
        return make_optimizer(config, self.smoothing, steps_per_epoch=steps)

    def start(self, seed: int, optimizer: Any = None) -> TrainState:
        """The state that training starts from, with another optimizer if given."""
        _, params, _, carried = split_model(self.new_model(seed))
        opt_state = (optimizer or self.optimizer).init(params)
        return self.place(TrainState(params, carried, opt_state))

    def epochs(self, seed: int) -> Epochs:
        """The epochs that a run with `seed` trains on."""
        return self.new_model(seed).epochs(
            self.split.train, batch_size=self.recipe.batch_size, seed=seed
        )

    def train_epoch(
        self,
        state: TrainState,
        batches: Any,
        *,
        seed: int,
        epoch: int,
        program: Program | None = None,
    ) -> tuple[TrainState, dict[str, Float[Array, " steps"]]]:
        """Trains over the batches of an epoch.

        Args:
          state: donated.
          batches: an entry of `epochs`, or one put on the devices by `split_batches`.
          seed: seed of the run.
          epoch: number of the epoch.
          program: in place of the trainer's own.

        Returns:
          The new state, and `"loss"` and its parts at each step, by name.
        """
        state, losses = train_epoch(
            program or self.program,
            state,
            batches,
            self.graphs,
            np.uint32(seed),
            np.int32(epoch),
        )
        # Where the compiler has split more than the tables, undo it: the next epoch is
        # compiled for the placement of the first.
        return self.place(state), losses

    def model(self, state: TrainState) -> Recommender:
        """The model in a state of its training."""
        graphdef, graphs = self.program.graphdef, self.graphs.model
        return nnx.merge(graphdef, state.params, graphs, state.carried)

    def place(self, tree: Any) -> Any:
        """Puts parameters, or what is shaped like them, on the devices of the run."""
        paths = [path for table in self.tables for path in table.paths]
        return split_tables(self.mesh, tree, paths)

    def measure(self, model: Recommender) -> dict[str, Any]:
        """What an evaluation measures: an entry of `RunResult.history`, in part."""
        return {"valid": self._valid(model.for_ranking()), **self._smoothness(model)}

    def _build(self, config: GraphConfig) -> Any:
        return kinds.build(config, self.split, MODELS[self.recipe.model].item_offset)

    def _smoothed(self, kind: type[Recommender], graphs: Any) -> Mapping[LeafName, Any]:
        """The graphs that SEvo smooths over, by leaf name."""
        if by_name(graphs):
            return graphs
        leaves = kind.smoothed.get(self.recipe.graph.links, ())
        if not leaves and graphs is not None:
            raise ValueError(
                f"the model {self.recipe.model!r} names no table for a graph without a "
                "name: give graphs by leaf name"
            )
        if leaves and graphs is None:
            graphs = self._build(self.recipe.graph)
        return dict.fromkeys(leaves, graphs)

    def _make_optimizer(self, given: Any) -> optax.GradientTransformationExtraArgs:
        name = self.recipe.optimizer.name
        if given is None and name in SEVO and not self.smoothing:
            raise ValueError(
                f"optimizer {name!r} has nothing to smooth, as the model "
                f"{self.recipe.model!r} names no table: choose another optimizer, or "
                "give graphs by leaf name"
            )
        if given is None:
            return self.optimizer_of(self.recipe.optimizer)
        if not isinstance(given, optax.GradientTransformation):
            return optax.with_extra_args_support(given(self.smoothing))
        given = optax.with_extra_args_support(given)

        def update(updates, state, params=None, *, graphs=None, **extra_args):
            # It has graphs of its own, under names of its own.
            del graphs
            return given.update(updates, state, params, **extra_args)

        return optax.GradientTransformationExtraArgs(given.init, update)

    def _identity(self, seed: int) -> dict[str, Any]:
        """What determines the numbers of a run, as JSON values."""
        return {
            "recipe": self.recipe.to_dict(),
            "seed": seed,
            "dataset": fingerprint(self.split),
            "versions": versions(),
            "settings": settings(),
            "propagated": {
                name: {
                    "num_nodes": graph.num_nodes,
                    "num_entries": graph.num_entries,
                }
                for name, graph in self._propagated.items()
            },
            **self._given,
        }

    def _best(self, state: TrainState) -> nnx.State:
        """What is kept of a state: a copy of what the model ranks with.

        The next epoch takes the buffers of the state over.
        """
        return jax.tree.map(jnp.copy, nnx.state(self.model(state).for_ranking()))

    def _loop(self, runs: Sequence[Run], stop: int) -> None:
        """Trains runs that are at the same epoch up to the epoch `stop`."""
        recipe = self.recipe
        epochs = [self.epochs(run.seed) for run in runs]

        def draw(epoch):
            drawn = same_shapes([each[epoch] for each in epochs])
            return [split_batches(self.mesh, batches) for batches in drawn]

        for batches in ahead(draw, runs[0].progress.epoch, stop):
            if runs[0].progress.epoch % recipe.eval_every == 0:
                for run in runs:
                    self._evaluate(run)
            self._train_epoch(runs, batches)
        if stop == recipe.epochs:
            for run in runs:
                self._evaluate(run)

    def _train_epoch(self, runs: Sequence[Run], batches: Sequence[Any]) -> None:
        began = time.perf_counter()
        first, epoch = runs[0], runs[0].progress.epoch
        if len(runs) == 1:
            state, losses = self.train_epoch(
                first.state, batches[0], seed=first.seed, epoch=epoch
            )
            states = [state]
            losses = {name: values[None] for name, values in losses.items()}
        else:
            states, losses = train_epoch_together(
                self.program,
                [run.state for run in runs],
                batches,
                self.graphs,
                np.array([run.seed for run in runs], np.uint32),
                np.int32(epoch),
            )
            states = [self.place(state) for state in states]
        for run, state in zip(runs, states, strict=True):
            run.state = state
        fetched = {
            name: fetch(self.mesh, values).astype(np.float64)
            for name, values in losses.items()
        }
        seconds = (time.perf_counter() - began) / len(runs)
        for index, run in enumerate(runs):
            parts = {name: values[index] for name, values in fetched.items()}
            run.record(parts.pop("loss"), parts, seconds)

    def _evaluate(self, run: Run) -> None:
        progress = run.progress
        # The checkpoint that a run resumes from has its evaluation already.
        if progress.evaluated:
            return
        began = time.perf_counter()
        measured = self.measure(self.model(run.state))
        if progress.epoch % self.recipe.eval_every:
            history = [*progress.history]
            run.unscheduled = run.best, dataclasses.replace(progress, history=history)
        metric = measured["valid"][self.recipe.evaluation.selection]
        if metric > progress.best:
            progress.best, progress.best_epoch = metric, progress.epoch
            run.best = self._best(run.state)
        record = {
            "epoch": progress.epoch,
            "loss": progress.losses[-1] if progress.losses else None,
            **measured,
            "seconds": time.perf_counter() - began,
        }
        progress.history.append(record)
        run.log.evaluation(record)
        run.save()

    def _smoothness(self, model: Any) -> dict[str, float | None]:
        leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
        measured = [
            _smoothness_and_norm(graph, rows)
            for graph, rows in (
                (self.smoothing[table.key], table.stack(leaves))
                for table in self.tables
            )
            # An optimizer that is given may smooth along another axis.
            if rows.shape[-2] == graph.num_nodes
        ]
        if not measured:
            return {"smoothness": None, "relative_smoothness": None}
        smoothness, norm = np.sum(measured, axis=0).tolist()
        # A table of zeros has no shape that could be smooth.
        relative = smoothness / norm if norm else None
        return {"smoothness": smoothness, "relative_smoothness": relative}

    def _result(self, run: Run) -> RunResult:
        model = nnx.merge(self._ranking, run.best)
        return RunResult(
            model=self.recipe.model,
            optimizer=self.optimizer_name,
            dataset=self.split.log.name,
            seed=run.seed,
            protocol=self.protocol,
            best_epoch=run.progress.best_epoch,
            valid=self._valid(model),
            test=self._test(model),
            seconds_per_epoch=run.progress.seconds_per_epoch,
            seconds=run.seconds,
            losses=run.progress.losses,
            parts=run.progress.parts,
            history=run.progress.history,
            recipe=self.recipe,
            versions=run.identity["versions"],
            machine=run.machine,
            notes=run.progress.notes,
            trained=model,
        )


def train(
    recipe: Recipe,
    split: LeaveOneOut,
    *,
    seed: int = 0,
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    label: str = "",
) -> RunResult:
    """Trains a recipe on a split with one seed: `Trainer(recipe, split).run(...)`."""
    return Trainer(recipe, split).run(
        seed=seed, output=output, resume=resume, progress=progress, label=label
    )


@jax.jit
def _smoothness_and_norm(graph: Any, table: Float[Array, "*_ n d"]):
    return sevo.smoothing.smoothness(graph, table), jnp.sum(jnp.square(table))
