"""The item graph of a log in Parquet files by DuckDB, beside our own streaming.

    python benchmarks/engines.py [--interactions 100000000] [--memory 3GB]

Generates the log in parts in a temporary folder (a million items, 20 interactions a
user on average, as `graphs.py` does) and builds the graph of neighbours from it twice,
each time in a process of its own whose peak memory is taken: by the query of
`cooccurrence_sql` in DuckDB, within the given memory, its edges read by `from_edges`;
and by `cooccurrence(stream(...))`. The two are compared bit for bit. What DuckDB writes
to its temporary files is watched. Writes ``results/engines-cpu.json``, where a run
takes the place of an earlier one of as many interactions.
"""

import argparse
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from graphs import DRAWN, NUM_ITEMS, USERS, generate, timed
from harness import earlier, save

import sevo_jax as sevo
from sevo_jax.data import stream

MILLIONS_A_PART = 10


class Spilled:
    """The largest size that a folder has while a block runs."""

    def __init__(self, folder: Path):
        self.folder, self.largest, self._done = folder, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            sizes = []
            for file in self.folder.glob("*"):
                try:
                    sizes.append(file.stat().st_size)
                except FileNotFoundError:  # Gone meanwhile.
                    continue
            self.largest = max(self.largest, sum(sizes))

    def __enter__(self) -> "Spilled":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def by_duckdb(folder: Path, memory: str) -> dict:
    import ibis

    spill = folder / "spilled"
    connection = ibis.duckdb.connect(
        memory_limit=memory, temp_directory=f"{spill}", preserve_insertion_order=False
    )

    def query() -> None:
        log = connection.read_parquet(f"{folder}/log/*.parquet")
        edges = sevo.graphs.cooccurrence_sql(log)
        connection.to_parquet(edges, folder / "edges.parquet")

    with Spilled(spill) as spilled:
        _, queried = timed(query)
    version = connection.version
    connection.disconnect()
    size = (folder / "edges.parquet").stat().st_size
    return {
        "query": queried | {"spilled bytes": spilled.largest, "edges' bytes": size},
        "memory limit": memory,
        "DuckDB": version,
    }


def read_edges(folder: Path, memory: str) -> dict:
    """In a process of its own, so that its peak is."""
    del memory
    path = folder / "edges.parquet"
    graph, read = timed(sevo.graphs.from_edges, path, NUM_ITEMS)
    path.unlink()
    sevo.graphs.save(folder / "duckdb.npz", graph)
    return {"from_edges": read, "entries": graph.nse}


def by_streaming(folder: Path, memory: str) -> dict:
    del memory
    chunks = stream(folder / "log", NUM_ITEMS)
    graph, built = timed(sevo.graphs.cooccurrence, chunks, NUM_ITEMS)
    sevo.graphs.save(folder / "streamed.npz", graph)
    return {"build": built, "entries": graph.nse}


def compare(folder: Path, memory: str) -> dict:
    del memory
    one, two = (
        sevo.graphs.load(folder / f"{name}.npz", mmap=True)
        for name in ("duckdb", "streamed")
    )
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    return {"equal entries": one.nnz}


def run(stage: Callable[..., dict], *args: object) -> dict:
    """Runs one stage in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        outcome = pool.apply(stage, args)
    print(stage.__name__, outcome, flush=True)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--interactions", type=int, default=100_000_000)
    parser.add_argument("--memory", default="3GB", help="DuckDB's memory_limit")
    options = parser.parse_args()
    millions = max(1, options.interactions // DRAWN)
    results: dict = {"interactions": millions * DRAWN, "users": millions * USERS}
    results |= {"items": NUM_ITEMS, "load average before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "log").mkdir()
        for part, first in enumerate(range(0, millions, MILLIONS_A_PART)):
            last = min(first + MILLIONS_A_PART, millions)
            generate(folder / "log" / f"part-{part:04}.parquet", last, first)
        files = (folder / "log").iterdir()
        results["bytes"] = sum(file.stat().st_size for file in files)
        results["free disk bytes"] = shutil.disk_usage(folder).free
        for stage in (by_duckdb, read_edges, by_streaming, compare):
            results[stage.__name__] = run(stage, folder, options.memory)
        results["by_duckdb"] |= results.pop("read_edges")
    runs = earlier("engines", {"runs": []})["runs"]
    runs = [each for each in runs if each["interactions"] != results["interactions"]]
    runs = sorted([*runs, results], key=lambda each: each["interactions"])
    print("written to", save("engines", {"runs": runs}))


if __name__ == "__main__":
    main()
