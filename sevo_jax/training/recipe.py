"""What a run is made of: model, optimizer, graph, schedule; frozen dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sevo_jax.models import MODELS, GRU4RecConfig, ModelConfig, SASRecConfig


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
    moment_correction: bool = True
    """Whether sevo_adamw corrects the moments of rows without gradient (Theorem 3)."""

    def __post_init__(self):
        _require(self, "learning_rate", 0 < self.learning_rate < math.inf, "above 0")
        _require(self, "weight_decay", 0 <= self.weight_decay < math.inf, "at least 0")
        for name in ("b1", "b2", "beta"):
            _require(self, name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        in_range = self.momentum is None or 0 <= self.momentum < 1
        _require(self, "momentum", in_range, "in [0, 1) or None")
        _require(self, "num_layers", self.num_layers >= 0, "at least 0")
        _require_choice(self, "approximation", ("neumann", "iterative"))


@dataclass(frozen=True)
class GraphConfig:
    """The graph of the train interactions: of items that occur together (section 4),
    or of users and their items; the other fields are about the first."""

    kind: Literal["item-item", "user-item"] = "item-item"
    """What the edges link: items that follow each other, or users and their items."""
    max_len: int | None = 50
    """Items of a sequence that count (the paper's K); None for all of them."""
    keep: Literal["first", "last"] = "last"
    """Which end of a longer sequence counts."""
    max_hop: int = 1
    """Largest distance of two items in a sequence that links them (H), at least 1."""
    weighting: Literal["frequency", "distance"] = "distance"
    """Weight of a pair: 1, or 1 / distance; the same where max_hop is 1."""

    def __post_init__(self):
        _require_choice(self, "kind", ("item-item", "user-item"))
        enough = self.max_len is None or self.max_len >= 2
        _require(self, "max_len", enough, "at least 2, or None for all items")
        _require(self, "max_hop", self.max_hop >= 1, "at least 1")
        _require_choice(self, "keep", ("first", "last"))
        _require_choice(self, "weighting", ("frequency", "distance"))


@dataclass(frozen=True)
class Recipe:
    """Everything that, with the data and a seed, determines a run.

    Raises:
      ValueError: naming the field, its value and what it may be.

    Examples:
      >>> recipe = find_recipe("sasrec-beauty")
      >>> recipe.optimizer.b2, recipe.epochs
      (0.98, 200)
      >>> Recipe.from_dict(recipe.to_dict()) == recipe
      True
    """

    model: str = "sasrec"
    """Name of the recommender."""
    architecture: ModelConfig = field(default_factory=SASRecConfig)
    """Sizes and dropout of the model."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and its hyper-parameters."""
    graph: GraphConfig = field(default_factory=GraphConfig)
    """Graph over which SEvo smooths, and on which smoothness is measured."""
    batch_size: int = 512
    """Samples of a step; of SASRec a sample is a user, of GRU4Rec a prefix."""
    epochs: int = 200
    """Passes over the train sequences, at least 1."""
    eval_every: int = 5
    """Epochs between two validations, at least 1."""

    def __post_init__(self):
        _require_choice(self, "model", tuple(MODELS))
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
        for name in ("batch_size", "epochs", "eval_every"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")

    def with_optimizer(self, name: str) -> Recipe:
        """The same recipe with another optimizer, its hyper-parameters kept."""
        return dataclasses.replace(
            self, optimizer=dataclasses.replace(self.optimizer, name=name)
        )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as nested dictionaries of JSON values."""
        return dataclasses.asdict(self)

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
        }
        for part, kind in parts.items():
            if part in values:
                values[part] = _from_dict(kind, values[part], f"{part}.")
        return _from_dict(cls, values, "")


def find_recipe(name: str) -> Recipe:
    """The recipe registered under `name` in `RECIPES`.

    Raises:
      ValueError: if there is none, listing those of like names.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r}: {suggestion(name, RECIPES)}")
    return RECIPES[name]


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to say after a name that is none of `known`."""
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    if close:
        return f"there is none of this name, did you mean {' or '.join(close)}?"
    return f"there is none of this name, choose from {', '.join(sorted(known))}"


def _require(config: Any, name: str, holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(
            f"{type(config).__name__}.{name} is {getattr(config, name)!r}: "
            f"it must be {what}"
        )


def _require_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    _require(config, name, value in choices, f"one of {', '.join(choices)}")


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
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is float:  # JSON writes 1.0 as 1 in many a hand; a bool is no number.
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _sasrec(*, max_len: int, dropout: float, batch_size: int) -> Recipe:
    return Recipe(
        architecture=SASRecConfig(max_len=max_len, dropout=dropout),
        optimizer=OptimizerConfig(b2=0.98),
        graph=GraphConfig(max_len=max_len),
        batch_size=batch_size,
    )


def _gru4rec(
    *,
    max_len: int = 50,
    dropout: float = 0.4,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.1,
) -> Recipe:
    return Recipe(
        model="gru4rec",
        architecture=GRU4RecConfig(max_len=max_len, dropout=dropout),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, weight_decay=weight_decay
        ),
        graph=GraphConfig(max_len=max_len),
        batch_size=512,
        epochs=300,
    )


RECIPES: dict[str, Recipe] = {
    "sasrec-beauty": _sasrec(max_len=50, dropout=0.3, batch_size=512),
    "sasrec-toys": _sasrec(max_len=50, dropout=0.3, batch_size=512),
    "sasrec-tools": _sasrec(max_len=50, dropout=0.7, batch_size=512),
    "sasrec-ml-1m": _sasrec(max_len=200, dropout=0.1, batch_size=128),
    "sasrec-synthetic": Recipe(
        architecture=SASRecConfig(max_len=20),
        optimizer=OptimizerConfig(learning_rate=3e-3, b2=0.98),
        graph=GraphConfig(max_len=20),
        batch_size=128,
        epochs=30,
    ),
    "gru4rec-beauty": _gru4rec(),
    "gru4rec-toys": _gru4rec(),
    "gru4rec-tools": _gru4rec(dropout=0.5, learning_rate=5e-3),
    "gru4rec-ml-1m": _gru4rec(max_len=200, dropout=0.3, weight_decay=0.01),
    "gru4rec-synthetic": Recipe(
        model="gru4rec",
        architecture=GRU4RecConfig(max_len=20),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        graph=GraphConfig(max_len=20),
        batch_size=256,
        epochs=50,
    ),
}
"""The hyper-parameters of the paper's runs by `<model>-<dataset>`;
`<model>-synthetic` is a quick one for the built-in log."""
