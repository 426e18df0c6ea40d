"""The contract of what a model trains on."""

from __future__ import annotations

from typing import Any, Protocol


class Epochs(Protocol):
    """The epochs of a training run, addressed by number.

    `epochs[e]` is a function of the arguments that the object was made with and of `e`
    alone, so a run that resumes at epoch `e` sees what an unbroken run sees.
    """

    num_steps: int
    """Steps of an epoch."""

    def __getitem__(self, epoch: int, /) -> Any:
        """Returns an epoch: a pytree of arrays `[steps, ...]`.

        Args:
          epoch: from 0.
        """
        ...
