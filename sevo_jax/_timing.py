"""Seconds that one thing takes beside others."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def time_in_turns(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    calls: int = 1,
    at_most: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[Any], object] = jax.block_until_ready,
) -> dict[str, dict[str, float]]:
    """Seconds of each candidate, which take turns.

    Taking turns exposes all of them to the same drift of a shared machine. The first
    call, which compiles, is not counted, nor is the first of several in a turn, which
    finds the caches full of another candidate's data. Calls of more than 0.1 s, to
    which that makes no difference, are made once a turn. On an accelerator, calls queue
    up for 5 ms before they are waited for, as they do in use, and each counts its
    share.

    Args:
      candidates: what is timed, by name; each returns what `wait` waits for.
      rounds: how often each has its turn, at least 1.
      calls: how often it is called in a turn.
      at_most: seconds after which no round begins.
      clock: returns the seconds now.
      wait: returns when a result is there.

    Returns:
      The minimum, median and maximum of each candidate.
    """
    queued = dict.fromkeys(candidates, 1)

    def once(name: str) -> float:
        start = clock()
        result = None
        for _ in range(queued[name]):
            result = candidates[name]()
        wait(result)
        return (clock() - start) / queued[name]

    begin = time.perf_counter()
    turns = dict.fromkeys(candidates, 1)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    on_accelerator = jax.default_backend() != "cpu"
    for name in candidates:
        once(name)
        if calls == 1 and not on_accelerator:
            continue
        single = once(name)
        if single < 0.1:
            turns[name] = calls
        else:
            seconds[name].append(single)
        if on_accelerator:
            queued[name] = min(50, math.ceil(5e-3 / single))
    for _ in range(rounds):
        for name, count in turns.items():
            times = [once(name) for _ in range(count)]
            seconds[name] += times[1:] or times
        if time.perf_counter() - begin > at_most:
            break
    return {
        name: {"min": min(s), "median": statistics.median(s), "max": max(s)}
        for name, s in seconds.items()
    }
