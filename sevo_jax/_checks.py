"""Checks of arguments and configurations, each with one form of message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def require(holds: bool, name: str, value: Any, what: str) -> None:
    """Raises a ValueError that names an argument, its value and what it must be.

    Examples:
      >>> require(False, "batch_size", 0, "at least 1")
      Traceback (most recent call last):
      ...
      ValueError: batch_size is 0: it must be at least 1
    """
    if not holds:
        raise ValueError(f"{name} is {value!r}: it must be {what}")


def require_field(config: Any, name: str, holds: bool, what: str) -> None:
    """As `require`, of a field of a configuration."""
    require(holds, f"{type(config).__name__}.{name}", getattr(config, name), what)


def at_least(config: Any, least: int, *names: str) -> None:
    """Fields of a configuration that have a smallest value."""
    for name in names:
        require_field(config, name, getattr(config, name) >= least, f"at least {least}")


def rates(config: Any, *names: str) -> None:
    """Fields of a configuration that are rates, such as dropout's: in [0, 1)."""
    for name in names:
        require_field(config, name, 0 <= getattr(config, name) < 1, "in [0, 1)")


def one_of(config: Any, name: str, choices: tuple[str, ...]) -> None:
    """A field of a configuration that is one of several words."""
    holds = getattr(config, name) in choices
    require_field(config, name, holds, f"one of {', '.join(choices)}")


def check_extra_args(names: Iterable[str]) -> None:
    """Refuses a misspelt argument of ``update``.

    Others that a transformation does not know are for the rest of its chain.
    """
    ours = ("graphs", "active_rows", "flush")
    for name in names:
        close = difflib.get_close_matches(name, ours, n=1, cutoff=0.8)
        if close and name not in ours:
            raise TypeError(
                f"update was given {name!r}, which would have no effect: the argument "
                f"is {close[0]!r}"
            )
