"""Optimizers by name: SEvo's own and every one of optax that training can drive."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
import optax.contrib

import sevo_jax as sevo
from sevo_jax.training.recipe import (
    SCHEDULED,
    OptimizerConfig,
    Schedule,
    suggestion,
)

SEVO: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "sevo_adamw": sevo.sevo_adamw,
    "sevo_adam": sevo.sevo_adam,
    "sevo_sgd": sevo.sevo_sgd,
}
# What a parameter of these names means is the same all over optax. `beta` is not:
# there it is a momentum.
_COMMON = ("learning_rate", "weight_decay", "b1", "b2", "momentum")
_SMOOTHING = (
    "beta",
    "num_layers",
    "approximation",
    "rescale",
    "every",
    "moment_correction",
)


def optimizer_names() -> list[str]:
    """Names that `make_optimizer` knows: SEvo's, then all others, sorted."""
    return [*SEVO, *sorted(_optax_factories())]


def make_optimizer(
    config: OptimizerConfig,
    graphs: Mapping[Any, Any],
    *,
    steps_per_epoch: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer that `config` names, with the hyper-parameters that apply to it.

    Args:
      config: name and hyper-parameters; those that the optimizer's signature does not
        have are left out.
      graphs: leaf names to graphs, for the SEvo optimizers; `update` may be given
        others by `graphs=`. The optimizers of optax take no notice of either.
      steps_per_epoch: updates of an epoch, for the schedules; not needed without.

    Returns:
      An optimizer whose `update` accepts extra arguments.

    Raises:
      ValueError: if there is no optimizer of this name, it needs more for an update
        than gradients and parameters (`optax.lbfgs`), or a schedule lacks
        `steps_per_epoch`.

    Examples:
      >>> optimizer = make_optimizer(OptimizerConfig(name="lion"), {})
    """
    factory, names = _found(config.name)
    arguments: dict[str, Any] = {"graphs": graphs} if config.name in SEVO else {}
    values = {name: getattr(config, name) for name in names}
    values |= {
        name: _schedule(name, config.schedule(name), steps_per_epoch)
        for name in SCHEDULED
        if name in values
    }
    arguments |= {name: value for name, value in values.items() if value is not None}
    if config.name not in SEVO:
        _check_drivable(config.name, factory, arguments)
    optimizer = optax.with_extra_args_support(factory(**arguments))
    if config.clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def takes(optimizer: str, field: str) -> bool:
    """Whether a field of `OptimizerConfig` has an effect on the optimizer of a name.

    Raises:
      ValueError: if there is no such optimizer.

    Examples:
      >>> takes("adamw", "beta"), takes("sevo_adamw", "beta_warmup")
      (False, True)
    """
    _, names = _found(optimizer)
    if field in ("name", "clip_norm"):  # What all have.
        return True
    return field in names or any(
        field.startswith(f"{name}_") for name in names if name in SCHEDULED
    )


def _found(
    name: str,
) -> tuple[Callable[..., optax.GradientTransformation], list[str]]:
    """The optimizer of a name, and those of its parameters that a recipe has."""
    if name in SEVO:
        factory, names = SEVO[name], (*_COMMON, *_SMOOTHING)
    else:
        factories, names = _optax_factories(), _COMMON
        if name not in factories:
            raise ValueError(
                f"optimizer {name!r}: {suggestion(name, optimizer_names())}"
            )
        factory = factories[name]
    accepted = inspect.signature(factory).parameters
    return factory, [each for each in names if each in accepted]


def _schedule(
    name: str, schedule: Schedule, steps_per_epoch: int | None
) -> float | optax.Schedule:
    """The value of a hyper-parameter, or its value by the number of a step."""
    value, warmup, shape, epochs, end = schedule
    if schedule.is_constant:
        return value
    if steps_per_epoch is None:
        raise ValueError(
            f"{name} follows a schedule, which counts epochs: give steps_per_epoch"
        )
    start = round(warmup * steps_per_epoch)
    # Both ends may lie in one step.
    steps = max(1, round((epochs or 0) * steps_per_epoch) - start)
    after = {
        "constant": lambda: optax.constant_schedule(value),
        "linear": lambda: optax.linear_schedule(value, end, steps),
        "cosine": lambda: optax.cosine_decay_schedule(value, steps, end / value),
    }[shape]()
    if not start:
        return after
    return optax.join_schedules(
        [optax.linear_schedule(0.0, value, start), after], [start]
    )


def _optax_factories() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """What optax and optax.contrib have that asks for a learning rate at most.

    And an Adam with the decay in the gradient, which `sevo_adam` is to be beside.
    """
    factories: dict[str, Callable[..., optax.GradientTransformation]]
    factories = {"adam_l2": _adam_l2}
    for module in (optax.contrib, optax):
        for name, factory in inspect.getmembers(module, inspect.isfunction):
            first, *others = [*inspect.signature(factory).parameters.values(), None]
            if first is None or first.name != "learning_rate":
                continue
            required = any(p and p.default is p.empty for p in others)
            # The schedule-free ones are evaluated at other parameters than they train.
            if not required and not name.startswith(("_", "schedule_free")):
                factories[name] = factory
    return factories


def _adam_l2(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.adam(learning_rate, b1, b2)
    )


def _check_drivable(
    name: str,
    factory: Callable[..., optax.GradientTransformation],
    arguments: Mapping[str, Any],
) -> None:
    params = {"matrix": jax.ShapeDtypeStruct((2, 2), "float32")}
    try:
        optimizer = factory(**arguments)
        state = jax.eval_shape(optimizer.init, params)
        jax.eval_shape(optimizer.update, params, state, params)
    except (TypeError, ValueError) as error:
        needs = "needs more for an update than gradients and parameters, which is all "
        if callable(arguments["learning_rate"]):
            needs = "may follow no schedule of its learning rate, or " + needs
        raise ValueError(
            f"optimizer {name!r} {needs}this trainer gives: {error}"
        ) from error
