"""LightGCN: matrix factorisation of tables that are propagated over users and items.

He, Deng, Wang, Li, Zhang and Wang, "LightGCN: Simplifying and powering graph
convolution network for recommendation", SIGIR 2020. Users are sampled uniformly, as for
MF-BPR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from sevo_jax import GraphOperator, _checks
from sevo_jax.graphs.kinds import GraphConfig
from sevo_jax.models import layers
from sevo_jax.models.mf_bpr import MFBPR
from sevo_jax.models.recommender import GraphVariable, Sizes, UserModel
from sevo_jax.models.registry import register
from sevo_jax.samples.triplets import TripletBatch

_GRAPH = "user-item"


@dataclass(frozen=True)
class LightGCNConfig:
    """Hyper-parameters of `LightGCN`.

    Attributes:
      width: size of the user and item embeddings.
      num_hops: how many hops the embeddings are propagated; 0 is MF-BPR.
      regularization: weight of the squared norms of the embeddings, at least 0.
      initial_scale: standard deviation of the initial embeddings, above 0. The
        authors have 0.1 (PyTorch) and 0.01 (TensorFlow), RecBoard 1e-4.
    """

    width: int = 64
    num_hops: int = 3
    regularization: float = 1e-3
    initial_scale: float = 1e-4

    def __post_init__(self):
        _checks.at_least(self, 1, "width")
        _checks.at_least(self, 0, "num_hops", "regularization")
        _checks.require_field(self, "initial_scale", self.initial_scale > 0, "above 0")


@register("lightgcn")
class LightGCN(UserModel):
    r"""Matrix factorisation whose embeddings are means over several hops of a graph.

    .. math::

        \bar E = \frac{1}{L + 1} \sum_{l=0}^{L} \tilde A^l E, \qquad
        \tilde A = D^{-1/2} A D^{-1/2},

    where :math:`A` links users and the items they have in train, each link once, and
    :math:`E` is the user table above the item table. A user scores an item by the
    inner product of their rows of :math:`\bar E`. These are computed anew at each
    step, but once to rank: `for_ranking` is an `MFBPR` with the tables
    :math:`\bar E`, which needs no graph.

    Args:
      num_users: how many users there are.
      num_items: how many items there are.
      config: hyper-parameters.
      graph: of users and, behind them, items.
      rngs: source of the initial values (stream `params`).

    Raises:
      ValueError: if a number is out of range or the graph has other nodes.

    Examples:
      >>> import numpy as np
      >>> import sevo_jax as sevo
      >>> from sevo_jax.data.sequences import Sequences
      >>> train = Sequences.from_lists([[0, 1, 2], [3, 4]])
      >>> links = sevo.graphs.bipartite(train.rows, train.values, 2, 9)
      >>> config = LightGCNConfig(width=8)
      >>> model = LightGCN(2, 9, config, sevo.prepare(links), rngs=nnx.Rngs(0))
      >>> epochs = model.epochs(train, batch_size=2, seed=0)
      >>> step = TripletBatch(*(field[0] for field in epochs[0]))
      >>> loss, parts = model.loss(step, rng=None)
      >>> sorted(parts)
      ['main', 'regularization']
      >>> model.for_ranking().score(model.inputs(train, np.arange(2))).shape
      (2, 9)
    """

    Config = LightGCNConfig

    def __init__(
        self,
        num_users: int,
        num_items: int,
        config: LightGCNConfig,
        graph: GraphOperator,
        *,
        rngs: nnx.Rngs,
    ):
        for name, value in (("num_users", num_users), ("num_items", num_items)):
            _checks.require(value >= 1, name, value, "at least 1")
        if graph.num_nodes != num_users + num_items:
            raise ValueError(
                f"the graph has {graph.num_nodes} nodes, there are {num_users} users "
                f"and {num_items} items: build it with sevo_jax.graphs.bipartite"
            )
        self.num_users = num_users
        self.num_items = num_items
        self.config = config
        self.graph = GraphVariable(graph)
        initial = nnx.initializers.normal(config.initial_scale)
        shapes = ((rows, config.width) for rows in (num_users, num_items))
        self.user_embedding, self.item_embedding = (
            nnx.Param(initial(rngs.params(), shape)) for shape in shapes
        )

    @classmethod
    def propagated(cls, config: Any) -> Mapping[str, GraphConfig]:
        del config
        return {_GRAPH: GraphConfig("user-item")}

    @classmethod
    def for_data(
        cls, sizes: Sizes, config: Any, *, graphs: Mapping[str, Any], rngs: nnx.Rngs
    ) -> LightGCN:
        return cls(sizes.num_users, sizes.num_items, config, graphs[_GRAPH], rngs=rngs)

    def loss(
        self, batch: TripletBatch, *, rng: jax.Array | None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the sum of two means over the samples, and both of them.

        `main` is BPR's loss of the propagated rows, and `regularization` half the
        squared norm of the three rows that are propagated, times its weight.

        Args:
          batch: one step, fields `[batch_size]`.
          rng: ignored: nothing is dropped.
        """
        rows = (
            self.user_embedding[...][batch.users],
            *layers.look_up(self.item_embedding[...], batch.positives, batch.negatives),
        )
        norms = sum(jnp.sum(jnp.square(each), axis=-1) for each in rows) / 2
        regularization = self.config.regularization * jnp.mean(norms, where=batch.valid)
        main = self.for_ranking().loss(batch, rng=rng)
        parts = {"main": main, "regularization": regularization}
        return main + regularization, parts

    def score(self, inputs: Int[Array, "users 1"]) -> Float[Array, "users num_items"]:
        """Returns each item's score for users; `for_ranking` propagates only once."""
        return self.for_ranking().score(inputs)

    def for_ranking(self) -> MFBPR:
        tables = [self.user_embedding[...], self.item_embedding[...]]
        propagated: Any = propagate(
            self.graph.get_value(), tables, self.config.num_hops
        )
        return MFBPR.of_tables(*propagated)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
@partial(jax.jit, static_argnames="num_hops")
def propagate(
    graph: GraphOperator, tables: list[Float[Array, "_ d"]], num_hops: int
) -> list[Float[Array, "_ d"]]:
    """Returns the mean of tables and of their propagations by 1 to `num_hops` hops.

    Args:
      graph: over the rows of the tables, one under the other.
      tables: of one width.
      num_hops: static.
    """
    start = total = jnp.concatenate(tables)
    # Horner's scheme: each hop is added where it arises.
    for _ in range(num_hops):
        total = start + graph @ total
    cuts = np.cumsum([len(table) for table in tables])[:-1]
    return jnp.split(total / (num_hops + 1), cuts)


def _propagate_forward(graph, tables, num_hops):
    return propagate(graph, tables, num_hops), graph


def _propagate_backward(num_hops, graph, cotangents):
    # A symmetric map is its own gradient; that of each addition costs twice as much.
    return None, propagate(graph, cotangents, num_hops)


propagate.defvjp(_propagate_forward, _propagate_backward)
