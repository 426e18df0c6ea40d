"""A step of ``sevo_adamw`` on ten million nodes, and on paper on a billion.

    python benchmarks/large.py
    python benchmarks/large.py --quick
    python benchmarks/large.py --sizes 1000000 20000000 --width 64

Needs ``sevo-jax[train]``. The graph is a power law of mean degree 20. The steps run in
one ``lax.scan`` with donated state; in each 8192 rows get a gradient, as from looking
them up. The default width is 16 on a CPU, where the run takes 10 GB, else 64; where
that does not fit, what failed is noted and 16 is tried.

The model of a step, with n nodes, nnz entries, width d and L hops, in bytes:

* streamed: the gradient is filled with zeros and tested for idle rows; the moments read
  it and themselves and write themselves and the direction; each hop writes the product
  and, for Horner's rule, reads it and the direction and writes their sum, the last one
  together with the parameters: ``4 n d (4 L + 9)``. The entries are read in each hop:
  ``L (8 nnz + 4 n)``.
* gathered: one row of the table for each entry: ``4 nnz d L``.

and ``2 nnz d L + (2 L + 18) n d`` operations, which no machine waits for. At the
bandwidth that :class:`harness.Bandwidth` measures for one gigabyte this predicts the
seconds if gathering rows were as fast as streaming them; with a bandwidth of gathering
fitted to the first size it predicts the others.

For a billion rows it prints what each device holds and exchanges. The halo, the rows
of other devices that a device's entries name, is counted on the largest graph that was
run, cut into as many parts; its nodes are shuffled, so a partition of a real graph
would have a smaller one. A graph over the rows is made by ``sevo_jax.shard_rows``.

Writes ``results/large-cpu.json`` and ``.png``, or ``-gpu``.
"""

import argparse
import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from harness import (
    CLOCK,
    Bandwidth,
    clock,
    forget_peak,
    is_short,
    power_law,
    save,
    wait,
)

import sevo_jax as sevo
from sevo_jax.operators import CSROperator

matplotlib.use("agg")
import matplotlib.pyplot as plt

ON_CPU = jax.default_backend() == "cpu"
NAME, LAYERS, BATCH, STEPS = "item_embedding", 3, 8192, 2


# ------------------------------------------------------------------ the model


class Cost(NamedTuple):
    """Of one step, in bytes and operations."""

    streamed: float
    gathered: float
    operations: float

    @classmethod
    def of(cls, n: int, nnz: int, d: int, layers: int = LAYERS) -> "Cost":
        return cls(
            4 * n * d * (4 * layers + 9) + layers * (8 * nnz + 4 * n),
            4 * nnz * d * layers,
            2 * nnz * d * layers + (2 * layers + 18) * n * d,
        )


FORMULAS = {
    "streamed bytes": "4 n d (4 L + 9) + L (8 nnz + 4 n)",
    "gathered bytes": "4 nnz d L",
    "operations": "2 nnz d L + (2 L + 18) n d",
}


def halo_share(graph: CSROperator, parts: int) -> float:
    """Rows of other parts that one of so many parts needs, as a share of all rows."""
    rows = graph.num_nodes // parts
    first, last = np.asarray(graph.row_starts[:: max(rows, 1)])[1:3]
    columns = np.unique(np.asarray(graph.columns[first:last]))
    own = (columns >= rows) & (columns < 2 * rows)
    return float((~own).sum() / graph.num_nodes)


def billion(graph: CSROperator) -> list[dict]:
    """Bytes on each device, and received by it in a step, for a billion rows.

    Seven tables are held: parameters, two moments, gradient, direction and two in the
    hops; and of the graph columns and weights, and row starts in 64 bits where the
    entries of a device need them.
    """
    n, nnz, d = 10**9, 20 * 10**9, 64

    def on_device(rows: int, width: int) -> dict:
        entries = nnz / rows
        start_bytes = 8 if entries >= 2**31 - 1 else 4
        halo = halo_share(graph, rows) * n if rows > 1 else 0
        wide = 4 * d / width
        return {
            "tables": 7 * n / rows * wide,
            "graph": 8 * entries + start_bytes * n / rows,
            "halo": halo * wide,
            "received a step": LAYERS * halo * wide,
        }

    result = [{"devices": 64, "sharding": "width", **on_device(1, 64)}]
    for devices in (64, 256, 1024):
        result += [
            {"devices": devices, "sharding": "rows", **on_device(devices, 1)},
            {
                "devices": devices,
                "sharding": "rows x width 8",
                **on_device(devices // 8, 8),
            },
        ]
    for each in result:
        each["held"] = each["tables"] + each["graph"] + each["halo"]
    return result


# ------------------------------------------------------------------ the run


def peak_bytes() -> int:
    """Of this process, or of the accelerator's memory since the process began."""
    if ON_CPU:
        return harness.peak_bytes()
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"]


def run(graph: CSROperator, width: int) -> dict:
    """Seconds of a step and the peak of memory."""
    n = graph.num_nodes
    optimizer = sevo.sevo_adamw(
        1e-3, {NAME: graph}, weight_decay=0.1, num_layers=LAYERS
    )

    def step(carry, key, graph):
        params, state = carry
        ids = jax.random.randint(key, (BATCH,), 0, n)
        looked_up = jax.random.normal(key, (BATCH, width))
        gradient = jnp.zeros((n, width)).at[ids].add(looked_up)
        updates, state = optimizer.update(
            {NAME: gradient}, state, params, graphs={NAME: graph}
        )
        return (optax.apply_updates(params, updates), state), None

    @functools.partial(jax.jit, donate_argnums=0)
    def steps(carry, keys, graph):
        one: Any = functools.partial(step, graph=graph)
        return jax.lax.scan(one, carry, keys)[0]

    if ON_CPU:
        forget_peak()
    params = {NAME: jnp.ones((n, width))}
    carry = params, optimizer.init(params)
    keys = jax.random.split(jax.random.key(0), STEPS)
    seconds = []
    begin = time.perf_counter()
    # The first run compiles, and of a shared machine the shortest counts.
    while len(seconds) < 2 or (len(seconds) < 6 and time.perf_counter() < begin + 30):
        start = clock()
        carry = steps(carry, keys, graph)
        wait(carry)
        seconds.append((clock() - start) / STEPS)
    finite = bool(jnp.isfinite(carry[0][NAME]).all())
    if not finite:
        raise RuntimeError("the table is no longer finite")
    return {
        "nodes": n,
        "entries": graph.num_entries,
        "width": width,
        "seconds a step": min(seconds[1:]),
        "seconds of all": seconds,
        "peak bytes": peak_bytes(),
        "graph bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(graph)),
        "saved without rows": graph.rows.nbytes,
        "saved without row_starts": graph.row_starts.nbytes,
        **Cost.of(n, graph.num_entries, width)._asdict(),
    }


def predict(runs: list[dict], bandwidth: Bandwidth) -> None:
    """Adds the predictions of the model to what was measured."""
    stream = bandwidth(2**30)
    first = runs[0]
    rest = first["seconds a step"] - first["streamed"] / stream
    gathering = first["gathered"] / rest
    for each in runs:
        streamed = each["streamed"] / stream
        each["bytes a second of gathering, fitted to the first size"] = gathering
        each["predicted, all streamed"] = streamed + each["gathered"] / stream
        each["predicted, gathering fitted"] = streamed + each["gathered"] / gathering


def draw(results: dict, path: Path) -> None:
    runs, table = results["runs"], results["a billion rows of width 64"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    names = {
        "seconds a step": "measured",
        "predicted, gathering fitted": "predicted, gathering fitted to the first",
        "predicted, all streamed": "predicted, all bytes streamed",
    }
    for shift, (name, label) in zip((-0.27, 0, 0.27), names.items()):
        values = [each[name] for each in runs]
        bars = left.bar(np.arange(len(runs)) + shift, values, 0.27, label=label)
        left.bar_label(bars, fmt="{:.3g}", fontsize=8)
    left.set_xticks(
        range(len(runs)), [f"{each['nodes']:,} x {each['width']}" for each in runs]
    )
    left.set_yscale("log")
    left.set_ylim(top=2 * max(each["seconds a step"] for each in runs))
    left.set_xlabel("table: rows x width")
    left.set_ylabel(f"seconds a step, {CLOCK} time")
    left.set_title(f"Measured on {jax.devices()[0].device_kind}, mean degree 20, L = 3")
    left.legend(fontsize=8)
    labels = [
        "\n".join([str(each["devices"]), *each["sharding"].split(" x ")])
        for each in table
    ]
    places, bottom = np.arange(len(table)), np.zeros(len(table))
    for part in ("tables", "graph", "halo"):
        values = np.array([each[part] for each in table]) / 1e9
        right.bar(places, values, bottom=bottom, label=part)
        bottom += values
    received = [each["received a step"] / 1e9 for each in table]
    right.plot(places, received, "kD", label="received a step", markersize=5)
    right.set_ylim(top=1.05 * max(*bottom, *received))
    right.set_xticks(places, labels, fontsize=7)
    right.set_xlabel("devices and sharding")
    right.set_ylabel("GB on each device")
    right.set_title("On paper: a billion rows of width 64")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=(10**6, 10**7))
    parser.add_argument("--width", type=int, default=16 if ON_CPU else 64)
    parser.add_argument("--quick", action="store_true", help="100,000 and a million")
    arguments = parser.parse_args()
    sizes = (10**5, 10**6) if arguments.quick else arguments.sizes
    bandwidth = Bandwidth()
    runs, failed, graph = [], [], None
    print(f"{'nodes':>12} {'d':>4} {'s a step':>9} {'peak GB':>8} {'graph s':>8}")
    for size in sizes:
        start = clock()
        graph = power_law(size)
        built = clock() - start
        peak_of_graph = peak_bytes()
        for width in dict.fromkeys((arguments.width, 16)):
            try:
                result = run(graph, width)
            except jax.errors.JaxRuntimeError as error:
                failed.append(f"{size} x {width}: {str(error).splitlines()[0]}")
                print(failed[-1])
                continue
            result["seconds to build the graph"] = built
            result["peak bytes until the graph was built"] = peak_of_graph
            runs.append(result)
            print(
                f"{size:12,} {width:4} {result['seconds a step']:9.3f}"
                f" {result['peak bytes'] / 1e9:8.2f} {built:8.1f}",
                flush=True,
            )
            break
    predict(runs, bandwidth)
    assert graph is not None
    paper = billion(graph)
    for each in runs:
        ratios = {
            name: each["seconds a step"] / each[f"predicted, {name}"]
            for name in ("all streamed", "gathering fitted")
        }
        print(f"{each['nodes']:12,} measured / predicted:", ratios)
    print(f"{'devices':>8} {'sharding':15} {'GB held':>8} {'GB received a step':>19}")
    for each in paper:
        print(
            f"{each['devices']:8} {each['sharding']:15} {each['held'] / 1e9:8.1f}"
            f" {each['received a step'] / 1e9:19.1f}"
        )
    results = {
        "bandwidth, bytes a second": bandwidth.to_dict(),
        "model of a step": FORMULAS,
        "runs": runs,
        "failed": failed,
        "a billion rows of width 64": paper,
        "limit of one GraphOperator": "2**31 - 1 entries: row_starts is int32; at mean "
        "degree 20 that is 107 million nodes",
    }
    path = save("large", results, short=is_short(parser, arguments))
    draw(results, path.with_suffix(".png"))
    print("written to", path)


if __name__ == "__main__":
    main()
