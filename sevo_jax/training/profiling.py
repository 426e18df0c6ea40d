"""Where the time of an epoch goes: seconds by phase, and a trace of the profiler.

The phases of an epoch are parts of one compiled program, in which no clock stands. So
they are left out one after another: the same scan over the same batches is compiled
with ever more of the step, and what a program takes longer than the one before it is
the phase's time.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sevo_jax._files import replace_text
from sevo_jax._timing import time_in_turns
from sevo_jax.training.identity import versions
from sevo_jax.training.mesh import split_batches
from sevo_jax.training.optimizers import SEVO
from sevo_jax.training.trainer import Trainer

METHOD = (
    "Each phase is a difference: the epoch is compiled with ever more of its step, in "
    "the order of the table, each time as the same scan over the same batches; a phase "
    "is what the median of its program exceeds that of the one before by, below zero "
    "where noise exceeds the phase, and the sum is the whole epoch. A program with "
    "less in it can be fused otherwise, so phases are estimates. Draw and pack and "
    "evaluation are timed by themselves; a run draws and packs the next epoch while "
    "one trains, and evaluates between epochs."
)
"""How `measure_phases` comes to its numbers."""


def profile(
    trainer: Trainer, directory: str | Path, *, seed: int = 0, rounds: int = 5
) -> dict[str, Any]:
    """Writes a trace and the phases of an epoch; runs of `trainer` are not affected.

    Args:
      trainer: whose epochs.
      directory: gets `phases.json`, what `measure_phases` returns, and
        `plugins/profile/`, the trace that `write_trace` describes.
      seed: of initial values, batches and dropout, in [0, 2**32).
      rounds: how often each program is timed, at least 1.

    Returns:
      What `measure_phases` returns.

    Raises:
      FileExistsError: if `directory` is a file.
      ValueError: if `rounds` is less than 1.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    phases = measure_phases(trainer, seed=seed, rounds=rounds)
    replace_text(directory / "phases.json", json.dumps(phases, indent=2) + "\n")
    write_trace(trainer, directory, seed=seed)
    return phases


def measure_phases(
    trainer: Trainer, *, seed: int = 0, rounds: int = 5
) -> dict[str, Any]:
    """Times the phases of an epoch as `METHOD` says.

    Args:
      trainer: whose epochs.
      seed: of initial values, batches and dropout, in [0, 2**32).
      rounds: how often each program is timed, at least 1; one more warms up.

    Returns:
      JSON values: what was measured and on what; `phases`, the seconds of each, whose
      sum is `epoch`; `beside`, the seconds of `draw and pack` and `evaluation`; and
      `timings`, the minimum, median and maximum that these come from, by program.

    Raises:
      ValueError: if `rounds` is less than 1.

    Examples:
      >>> import dataclasses
      >>> from sevo_jax.data import leave_one_out
      >>> from sevo_jax.data.synthetic import planted
      >>> from sevo_jax.training import find_recipe
      >>> trainer = Trainer(find_recipe("mf-bpr-synthetic"), leave_one_out(planted()))
      >>> list(measure_phases(trainer, rounds=1)["phases"])
      ['forward', 'backward', 'decay, learning rate, apply', 'moments', 'psi']
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}: it must be at least 1")
    draw = _draw(trainer, seed)
    batches = draw()
    programs: dict[str, Callable[[], object]] = {
        f"up to {phase}": _Epoch(trainer, optimizer, batches, seed)
        for phase, optimizer in partial_optimizers(trainer).items()
    }
    beside = {"draw and pack": draw, "evaluation": _evaluation(trainer, seed)}
    timings = time_in_turns(programs | beside, rounds=rounds)
    phases, before = {}, 0.0
    for name in programs:
        median = timings[name]["median"]
        phases[name.removeprefix("up to ")] = median - before
        before = median
    return {
        "model": trainer.recipe.model,
        "dataset": trainer.split.log.name,
        "optimizer": trainer.recipe.optimizer.name,
        "seed": seed,
        "eval_every": trainer.recipe.eval_every,
        "devices": f"{trainer.mesh.size} x {trainer.mesh.devices.flat[0].device_kind}",
        "versions": versions(),
        "method": METHOD,
        "rounds": rounds,
        "phases": phases,
        "epoch": before,
        "beside": {name: timings[name]["median"] for name in beside},
        "timings": timings,
    }


def format_phases(measured: Mapping[str, Any]) -> str:
    """The table of what `measure_phases` returned, in seconds and of the epoch."""
    epoch, beside = measured["epoch"], measured["beside"]
    when = {
        "draw and pack": "while the epoch before trains",
        "evaluation": f"every {measured['eval_every']} epochs",
    }
    rows = [(name, seconds, "") for name, seconds in measured["phases"].items()]
    rows.append(("epoch", epoch, ""))
    rows += [(name, seconds, when[name]) for name, seconds in beside.items()]
    title = (
        f"an epoch of {measured['model']} on {measured['dataset']}, "
        f"{measured['optimizer']}, {measured['devices']}, medians of "
        f"{measured['rounds']}"
    )
    width = max(len(name) for name, *_ in rows)
    lines = [
        f"{name:{width}}  {seconds:9.4f} s  {seconds / epoch:7.1%}  {note}".rstrip()
        for name, seconds, note in rows
    ]
    return "\n".join([title, *lines])


def write_trace(trainer: Trainer, directory: str | Path, *, seed: int = 0) -> None:
    """Traces an epoch that is compiled already, and an evaluation after it.

    The epoch's batches are there; meanwhile those of the next are drawn, as in a run.
    The three are marked in the trace by name.

    Args:
      trainer: whose epoch.
      directory: gets `plugins/profile/TIME/`, with a file for TensorBoard's profiler
        (`.xplane.pb`) and one for https://ui.perfetto.dev (`.trace.json.gz`).
      seed: of initial values, batches and dropout, in [0, 2**32).
    """
    draw = _marked("draw and pack", _draw(trainer, seed))
    epoch = _marked("epoch", _Epoch(trainer, trainer.optimizer, draw(), seed))
    evaluate = _marked("evaluation", _evaluation(trainer, seed))
    epoch()
    evaluate()
    options = jax.profiler.ProfileOptions()
    # One event a call of Python would be most of the trace, and of the time.
    options.python_tracer_level = 0
    with (
        jax.profiler.trace(directory, profiler_options=options),
        ThreadPoolExecutor(max_workers=1) as pool,
    ):
        pool.submit(draw)
        epoch()
        evaluate()


def partial_optimizers(
    trainer: Trainer,
) -> dict[str, optax.GradientTransformationExtraArgs]:
    """For each phase an optimizer with which an epoch has it and those before it.

    The compiler leaves out of an epoch what the optimizer has no use for. The
    last one is the trainer's own. SEvo's optimizers are taken apart, less what they do
    not have; what others do is one phase, `optimizer`.
    """
    config = trainer.recipe.optimizer
    partial = {
        "forward": optax.with_extra_args_support(optax.set_to_zero()),
        "backward": _keep_gradients(),
    }
    if config.name not in SEVO:
        return partial | {"optimizer": trainer.optimizer}
    unsmoothed = dataclasses.replace(config, num_layers=0)
    plain = dataclasses.replace(unsmoothed, name="sevo_sgd", momentum=None)
    phases: dict[Any, str] = {}
    for part, phase in (
        (plain, "decay, learning rate, apply"),
        (unsmoothed, "moments"),
        (config, "psi"),
    ):
        phases.setdefault(part, phase)
    for part, phase in phases.items():
        partial[phase] = trainer.optimizer_of(part)
    return {**partial, phases[config]: trainer.optimizer}


class _Epoch:
    """An epoch with an optimizer, over and over; each goes on from the one before."""

    def __init__(self, trainer: Trainer, optimizer: Any, batches: Any, seed: int):
        self._trainer = trainer
        self._batches, self._seed = batches, seed
        self._program = trainer.program._replace(update=optimizer.update)
        self.state = trainer.start(seed, optimizer)

    def __call__(self) -> Any:
        self.state, losses = self._trainer.train_epoch(
            self.state,
            self._batches,
            seed=self._seed,
            epoch=0,
            program=self._program,
        )
        return self.state, losses


def _draw(trainer: Trainer, seed: int) -> Callable[[], Any]:
    """Draws the first epoch, anew at every call."""
    epochs = trainer.epochs(seed)
    return lambda: split_batches(trainer.mesh, epochs[0])


def _evaluation(trainer: Trainer, seed: int) -> Callable[[], Any]:
    model = trainer.model(trainer.start(seed))
    return lambda: trainer.measure(model)


def _keep_gradients() -> optax.GradientTransformationExtraArgs:
    """Changes nothing; its state is the last gradients, so they must be computed."""

    def init(params: optax.Params) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any):
        del state, params, extra_args
        return jax.tree.map(jnp.zeros_like, updates), updates

    return optax.GradientTransformationExtraArgs(init, update)


def _marked(name: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """`call`, finished before it returns, under `name` in a trace."""

    def marked() -> Any:
        with jax.profiler.TraceAnnotation(name):
            return jax.block_until_ready(call())

    return marked
