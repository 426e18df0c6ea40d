"""Runs to be done once each: resumable, one result file a run, side by side.

Shared by the experiments. Several processes may work on the same list (on parts of a
machine's processors, say): none repeats or disturbs what another does, and what was
stopped goes on from its last checkpoint.
"""

import contextlib
import dataclasses
import fcntl
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from paper import load

from sevo_jax._files import replace_text
from sevo_jax.training import Recipe, RunFolder, RunResult, Trainer


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      name: of its result, without the seed.
      recipe: what to run.
      dataset: on what.
      seed: from which seed.
      folder: where the result goes.
      test: whether the result holds test metrics. A search has no use for them.
    """

    name: str
    recipe: Recipe
    dataset: str
    seed: int
    folder: Path
    test: bool = True

    @property
    def full_name(self) -> str:
        return f"{self.name}-seed{self.seed}"

    @property
    def path(self) -> Path:
        return self.folder / f"{self.full_name}.json"

    def result(self) -> dict | None:
        """What was written, None if the run is not done."""
        return json.loads(self.path.read_text()) if self.path.exists() else None


Train: TypeAlias = Callable[[Sequence[Job], Path], Iterator[tuple[Job, dict[str, Any]]]]


def results_of(jobs: Iterable[Job]) -> dict[int, dict]:
    """The results of those jobs that are done and did not diverge, by seed."""
    results = {job.seed: job.result() for job in jobs}
    return {
        seed: result
        for seed, result in results.items()
        if result is not None and "diverged" not in result
    }


def num_diverged(jobs: Iterable[Job]) -> int:
    """How many of those jobs ended in a loss that is not finite."""
    return sum("diverged" in (job.result() or {}) for job in jobs)


def train(jobs: Sequence[Job], work: Path) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Trains jobs of one recipe, on from their checkpoints where they have one.

    Args:
      jobs: of one recipe and dataset, different seeds; on an accelerator they train
        all at once.
      work: folder for checkpoints.

    Yields:
      Each job with what its result file is to hold.
    """
    trainer = Trainer(jobs[0].recipe, load(jobs[0].dataset))
    for resume in (True, False):
        chosen = [
            job
            for job in jobs
            if RunFolder(work / job.full_name).has_checkpoint == resume
        ]
        if not chosen:
            continue
        try:
            results = trainer.run_together(
                [job.seed for job in chosen],
                outputs=[work / job.full_name for job in chosen],
                resume=resume,
                label=f"{chosen[0].full_name}{' and more' * (len(chosen) > 1)}",
            )
        except FloatingPointError as error:
            if len(chosen) > 1:
                # Nobody knows which.
                for job in chosen:
                    yield from train([job], work)
                continue
            # A result, too.
            (job,) = chosen
            about = {"dataset": job.dataset, "seed": job.seed}
            yield job, {"diverged": str(error), "recipe": _recipe(job)} | about
            continue
        for job, result in zip(chosen, results, strict=True):
            yield job, _values(job, result)


def do(jobs: Sequence[Job], work: Path, train: Train = train) -> None:
    """Does those of `jobs` that are not done and that nobody is at.

    Args:
      jobs: what to do, as `train` takes it.
      work: folder for checkpoints and locks.
      train: does jobs, and yields each with what its result file is to hold.
    """
    work.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        mine = [job for job in jobs if not job.path.exists()]
        mine = [job for job in mine if _claim(stack, work / f"{job.full_name}.lock")]
        # Another process may have finished one between the two looks.
        mine = [job for job in mine if not job.path.exists()]
        if not mine:
            return
        print(*(job.full_name for job in mine), file=sys.stderr, flush=True)
        for job, values in train(mine, work):
            job.folder.mkdir(parents=True, exist_ok=True)
            replace_text(job.path, json.dumps(values, indent=1) + "\n")


def trained(job: Job, work: Path) -> Path | None:
    """The folder of a run with its model, trained anew if only its result is stored.

    None if another process is at it, or it diverged.
    """
    do([dataclasses.replace(job, folder=work / "results")], work)
    folder = work / job.full_name
    return None if RunFolder(folder).result is None else folder


def _claim(stack: contextlib.ExitStack, path: Path) -> bool:
    """Whether nobody else holds the lock, which `stack` gives back."""
    lock = stack.enter_context(open(path, "w"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _values(job: Job, result: RunResult) -> dict[str, Any]:
    values = result.to_dict()
    values["recipe"] = _recipe(job)
    if not job.test:
        del values["test"]
    if not any(values["parts"]):
        del values["parts"]
    history = values.pop("history")
    values["valid NDCG@10"] = {
        each["epoch"]: each["valid"]["NDCG@10"] for each in history
    }
    return values


def _recipe(job: Job) -> dict[str, Any]:
    """The recipe as JSON, of a file its name: the folder is of this machine."""
    recipe = job.recipe.to_dict()
    if job.recipe.graph.attributes is not None:
        recipe["graph"]["attributes"] = Path(job.recipe.graph.attributes).name
    return recipe
