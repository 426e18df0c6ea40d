"""What a run is made of: model, optimizer, graph; frozen dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from sevo_jax import _checks
from sevo_jax.evaluation import EvaluationConfig
from sevo_jax.graphs.kinds import KINDS, GraphConfig
from sevo_jax.models import MODELS

Shape: TypeAlias = Literal["constant", "linear", "cosine"]

SCHEDULED = ("learning_rate", "beta")
"""The fields of `OptimizerConfig` that can follow a schedule."""


class Schedule(NamedTuple):
    """How a hyper-parameter goes in time.

    Attributes:
      value: after the warm-up.
      warmup: epochs in which it rises from 0, linearly.
      schedule: the shape of its way to the end.
      epochs: epoch of the end, warm-up included; None if it is constant.
      end: value from that epoch on.
    """

    value: float
    warmup: float
    schedule: Shape
    epochs: float | None
    end: float

    @property
    def is_constant(self) -> bool:
        """Whether it has its value all the time."""
        return self.schedule == "constant" and not self.warmup


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer by name and its hyper-parameters.

    Each optimizer takes those of the hyper-parameters that its signature has; the
    others do not apply to it. The learning rate and beta can follow schedules. They
    are counted in epochs from the start of a run and do not depend on its length, so
    that a longer run goes on from a shorter one.
    """

    name: str = "sevo_adamw"
    """sevo_adamw, sevo_adam, sevo_sgd, adam_l2 (the decay is in the gradient), or any
    optimizer of optax: adamw, lion, ..."""
    learning_rate: float = 1e-3
    """Step size, above 0."""
    learning_rate_warmup: float = 0.0
    """Epochs in which the learning rate rises from 0; 0 for none."""
    learning_rate_schedule: Shape = "constant"
    """How the learning rate goes from the warm-up to its end."""
    learning_rate_epochs: float | None = None
    """Epoch of the end, warm-up included; None if the learning rate is constant."""
    learning_rate_end: float = 0.0
    """Learning rate from that epoch on, at least 0."""
    weight_decay: float = 0.1
    """Decay of the parameters, decoupled for the W optimizers; at least 0."""
    clip_norm: float | None = None
    """Global norm to which larger gradients are scaled down before anything else is
    made of them, above 0; None for no clipping."""
    b1: float = 0.9
    """Decay rate of the first moment, in [0, 1)."""
    b2: float = 0.999
    """Decay rate of the second moment, in [0, 1)."""
    momentum: float | None = None
    """Momentum of SGD, in [0, 1); None for none."""
    beta: float = 0.99
    """How far SEvo smooths the update over the graph, in [0, 1); 0 is not at all."""
    beta_warmup: float = 0.0
    """Epochs in which beta rises from 0; 0 for none."""
    beta_schedule: Shape = "constant"
    """How beta goes from the warm-up to its end."""
    beta_epochs: float | None = None
    """Epoch of the end, warm-up included; None if beta is constant."""
    beta_end: float = 0.0
    """Beta from that epoch on, in [0, 1)."""
    num_layers: int = 3
    """How many hops SEvo's smoothing reaches, at least 0."""
    approximation: Literal["neumann", "iterative"] = "neumann"
    """Form of the smoothing: the paper's series, or the iteration it improves on."""
    rescale: bool = True
    """Whether the series has the factor of Eq. 7; without it, it is Eq. 6."""
    every: int = 1
    """How many steps share one propagation of SEvo, at least 1."""
    moment_correction: bool = True
    """Whether sevo_adamw corrects the moments of rows without gradient (Theorem 3)."""

    def __post_init__(self):
        _checks.require_field(
            self, "learning_rate", 0 < self.learning_rate < math.inf, "above 0"
        )
        in_range = self.clip_norm is None or 0 < self.clip_norm < math.inf
        _checks.require_field(self, "clip_norm", in_range, "above 0 or None")
        for name in ("weight_decay", "learning_rate_end"):
            holds = 0 <= getattr(self, name) < math.inf
            _checks.require_field(self, name, holds, "at least 0")
        _checks.rates(self, "b1", "b2", "beta", "beta_end")
        in_range = self.momentum is None or 0 <= self.momentum < 1
        _checks.require_field(self, "momentum", in_range, "in [0, 1) or None")
        _checks.at_least(self, 0, "num_layers")
        _checks.at_least(self, 1, "every")
        _checks.one_of(self, "approximation", ("neumann", "iterative"))
        for name in SCHEDULED:
            self._check_schedule(name)

    def schedule(self, name: str) -> Schedule:
        """The schedule of `learning_rate` or `beta`."""
        parts = (getattr(self, f"{name}_{part}") for part in Schedule._fields[1:])
        return Schedule(getattr(self, name), *parts)

    @property
    def follows_schedule(self) -> bool:
        """Whether a hyper-parameter changes in time."""
        return not all(self.schedule(name).is_constant for name in SCHEDULED)

    def _check_schedule(self, name: str) -> None:
        value, warmup, shape, epochs, end = self.schedule(name)
        _checks.one_of(self, f"{name}_schedule", typing.get_args(Shape))
        _checks.require_field(
            self, f"{name}_warmup", 0 <= warmup < math.inf, "at least 0"
        )
        if shape == "constant":
            what = f"left out, as {name}_schedule is constant"
            _checks.require_field(self, f"{name}_epochs", epochs is None, what)
            _checks.require_field(self, f"{name}_end", end == 0, what)
            return
        in_range = epochs is not None and warmup < epochs < math.inf
        what = f"above {name}_warmup, as {name}_schedule is {shape}"
        _checks.require_field(self, f"{name}_epochs", in_range, what)
        # A cosine is optax's, which goes to a share of the value.
        what = f"above 0, as {name}_schedule is {shape}"
        _checks.require_field(self, name, shape != "cosine" or value > 0, what)


@dataclass(frozen=True)
class Recipe:
    """Everything that, with the data and a seed, determines a run.

    Raises:
      ValueError: naming the field, its value and what it may be.

    Examples:
      >>> from sevo_jax.training import find_recipe
      >>> recipe = find_recipe("sasrec-beauty")
      >>> recipe.optimizer.b2, recipe.epochs
      (0.98, 200)
      >>> Recipe.from_dict(recipe.to_dict()) == recipe
      True
    """

    model: str = "sasrec"
    """Name of the recommender."""
    architecture: Any = None
    """Hyper-parameters of the model, its `Config`; None for their defaults."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and its hyper-parameters."""
    graph: GraphConfig = field(default_factory=GraphConfig)
    """Graph over which SEvo smooths, and on which smoothness is measured."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Metrics, the one of them that selects, and whether seen items are ranked."""
    batch_size: int = 512
    """Samples of a step: users, prefixes or triplets, as the model draws them."""
    epochs: int = 200
    """Passes over the train sequences, at least 1."""
    eval_every: int = 5
    """Epochs between two validations, at least 1."""
    patience: int | None = None
    """Validations in a row without a better one after which training stops, at least 1;
    None for never."""

    def __post_init__(self):
        _checks.one_of(self, "model", tuple(MODELS))
        model = MODELS[self.model]
        if self.architecture is None:
            object.__setattr__(self, "architecture", model.Config())
        if not isinstance(self.architecture, model.Config):
            raise ValueError(
                f"architecture is a {type(self.architecture).__name__}: the model "
                f"{self.model!r} takes a {model.Config.__name__}"
            )
        for name, kind in (
            ("optimizer", OptimizerConfig),
            ("graph", GraphConfig),
            ("evaluation", EvaluationConfig),
        ):
            fits = isinstance(getattr(self, name), kind)
            _checks.require_field(self, name, fits, f"of the type {kind.__name__}")
        # A model that smooths nothing has no use for the graph, whatever it is.
        if model.smoothed and self.graph.links not in model.smoothed:
            fitting = [kind for kind in KINDS if KINDS[kind].links in model.smoothed]
            raise ValueError(
                f"graph.kind is {self.graph.kind!r}: the model {self.model!r} takes "
                f"{' or '.join(fitting)}"
            )
        _checks.at_least(self, 1, "batch_size", "epochs", "eval_every")
        in_range = self.patience is None or self.patience >= 1
        _checks.require_field(self, "patience", in_range, "at least 1 or None")

    def with_optimizer(self, name: str) -> Recipe:
        """The same recipe with another optimizer, its hyper-parameters kept."""
        return dataclasses.replace(
            self, optimizer=dataclasses.replace(self.optimizer, name=name)
        )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as nested dictionaries of JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Reads back what `to_dict` gave; left-out fields have their defaults.

        Raises:
          ValueError: on a field or a model that does not exist, or a value of another
            type.
        """
        model = cls.model
        if isinstance(values, Mapping) and "model" in values:
            model = _read(values["model"], str, "model")
        if model not in MODELS:
            raise ValueError(
                f"model is {model!r}: {suggestion(model, MODELS)} One of your own is "
                "known once the module that registers it is imported (--plugin MODULE)"
            )
        return _read(values, cls, "", architecture=MODELS[model].Config)


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to say after a name that is none of `known`."""
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    if close:
        return f"there is none of this name, did you mean {' or '.join(close)}?"
    return f"there is none of this name, choose from {', '.join(sorted(known))}."


def _read(value: Any, hint: Any, name: str, **hints: Any) -> Any:
    """A JSON value as its annotation has it: a table as a dataclass, a list as a tuple.

    Args:
      value: what JSON holds.
      hint: the annotation.
      name: what to call the value in messages; empty for the whole recipe.
      **hints: annotations of the fields of a dataclass that differ from its own.

    Raises:
      ValueError: naming the value, if it is of another type.
    """
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return _read_table(value, hint, name, hints)
        hint = "a table"
    elif origin in (types.UnionType, typing.Union):
        for option in options:
            with contextlib.suppress(ValueError):
                return _read(value, option, name)
    elif origin is tuple and isinstance(value, list | tuple):
        if options[1:] == (...,):
            options = options[:1] * len(value)
        if len(options) == len(value):
            return tuple(map(_read, value, options, [name] * len(value)))
    elif _fits(value, origin, hint):
        return value
    what = getattr(hint, "__name__", hint)
    raise ValueError(f"{name or 'the recipe'} is {value!r:.80}: it must be {what}")


def _read_table(
    values: Mapping[str, Any], kind: Any, name: str, hints: Mapping[str, Any]
) -> Any:
    hints = {**typing.get_type_hints(kind), **hints}
    known = [each.name for each in dataclasses.fields(kind) if each.init]
    prefix = name and f"{name}."
    for key in values:
        if key not in known:
            raise ValueError(f"{prefix}{key}: {suggestion(key, known)}")
    return kind(**{k: _read(each, hints[k], prefix + k) for k, each in values.items()})


def _fits(value: Any, origin: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if origin is Literal:
        return value in typing.get_args(hint)
    kind = hint if origin is None else origin
    if kind in (int, float) and isinstance(value, bool):  # A bool is no number.
        return False
    if kind is float:  # JSON writes 1.0 as 1 in many a hand.
        return isinstance(value, int | float)
    return isinstance(value, kind) if isinstance(kind, type) else True
