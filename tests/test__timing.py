"""Timing in turns: what is called how often, and which calls count."""

import jax

from sevo_jax._timing import time_in_turns


class Timed:
    """Candidates `a`, `b`, ..., whose calls take the seconds that are given."""

    def __init__(self, **seconds):
        self.now, self.calls, self.waited = 0.0, "", []
        self.candidates = {
            name: lambda name=name, left=iter(each): self.call(name, next(left))
            for name, each in seconds.items()
        }

    def call(self, name, seconds):
        self.now += seconds
        self.calls += name
        return name

    def in_turns(self, **options):
        return time_in_turns(
            self.candidates,
            clock=lambda: self.now,
            wait=self.waited.append,
            **options,
        )


def test_candidates_take_turns_and_the_first_is_not_counted():
    timed = Timed(a=[100, 1, 1, 1], b=[100, 2, 4, 9])
    assert timed.in_turns(rounds=3) == {
        "a": {"min": 1, "median": 1, "max": 1},
        "b": {"min": 2, "median": 4, "max": 9},
    }
    assert timed.calls == "abababab"
    assert timed.waited == list(timed.calls)


def test_of_several_calls_in_a_turn_the_first_is_not_counted():
    short = [100, 1 / 16, 8, 1 / 32, 1 / 16, 8, 1 / 32, 1 / 16]
    timed = Timed(a=short, b=[100, 1, 2, 4])
    assert timed.in_turns(rounds=2, calls=3) == {
        "a": {"min": 1 / 32, "median": 3 / 64, "max": 1 / 16},
        # A long call is made once a turn, and the one that shows it counts.
        "b": {"min": 1, "median": 2, "max": 4},
    }
    assert timed.calls == "aabb" + 2 * "aaab"


def test_no_round_begins_after_so_many_seconds():
    timed = Timed(a=[1, 2, 3])
    assert timed.in_turns(rounds=9, at_most=0)["a"]["max"] == 2


def test_on_an_accelerator_calls_queue_up(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    timed = Timed(a=[1, 1 / 1024] + 20 * [1 / 1024], b=[1, 1 / 64, 1 / 64, 1 / 32])
    assert timed.in_turns(rounds=2) == {
        "a": {"min": 1 / 1024, "median": 1 / 1024, "max": 1 / 1024},
        "b": {"min": 1 / 64, "median": 3 / 128, "max": 1 / 32},
    }
    # Six of a take 5 ms, and are waited for once.
    assert timed.calls == "aabb" + 2 * "aaaaaab"
    assert timed.waited == list("aabb" + 2 * "ab")
