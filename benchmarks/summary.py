"""The tables on speed, which `experiments/documents.py` writes into documents."""

import json
from typing import Any

from harness import RESULTS
from paper import BACKBONES, DATASETS, GRAPH_MODELS
from tables import markdown


def read(name: str) -> Any:
    """The results of a benchmark on a CPU."""
    return json.loads((RESULTS / f"{name}-cpu.json").read_text())["results"]


def smoothing() -> str:
    """Shares of SciPy's time, in the base case of each graph."""
    names = {"sevo_jax": "sevo_jax", "SciPy CSR": "SciPy CSR"}
    names |= {"PyTorch CSR": "PyTorch CSR", "plain BCOO": "BCOO product"}
    base = {"width": 64, "layers": 3, "dtype": "float32", "task": "forward"}
    rows = [["ψ(X)", *names.values()]]
    for case in read("smoothing")["cases"]:
        if any(case[key] != value for key, value in base.items()):
            continue
        graph = DATASETS.get(case["graph"], "power law")
        nodes, entries = case["nodes"], case["entries"]
        seconds = {name: each["min"] for name, each in case["seconds"].items()}
        shares = [
            f"{seconds[name] / seconds['SciPy CSR']:.2f}" if name in seconds else ""
            for name in names
        ]
        rows.append([f"{graph}, {nodes:,} nodes, {entries:,} entries", *shares])
    return markdown(rows)


def backbones() -> str:
    """Times faster than PyTorch, and what SEvo adds to an epoch."""
    adamw, sevo = "sevo_jax, AdamW", "sevo_jax, SEvo-AdamW"
    heads = ["training, AdamW", "training, SEvo-AdamW", "ranking", "SEvo adds"]
    rows = [["times faster than PyTorch", *heads]]
    results = read("backbones")["backbones"]
    for name, about in (BACKBONES | GRAPH_MODELS).items():
        if name not in results:
            continue
        found = results[name]
        training, ranking = (
            found[f"{part}, times faster than PyTorch"]
            for part in ("training", "ranking")
        )
        faster = (training[adamw], training[sevo], ranking[sevo])
        added = f"{100 * found['SEvo over AdamW']:.0f} %"
        cells = [f"{each:.1f}" for each in faster]
        rows.append([about.label, *cells, added])
    return markdown(rows)


def windows() -> str:
    """What SEvo adds to an epoch of AdamW, by the number of steps of a window."""
    found = read("windows")["backbones"]
    steps = list(next(iter(found.values()))["SEvo adds"])
    rows = [["SEvo adds to an epoch, Beauty", "AdamW", *(f"k = {k}" for k in steps)]]
    for name, each in found.items():
        plain = each["seconds"]["adamw"]
        label, added = BACKBONES[name].label, each["SEvo adds"]
        cells = [f"{100 * added[k]:+.0f} %" for k in steps]
        spread = f"{plain['min']:.2f} to {plain['max']:.2f}"
        rows.append([label, f"{plain['median']:.2f} s ({spread})", *cells])
    return markdown(rows)


def prefixes() -> str:
    """Epochs on whole sequences and on one prefix at a time."""
    ways = {"prefix": "a prefix at a time", "sequence": "sequences"}
    ways |= {"softmax alone": "the softmax alone"}
    rows = [["an epoch, Beauty", *ways.values(), "times faster"]]
    for name, each in read("prefixes")["backbones"].items():
        found = [each["seconds"].get(way) for way in ways]
        cells = [
            f"{one['median']:.1f} s ({one['min']:.1f} to {one['max']:.1f})"
            if one
            else ""
            for one in found
        ]
        label = (BACKBONES | GRAPH_MODELS)[name].label
        rows.append([label, *cells, f"{each['times faster']:.1f}"])
    return markdown(rows)


def objectives() -> str:
    """Epochs of SASRec by loss and optimizer."""
    labels = {"adamw": "AdamW", "sevo_adamw": "SEvo-AdamW"}
    rows = [["an epoch of SASRec, Beauty", *labels.values(), "SEvo over AdamW"]]
    found: dict[str, list[dict]] = {}
    for name, each in read("objectives")["seconds"].items():
        found.setdefault(name.rpartition(" ")[0], []).append(each)
    for loss, ways in found.items():
        cells = [
            f"{each['median']:.2f} s ({each['min']:.2f} to {each['max']:.2f})"
            for each in ways
        ]
        plain, sevo = (each["median"] for each in ways)
        rows.append([f"`{loss}`", *cells, f"{100 * (sevo / plain - 1):+.0f} %"])
    return markdown(rows)


def step() -> str:
    """A step in multiples of AdamW's, and the bytes it reads and writes."""
    names = {"sevo_adamw": "every step", "every 8": "every 8 steps"}
    names |= {"fused": "as one function", "correction": "without ψ"}
    heads = [*names.values(), "passes"]
    rows = [["a step, rows x width", "AdamW", *heads]]
    for each in read("optimizer_step"):
        seconds, passes = each["seconds a step"], each["passes over the table"]
        plain = seconds["AdamW"]["min"]
        cells = [
            f"{seconds[name]['min'] / plain:.1f}" if name in seconds else ""
            for name in names
        ]
        count = " / ".join(f"{passes[n]:.0f}" for n in ("AdamW", *list(names)[:2]))
        table = f"{each['nodes']:,} x {each['width']}"
        rows.append([table, f"{1e3 * plain:.2f} ms", *cells, count])
    return markdown(rows)


def training() -> str:
    """SASRec's epoch, the ranking after it, and the memory."""
    labels = {
        "packed, AdamW": "sevo_jax, AdamW",
        "packed, SEvo-AdamW": "sevo_jax, SEvo-AdamW",
        "padded, AdamW": "the same without packing, AdamW",
        "PyTorch tuned, AdamW": "PyTorch, ready-made batches, no attention weights",
        "PyTorch, AdamW": "PyTorch",
    }
    heads = ["times faster than PyTorch", "with a ranking of all users", "peak memory"]
    rows = [["", *heads]]
    found = read("training")["candidates"]
    for name, label in labels.items():
        faster = found[name]["times faster than PyTorch"]
        ranked = found[name]["times faster than PyTorch, ranking included"]
        memory = f"{found[name]['peak memory MB']:.0f} MB"
        rows.append([label, f"{faster:.1f}", f"{ranked:.1f}", memory])
    return markdown(rows)


def large() -> str:
    """The graph of a large log, and steps of the largest tables."""
    log, steps = read("graphs"), read("large")["runs"]
    build = log["build"]
    rate = log["interactions"] / build["seconds"] / 1e6
    rows = [
        ["", "time", "peak memory"],
        [
            f"item graph of {log['interactions']:,} interactions, streamed",
            f"{build['seconds']:.0f} s ({rate:.1f} million a second)",
            f"{build['peak MiB'] * 2**20 / 1e9:.1f} GB",
        ],
    ]
    for step in steps:
        time = f"{step['seconds a step']:.2f} s"
        # The model is fitted to the first.
        if step is not steps[0]:
            time += f" (the model: {step['predicted, gathering fitted']:.2f} s)"
        what = f"{step['nodes']:,} nodes, {step['entries']:,} entries, width"
        memory = f"{step['peak bytes'] / 1e9:.1f} GB"
        rows.append([f"a step: {what} {step['width']}", time, memory])
    return markdown(rows)


def end_to_end() -> str:
    """The phases of a run of ten million items, and what SEvo adds to a step."""
    run = read("end_to_end")
    rows = [["", "time", "peak memory"]]
    for phase in run["phases"]:
        memory = f"{phase['peak bytes'] / 1e9:.1f} GB"
        rows.append([phase["phase"], f"{phase['seconds']:.0f} s", memory])
    rows += [
        [f"a step of {name}", f"{seconds:.2f} s", ""]
        for name, seconds in run["seconds a step"].items()
    ]
    return markdown(rows)


def end_to_end_log() -> str:
    """What that run is of."""
    run = read("end_to_end")
    return (
        f"{run['interactions']:,} interactions of {run['users']:,} users with "
        f"{run['items']:,} items; a graph of {run['graph entries']:,} entries; MF-BPR "
        f"of width {run['width']}, batches of {run['batch size']:,} triplets."
    )


def billion() -> str:
    """What each device holds and receives at a billion rows, on paper."""
    rows = [["devices", "split", "GB held by each", "GB received by each a step"]]
    for each in read("large")["a billion rows of width 64"]:
        held, received = (each[key] / 1e9 for key in ("held", "received a step"))
        split = each["sharding"].replace(" x width", ", and width by")
        rows.append([f"{each['devices']}", split, f"{held:.3g}", f"{received:.3g}"])
    return markdown(rows)


def engines() -> str:
    """The graph by DuckDB beside the streamed one, by the size of the log."""
    heads = ["DuckDB's query", "temporary files", "its edges read", "streamed"]
    rows = [["interactions", *heads]]

    def cell(took: dict) -> str:
        return f"{took['seconds']:.0f} s, {took['peak MiB'] / 1024:.1f} GiB"

    for each in read("engines")["runs"]:
        engine, build = each["by_duckdb"], each["by_streaming"]["build"]
        spilled = f"{engine['query']['spilled bytes'] / 1e9:.1f} GB"
        cells = [cell(engine["query"]), spilled, cell(engine["from_edges"])]
        rows.append([f"{each['interactions']:,}", *cells, cell(build)])
    return markdown(rows)
