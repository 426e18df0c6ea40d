"""A whole step of ``sevo_adamw``: beside AdamW, with parts left out, beside an ideal.

    python benchmarks/optimizer_step.py
    python benchmarks/optimizer_step.py --sizes 12000 100000
    python benchmarks/optimizer_step.py --sizes 12000 100000 1000000 10000000

Needs ``sevo-jax[train]``. Steps run inside a ``lax.scan`` of which the state is
donated, as in training, over power-law graphs of mean degree 20. A fifth of the rows
has a gradient, other rows each step. The candidates:

* ``AdamW``: :func:`optax.adamw`.
* ``correction``: ``sevo_adamw`` without psi (``num_layers=0``).
* ``psi``: ``sevo_adamw`` without the correction of the moments.
* ``sevo_adamw``: both, as shipped.
* ``every 8``: the same, propagated once in eight steps.
* ``fused``: the same step written by hand as one function without a pass over the
  table more than the equations need: one for the test of idle rows, one for moments
  and direction, for each hop the product and Horner's rule, of which the last one also
  decays and applies the update. Its result is checked against ``sevo_adamw``.

At ten million rows, of width 16 alone, only AdamW, ``sevo_adamw`` and ``every 8`` are
measured, and the same rows have a gradient in each step: memory is short.

Passes over the table are the bytes that the compiled step reads and writes by XLA's
own count, over the bytes of the table. A product counts as its operands and its
result there: not the row that each entry gathers.

Ratios are those of the shortest times. Writes ``results/optimizer_step-cpu.json`` and
``.png``, or ``-gpu``, where tables of other sizes stay as they were measured before.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from harness import (
    CLOCK,
    earlier,
    keep_freed_memory,
    power_law,
    save,
    time_in_turns,
)

import sevo_jax as sevo

matplotlib.use("agg")
import matplotlib.pyplot as plt

SIZES = (12_000, 100_000, 1_000_000)
WIDTHS = (64, 16)
LR, B1, B2, EPS, DECAY, BETA, LAYERS = 1e-3, 0.9, 0.999, 1e-8, 0.1, 0.99, 3
NAME = "item_embedding"
OURS, WINDOW, IDEAL = "sevo_adamw", "every 8", "fused"
PLAIN = "AdamW"
# Rows, from which on memory is short.
LARGE = 5_000_000

Step = Callable[[Any, Any, Any, jax.Array], tuple[Any, Any]]


# ------------------------------------------------------------------ candidates


def by_optax(optimizer: optax.GradientTransformationExtraArgs) -> Step:
    def step(params, state, graph, gradient):
        updates, state = optimizer.update(
            {NAME: gradient}, state, params, graphs={NAME: graph}
        )
        return optax.apply_updates(params, updates), state

    return step


def fused(params, state, graph, gradient):
    """The step of ``sevo_adamw``; the state is that of its corrected moments."""
    count, mu, nu = state
    count += 1
    t = count.astype(jnp.float32)

    def moment(old, new, decay):
        total = -jnp.expm1(t * np.log(decay))
        before = -jnp.expm1((t - 1) * np.log(decay))
        return (decay * before * old + (1 - decay) * new) / total

    active = jnp.any(gradient != 0, axis=1, keepdims=True)
    mu = jnp.where(active, moment(mu, gradient, B1), mu)
    nu = jnp.where(active, moment(nu, gradient**2, B2), nu)
    direction = mu / (jnp.sqrt(nu) + EPS)
    out = direction
    for _ in range(LAYERS):
        out = direction + BETA * (graph @ out)
    factor = LR / sum(BETA**layer for layer in range(LAYERS + 1))
    table = params[NAME]
    return {NAME: (1 - LR * DECAY) * table - factor * out}, (count, mu, nu)


class Candidate:
    """A step, and what it has come to."""

    def __init__(self, step: Step, params, state, graph, gradients, num_steps: int):
        def steps(params, state, graph, gradients):
            def body(carry, index):
                params, state = carry
                # Scaled: XLA would test what is the same each time only once.
                gradient = (1 + index) * gradients[index % len(gradients)]
                return step(params, state, graph, gradient), None

            return jax.lax.scan(body, (params, state), jnp.arange(num_steps))[0]

        self.program = jax.jit(steps, donate_argnums=(0, 1))
        self.single = jax.jit(step, donate_argnums=(0, 1))
        # A copy: all candidates are given the same, and each gives its own away.
        self.params, self.state = jax.tree.map(jnp.copy, (params, state))
        self.graph, self.gradients, self.num_steps = graph, gradients, num_steps

    def __call__(self) -> Any:
        self.params, self.state = self.program(
            self.params, self.state, self.graph, self.gradients
        )
        return self.params

    def passes(self) -> float:
        """Over the table, in one step."""
        lowered = self.single.lower(
            self.params, self.state, self.graph, self.gradients[0]
        )
        cost: Any = lowered.compile().cost_analysis()
        return cost["bytes accessed"] / self.params[NAME].nbytes


def candidates(graph: sevo.GraphOperator, width: int) -> dict[str, Candidate]:
    n = graph.num_nodes
    # Whole windows.
    num_steps = 16 if 4 * n * width < 2**22 else 8
    keys = jax.random.split(jax.random.key(0), 3)
    params = {NAME: jax.random.normal(keys[0], (n, width))}
    num_gradients = num_steps if n < LARGE else 1
    gradients = jax.random.normal(keys[1], (num_gradients, n, width))
    gradients *= jax.random.bernoulli(keys[2], 0.2, (num_gradients, n, 1))

    def ours(**settings: Any) -> optax.GradientTransformationExtraArgs:
        return sevo.sevo_adamw(
            LR,
            {NAME: graph},
            B1,
            B2,
            EPS,
            weight_decay=DECAY,
            beta=BETA,
            **{"num_layers": LAYERS, **settings},
        )

    optimizers = {
        PLAIN: optax.with_extra_args_support(
            optax.adamw(LR, B1, B2, EPS, weight_decay=DECAY)
        ),
        "correction": ours(num_layers=0),
        "psi": ours(moment_correction=False),
        OURS: ours(),
        WINDOW: ours(every=8),
    }
    if n >= LARGE:
        optimizers = {name: optimizers[name] for name in (PLAIN, OURS, WINDOW)}
    result = {
        name: Candidate(
            by_optax(optimizer),
            params,
            optimizer.init(params),
            graph,
            gradients,
            num_steps,
        )
        for name, optimizer in optimizers.items()
    }
    if n >= LARGE:
        return result
    state = (jnp.zeros([], jnp.int32), *[jnp.zeros((n, width))] * 2)
    result[IDEAL] = Candidate(fused, params, state, graph, gradients, num_steps)
    return result


# ------------------------------------------------------------------ measurement


def measure(graph: sevo.GraphOperator, width: int) -> dict:
    runs = candidates(graph, width)
    if IDEAL in runs:
        ours, ideal = runs[OURS]()[NAME], runs[IDEAL]()[NAME]
        np.testing.assert_allclose(ours, ideal, rtol=0, atol=1e-5)
    seconds = time_in_turns(runs, rounds=10, calls=3, at_most=12)
    steps = runs[OURS].num_steps
    seconds = {
        name: {key: value / steps for key, value in each.items()}
        for name, each in seconds.items()
    }
    step = {name: each["min"] for name, each in seconds.items()}
    found = {
        "nodes": graph.num_nodes,
        "entries": graph.num_entries,
        "width": width,
        "layers": LAYERS,
        "seconds a step": seconds,
        "passes over the table": {name: run.passes() for name, run in runs.items()},
        "sevo_adamw over AdamW": step[OURS] / step[PLAIN],
        "every 8 over AdamW": step[WINDOW] / step[PLAIN],
    }
    if IDEAL in runs:
        found["sevo_adamw over fused"] = step[OURS] / step[IDEAL]
    return found


def draw(measured: list[dict], path: Path) -> None:
    """The candidates in multiples of AdamW's time."""
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    labels = {
        OURS: "sevo_adamw",
        IDEAL: "the same as one function",
        WINDOW: "sevo_adamw, every 8 steps",
        "correction": "without psi",
    }
    for index, (name, label) in enumerate(labels.items()):
        points = {
            place: each["seconds a step"][name]["min"]
            / each["seconds a step"][PLAIN]["min"]
            for place, each in enumerate(measured)
            if name in each["seconds a step"]
        }
        axes.plot(
            list(points.values()),
            list(points),
            "oDs^"[index],
            label=label,
            markersize=8,
            fillstyle="none",
        )
    names = [f"{each['nodes']:,} x {each['width']}" for each in measured]
    axes.set_yticks(range(len(measured)), names)
    axes.invert_yaxis()
    axes.set_ylabel("table: rows x width")
    axes.set_xscale("log")
    ticks = (1, 2, 5, 10, 20, 50)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(f"{CLOCK} time of a step / that of optax.adamw")
    axes.set_title(f"A step of sevo_adamw on {jax.devices()[0].device_kind}, L = 3")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="ROWS")
    arguments = parser.parse_args()
    keep_freed_memory()
    names = (PLAIN, "correction", "psi", OURS, WINDOW, IDEAL)
    print(f"{'ms a step (passes)':18}" + "".join(f"{name:>18}" for name in names))
    measured = []
    for size in arguments.sizes:
        graph = power_law(size)
        for width in WIDTHS if size < LARGE else WIDTHS[-1:]:
            each = measure(graph, width)
            measured.append(each)
            cells = [
                f"{1e3 * each['seconds a step'][name]['min']:9.3f}"
                f" ({each['passes over the table'][name]:6.1f})"
                if name in each["seconds a step"]
                else ""
                for name in names
            ]
            print(f"{size:11,} x {width:4}" + "".join(f"{c:>18}" for c in cells))
            ratios = [
                f"{name} over {PLAIN} {each[f'{name} over {PLAIN}']:.2f}"
                for name in (OURS, WINDOW)
            ]
            print(f"{'':18}  {', '.join(ratios)}", flush=True)
    tables = [(each["nodes"], each["width"]) for each in measured]
    measured += [
        each
        for each in earlier("optimizer_step", [])
        if (each["nodes"], each["width"]) not in tables
    ]
    measured.sort(key=lambda each: (each["nodes"], -each["width"]))
    path = save("optimizer_step", measured)
    draw(measured, path.with_suffix(".png"))
    print("written to", path)


if __name__ == "__main__":
    main()
