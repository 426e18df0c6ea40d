"""Ten million items from the log to recommendations: seconds and memory by phase.

    python benchmarks/end_to_end.py
    python benchmarks/end_to_end.py --items 100000

Needs ``sevo-jax[train]``; with ten million items 16 GB of memory and some ten minutes
on two CPU cores. A log is drawn whose items form communities: of two million users,
each has two, and takes the next item beside the last one or among those popular in
a community. It is written as Parquet, read, split, made a graph of, and MF-BPR is
trained on it for an epoch with ``sevo_adamw(every=16)`` at width 16, by batches of
half a million triplets. The validation items of some users are then ranked among *all*
items; nobody ranks all users at this size. The seconds of the epoch include compiling
it; at the end a few steps, compiled before, with AdamW, with SEvo propagating once
in 16 of them, and at every step.

Each phase has its own peak of the resident size (Linux), with what earlier ones left.
Writes ``results/end_to_end-PLATFORM.json``.
"""

import argparse
import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import jax
import numpy as np
import pyarrow
import pyarrow.parquet
from harness import clock, forget_peak, is_short, peak_bytes, save, wait

import sevo_jax as sevo
from sevo_jax.data import LeaveOneOut, leave_one_out, read
from sevo_jax.evaluation import recommend
from sevo_jax.models.mf_bpr import MFBPRConfig
from sevo_jax.training import OptimizerConfig, Recipe, Trainer

COMMUNITY = 100
FOLLOW, REACH = 0.5, 4
MEAN_LENGTH, LONGEST = 15, 50
EVERY, WIDTH, BATCH = 16, 16, 2**19
RANKED = 500


def draw(num_users: int, num_items: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Users and items of a log with planted communities, oldest first within a user.

    Ids are shuffled, so that nothing is gained from near numbers.
    """
    rng = np.random.default_rng(seed)
    users, items = walk(num_users, num_items, rng)
    return users, rng.permutation(num_items)[items]


def walk(
    num_users: int, num_items: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """As `draw`, before the shuffle: a community is a hundred neighbouring numbers.

    The items of a community stand on a ring. The next item is one of the nearest on
    it, or one drawn by popularity from either community of the user; none comes
    twice.
    """
    num_communities = num_items // COMMUNITY
    # Popular communities have more users.
    liked = num_communities * rng.random((num_users, 2)) ** 1.5
    liked = liked.astype(np.int32)
    lengths = np.minimum(5 + rng.geometric(1 / (MEAN_LENGTH - 4), num_users), LONGEST)
    community, place = liked[:, 0].copy(), np.zeros(num_users, np.int32)
    keys = []
    for step in range(LONGEST):
        going = np.flatnonzero(lengths > step)
        size = len(going)
        near = rng.integers(1, REACH + 1, size) * rng.choice((-1, 1), size)
        follows = (rng.random(size) < FOLLOW) & (step > 0)
        chosen = liked[going, rng.integers(0, 2, size)]
        popular = (COMMUNITY * rng.random(size) ** 2).astype(np.int32)
        community[going] = np.where(follows, community[going], chosen)
        place[going] = np.where(follows, (place[going] + near) % COMMUNITY, popular)
        items = community[going].astype(np.int64) * COMMUNITY + place[going]
        keys.append(going * num_items + items)
    keys = np.concatenate(keys)
    first = np.sort(np.unique(keys, return_index=True)[1])
    users, items = np.divmod(keys[first], num_items)
    order = np.argsort(users, kind="stable")
    return users[order], items[order]


def with_few_targets(split: LeaveOneOut, users: int) -> LeaveOneOut:
    """The split with held-out items for so many of its users only."""
    chosen = np.random.default_rng(0).choice(split.num_users, users, replace=False)
    few = {}
    for part in ("valid", "test"):
        few[part] = np.full(split.num_users, -1, np.int32)
        few[part][chosen] = getattr(split, part)[chosen]
    return dataclasses.replace(split, **few)


class Phases:
    """Seconds and peak of each phase, printed as they come."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        forget_peak()
        start = clock()
        yield
        wait(jax.live_arrays())
        seconds, peak = clock() - start, peak_bytes()
        self.results.append({"phase": name, "seconds": seconds, "peak bytes": peak})
        print(f"{name:36} {seconds:8.1f} s {peak / 1e9:6.1f} GB", flush=True)


def step_seconds(trainer: Trainer, name: str, every: int, batches: Any) -> float:
    """Seconds of a step with an optimizer, the mean of these."""
    config = dataclasses.replace(trainer.recipe.optimizer, name=name, every=every)
    optimizer = trainer.optimizer_of(config)
    program = trainer.program._replace(update=optimizer.update)
    state = trainer.start(0, optimizer)
    seconds = 0.0
    # The first compiles.
    for _ in range(2):
        start = clock()
        state, losses = trainer.train_epoch(
            state, batches, seed=0, epoch=0, program=program
        )
        wait((state, losses))
        seconds = clock() - start
    return seconds / len(batches.users)


def run(num_items: int, folder: Path) -> dict[str, Any]:
    """All phases, and the seconds of a step by optimizer."""
    phase = Phases()
    path, num_users = folder / "log.parquet", num_items // 5
    with phase("draw the log"):
        users, items = draw(num_users, num_items)
    with phase("write it"):
        table = pyarrow.table({"user": users, "item": items})
        pyarrow.parquet.write_table(table, path)
    interactions = table.num_rows
    del users, items, table
    with phase("read it"):
        log = read(path)
    with phase("split it"):
        split = with_few_targets(leave_one_out(log), min(RANKED, num_users))
    with phase("build the graph"):
        graph = sevo.graphs.cooccurrence(split.train, split.num_items)
    with phase("check and normalise it"):
        op = sevo.prepare(graph)
    del graph
    recipe = Recipe(
        "mf-bpr",
        MFBPRConfig(WIDTH),
        OptimizerConfig(
            "sevo_adamw", learning_rate=0.01, weight_decay=0.0, beta=0.9, every=EVERY
        ),
        batch_size=BATCH,
        epochs=1,
    )
    with phase("assemble the training"):
        trainer = Trainer(recipe, split, graphs=op)
    with phase("initial values"):
        state = trainer.start(0)
    with phase("draw an epoch"):
        batches = trainer.epochs(0)[0]
    with phase(f"train an epoch of {len(batches.users)} steps"):
        state, losses = trainer.train_epoch(state, batches, seed=0, epoch=0)
    with phase(f"rank {len(split.valid[split.valid >= 0])} users"):
        measured = trainer.measure(trainer.model(state))
    with phase("recommend ten items to 100 users"):
        some = np.arange(100)
        recommend(trainer.model(state), split.train.take(some), 10, users=some)
    del state
    steps = {}
    for label, name, every, count in (
        ("adamw", "adamw", 1, 8),
        (f"sevo_adamw, every {EVERY}", "sevo_adamw", EVERY, EVERY),
        ("sevo_adamw, every step", "sevo_adamw", 1, 2),
    ):
        few = jax.tree.map(lambda x, count=count: x[:count], batches)
        steps[label] = step_seconds(trainer, name, every, few)
    for label, seconds in steps.items():
        print(f"a step of {label:26} {seconds:8.3f} s")
    return {
        "users": split.num_users,
        "items": split.num_items,
        "interactions": interactions,
        "graph entries": op.num_entries,
        "width": WIDTH,
        "batch size": BATCH,
        "phases": phase.results,
        "seconds a step": steps,
        "loss of the first and last step": [float(losses["loss"][i]) for i in (0, -1)],
        "validation": measured["valid"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=10**7)
    arguments = parser.parse_args()
    harness.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        results = run(arguments.items, Path(folder))
    print("validation", results["validation"])
    path = save("end_to_end", results, short=is_short(parser, arguments))
    print("written to", path)


if __name__ == "__main__":
    main()
