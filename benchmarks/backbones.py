"""Figure 3 of the paper: seconds to train an epoch and to rank all users, on Beauty.

    python benchmarks/backbones.py
    python benchmarks/backbones.py --torch-steps 20
    python benchmarks/backbones.py --only gru4rec mf-bpr

Each of the five backbones, MF-BPR with either graph, and of the four graph models, in
three forms: sevo_jax with and without SEvo, and plain PyTorch (`torch_models`, checked
to be the same model before anything is timed). AdamW without decay, as LightGCN and
MAERec have it, is Adam. sevo_jax trains as ``sevo-jax train`` does: the next epoch's
batches are drawn meanwhile, and waited for. The three take turns; the first turn, which
compiles, is not counted. Both libraries use the GPU if there is one.

``--torch-steps N`` trains no more than N steps of PyTorch's epochs, which may take
minutes on a CPU, and scales their seconds up by the samples.

Needs PyTorch besides ``sevo-jax[train]``. Prints a table and, if no model is left
out, writes ``results/backbones-PLATFORM.json`` and a picture, ``.png``.
"""

import argparse
from typing import Any

import jax
from candidates import JaxRun, TorchRun, device_name, torch_device
from harness import is_short, save, time_in_turns
from matplotlib.figure import Figure
from paper import BACKBONES, GRAPH_MODELS, load, recipe_of
from torch_models import check

from sevo_jax.data import LeaveOneOut
from sevo_jax.reports import plots
from sevo_jax.training import Trainer

TORCH, ADAMW, SEVO = "PyTorch, AdamW", "sevo_jax, AdamW", "sevo_jax, SEvo-AdamW"
MODELS = BACKBONES | GRAPH_MODELS
COLOURS = {TORCH: "#999999", ADAMW: plots.COLOURS[0], SEVO: plots.COLOURS[1]}


def measure(
    model: str, split: LeaveOneOut, device: str, rounds: int, torch_steps: int | None
) -> dict[str, Any]:
    """Seconds of each candidate to train an epoch and to rank all users."""
    recipes = [recipe_of(model, "beauty", name) for name in ("adamw", "sevo_adamw")]
    check(recipes[0], split)
    plain, sevo = (Trainer(recipe, split) for recipe in recipes)
    torch_run = TorchRun(plain, device, max_steps=torch_steps)
    runs = {
        TORCH: torch_run,
        ADAMW: JaxRun(plain),
        SEVO: JaxRun(sevo),
    }
    training, ranking = (
        time_in_turns(calls, rounds=rounds)
        for calls in (
            {name: run.train for name, run in runs.items()},
            {name: run.evaluate for name, run in runs.items()},
        )
    )
    training[TORCH] = {
        name: seconds / torch_run.share for name, seconds in training[TORCH].items()
    }
    result = {
        "training": training,
        "ranking": ranking,
        "share of the epoch that PyTorch trained": torch_run.share,
        "SEvo over AdamW": training[SEVO]["median"] / training[ADAMW]["median"] - 1,
    }
    for part, seconds in (("training", training), ("ranking", ranking)):
        result[f"{part}, times faster than PyTorch"] = {
            name: seconds[TORCH]["median"] / seconds[name]["median"]
            for name in (ADAMW, SEVO)
        }
    return result


def rows(label: str, result: dict[str, Any]) -> list[str]:
    """The lines of a model in the table."""
    share = result["share of the epoch that PyTorch trained"]
    lines = []
    for name in COLOURS:
        notes = ""
        if name == TORCH and share < 1:
            notes = f"  epoch scaled up from {share:.1%} of it"
        if name == SEVO:
            notes = f"  {result['SEvo over AdamW']:+.0%} to AdamW's epoch"
        cells = ""
        for part in ("training", "ranking"):
            faster = result[f"{part}, times faster than PyTorch"].get(name, 1)
            cells += f"{result[part][name]['median']:12.3f} {faster:8.1f}"
        lines.append(f"{label:<14}{name:<21}{cells}{notes}")
        label = ""
    return lines


def picture(results: dict[str, Any], devices: str) -> Figure:
    """Grouped bars of the seconds, training above and ranking below."""
    figure = Figure(figsize=(10, 7.2), layout="constrained")
    panels = figure.subplots(2, 1)
    titles = {"training": "Training, an epoch", "ranking": "Inference, all users"}
    for axes, (part, title) in zip(panels, titles.items(), strict=True):
        for index, (name, colour) in enumerate(COLOURS.items()):
            medians = [each[part][name]["median"] for each in results.values()]
            places = [place + 0.27 * (index - 1) for place in range(len(results))]
            bars = axes.bar(places, medians, 0.27, color=colour, label=name)
            axes.bar_label(bars, fmt=_three_digits, fontsize=6, padding=1)
        axes.set_title(title, loc="left", fontsize=11)
        labels = [MODELS[name].label.replace(" ", "\n") for name in results]
        axes.set_xticks(range(len(results)), labels)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_yscale("log")
        axes.set_ylabel("seconds (logarithmic)")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=9, ncols=3, loc=(0.3, 1.01))
    parts = [
        each["share of the epoch that PyTorch trained"] for each in results.values()
    ]
    scaled = "; PyTorch's epochs scaled up from a part" if min(parts) < 1 else ""
    figure.supxlabel(f"Amazon Beauty, {devices}{scaled}", fontsize=9)
    return figure


def _three_digits(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=[""], help="models whose names begin so"
    )
    parser.add_argument("--rounds", type=_positive, default=3, help="turns that count")
    parser.add_argument("--torch-steps", type=_positive, help="at most, of an epoch")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="PyTorch's")
    options = parser.parse_args()
    device = options.device or torch_device()
    for start in options.only:
        if not any(name.startswith(start) for name in MODELS):
            parser.error(f"--only {start}: choose of {', '.join(MODELS)}")
    chosen = [name for name in MODELS if name.startswith(tuple(options.only))]
    split = load("beauty")

    devices = f"JAX on {jax.devices()[0].device_kind}, PyTorch on {device_name(device)}"
    print(f"{devices}; seconds, and how many times faster than PyTorch")
    print(f"{'':35}{'an epoch':>12} {'faster':>8}{'ranking':>12} {'faster':>8}")
    results = {}
    for name in chosen:
        results[name] = measure(
            name, split, device, options.rounds, options.torch_steps
        )
        print(*rows(MODELS[name].label, results[name]), sep="\n", flush=True)
    figure = picture(results, devices)
    results = {"devices": devices, "rounds": options.rounds, "backbones": results}
    path = save("backbones", results, short=is_short(parser, options))
    plots.save(figure, path.with_suffix(".png"))
    print("written to", path)


if __name__ == "__main__":
    main()
