"""The training loop: train, validate every few epochs, keep the best, resume."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from sevo_jax.data.split import LeaveOneOut
from sevo_jax.samples import ahead
from sevo_jax.training.assembly import Assembly
from sevo_jax.training.epoch import same_shapes
from sevo_jax.training.folder import RunFolder
from sevo_jax.training.identity import check_processes, machine
from sevo_jax.training.mesh import describe_mesh, fetch, split_batches
from sevo_jax.training.processes import is_first
from sevo_jax.training.recipe import Recipe
from sevo_jax.training.run import Progress, Run, RunResult
from sevo_jax.training.run_log import OnRecord, RunLog


class Trainer(Assembly):
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
        adjacency may be the path of a file that `sevo_jax.graphs.save` wrote, and is
        refused if it was saved with the ids of others than the split's.
      optimizer: in place of the recipe's: an optax transformation, or a function that
        makes one of the graphs by leaf name. The graphs of the latter are arguments
        of the compiled program.
      mesh: devices to train on, from `make_mesh`; by default the first one.

    Raises:
      ValueError: if there is no such optimizer, a graph does not fit its table or
        is of other items, or the data do not fit the model.

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

    def run(
        self,
        *,
        seed: int = 0,
        output: str | Path | RunFolder | None = None,
        resume: bool = False,
        progress: bool = True,
        label: str = "",
        on_record: OnRecord | None = None,
    ) -> RunResult:
        """Trains for the recipe's epochs and measures the best parameters.

        Before each epoch whose number is a multiple of `recipe.eval_every`, epoch 0
        included, and once at the end, the validation items are ranked; parameters
        that beat all before by the recipe's metric of selection are kept, and their
        validation and test metrics are the result. With `recipe.patience` it stops
        early, after so many evaluations in a row that were not better.

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
          on_record: is called with each line of `metrics.jsonl` as it is made, a table
            with `kind` ("train" or "evaluation"), `epoch` and what was measured; for a
            tracker of experiments. A run that goes on does not repeat earlier ones; of
            several processes the first calls it.

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
            run = self._open(stack, seed, output, resume, progress, label, on_record)
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

        Meant for a GPU, which a single run leaves mostly idle; on a CPU it is slower
        than one after another. A run comes out as it does alone, up to
        rounding: where one has lost its patience, what it learns while others go on
        does not count.

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
        on_record: OnRecord | None = None,
    ) -> Run:
        """A run at its start, or where it was left; `stack` closes its files."""
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed is {seed}: it must be in [0, 2**32)")
        if resume and output is None:
            raise ValueError("resume=True needs output: the directory of the run")
        folder = RunFolder(output) if isinstance(output, str | Path) else output
        identity = self.identity(seed)
        check_processes(
            {
                **identity,
                "mesh": describe_mesh(self.mesh),
                "output": folder and str(folder.path.absolute()),
                "resume": resume,
            }
        )
        # Data that give no samples are refused before the folder is made.
        epochs = self.epochs(seed)
        state = self.start(seed)
        run = Run(
            seed,
            identity,
            machine(self.mesh),
            self.protocol,
            epochs,
            state,
            best=self.ranking_state(state),
            rows=self.rows.parts,
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
                on_record=on_record if is_first() else None,
            )
        )
        return run

    def _finish(self, run: Run) -> RunResult:
        result = self._result(run)
        if run.folder is not None and is_first():
            run.folder.write_result(result.to_dict())
        return result

    def _loop(self, runs: Sequence[Run], stop: int) -> None:
        """Trains runs that are at the same epoch up to the epoch `stop`."""
        recipe = self.recipe

        def draw(epoch):
            drawn = same_shapes([run.epochs[epoch] for run in runs])
            return [split_batches(self.mesh, batches) for batches in drawn]

        start = max(run.progress.epoch for run in runs)
        for batches in ahead(draw, start, stop):
            going = self._going(runs)
            if going and going[0].progress.epoch % recipe.eval_every == 0:
                for run in going:
                    self._evaluate(run)
                going = self._going(going)
            if not going:
                return
            self._train_epoch(runs, batches)
        if stop == recipe.epochs:
            for run in self._going(runs):
                self._evaluate(run)

    def _going(self, runs: Sequence[Run]) -> list[Run]:
        """Those that have not lost their patience."""
        patience = self.recipe.patience
        return [run for run in runs if not run.progress.impatient(patience)]

    def _train_epoch(self, runs: Sequence[Run], batches: Sequence[Any]) -> None:
        going = self._going(runs)
        began = time.perf_counter()
        first, epoch = runs[0], going[0].progress.epoch
        if len(runs) == 1:
            state, losses = self.train_epoch(
                first.state, batches[0], seed=first.seed, epoch=epoch
            )
            states = [state]
            losses = {name: values[None] for name, values in losses.items()}
        else:
            states, losses = self.train_epoch_together(
                [run.state for run in runs],
                batches,
                seeds=[run.seed for run in runs],
                epoch=epoch,
            )
        for run, state in zip(runs, states, strict=True):
            run.state = state
        fetched = {
            name: fetch(self.mesh, values).astype(np.float64)
            for name, values in losses.items()
        }
        seconds = (time.perf_counter() - began) / len(going)
        for index, run in enumerate(runs):
            if self._going([run]):
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
            history, notes = [*progress.history], [*progress.notes]
            before = dataclasses.replace(progress, history=history, notes=notes)
            run.unscheduled = run.best, before
        metric = measured["valid"][self.recipe.evaluation.selection]
        if progress.best is None or metric > progress.best:
            progress.best, progress.best_epoch = metric, progress.epoch
            run.best = self.ranking_state(run.state)
        record = {
            "epoch": progress.epoch,
            "loss": progress.losses[-1] if progress.losses else None,
            **measured,
            "seconds": time.perf_counter() - began,
        }
        progress.history.append(record)
        run.log.evaluation(record)
        for note in self._end(progress):
            run.log.note(note)
        run.save()

    def _end(self, progress: Progress) -> list[str]:
        """Why the run ends before its last epoch, if it does."""
        if not progress.impatient(self.recipe.patience):
            return []
        return [
            f"stopped after epoch {progress.epoch}: none of the last "
            f"{self.recipe.patience} validations was better than that of epoch "
            f"{progress.best_epoch}"
        ]

    def _result(self, run: Run) -> RunResult:
        best = nnx.merge(self._ranking, run.best)
        model = self.as_ranked(best)
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
            notes=[*run.progress.notes, *self._end(run.progress)],
            trained=self.rows.whole(best),
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
