"""The tables of README on speed, which `experiments/documents.py` writes there."""

import json
from typing import Any

from harness import RESULTS
from paper import DATASETS, LABELS
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
    for name in filter(results.get, LABELS):
        found = results[name]
        training, ranking = (
            found[f"{part}, times faster than PyTorch"]
            for part in ("training", "ranking")
        )
        faster = (training[adamw], training[sevo], ranking[sevo])
        added = f"{100 * found['SEvo over AdamW']:.0f} %"
        cells = [f"{each:.1f}" for each in faster]
        rows.append([LABELS[name], *cells, added])
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
