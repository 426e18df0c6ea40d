"""What the benchmarks share: graphs, timing in turns, bandwidth, where results go."""

import argparse
import ctypes
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from cycler import cycler

from sevo_jax import CSROperator, _timing
from sevo_jax.reports import plots

# One palette for all pictures.
matplotlib.rcParams["axes.prop_cycle"] = cycler(color=plots.COLOURS)
RESULTS = Path(__file__).parent / "results"
# Where a run that was cut short is written: it is no evidence.
SHORT = Path(__file__).parents[1] / "runs" / "benchmarks"
# For `paper`, which holds the backbones and the data sets. It is not imported here:
# not every benchmark has room for all that training needs.
sys.path.append(str(Path(__file__).parents[1] / "experiments"))
# On a machine that others use, wall-clock time says little. SEVO_CLOCK=processor counts
# the time that this process gets instead; to compare speeds by that, give it one core:
# SEVO_CLOCK=processor taskset -c 0 python ...
CLOCK = os.environ.get("SEVO_CLOCK", "wall")
clock = {"wall": time.perf_counter, "processor": time.process_time}[CLOCK]


def power_law(num_nodes: int, mean_degree: int = 20, seed: int = 0) -> CSROperator:
    r"""A random graph of which the degrees fall off as a power law, normalised.

    Both ends of each edge are drawn in proportion to :math:`i^{-1/2}` over the nodes
    :math:`i`, so that the share of nodes of degree k falls as :math:`k^{-3}`; then the
    nodes are shuffled, so that nothing is gained from neighbouring rows. Edges drawn
    twice count once, which lowers the mean degree a little. Built at a peak of 24 bytes
    an entry: checked as :func:`sevo_jax.prepare` does, ten million nodes would take
    several times that.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(num_nodes).astype(np.int32)
    ends = [
        order[(num_nodes * rng.random(num_nodes * mean_degree // 2) ** 2).astype(int)]
        for _ in range(2)
    ]
    half = len(ends[0])
    keys = np.empty(2 * half, np.int64)
    for part, (row, column) in enumerate((ends, ends[::-1])):
        place = keys[part * half : (part + 1) * half]
        np.multiply(row, num_nodes, out=place, dtype=np.int64)
        place += column
    del ends
    keys.sort()
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
    row_starts = np.searchsorted(keys, np.arange(num_nodes + 1) * num_nodes)
    rows = np.empty(len(keys), np.int32)
    np.floor_divide(keys, num_nodes, out=rows, casting="unsafe")
    columns = np.empty(len(keys), np.int32)
    np.remainder(keys, num_nodes, out=columns, casting="unsafe")
    del keys
    scale = (1 / np.sqrt(np.maximum(np.diff(row_starts), 1))).astype(np.float32)
    weights = scale[rows]
    weights *= scale[columns]
    return CSROperator(
        weights=jnp.asarray(weights),
        columns=jnp.asarray(columns),
        row_starts=jnp.asarray(row_starts, jnp.int32),
        rows=jnp.asarray(rows),
        num_nodes=num_nodes,
    )


def keep_freed_memory() -> None:
    """Lets the C library keep what is freed, as an accelerator's allocator does.

    Otherwise (glibc) each array above 32 MB that a single call returns is mapped anew,
    and the page faults take longer than the arithmetic: ten times on a virtual machine.
    In training they occur once an epoch, whose steps are one program. For all
    candidates alike.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((-4, 0), (-1, -1), (-8, 1)):
            # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX of malloc.h
            if not libc.mallopt(parameter, value):
                raise RuntimeError(f"mallopt({parameter}, {value}) failed")


def wait(result: object) -> None:
    """Until an array of JAX, or whatever PyTorch has been given to do, is there."""
    jax.block_until_ready(result)
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """Largest resident size so far (Linux).

    Unlike getrusage's, it does not count the process that started this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmHWM")


def forget_peak() -> None:
    """Lets the peak of the resident size begin anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


time_in_turns = functools.partial(_timing.time_in_turns, clock=clock, wait=wait)


class Bandwidth:
    """Measured bytes a second, read and written alike, by the size of what is touched.

    An array is scaled in place again and again by one compiled program: small ones
    stay in a cache, large ones pass through memory. Between the measured sizes (1 MB to
    1 GB, each four times the one before) it is interpolated in the logarithms.
    """

    def __init__(self) -> None:
        @functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
        def scale(x: jax.Array, times: int) -> jax.Array:
            return jax.lax.fori_loop(0, times, lambda _, y: y * 0.999, x)

        self.sizes = [2**power for power in range(20, 31, 2)]
        self.speeds = []
        for size in self.sizes:
            times = max(4, 2**28 // size)
            x = scale(jnp.ones(size // 4), times)
            seconds = []
            for _ in range(5):
                wait(x)
                start = clock()
                x = scale(x, times)
                wait(x)
                seconds.append(clock() - start)
            self.speeds.append(2 * size * times / min(seconds))

    def __call__(self, num_bytes: float) -> float:
        logs = np.log(self.sizes), np.log(self.speeds)
        return float(np.exp(np.interp(np.log(num_bytes), *logs)))

    def to_dict(self) -> dict[str, float]:
        return {f"{size >> 20} MB": v for size, v in zip(self.sizes, self.speeds)}


def is_short(parser: argparse.ArgumentParser, options: argparse.Namespace) -> bool:
    """Whether an option changes what the benchmark measures by default."""
    values = vars(options).items()
    return any(value != parser.get_default(name) for name, value in values)


def _path(name: str, folder: Path) -> Path:
    clock_name = "" if CLOCK == "wall" else f"-{CLOCK}"
    return folder / f"{name}-{jax.default_backend()}{clock_name}.json"


def earlier(name: str, default: Any) -> Any:
    """The results that `save` wrote before, or what stands for none."""
    path = _path(name, RESULTS)
    return json.loads(path.read_text())["results"] if path.exists() else default


def save(name: str, results: object, *, short: bool = False) -> Path:
    """Writes results with the machine and the versions they were measured on.

    Args:
      name: of the benchmark.
      results: what it measured.
      short: whether less than the whole of it: the results in the repository stay.

    Returns:
      Their path: ``NAME-cpu.json``, ``NAME-gpu.json`` or ``NAME-tpu.json``, by
      processor time ``NAME-cpu-processor.json``; in `RESULTS`, of a short run in
      `SHORT`.
    """
    # Not before what is measured has its memory.
    from sevo_jax.training.identity import machine, versions
    from sevo_jax.training.mesh import make_mesh

    others = ("scipy", "torch")
    machine_of_run = {
        "platform": jax.default_backend(),
        **machine(make_mesh()),
        "clock": CLOCK,
        "versions": {
            **versions(),
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in others
                if importlib.util.find_spec(name)
            },
        },
    }
    path = _path(name, SHORT if short else RESULTS)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"machine": machine_of_run, "results": results}, indent=2)
    path.write_text(content + "\n")
    return path
