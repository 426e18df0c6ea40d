"""Seconds of an epoch where a user's prefixes are one pass, beside one row a prefix.

    python benchmarks/prefixes.py

GRU4Rec, SR-GNN and LESSR on Beauty by their recipes with AdamW, which train on the same
prefixes either way: ``sampling="sequence"`` shares what the prefixes of a user have in
common, ``sampling="prefix"`` does not. What no way of sampling can share is the softmax
over all items of each target, which SR-GNN and LESSR have and which is timed alone. The
compiled epochs take turns on batches that are drawn already; the first turn, which
compiles, is not counted. Needs ``sevo-jax[train]``. Prints a table and writes
``results/prefixes-PLATFORM.json``.
"""

import argparse
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from harness import is_short, save, time_in_turns
from paper import load, recipe_of
from windows import Epoch

from sevo_jax.models.cross_entropy import cross_entropy
from sevo_jax.training import Recipe

BACKBONES = ("gru4rec", "sr-gnn", "lessr")
SAMPLINGS = ("sequence", "prefix")
SOFTMAX = "softmax alone"


def recipe_with(backbone: str, sampling: str) -> Recipe:
    """The recipe, its prefixes drawn so."""
    recipe = recipe_of(backbone, "beauty", "adamw")
    architecture = dataclasses.replace(recipe.architecture, sampling=sampling)
    return dataclasses.replace(recipe, architecture=architecture)


@jax.jit
def softmax(features: jax.Array, table: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss ``[steps]`` of each step's targets, and its gradients, by themselves."""
    weights = jnp.full(labels.shape[1], 1 / labels.shape[1])

    def step(batch):
        loss, gradients = jax.value_and_grad(cross_entropy, (0, 1))(
            batch[0], table, None, batch[1], weights
        )
        return loss + sum(jnp.sum(each) for each in gradients)

    return jax.lax.map(step, (features, labels))


def softmax_of(epoch: Epoch) -> Callable[[], jax.Array]:
    """The softmax of as many targets as an epoch has, in as many steps."""
    recipe, num_items = epoch.trainer.recipe, epoch.trainer.split.num_items
    steps, rows = epoch.trainer.epochs(0).num_steps, recipe.batch_size
    keys = jax.random.split(jax.random.key(0), 3)
    width = recipe.architecture.width
    features = jax.random.normal(keys[0], (steps, rows, width))
    table = jax.random.normal(keys[1], (num_items, width))
    labels = jax.random.randint(keys[2], (steps, rows), 0, num_items)
    return lambda: softmax(features, table, labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2, help="turns that count")
    options = parser.parse_args()
    split = load("beauty")
    heads = "".join(f"{head:>15}" for head in (*SAMPLINGS, SOFTMAX, "times faster"))
    print(f"{'seconds of an epoch':<20}{heads}")
    results = {}
    for name in BACKBONES:
        epochs = {way: Epoch(recipe_with(name, way), split) for way in SAMPLINGS}
        candidates: dict[str, Callable[[], object]] = {**epochs}
        if name != "gru4rec":
            candidates[SOFTMAX] = softmax_of(epochs["sequence"])
        seconds = time_in_turns(candidates, rounds=options.rounds)
        faster = seconds["prefix"]["median"] / seconds["sequence"]["median"]
        results[name] = {"seconds": seconds, "times faster": faster}
        cells = (
            f"{seconds[way]['median']:15.2f}" if way in seconds else " " * 15
            for way in (*SAMPLINGS, SOFTMAX)
        )
        print(f"{name:<20}{''.join(cells)}{faster:15.1f}", flush=True)
    results = {"rounds": options.rounds, "backbones": results}
    path = save("prefixes", results, short=is_short(parser, options))
    print("written to", path)


if __name__ == "__main__":
    main()
