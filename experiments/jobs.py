"""Runs to be done once each: resumable, one result file a run, side by side.

Shared by the experiments. Several processes may work on the same
list (on parts of a machine's processors, say): none repeats or disturbs what another
does, and what was stopped goes on from its last checkpoint.
"""

import contextlib
import fcntl
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paper import load

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


def results_of(jobs: Iterable[Job]) -> dict[int, dict]:
    """The results of those jobs that are done, by seed."""
    results = {job.seed: job.result() for job in jobs}
    return {seed: result for seed, result in results.items() if result is not None}


def do(jobs: Sequence[Job], work: Path) -> None:
    """Does those of `jobs` that are not done and that nobody is at.

    Args:
      jobs: of one recipe and dataset, different seeds; on an accelerator they train
        all at once.
      work: folder for checkpoints and locks.
    """
    work.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        mine = [job for job in jobs if not job.path.exists()]
        mine = [job for job in mine if _claim(stack, work / f"{job.full_name}.lock")]
        # Another process may have finished one between the two looks.
        mine = [job for job in mine if not job.path.exists()]
        if not mine:
            return
        trainer = Trainer(mine[0].recipe, load(mine[0].dataset))
        for resume in (True, False):
            chosen = [
                job
                for job in mine
                if RunFolder(work / job.full_name).has_checkpoint == resume
            ]
            if not chosen:
                continue
            print(*(job.full_name for job in chosen), file=sys.stderr, flush=True)
            results = trainer.run_together(
                [job.seed for job in chosen],
                outputs=[work / job.full_name for job in chosen],
                resume=resume,
                label=f"{chosen[0].full_name}{' and more' * (len(chosen) > 1)}",
            )
            for job, result in zip(chosen, results, strict=True):
                _write(job, result)


def _claim(stack: contextlib.ExitStack, path: Path) -> bool:
    """Whether nobody else holds the lock, which `stack` gives back."""
    lock = stack.enter_context(open(path, "w"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(job: Job, result: RunResult) -> None:
    values = result.to_dict()
    if not job.test:
        del values["test"]
    values["valid NDCG@10"] = {
        each["epoch"]: each["valid"]["NDCG@10"] for each in values.pop("history")
    }
    job.folder.mkdir(parents=True, exist_ok=True)
    job.path.write_text(json.dumps(values, indent=1) + "\n")
