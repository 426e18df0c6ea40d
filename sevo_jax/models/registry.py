"""Recommenders by the name they go by in recipes and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sevo_jax.models.recommender import Recommender

MODELS: dict[str, type[Recommender]] = {}
"""The registered recommenders by name."""

Model = TypeVar("Model", bound=type[Recommender])


def register(name: str) -> Callable[[Model], Model]:
    """Makes a recommender known by `name`: in recipes, runs and every command.

    Args:
      name: what recipes and the command line call it.

    Returns:
      A decorator of a class, which it returns as it is.

    Raises:
      TypeError: if the class is no `Recommender`, or lacks what the contract asks.
      ValueError: if another class has the name already.

    Examples:
      >>> from sevo_jax import models
      >>> models.MODELS["sasrec"]
      <class 'sevo_jax.models.sasrec.SASRec'>
    """

    def add(model: Model) -> Model:
        if not (isinstance(model, type) and issubclass(model, Recommender)):
            raise TypeError(f"{model!r} is no subclass of Recommender")
        missing = [
            attribute
            for attribute in dir(model)
            if getattr(getattr(model, attribute, None), "__isabstractmethod__", False)
        ]
        if missing:
            raise TypeError(f"{model.__name__} has no {', '.join(missing)}: write it")
        known = MODELS.setdefault(name, model)
        # A module that is run again, in a notebook, defines the same class anew.
        if _origin(known) != _origin(model):
            raise ValueError(
                f"the model {name!r} is {known.__module__}.{known.__qualname__} "
                "already: choose another name"
            )
        MODELS[name] = model
        return model

    return add


def _origin(model: type) -> tuple[str, str]:
    return model.__module__, model.__qualname__
