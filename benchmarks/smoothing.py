"""psi(X) of equation (7) beside SciPy CSR, PyTorch CSR and a plain BCOO product.

    python benchmarks/smoothing.py

Needs PyTorch besides ``sevo-jax[train]``. Writes ``results/smoothing.json``.
"""

import os

# Idle OpenMP threads would spin on the cores of the candidate after PyTorch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax
import numpy as np
import torch
from harness import load, save

import sevo_jax as sevo
from sevo_jax._sparse import bcoo_from_scipy, to_scipy
from sevo_jax.training.profile import time_in_turns

BETA, LAYERS, WIDTH = 0.99, 3, 64


def series(product, x):
    """Horner's rule, the same for every library."""
    out = x
    for _ in range(LAYERS):
        out = x + BETA * product(out)
    return out / sum(BETA**layer for layer in range(LAYERS + 1))


def measure(name: str, max_len: int) -> dict:
    split = load(name)
    adjacency = sevo.graphs.cooccurrence(
        split.train, split.num_items, max_len=max_len, item_offset=1
    )
    operator = sevo.prepare(adjacency)
    csr = to_scipy(operator).astype(np.float32)
    bcoo = bcoo_from_scipy(csr)
    torch_csr = torch.sparse_csr_tensor(
        torch.from_numpy(csr.indptr), torch.from_numpy(csr.indices), csr.data, csr.shape
    )
    x = np.random.default_rng(0).normal(size=(csr.shape[0], WIDTH)).astype(np.float32)
    x_jax, x_torch = jax.device_put(x), torch.from_numpy(x)
    x_five = jax.device_put(np.stack([x] * 5))

    def neumann(op, table):
        return sevo.smoothing.neumann(op, table, BETA, LAYERS)

    def cotangent(op, table):
        return jax.vjp(lambda t: neumann(op, t), table)[1](table)[0]

    ours = jax.jit(neumann)
    ours_grad = jax.jit(cotangent)
    ours_five = jax.jit(jax.vmap(neumann, in_axes=(None, 0)))
    plain_bcoo = jax.jit(lambda a, table: series(lambda y: a @ y, table))
    candidates = {
        "sevo_jax": lambda: ours(operator, x_jax),
        "sevo_jax gradient": lambda: ours_grad(operator, x_jax),
        "sevo_jax five tables (vmap)": lambda: ours_five(operator, x_five),
        "SciPy CSR": lambda: series(lambda y: csr @ y, x),
        "PyTorch CSR": lambda: series(lambda y: torch_csr @ y, x_torch),
        "plain BCOO": lambda: plain_bcoo(bcoo, x_jax),
    }
    expected = candidates["SciPy CSR"]()
    for other in ("sevo_jax", "PyTorch CSR", "plain BCOO"):
        np.testing.assert_allclose(np.asarray(candidates[other]()), expected, atol=1e-5)
    seconds = time_in_turns(candidates, rounds=10, calls=6)
    base = seconds["SciPy CSR"]["median"]
    print(f"{name}: {operator}, width {WIDTH}, {LAYERS} layers")
    for key, value in seconds.items():
        ratio = value["ratio to SciPy CSR"] = value["median"] / base
        print(f"  {key:28} {1e3 * value['median']:8.2f} ms {ratio:7.2f}")
    return {
        "nodes": operator.num_nodes,
        "entries": operator.num_entries,
        "width": WIDTH,
        "layers": LAYERS,
        "seconds": seconds,
    }


if __name__ == "__main__":
    results = {"beauty": measure("beauty", 50), "ml-1m": measure("ml-1m", 200)}
    print("written to", save("smoothing", results))
