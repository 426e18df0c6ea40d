"""The item graph of 100 million interactions, streamed from a Parquet file.

    python benchmarks/graphs.py [--millions 100]

Generates the file in a temporary folder (0.8 GB; 5 million users, a million items),
builds the graph of neighbours from it while it holds only a few million rows, saves it,
maps it and prepares it, each in a process of its own whose peak memory is taken. A
smaller file is also built in memory as a whole, and the two graphs compared bit for
bit. Writes ``results/graphs-cpu.json``.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import is_short, peak_bytes, save

import sevo_jax as sevo
from sevo_jax.data import Sequences, stream

NUM_ITEMS = 1_000_000
# Interactions and users that are drawn at once. Row groups are shorter, so that users
# lie across their borders.
DRAWN, USERS, ROW_GROUP = 1_000_000, 50_000, 750_000


def generate(path: Path, millions: int, first: int = 0) -> None:
    """Writes users of 20 interactions on average, with items as popular as by Zipf.

    Of a log of many millions those from `first` up to `millions`.
    """
    import pyarrow
    from pyarrow import parquet

    names = np.random.default_rng(0).permutation(NUM_ITEMS).astype(np.int32)
    schema = pyarrow.schema(
        {
            "user": pyarrow.int64(),
            "item": pyarrow.int32(),
            "timestamp": pyarrow.int64(),
        }
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for part in range(first, millions):
            rng = np.random.default_rng([1, part])
            share = rng.lognormal(size=USERS)
            lengths = 1 + rng.multinomial(DRAWN - USERS, share / share.sum())
            users = np.repeat(np.arange(USERS), lengths) + part * USERS
            # The logarithm of the rank is uniform: its density falls like 1 / rank.
            ranks = (float(NUM_ITEMS) ** rng.random(DRAWN)).astype(np.int64) - 1
            times = 60 * np.arange(DRAWN) + rng.integers(0, 60, DRAWN)
            table = pyarrow.table([users, names[ranks], times], schema=schema)
            writer.write_table(table, row_group_size=ROW_GROUP)


def timed(call: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, dict]:
    """What a call returns, what it took, and the largest memory up to its end."""
    start, cpu = time.perf_counter(), time.process_time()
    value = call(*args, **options)
    took = {
        "seconds": time.perf_counter() - start,
        "processor seconds": time.process_time() - cpu,
    }
    # Of the whole process, with JAX and Arrow, and the pages of mapped files.
    return value, took | {"peak MiB": peak_bytes() / 2**20}


def read(file: Path, graph: Path) -> dict:
    _, took = timed(lambda: sum(len(c.values) for c in stream(file, NUM_ITEMS)))
    return {"read": took}


def build(file: Path, graph: Path) -> dict:
    _, begin = timed(lambda: None)
    chunks = stream(file, NUM_ITEMS)
    adjacency, built = timed(sevo.graphs.cooccurrence, chunks, NUM_ITEMS)
    _, saved = timed(sevo.graphs.save, graph, adjacency)
    sizes = {"entries": adjacency.nse, "bytes": graph.stat().st_size}
    return {"before": begin, "build": built, "save": saved, "graph": sizes}


def load(file: Path, graph: Path) -> dict:
    adjacency, loaded = timed(sevo.graphs.load, graph)
    _, prepared = timed(sevo.prepare, adjacency)
    return {"load": loaded, "prepare what was loaded": prepared}


def load_mapped(file: Path, graph: Path) -> dict:
    adjacency, loaded = timed(sevo.graphs.load, graph, mmap=True)
    _, prepared = timed(sevo.prepare, adjacency)
    return {"map": loaded, "prepare what was mapped": prepared}


def compare(file: Path, graph: Path) -> dict:
    """The streamed graph against one of all sequences at once, bit for bit."""
    chunks = list(stream(file, NUM_ITEMS))
    whole = Sequences.from_lengths(
        np.concatenate([chunk.values for chunk in chunks]),
        np.concatenate([chunk.lengths for chunk in chunks]),
    )
    outcome: dict = {"interactions": len(whole.values)}
    for max_hop, weighting in ((1, "distance"), (3, "distance")):
        one, two = (
            sevo.graphs.cooccurrence(
                sequences, NUM_ITEMS, max_hop=max_hop, weighting=weighting
            )
            for sequences in (stream(file, NUM_ITEMS), whole)
        )
        np.testing.assert_array_equal(one.indices, two.indices)
        np.testing.assert_array_equal(one.data, two.data)
        outcome[f"equal at {max_hop} hops"] = one.nse
    return {"streamed against in memory": outcome}


def run(stage: Callable[..., dict], file: Path, graph: Path) -> dict:
    """Runs one stage in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        outcome = pool.apply(stage, (file, graph))
    for name, numbers in outcome.items():
        shown = (f"{value:,.1f} {title}" for title, value in numbers.items())
        print(f"{name:28}", ", ".join(shown), flush=True)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--millions", type=int, default=100)
    options = parser.parse_args()
    millions = options.millions
    results: dict = {"interactions": millions * DRAWN, "users": millions * USERS}
    results |= {"items": NUM_ITEMS, "load average before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        file, graph = Path(folder, "log.parquet"), Path(folder, "graph.npz")
        generate(file, max(1, millions // 50))
        results |= run(compare, file, graph)
        _, generated = timed(generate, file, millions)
        results["generate"] = generated | {"bytes": file.stat().st_size}
        for stage in (build, load_mapped, load, read):
            results |= run(stage, file, graph)
    path = save("graphs", results, short=is_short(parser, options))
    print("written to", path)
    built = results["build"]
    for title in ("seconds", "processor seconds"):
        speed = results["interactions"] / built[title] / 1e6
        print(f"{speed:.1f} million interactions per {title.removesuffix('s')}")


if __name__ == "__main__":
    main()
