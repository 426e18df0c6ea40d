"""SR-GNN: next-item recommendation by a gated network on the graph of a session.

Wu, Tang, Zhu, Wang, Xie and Tan, "Session-based recommendation with graph neural
networks", AAAI 2019, in the form of the authors' code: an edge counts once however
often it is gone, the attention of the readout is not normalised, and the session's
vector is compared with the rows of the item table as they are.
"""

import typing
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences, check_items
from sevo_jax.models import layers
from sevo_jax.models.cross_entropy import cross_entropy
from sevo_jax.models.recommender import SequenceModel
from sevo_jax.models.registry import register
from sevo_jax.samples.prefixes import Sampling
from sevo_jax.samples.sessions import SessionBatch, SessionEpochs


@dataclass(frozen=True)
class SRGNNConfig:
    """Hyper-parameters of `SRGNN`.

    Attributes:
      max_len: longest input, the most recent items of a user.
      width: size of the item embeddings and of every layer.
      num_steps: rounds of messages between the items of a session.
      sampling: how training draws prefixes, all of a user together ("sequence") or
        each by itself ("prefix").
    """

    max_len: int = 50
    width: int = 64
    num_steps: int = 1
    sampling: Sampling = "sequence"

    def __post_init__(self):
        _checks.at_least(self, 1, "max_len", "width", "num_steps")
        _checks.one_of(self, "sampling", typing.get_args(Sampling))


class Graphs(NamedTuple):
    """The graphs of several sessions, node by node.

    Attributes:
      items: row of the item table of each node.
      in_edges: a node with a message, and the node it is for, which comes behind it in
        the session.
      out_edges: the same for a node that comes before it.
      nodes: nodes of the sessions, one session after the other; a node can be of
        several.
      sessions: whose they are.
      counts: at how many positions the node's item stands; 0 where there is no node.
      last: the node of the last item of each session.
    """

    items: Int[Array, " n"]
    in_edges: Int[Array, "in_edges 2"]
    out_edges: Int[Array, "out_edges 2"]
    nodes: Int[Array, " pairs"]
    sessions: Int[Array, " pairs"]
    counts: Int[Array, " pairs"]
    last: Int[Array, " sessions"]


class GatedGraph(nnx.Module):
    """A round of messages along the edges, and a gated unit that reads them."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        initial = layers.fan_in_uniform(width)
        self.edges_in, self.edges_out = (_linear(width, width, rngs) for _ in range(2))
        # Added once, however many edges there are.
        self.bias_in, self.bias_out = (
            nnx.Param(initial(rngs.params(), (width,))) for _ in range(2)
        )
        # Reset, update and new state side by side.
        self.read = _linear(2 * width, 3 * width, rngs, fan_in=width)
        self.keep = _linear(width, 3 * width, rngs)

    def __call__(self, h: Float[Array, "n width"], graphs: Graphs):
        received = jnp.concatenate(
            [
                _mean(self.edges_in(h), graphs.in_edges) + self.bias_in[...],
                _mean(self.edges_out(h), graphs.out_edges) + self.bias_out[...],
            ],
            axis=1,
        )
        read, kept = (
            jnp.split(x, 3, axis=1) for x in (self.read(received), self.keep(h))
        )
        reset, update = (
            jax.nn.sigmoid(one + other)
            for one, other in zip(read[:2], kept[:2], strict=True)
        )
        new = jnp.tanh(read[2] + reset * kept[2])
        return new + update * (h - new)


@register("sr-gnn")
class SRGNN(SequenceModel):
    r"""Session-based recommender by a gated graph network.

    The distinct items of a session are the nodes of its graph, and an edge leads from
    each item to what follows it. Nodes start as the embeddings :math:`h` of their
    items. In a round, a node gets the mean of :math:`h W + b` over the nodes with an
    edge to it, and with others over those that it has an edge to, and a gated
    recurrent unit reads both. The session with the nodes :math:`v_1, ..., v_n` of its
    positions scores item :math:`i` by :math:`\langle s, E_i \rangle`,

    .. math::

        s = W_3 \Big[\sum_j \alpha_j v_j \,;\, v_n\Big] + b_3, \qquad
        \alpha_j = w^T \sigma(W_1 v_n + b_1 + W_2 v_j + b_2).

    Item `i` is row `i + 1` of the item table, which is input and output table in one;
    row 0 stands for padding and never gets a gradient.

    Training has a loss at every prefix of a user's items, drawn as `config.sampling`
    says. The authors draw each prefix as a sample of its own: that is `"prefix"`. With
    `"sequence"` the prefixes of a step come from fewer users, and as long as there is
    one round of messages and no item twice they share nearly all their nodes
    (`sevo_jax.samples.sessions`), which is faster. The loss of each prefix is the same.

    Args:
      num_items: how many items there are.
      config: hyper-parameters.
      rngs: source of the initial values (stream `params`).

    Examples:
      >>> from sevo_jax.data.sequences import Sequences
      >>> model = SRGNN(9, SRGNNConfig(max_len=4, width=8), rngs=nnx.Rngs(0))
      >>> train = Sequences.from_lists([[0, 1, 0, 2], [3, 4]])
      >>> epochs = model.epochs(train, batch_size=3, seed=0)
      >>> step = SessionBatch(*(field[0] for field in epochs[0]))
      >>> model.loss(step, rng=None).shape
      ()
      >>> model.score(model.inputs(train)).shape
      (2, 9)
    """

    Config = SRGNNConfig

    def __init__(self, num_items: int, config: SRGNNConfig, *, rngs: nnx.Rngs):
        _checks.require(num_items >= 1, "num_items", num_items, "at least 1")
        self.num_items = num_items
        self.config = config
        width = config.width
        initial = layers.fan_in_uniform(width)
        shape = (num_items + self.item_offset, width)
        self.item_embedding = nnx.Param(initial(rngs.params(), shape))
        self.graph = GatedGraph(width, rngs=rngs)
        self.attend_last, self.attend_each = (
            _linear(width, width, rngs) for _ in range(2)
        )
        self.attention = nnx.Param(initial(rngs.params(), (width,)))
        self.project_out = _linear(2 * width, width, rngs, fan_in=width)

    def loss(self, batch: SessionBatch, *, rng: jax.Array | None) -> Float[Array, ""]:
        """Returns the mean cross-entropy of a softmax over all items.

        Args:
          batch: one step.
          rng: ignored: nothing is dropped.
        """
        # Outside jit they may be NumPy's, which no tracer can index.
        step: Any = jax.tree.map(jnp.asarray, batch)
        table = self.item_embedding[self.item_offset :]
        weights = (step.targets > 0).astype(table.dtype)
        return cross_entropy(
            self._features(_graphs_of_step(step)),
            table,
            jnp.zeros(len(table), table.dtype),
            jnp.maximum(step.targets - self.item_offset, 0),
            weights / jnp.maximum(jnp.sum(weights), 1),
        )

    def score(
        self, inputs: Int[Array, "users cells"]
    ) -> Float[Array, "users num_items"]:
        """Returns each item's score as the next one after left-padded frames."""
        features = self._features(_graphs_of_frames(inputs))
        return features @ self.item_embedding[self.item_offset :].T

    def epochs(self, train: Sequences, *, batch_size: int, seed: int) -> SessionEpochs:
        """Returns the epochs of `train`, by number; a step of one is a loss's batch.

        Args:
          train: train items of each user.
          batch_size: prefixes of a step.
          seed: non-negative.
        """
        check_items(train, self.num_items)
        return SessionEpochs(
            train,
            max_len=self.config.max_len,
            batch_size=batch_size,
            seed=seed,
            sampling=self.config.sampling,
            share=self.config.num_steps == 1,
            item_offset=self.item_offset,
        )

    def _features(self, graphs: Graphs) -> Float[Array, "sessions width"]:
        h = self.item_embedding[...][graphs.items]
        for _ in range(self.config.num_steps):
            h = self.graph(h, graphs)
        last = h[graphs.last]
        query = self.attend_last(last)[graphs.sessions]
        scores = jax.nn.sigmoid(query + self.attend_each(h)[graphs.nodes])
        weights = graphs.counts * (scores @ self.attention[...])
        mixed = jax.ops.segment_sum(
            weights[:, None] * h[graphs.nodes],
            graphs.sessions,
            len(last),
            indices_are_sorted=True,
        )
        return self.project_out(jnp.concatenate([mixed, last], axis=1))


def _graphs_of_step(batch: Any) -> Graphs:
    """Writes the nodes of each prefix of a `SessionBatch` out."""
    sessions = jnp.cumsum(batch.begins) - 1
    begin = jnp.cumsum(batch.sizes) - batch.sizes
    place = jnp.arange(len(sessions)) - begin[sessions]
    nodes = jnp.where(
        place == 0, batch.first[sessions], batch.inner[sessions] + place - 1
    )
    nodes = jnp.where(place == batch.sizes[sessions] - 1, batch.last[sessions], nodes)
    # What is filled up stands behind the nodes of the last prefix.
    nodes = jnp.where(place < batch.sizes[sessions], nodes, 0)
    counts = jnp.where(nodes > 0, batch.counts[nodes], 0)
    return Graphs(
        batch.items,
        batch.in_edges,
        batch.out_edges,
        nodes,
        sessions,
        counts,
        batch.last,
    )


def _graphs_of_frames(frames: Int[Array, "users cells"]) -> Graphs:
    """The graphs of left-padded frames.

    Node 0 is nobody's. Behind it each cell has one, but only that of the first cell of
    an item is used.
    """
    frames = jnp.asarray(frames)
    users, cells = frames.shape
    own = 1 + jnp.arange(users * cells).reshape(users, cells)
    places = jnp.arange(cells)
    cell = _first_of_equal(frames)
    nodes = jnp.where(frames > 0, own[:, :1] + cell, 0)
    # An edge counts once; what is left out leads from nobody to nobody.
    moves = cells * cell[:, :-1] + cell[:, 1:]
    counts = (frames[:, :-1] > 0) & (_first_of_equal(moves) == places[:-1])
    edges = jnp.stack([nodes[:, :-1], nodes[:, 1:]], axis=-1)
    edges = jnp.where(counts[..., None], edges, 0).reshape(-1, 2)
    return Graphs(
        jnp.concatenate([jnp.zeros(1, frames.dtype), frames.reshape(-1)]),
        edges,
        edges[:, ::-1],
        nodes.reshape(-1),
        jnp.repeat(jnp.arange(users), cells),
        (nodes > 0).reshape(-1).astype(jnp.int32),
        nodes[:, -1],
    )


def _first_of_equal(rows: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """For each entry, the first place in its row where the same stands."""
    return jnp.argmax(rows[:, :, None] == rows[:, None, :], axis=2)


def _mean(
    messages: Float[Array, "n width"], edges: Int[Array, "edges 2"]
) -> Float[Array, "n width"]:
    """The mean of the messages to each node, 0 where there is none."""
    senders, receivers = edges.T
    total = jnp.zeros_like(messages).at[receivers].add(messages[senders])
    degree = jnp.zeros(len(messages), messages.dtype).at[receivers].add(1)
    return total / jnp.maximum(degree, 1)[:, None]


def _linear(
    num_in: int, num_out: int, rngs: nnx.Rngs, *, fan_in: int | None = None
) -> nnx.Linear:
    initial = layers.fan_in_uniform(fan_in or num_in)
    return nnx.Linear(
        num_in, num_out, kernel_init=initial, bias_init=initial, rngs=rngs
    )
