"""A recommender as a newcomer writes it: one file, outside the package.

It has what the reference models do without: batch statistics, an integer buffer, a
graph in the forward pass, a loss of several parts, and epochs of its own.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sevo_jax.graphs.kinds import GraphConfig
from sevo_jax.models import GraphVariable, Recommender, register
from sevo_jax.samples import left_pad


class Buffer(nnx.Variable):
    """A variable that is neither trained nor a graph."""


@dataclass(frozen=True)
class NewcomerConfig:
    """Hyper-parameters of `Newcomer`: the width of its table, and of what it reads."""

    width: int = 8
    window: int = 4
    penalty: float = 0.01


class Pairs:
    """Epochs of (the items before, the item that follows), one pair a user."""

    def __init__(self, train, *, window, batch_size, seed):
        users = np.flatnonzero(train.lengths >= 2)
        self._before = left_pad(train.drop_last(1), window)[users]
        self._after = train.values[train.offsets[users + 1] - 1]
        self._size, self._seed = min(batch_size, users.size), seed
        self.num_steps = users.size // self._size

    def __getitem__(self, epoch):
        order = np.random.default_rng([self._seed, epoch]).permutation(self._after.size)
        order = order[: self.num_steps * self._size].reshape(self.num_steps, -1)
        return self._before[order], self._after[order]


@register("newcomer")
class Newcomer(Recommender):
    """The mean of the last items' vectors, smoothed by a step over their graph."""

    Config = NewcomerConfig
    knows_users = False
    smoothed = {"item-item": ("table",)}

    def __init__(self, num_items, config, graph, *, rngs):
        self.num_items, self.config = num_items, config
        initial = 0.1 * jax.random.normal(rngs.params(), (num_items, config.width))
        self.table = nnx.Param(initial)
        self.norm = nnx.BatchNorm(config.width, rngs=rngs)
        self.steps = Buffer(jnp.zeros([], jnp.int32))
        self.graph = GraphVariable(graph)

    @classmethod
    def propagated(cls, config):
        return {"items": GraphConfig("item-item", max_len=config.window)}

    @classmethod
    def for_data(cls, sizes, config, *, graphs, rngs):
        return cls(sizes.num_items, config, graphs["items"], rngs=rngs)

    def epochs(self, train, *, batch_size, seed):
        window = self.config.window
        return Pairs(train, window=window, batch_size=batch_size, seed=seed)

    def loss(self, batch, *, rng):
        before, after = batch
        self.steps[...] += 1
        logits = self._scores(before, training=True)
        rank = jnp.mean(
            jax.nn.logsumexp(logits, axis=1) - logits[np.arange(len(after)), after]
        )
        penalty = self.config.penalty * jnp.mean(jnp.square(self.table[...]))
        return rank + penalty, {"rank": rank, "penalty": penalty}

    def inputs(self, sequences, users=None):
        return left_pad(sequences, self.config.window)

    def score(self, inputs):
        return self._scores(inputs, training=False)

    def _scores(self, before, *, training):
        table = self.table[...] + self.graph.get_value() @ self.table[...]
        seen = (before > 0)[..., None]
        vectors = jnp.sum(jnp.where(seen, table[before - 1], 0), axis=1)
        vectors = self.norm(vectors, use_running_average=not training)
        return vectors @ table.T
