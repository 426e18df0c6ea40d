"""Values in messages: never more of one than fits on a line."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_WIDTH = 60
_MOST = 8


def shown(value: object) -> str:
    """Returns ``repr(value)``, or only its beginning if it is long.

    Examples:
      >>> shown("u17"), shown(5)
      ("'u17'", '5')
      >>> shown("x" * 1000)
      "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."
    """
    if isinstance(value, np.generic):
        value = value.item()
    # Cut before as well as after: the whole may be as large as a file.
    text = repr(value[: _WIDTH + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def named(name: object) -> str:
    """Returns an id or a name as it is, or as `shown` if it is long or unprintable.

    Examples:
      >>> named("u17"), named(5), named("a\\nb")
      ('u17', '5', "'a\\\\nb'")
    """
    text = f"{name}"
    return text if text.isprintable() and len(text) <= _WIDTH else shown(name)


def listed(names: Sequence[str]) -> str:
    """Returns the first few names, separated by commas.

    Examples:
      >>> listed(["user", "item"])
      'user, item'
      >>> listed([f"column{i}" for i in range(100)])
      'column0, column1, column2, column3, column4, column5, column6, column7, ...'
    """
    few = [named(name) for name in names[:_MOST]]
    return ", ".join(few + ["..."] * (len(names) > _MOST))
