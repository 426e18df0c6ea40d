"""Does the order of the nodes matter to a product of psi(X) on large graphs?

    python benchmarks/reordering.py

Two graphs of a million nodes and mean degree 20: one whose edges know nothing but the
degrees (power law, random ends), and one in which nine edges of ten stay within a
community of about 200 nodes. Their ids are shuffled, as ids in real data are; against
that order stand the order of degree, reverse Cuthill-McKee and, for communities, the
order by community, which is the best to hope for. One product of the series is timed,
in processor seconds, which a shared machine disturbs less. Writes
``results/reordering-cpu.json``.
"""

import argparse
import functools
import operator
import time

import jax
import numpy as np
import scipy.sparse
from harness import is_short, save, time_in_turns
from scipy.sparse.csgraph import reverse_cuthill_mckee

import sevo_jax as sevo

NODES, DEGREE, COMMUNITY, INSIDE = 1_000_000, 20, 200, 0.9


def power_law(rng: np.random.Generator, communities: bool) -> scipy.sparse.csr_array:
    """A graph whose node k is an end of an edge with probability ~ (k + 10)^-0.7."""
    num_edges = NODES * DEGREE // 2
    weights = np.arange(10, NODES + 10) ** -0.7
    weights /= weights.sum()
    # All ends of all edges, in the order of the nodes.
    ends = np.repeat(np.arange(NODES), rng.multinomial(2 * num_edges, weights))
    one, two = rng.permutation(ends).astype(np.int32).reshape(2, num_edges)
    if communities:
        # Node k belongs to community k % count, so that hubs are spread over all.
        count = NODES // COMMUNITY
        inside = rng.random(num_edges) < INSIDE
        popular = (COMMUNITY * rng.random(num_edges) ** 2).astype(np.int32) * count
        two = np.where(inside, one % count + popular, two)
    edges = scipy.sparse.csr_array(
        (np.ones(num_edges, np.float32), (one, two)), shape=(NODES, NODES)
    )
    return edges + edges.T


def orders(graph, community) -> dict[str, np.ndarray]:
    """For each way of ordering, which node comes first, second, ..."""
    found = {
        "shuffled": np.arange(NODES),
        "degree": np.argsort(-np.diff(graph.indptr), kind="stable"),
        "reverse Cuthill-McKee": reverse_cuthill_mckee(graph, symmetric_mode=True),
    }
    if community is not None:
        found["community"] = np.argsort(community, kind="stable")
    return found


def measure(communities: bool, rounds: int) -> dict:
    rng = np.random.default_rng(0)
    planned = power_law(rng, communities)
    shuffle = rng.permutation(NODES)
    graph = planned[shuffle][:, shuffle]
    community = shuffle % (NODES // COMMUNITY) if communities else None
    results: dict = {"entries": int(graph.nnz), "processor seconds": {}}
    operators = {
        name: sevo.prepare(graph[order][:, order])
        for name, order in orders(graph, community).items()
    }
    product = jax.jit(operator.matmul)
    for width in (16, 64):
        x = jax.device_put(rng.normal(size=(NODES, width)).astype(np.float32))
        calls = {
            name: functools.partial(product, operator, x)
            for name, operator in operators.items()
        }
        found = time_in_turns(calls, rounds=rounds, clock=time.process_time)
        for name, value in found.items():
            value["ratio to shuffled"] = value["median"] / found["shuffled"]["median"]
            shown = (f"{title} {number:.3f}" for title, number in value.items())
            print(f"  width {width} {name:24}", ", ".join(shown), flush=True)
        results["processor seconds"][f"width {width}"] = found
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    results: dict = {"nodes": NODES}
    for name, communities in (("power law", False), ("communities", True)):
        print(name, flush=True)
        results[name] = measure(communities, options.rounds)
    path = save("reordering", results, short=is_short(parser, options))
    print("written to", path)


if __name__ == "__main__":
    main()
