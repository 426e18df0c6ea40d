"""The contract of what a model trains on, and drawing it ahead of its use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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


def ahead(load: Callable[[int], Any], start: int, stop: int) -> Iterator[Any]:
    """`load(start)` to `load(stop - 1)`, the next made while the caller is busy."""
    if start >= stop:
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(load, start)
        for number in range(start + 1, stop):
            loaded, following = following.result(), pool.submit(load, number)
            yield loaded
        yield following.result()
