"""What a run is made of: model, optimizer, graph, schedule; frozen dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sevo_jax import _checks
from sevo_jax.evaluation import EvaluationConfig
from sevo_jax.graphs.kinds import GraphConfig
from sevo_jax.models import MODELS, SASRecConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer by name and its hyper-parameters.

    Each optimizer takes those of the hyper-parameters that its signature has; the
    others do not apply to it.
    """

    name: str = "sevo_adamw"
    """sevo_adamw, sevo_adam, sevo_sgd, or any optimizer of optax: adamw, lion, ..."""
    learning_rate: float = 1e-3
    """Step size, above 0."""
    weight_decay: float = 0.1
    """Decay of the parameters, decoupled for the W optimizers; at least 0."""
    b1: float = 0.9
    """Decay rate of the first moment, in [0, 1)."""
    b2: float = 0.999
    """Decay rate of the second moment, in [0, 1)."""
    momentum: float | None = None
    """Momentum of SGD, in [0, 1); None for none."""
    beta: float = 0.99
    """How far SEvo smooths the update over the graph, in [0, 1); 0 is not at all."""
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
        _checks.require_field(
            self, "weight_decay", 0 <= self.weight_decay < math.inf, "at least 0"
        )
        _checks.rates(self, "b1", "b2", "beta")
        in_range = self.momentum is None or 0 <= self.momentum < 1
        _checks.require_field(self, "momentum", in_range, "in [0, 1) or None")
        _checks.at_least(self, 0, "num_layers")
        _checks.at_least(self, 1, "every")
        _checks.one_of(self, "approximation", ("neumann", "iterative"))


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
    architecture: Any = field(default_factory=SASRecConfig)
    """Hyper-parameters of the model, its `Config`."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and its hyper-parameters."""
    graph: GraphConfig = field(default_factory=GraphConfig)
    """Graph over which SEvo smooths, and on which smoothness is measured."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Metrics, the one of them that selects, and whether seen items are ranked."""
    batch_size: int = 512
    """Samples of a step: users, for GRU4Rec prefixes, for MF-BPR triplets."""
    epochs: int = 200
    """Passes over the train sequences, at least 1."""
    eval_every: int = 5
    """Epochs between two validations, at least 1."""

    def __post_init__(self):
        _checks.one_of(self, "model", tuple(MODELS))
        expected = MODELS[self.model].Config
        if not isinstance(self.architecture, expected):
            raise ValueError(
                f"architecture is a {type(self.architecture).__name__}: the model "
                f"{self.model!r} takes a {expected.__name__}"
            )
        if self.graph.kind not in MODELS[self.model].smoothed:
            raise ValueError(
                f"graph.kind is {self.graph.kind!r}: the model {self.model!r} takes "
                f"{' or '.join(MODELS[self.model].smoothed)}"
            )
        _checks.at_least(self, 1, "batch_size", "epochs", "eval_every")

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
          ValueError: on a field that does not exist or a value of another type.
        """
        values = dict(values)
        name = values.get("model", cls.model)
        if name not in MODELS:
            raise ValueError(f"model is {name!r}: {suggestion(name, MODELS)}")
        parts = {
            "architecture": MODELS[name].Config,
            "optimizer": OptimizerConfig,
            "graph": GraphConfig,
            "evaluation": EvaluationConfig,
        }
        for part, kind in parts.items():
            if part in values:
                values[part] = _from_dict(kind, values[part], f"{part}.")
        return _from_dict(cls, values, "")


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to say after a name that is none of `known`."""
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    if close:
        return f"there is none of this name, did you mean {' or '.join(close)}?"
    return f"there is none of this name, choose from {', '.join(sorted(known))}"


def _from_dict(kind: Any, values: Any, prefix: str) -> Any:
    """A `kind` from a mapping of JSON values, each checked against its annotation."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix or 'the recipe'} is {values!r}: it must be a table")
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{prefix}{name}: {suggestion(name, hints)}")
        if not _fits(value, hints[name]):
            kind_name = getattr(hints[name], "__name__", hints[name])
            raise ValueError(f"{prefix}{name} is {value!r}: it must be {kind_name}")
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is tuple:  # A list in JSON.
        item, *_ = typing.get_args(hint)
        return isinstance(value, (list, tuple)) and all(_fits(v, item) for v in value)
    if hint is float:  # JSON writes 1.0 as 1 in many a hand; a bool is no number.
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
