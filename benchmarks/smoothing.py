"""psi(X) of equation (7): the layout that sevo_jax takes beside all others there are.

    python benchmarks/smoothing.py
    python benchmarks/smoothing.py --quick
    python benchmarks/smoothing.py --sizes 10000 100000

Needs ``sevo-jax[train]``; with PyTorch installed that takes part too. The base case is
width 64, three hops, float32, forward, on each graph: those of the paper and power-law
graphs of mean degree 20; on a CPU ten million nodes have width 16. Two of the graphs,
PROBES, then vary one thing at a time: the width, the number of hops, bfloat16, the
gradient, five tables under ``vmap``. By symmetry the gradient is psi of the cotangent,
so the others only compute that.

Beside each case stand the Adam moments of the same table (``optax.scale_by_adam``, its
state donated), and a floor of the time in bytes: an array is moved at the bandwidth
that :class:`harness.Bandwidth` measures for arrays of its size, and each of the L hops
reads the entries (8 bytes each and 4 a row), gathers one row of the table for each
entry, reads the table and writes the result. The other half of Horner's rule is taken
as free. What a cache keeps of a larger table, such as the rows of the nodes of highest
degree, can bring a measured time below the floor.

Ratios are those of the shortest times. Writes ``results/smoothing-cpu.json`` and
``.png``, or ``-gpu``.
"""

import os

# Idle OpenMP threads would spin on the cores of the candidate after PyTorch, and on a
# GPU JAX would leave it no memory.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import scipy.sparse
from harness import (
    CLOCK,
    Bandwidth,
    is_short,
    keep_freed_memory,
    power_law,
    save,
    time_in_turns,
    wait,
)
from jax.experimental.sparse import BCOO, BCSR
from paper import load

import sevo_jax as sevo
from sevo_jax.operators import CSROperator, _kernels

try:
    import torch
except ImportError:
    torch: Any = None

matplotlib.use("agg")
import matplotlib.pyplot as plt

BETA = 0.99
DATASETS = {"beauty": 50, "toys": 50, "tools": 50, "ml-1m": 200}
PROBES = ("beauty", "100,000 nodes")
LARGEST = "10,000,000 nodes"
QUICK = ("beauty", "ml-1m", "1,000,000 nodes")
BLOCK = 64
ON_CPU = jax.default_backend() == "cpu"
DENSE_UP_TO = 4_000 if ON_CPU else 16_000
OURS = "sevo_jax"


class Case(NamedTuple):
    """One row of the table."""

    graph: str
    width: int = 64
    layers: int = 3
    dtype: str = "float32"
    task: str = "forward"

    @property
    def change(self) -> str:
        """What differs from the base case."""
        base = Case(self.graph)
        names = {"width": "d = ", "layers": "L = "}
        return ", ".join(
            names.get(field, "") + str(value)
            for field, value in self._asdict().items()
            if value != getattr(base, field)
        )

    @property
    def label(self) -> str:
        return f"{self.graph}{self.change and ', '}{self.change}"


def cases(graph: str) -> Iterator[Case]:
    if ON_CPU and graph == LARGEST:
        # Wider tables of so many rows, in every layout, fit few machines.
        yield Case(graph, width=16)
        return
    yield Case(graph)
    if graph in PROBES:
        yield from (Case(graph, width=width) for width in (16, 256))
        yield from (Case(graph, layers=layers) for layers in (1, 2, 5))
        yield Case(graph, dtype="bfloat16")
        yield Case(graph, task="gradient")
        yield Case(graph, task="five tables")


def make_graph(name: str) -> CSROperator:
    if name not in DATASETS:
        return power_law(int(name.split()[0].replace(",", "")))
    split = load(name)
    graph = sevo.prepare(
        sevo.graphs.cooccurrence(
            split.train, split.num_items, max_len=DATASETS[name], item_offset=1
        )
    )
    assert isinstance(graph, CSROperator)
    return graph


# ------------------------------------------------------------------ candidates


def series(product: Callable[[Any], Any], x: Any, layers: int) -> Any:
    """Horner's rule, the same for every library."""
    out = x
    for _ in range(layers):
        out = x + BETA * product(out)
    return out / sum(BETA**layer for layer in range(layers + 1))


def gather_segment_sum(graph: CSROperator, x: jax.Array) -> jax.Array:
    """What _kernels.py has for accelerators."""
    parts = graph.weights, graph.columns, graph.row_starts, graph.rows
    return _kernels.gather_segment_sum(*parts, x)


def gather_add(graph: CSROperator, x: jax.Array, layers: int) -> jax.Array:
    """Each hop's sum starts from the table: no pass of its own for Horner's rule."""
    out = x
    for _ in range(layers):
        out = x.at[graph.rows].add(
            BETA * graph.weights[:, None] * out[graph.columns],
            indices_are_sorted=True,
            mode="promise_in_bounds",
        )
    return out / sum(BETA**layer for layer in range(layers + 1))


def gather_half(graph: CSROperator, x: jax.Array, layers: int) -> jax.Array:
    """Between hops the table is rounded to bfloat16, sums are in float32."""

    def product(table: jax.Array) -> jax.Array:
        return gather_segment_sum(graph, table.astype(jnp.bfloat16)).astype(jnp.float32)

    return series(product, x, layers)


def in_blocks(psi: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """A wide table some columns at a time, so that what is gathered fits a cache."""
    n, d = x.shape
    blocks = jnp.moveaxis(x.reshape(n, d // BLOCK, BLOCK), 1, 0)
    return jnp.moveaxis(jax.lax.map(psi, blocks), 0, 1).reshape(n, d)


def bcsr(graph: CSROperator) -> BCSR:
    return BCSR(
        (graph.weights, graph.columns, graph.row_starts),
        shape=(graph.num_nodes,) * 2,
        indices_sorted=True,
        unique_indices=True,
    )


def bcoo(graph: CSROperator) -> BCOO:
    return BCOO(
        (graph.weights, jnp.stack([graph.rows, graph.columns], axis=1)),
        shape=(graph.num_nodes,) * 2,
        indices_sorted=True,
        unique_indices=True,
    )


def dense(graph: CSROperator) -> jax.Array:
    empty = jnp.zeros((graph.num_nodes,) * 2)
    return empty.at[graph.rows, graph.columns].set(graph.weights)


def scipy_csr(graph: CSROperator) -> scipy.sparse.csr_array:
    parts = (graph.weights, graph.columns, graph.row_starts)
    return scipy.sparse.csr_array(
        tuple(np.asarray(part) for part in parts), shape=(graph.num_nodes,) * 2
    )


def contenders(
    graph: CSROperator, x: jax.Array, case: Case
) -> dict[str, Callable[[], object]]:
    """Every way to smooth the table ``[n, d]``, or the tables ``[5, n, d]``."""
    five, layers = case.task == "five tables", case.layers

    def neumann(operand: Any, table: jax.Array) -> jax.Array:
        return sevo.smoothing.neumann(operand, table, BETA, layers)

    def cotangent(operand: Any, table: jax.Array) -> jax.Array:
        return jax.vjp(lambda t: neumann(operand, t), table)[1](table)[0]

    def compiled(psi: Callable, operand: Any, many: str = "vmap") -> Callable:
        def in_float32(operand, table):
            return psi(operand, table.astype(jnp.float32)).astype(table.dtype)

        def call(operand, table):
            if not five:
                return in_float32(operand, table)
            if many == "vmap":
                return jax.vmap(in_float32, (None, 0))(operand, table)
            return jax.lax.map(lambda each: in_float32(operand, each), table)

        program = jax.jit(call)
        return lambda: program(operand, x)

    def product_by(operand: Any) -> Callable:
        return compiled(lambda a, t: series(lambda y: a @ y, t, layers), operand, "map")

    def exactly(a: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.dot(a, y, precision="highest")

    result = {OURS: compiled(cotangent if case.task == "gradient" else neumann, graph)}
    if five:
        result["sevo_jax, table by table"] = compiled(neumann, graph, "map")
    elif case.width > BLOCK:
        result["sevo_jax, in blocks"] = compiled(
            lambda a, t: in_blocks(lambda block: neumann(a, block), t), graph
        )
    if ON_CPU:
        csr = scipy_csr(graph)
        tables = np.asarray(x, np.float32)

        def by_scipy():
            if five:
                return np.stack([series(lambda y: csr @ y, t, layers) for t in tables])
            return series(lambda y: csr @ y, tables, layers)

        result["SciPy CSR"] = by_scipy
    else:
        # Read when the program is compiled, and by these two products alone.
        jax.config.update("jax_bcoo_cusparse_lowering", True)
        result["BCSR, cuSPARSE"] = product_by(bcsr(graph))
        result["BCOO, cuSPARSE"] = product_by(bcoo(graph))
    # On a CPU these are several times slower, which smaller graphs show soon enough.
    if not ON_CPU or graph.num_entries < 1_000_000:
        result["gather, add to table"] = compiled(
            lambda a, t: gather_add(a, t, layers), graph, "map"
        )
        if case.dtype == "bfloat16":
            result["gather in bfloat16"] = compiled(
                lambda a, t: gather_half(a, t, layers), graph, "map"
            )
        if ON_CPU:
            result["gather, segment sum"] = compiled(
                lambda a, t: series(lambda y: gather_segment_sum(a, y), t, layers),
                graph,
                "map",
            )
            result["plain BCOO"] = product_by(bcoo(graph))
    if graph.num_nodes <= DENSE_UP_TO:
        result["dense"] = compiled(
            lambda a, t: series(lambda y: exactly(a, y), t, layers), dense(graph), "map"
        )
    if torch is not None:
        result["PyTorch CSR"] = by_torch(graph, x, case)
    return result


def by_torch(graph: CSROperator, x: jax.Array, case: Case) -> Callable:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    starts, columns, weights = (
        torch.from_numpy(np.array(part)).to(device)
        for part in (graph.row_starts, graph.columns, graph.weights)
    )
    csr = torch.sparse_csr_tensor(
        starts, columns, weights, (graph.num_nodes,) * 2, check_invariants=False
    )
    tables = torch.from_numpy(np.array(x, np.float32)).to(device)
    tables = tables.to(getattr(torch, case.dtype))

    def one(table):
        out = series(lambda y: csr @ y, table.float(), case.layers)
        return out.to(table.dtype)

    if case.task == "five tables":
        return lambda: torch.stack([one(table) for table in tables])
    return lambda: one(tables)


def to_numpy(result: Any) -> np.ndarray:
    if torch is not None and isinstance(result, torch.Tensor):
        return result.float().cpu().numpy()
    return np.asarray(result, np.float32)


def by_definition(graph: CSROperator, x: jax.Array, case: Case) -> np.ndarray:
    """The first four columns, by SciPy: psi takes each column by itself."""
    csr = scipy_csr(graph)
    first = to_numpy(x[..., :4])
    tables = first if first.ndim == 3 else first[None]
    results = [series(lambda y: csr @ y, table, case.layers) for table in tables]
    return np.reshape(results, first.shape)


def adam(x: jax.Array) -> Callable[[], object]:
    transformation = optax.scale_by_adam()
    state = [transformation.init(x)]
    update = jax.jit(transformation.update, donate_argnums=1)

    def call():
        direction, state[0] = update(x, state[0])
        return direction

    return call


# ------------------------------------------------------------------ measurement


def floor(graph: CSROperator, case: Case, bandwidth: Bandwidth) -> float:
    """Seconds; see the top of the file."""
    tables = 5 if case.task == "five tables" else 1
    table = 4 * graph.num_nodes * case.width * tables
    entries = 8 * graph.num_entries + 4 * graph.num_nodes
    gathered = 4 * graph.num_entries * case.width * tables
    hop = entries / bandwidth(entries) + (gathered + 2 * table) / bandwidth(table)
    return case.layers * hop


def measure(case: Case, graph: CSROperator, bandwidth: Bandwidth) -> dict:
    lead = (5,) if case.task == "five tables" else ()
    x = jax.random.normal(
        jax.random.key(0), (*lead, graph.num_nodes, case.width), case.dtype
    )
    expected = by_definition(graph, x, case)
    tolerance = 1e-5 if case.dtype == "float32" else 2e-2
    candidates, failed = {}, {}
    for name, call in contenders(graph, x, case).items():
        try:
            result: Any = call()
            wait(result)
        except RuntimeError as error:  # out of memory, or not to be had on this device
            if name == OURS and "memory" not in str(error).lower():
                raise
            failed[name] = str(error).splitlines()[0]
            continue
        first = to_numpy(result[..., :4])
        np.testing.assert_allclose(first, expected, rtol=0, atol=tolerance)
        candidates[name] = call
    result = None
    seconds = time_in_turns(
        {**candidates, "Adam moments": adam(x)}, rounds=10, calls=4, at_most=5
    )
    # On a shared machine the shortest time is the one that was not disturbed.
    shortest = {name: value["min"] for name, value in seconds.items()}
    measured = {
        **case._asdict(),
        "nodes": graph.num_nodes,
        "entries": graph.num_entries,
        "seconds": seconds,
        "failed": failed,
        "floor": floor(graph, case, bandwidth),
    }
    if OURS in candidates:
        ours = shortest[OURS]
        best = min((n for n in candidates if n != OURS), key=shortest.__getitem__)
        measured |= {
            "best other": best,
            "over best other": ours / shortest[best],
            "over floor": ours / measured["floor"],
            "over Adam": ours / shortest["Adam moments"],
            "over each": {name: ours / shortest[name] for name in candidates},
        }
    return measured


HEADER = (
    f"{'':38} {'nodes':>10} {'entries':>11} {'ms':>9} {'/floor':>7} {'/Adam':>7}"
    f" {'/best':>7}  best other"
)


def row(case: Case, measured: dict) -> str:
    start = f"{case.label:38} {measured['nodes']:10,} {measured['entries']:11,}"
    if "best other" not in measured:
        return f"{start}  {measured['failed'][OURS]}"
    ours = measured["seconds"][OURS]["min"]
    ratios = [measured[f"over {name}"] for name in ("floor", "Adam", "best other")]
    return (
        f"{start} {1e3 * ours:9.2f}"
        + "".join(f" {ratio:7.2f}" for ratio in ratios)
        + f"  {measured['best other']}"
    )


def draw(measured: list[dict], path: Path) -> None:
    """Time of every candidate, in multiples of ours."""
    measured = [each for each in measured if "best other" in each][::-1]
    names = list(dict.fromkeys(n for each in measured for n in each["over each"]))
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.27 * len(measured)))
    for name, marker in zip(names, "D^osvPX*<>"):
        points = [
            (1 / each["over each"][name], place)
            for place, each in enumerate(measured)
            if name in each["over each"]
        ]
        axes.plot(*zip(*points), marker, label=name, alpha=0.8)
    floors = [1 / each["over floor"] for each in measured]
    axes.plot(floors, range(len(measured)), "k|", markersize=12, label="floor of bytes")
    axes.axvspan(1 / 1.1, 1.1, color="0.9", label="within 10 %")
    axes.set_yticks(
        range(len(measured)),
        [Case(*(each[field] for field in Case._fields)).label for each in measured],
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(f"{CLOCK} time / that of sevo_jax (left of 1: faster)")
    axes.set_title(f"psi(X) on {jax.devices()[0].device_kind}; base: d = 64, L = 3")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def write(measured: list[dict], bandwidth: Bandwidth, short: bool) -> Path:
    behind = {
        Case(*(each[field] for field in Case._fields)).label: each["over best other"]
        for each in measured
        if each.get("over best other", 0) > 1.1
    }
    results = {
        "bandwidth, bytes a second": bandwidth.to_dict(),
        "more than 10 % behind another": behind,
        "cases": measured,
    }
    path = save("smoothing", results, short=short)
    draw(measured, path.with_suffix(".png"))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [10_000, 100_000, 1_000_000, 10_000_000]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, metavar="NODES")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only Beauty, ML-1M and a million nodes, base case",
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    bandwidth = Bandwidth()
    graphs = [*DATASETS, *(f"{size:,} nodes" for size in arguments.sizes)]
    if arguments.quick:
        graphs = QUICK
    measured = []
    print(HEADER)
    for name in graphs:
        graph = make_graph(name)
        for case in [Case(name)] if arguments.quick else cases(name):
            measured.append(measure(case, graph, bandwidth))
            print(row(case, measured[-1]), flush=True)
            # At once, as a long run may be stopped, but not as if it were all.
            write(measured, bandwidth, short=True)
    path = write(measured, bandwidth, short=is_short(parser, arguments))
    print("written to", path)


if __name__ == "__main__":
    main()
