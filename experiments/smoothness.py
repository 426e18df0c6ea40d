"""Smoothness through training, of Figure 4 (b)."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jobs import Job
from paper import RESULTS, load
from study import Cell

import sevo_jax as sevo
from sevo_jax.training import Trainer, make_optimizer
from sevo_jax.training.epoch import TrainState, step_key, with_parts
from sevo_jax.training.identity import machine, versions
from sevo_jax.training.mesh import split_batches

TABLES = {
    "before": "(I) variation",
    "after": "(II) smoothed variation",
    "embedding": "(III) embedding",
}
NAME = "item_embedding"


def smoothness_job(dataset: str, beta: float, seed: int, quick: bool = False) -> Job:
    """A run of (b)."""
    changes = {"optimizer.beta": beta}
    job = Cell("", changes, dataset=dataset).job(seed, quick)
    folder = job.folder if quick else RESULTS / "smoothness"
    name = f"sasrec-{dataset}-beta{beta:g}-smoothness"
    return dataclasses.replace(job, name=name, folder=folder)


def record(jobs: Sequence[Job], work: Path) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Trains, and measures the smoothness wherever a run is evaluated."""
    del work
    for job in jobs:
        trainer = Trainer(job.recipe, load(job.dataset))
        state, epochs = trainer.start(job.seed), trainer.epochs(job.seed)
        measure = jax.jit(_measure(trainer))
        points = {name: {} for name in TABLES}
        for epoch in range(job.recipe.epochs + 1):
            batches = split_batches(trainer.mesh, epochs[epoch])
            if epoch % job.recipe.eval_every == 0:
                first = jax.tree.map(lambda field: field[0], batches)
                found = measure(state, first, step_key(job.seed, epoch, 0))
                for name, value in found.items():
                    points[name][epoch] = float(value)
                print(job.full_name, f"epoch {epoch}", flush=True)
            if epoch < job.recipe.epochs:
                state, _ = trainer.train_epoch(
                    state, batches, seed=job.seed, epoch=epoch
                )
        about = {"versions": versions(), "machine": machine(trainer.mesh)}
        yield job, {"recipe": job.recipe.to_dict(), "seed": job.seed, **about, **points}


def _measure(trainer: Trainer):
    """The smoothness of the three tables, of a state and the step after it."""
    # The variation is what SEvo smooths: the decay of the parameters is not.
    config = dataclasses.replace(trainer.recipe.optimizer, weight_decay=0.0)
    smoothed, plain = (
        make_optimizer(each, trainer.smoothing)
        for each in (config, dataclasses.replace(config, num_layers=0))
    )
    graph = trainer.smoothing[NAME]

    def relative(table: jax.Array) -> jax.Array:
        return sevo.smoothing.smoothness(graph, table) / jnp.sum(jnp.square(table))

    def variation(optimizer: Any, gradients: Any, state: TrainState) -> Any:
        return optimizer.update(gradients, state.opt_state, state.params)[0][NAME]

    def measure(state: TrainState, batch: Any, rng: jax.Array) -> dict[str, jax.Array]:
        def loss(params):
            model = trainer.model(state._replace(params=params))
            return with_parts(model.loss(batch, rng=rng))[0]

        gradients: Any = jax.grad(loss)(state.params)
        tables: dict[str, Any] = {
            name: variation(optimizer, gradients, state)
            for name, optimizer in (("before", plain), ("after", smoothed))
        }
        tables["embedding"] = state.params[NAME]
        return {name: relative(table[...]) for name, table in tables.items()}

    return measure
