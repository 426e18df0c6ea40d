"""MAERec: self-attention over propagated items, beside an adaptively masked graph.

Ye, Xia and Huang, "Graph masked autoencoder for sequential recommendation", SIGIR 2023,
with the weight of the reconstruction that the SEvo paper adds. The edges of the graph
are fixed; which of them are masked is a carried variable, so that a step with all its
draws is compiled.

Three places of the authors' code are not what their paper describes. The published
numbers come from that code, which is therefore the default; see `MAERecConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences
from sevo_jax.graphs.kinds import GraphConfig
from sevo_jax.models import layers
from sevo_jax.models.edge_masks import AdaptiveMask
from sevo_jax.models.recommender import SequenceModel, Sizes
from sevo_jax.models.reconstruction import Decoder, draw_nodes, reconstruction_loss
from sevo_jax.models.registry import register
from sevo_jax.operators import CSROperator
from sevo_jax.samples.negatives import NegativeSampler
from sevo_jax.samples.packing import PackedBatch, PackedEpochs

_GRAPH = "items"


@dataclass(frozen=True)
class MAERecConfig:
    """Hyper-parameters of `MAERec`.

    Attributes:
      max_len: longest input, the most recent items of a user.
      width: size of the item embeddings and of every layer; a feed-forward layer is
        four times as wide inside.
      num_heads: attention heads, a divisor of `width`.
      num_blocks: blocks of attention and feed-forward.
      dropout: rate in [0, 1) on embeddings, attention weights and layers.
      num_hops: how many hops the item embeddings are propagated, at least 1.
      mask_steps: steps that share a mask.
      mask_depth: how many hops from the seeds a mask reaches.
      num_seeds: nodes from which a mask spreads.
      num_edges: masked edges that a step reconstructs, at most.
      num_negatives: edges that are none, beside each of them; even.
      reconstruction_weight: of that part of the loss, at least 0; the SEvo paper
        searches [0, 1]. At 0 it is left out, and `log_contrast` with it.
      regularization: weight of the sum of squares of all parameters, at least 0.
      seeds_from_ends: whether the next seeds of a mask are the ends of the edges
        masked so far. The authors' code, the default, adds the numbers of the two
        ends, which is some other node or none.
      log_contrast: whether the reconstruction is the mean of negative logarithms of
        ratios. In the authors' code it is the negative sum of the ratios.
      sample_last_item: whether the last item may be a negative, as all others.
    """

    max_len: int = 50
    width: int = 64
    num_heads: int = 4
    num_blocks: int = 2
    dropout: float = 0.3
    num_hops: int = 2
    mask_steps: int = 10
    mask_depth: int = 3
    num_seeds: int = 50
    num_edges: int = 2048
    num_negatives: int = 40
    reconstruction_weight: float = 1.0
    regularization: float = 1e-6
    seeds_from_ends: bool = False
    log_contrast: bool = False
    sample_last_item: bool = False

    def __post_init__(self):
        _checks.at_least(self, 1, "max_len", "width", "num_heads", "num_blocks")
        _checks.at_least(self, 1, "num_hops", "mask_steps", "mask_depth", "num_seeds")
        _checks.at_least(self, 1, "num_edges", "num_negatives")
        _checks.at_least(self, 0, "reconstruction_weight", "regularization")
        divides = self.width % self.num_heads == 0
        _checks.require_field(self, "num_heads", divides, "a divisor of width")
        even = self.num_negatives % 2 == 0
        _checks.require_field(self, "num_negatives", even, "even")
        _checks.rates(self, "dropout")
        has_effect = self.reconstruction_weight > 0 or not self.log_contrast
        what = "left out, as reconstruction_weight is 0"
        _checks.require_field(self, "log_contrast", has_effect, what)


class Block(nnx.Module):
    """Attention, added to its input, and a feed-forward, which is not."""

    def __init__(self, config: MAERecConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.dropout = config.dropout
        square = (width, width)
        kernels = [layers.xavier_uniform(rngs.params(), square) for _ in range(3)]
        self.attention = layers.Attention(
            jnp.concatenate(kernels, axis=1),
            config.num_heads,
            config.dropout,
            layers.xavier_uniform,
            rngs=rngs,
        )
        self.attention_norm = _norm(width, rngs)
        self.expand = _linear(width, 4 * width, rngs)
        self.contract = _linear(4 * width, width, rngs)
        self.feed_forward_norm = _norm(width, rngs)

    def __call__(
        self,
        x: Float[Array, "cells width"],
        visibility: Float[Array, "rows row_cells row_cells"],
        key: jax.Array | None,
    ) -> Float[Array, "cells width"]:
        keys = layers.split(key, 3)
        mixed = self.attention(x, visibility, keys[0])
        x = self.attention_norm(x + layers.dropout(mixed, self.dropout, keys[1]))
        hidden = nnx.gelu(self.expand(x), approximate=False)
        y = layers.dropout(self.contract(hidden), self.dropout, keys[2])
        return self.feed_forward_norm(y)


class Transformer(SequenceModel):
    """What ranks: causal self-attention over a table of items.

    `MAERec` without its graph. Item `i` is row `i + 1` of the table; row 0 stands for
    padding, which is no key of the attention.

    Args:
      num_items: how many items there are.
      config: hyper-parameters.
      rngs: source of the initial values (stream `params`).
    """

    Config = MAERecConfig

    def __init__(self, num_items: int, config: MAERecConfig, *, rngs: nnx.Rngs):
        _checks.require(num_items >= 1, "num_items", num_items, "at least 1")
        self.num_items = num_items
        self.config = config
        shapes = ((rows, config.width) for rows in (num_items + 1, config.max_len))
        self.item_embedding, self.position_embedding = (
            nnx.Param(layers.xavier_uniform(rngs.params(), shape)) for shape in shapes
        )
        self.input_norm = _norm(config.width, rngs)
        self.blocks = nnx.List(
            [Block(config, rngs=rngs) for _ in range(config.num_blocks)]
        )

    def loss(self, batch: PackedBatch, *, rng: jax.Array | None) -> Float[Array, ""]:
        """Returns the binary cross-entropy of positives and negatives.

        The sum of two means over all cells that hold an item: of
        `-log(sigmoid(<f, E_target>) + 1e-24)` and of the same of minus the score of
        the negative.

        Args:
          batch: one step, fields `[rows, cells]`.
          rng: key of the step's dropout; None trains without dropout.
        """
        return self._next_item_loss(self.item_embedding[...], batch, rng)

    def encode(
        self, inputs: Int[Array, "users cells"]
    ) -> Float[Array, "users cells width"]:
        """Returns the features of left-padded frames, without dropout.

        Those of the pads mean nothing.

        Args:
          inputs: rows of the item table, 0 for the pads (see `inputs`). A frame
            narrower than `max_len` stands for one with that many more pads.
        """
        positions = jnp.arange(
            self.config.max_len - inputs.shape[1], self.config.max_len
        )
        # A padded frame is a packed row of one segment.
        segments = (inputs > 0).astype(jnp.int32)
        embedded = self.item_embedding[...][inputs]
        positions = jnp.broadcast_to(positions, inputs.shape)
        return self._features(embedded, segments, positions, None)

    def score(
        self, inputs: Int[Array, "users cells"]
    ) -> Float[Array, "users num_items"]:
        """Returns each item's score as the next one after left-padded frames."""
        return self.encode(inputs)[:, -1] @ self.item_embedding[self.item_offset :].T

    def epochs(self, train: Sequences, *, batch_size: int, seed: int) -> PackedEpochs:
        """Returns the epochs of next-item training (`PackedEpochs`).

        Args:
          train: train items of each user.
          batch_size: users of a step.
          seed: in [0, 2**32).
        """
        epochs = PackedEpochs(
            train,
            self.num_items,
            max_len=self.config.max_len,
            batch_size=batch_size,
            seed=seed,
        )
        if not self.config.sample_last_item:
            last = np.full(len(train), self.num_items - 1)
            epochs.sampler = NegativeSampler(train.append(last), self.num_items)
        return epochs

    def _next_item_loss(self, table, batch, rng):
        inputs, targets, negatives = layers.look_up(
            table, batch.inputs, batch.targets, batch.negatives
        )
        features = self._features(inputs, batch.segments, batch.positions, rng)
        losses = _cross_entropy(jnp.sum(features * targets, axis=-1))
        losses += _cross_entropy(-jnp.sum(features * negatives, axis=-1))
        valid = batch.segments > 0
        return jnp.sum(losses, where=valid) / jnp.maximum(jnp.sum(valid), 1)

    def _features(self, embedded, segments, positions, rng):
        """Encodes packed rows `[rows, cells]` of embedded items."""
        keys = layers.split(rng, 1 + self.config.num_blocks)
        x = self.input_norm(embedded + self.position_embedding[...][positions])
        x = layers.flatten_cells(layers.dropout(x, self.config.dropout, keys[0]))
        visibility = layers.visibility(segments, x.dtype, causal=True)
        total = x
        for block, key in zip(self.blocks, keys[1:], strict=True):
            x = block(x, visibility, key)
            total += x
        return total.reshape(embedded.shape)


@register("maerec")
class MAERec(Transformer):
    r"""Self-attention over items that are propagated over a graph of themselves.

    .. math::

        Z = \sum_{l=0}^{L} H_l, \qquad H_0 = E, \quad H_{l+1} = \hat A H_l,

    where :math:`\hat A` is the normalised graph of the items that stand at most three
    places apart in a train sequence, each linked to itself too, all weights equal.
    Row 0, the padding, has its loop alone.

    In training the graph is masked. A mask spreads from `num_seeds` nodes that are like
    their surroundings, and is renewed every `mask_steps` steps; a decoder has to tell
    its edges from pairs that are none. To rank, `for_ranking` has the table :math:`Z`
    of the whole graph.

    Args:
      num_items: how many items there are.
      config: hyper-parameters.
      graph: of the rows of the item table, of equal weights and with loops.
      rngs: source of the initial values (stream `params`).

    Raises:
      ValueError: if `num_items` is below 1 or the graph has other nodes.

    Examples:
      >>> import sevo_jax as sevo
      >>> links = np.eye(10)
      >>> links[1, 2] = links[2, 1] = 1
      >>> config = MAERecConfig(max_len=4, width=8)
      >>> model = MAERec(9, config, sevo.prepare(links), rngs=nnx.Rngs(0))
      >>> train = Sequences.from_lists([[0, 1, 2], [3, 4]])
      >>> epochs = model.epochs(train, batch_size=2, seed=0)
      >>> step = PackedBatch(*(field[0] for field in epochs[0]))
      >>> loss, parts = model.loss(step, rng=None)
      >>> sorted(parts)
      ['main', 'regularization']
      >>> model.for_ranking().score(model.inputs(train)).shape
      (2, 9)
    """

    def __init__(
        self,
        num_items: int,
        config: MAERecConfig,
        graph: CSROperator,
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(num_items, config, rngs=rngs)
        if graph.num_nodes != num_items + 1:
            raise ValueError(
                f"the graph has {graph.num_nodes} nodes, the item table "
                f"{num_items + 1} rows: build it with item_offset=1"
            )
        self.decoder = Decoder(config.width, config.num_hops, rngs=rngs)
        self.mask = AdaptiveMask(
            graph,
            steps=config.mask_steps,
            num_seeds=config.num_seeds,
            depth=config.mask_depth,
            from_ends=config.seeds_from_ends,
        )

    @classmethod
    def propagated(cls, config: Any) -> Mapping[str, GraphConfig]:
        del config
        return {_GRAPH: GraphConfig("item-item-binary", max_len=None, max_hop=3)}

    @classmethod
    def for_data(
        cls, sizes: Sizes, config: Any, *, graphs: Mapping[str, Any], rngs: nnx.Rngs
    ) -> MAERec:
        return cls(sizes.num_items, config, graphs[_GRAPH], rngs=rngs)

    def for_ranking(self) -> Transformer:
        model = nnx.eval_shape(
            lambda: Transformer(self.num_items, self.config, rngs=nnx.Rngs(0))
        )
        hops = self._hops(self.mask.graph.get_value())
        model.item_embedding = nnx.Param(sum(hops[1:], hops[0]))
        model.position_embedding = self.position_embedding
        model.input_norm, model.blocks = self.input_norm, self.blocks
        return model

    def score(
        self, inputs: Int[Array, "users cells"]
    ) -> Float[Array, "users num_items"]:
        """Returns each item's score; `for_ranking` propagates only once."""
        return self.for_ranking().score(inputs)

    def loss(
        self, batch: PackedBatch, *, rng: jax.Array | None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the loss and its parts, of which it is the sum.

        `main` is the loss of the next items, as of `Transformer`, but over the masked
        graph; `regularization` is the weighted sum of squares of all parameters;
        `reconstruction` is the weighted loss of the masked edges; `mask` is, in a step
        with a new mask, minus the mean relatedness of nodes and their surroundings, in
        full if the main loss fell more in this step than in the mean of those before
        it with the old mask, and a fifth of it otherwise.

        Args:
          batch: one step, fields `[rows, cells]`.
          rng: key of the step. None is for a loss in which nothing is drawn: without
            dropout, `reconstruction` and `mask`, and with the mask as it is.
        """
        config = self.config
        dropout_key, mask_key, edges_key = layers.split(rng, 3)
        related = None
        if mask_key is not None:
            related = self.mask.renew(self.item_embedding[...], mask_key)
        hops = self._hops(self.mask.masked_graph())
        table = sum(hops[1:], hops[0])
        main = self._next_item_loss(table, batch, dropout_key)
        leaves = jax.tree.leaves(nnx.state(self, nnx.Param))
        squares = sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)
        parts = {"main": main, "regularization": config.regularization * squares}
        if related is not None:
            parts["mask"] = -related * self.mask.reward(main)
        if edges_key is not None and config.reconstruction_weight:
            reconstruction = self._reconstruction(hops, edges_key)
            parts["reconstruction"] = config.reconstruction_weight * reconstruction
        return sum(parts.values(), jnp.zeros([])), parts

    def _hops(self, graph: CSROperator) -> list[Float[Array, "n d"]]:
        hops = [self.item_embedding[...]]
        for _ in range(self.config.num_hops):
            hops.append(graph @ hops[-1])
        return hops

    def _reconstruction(
        self, hops: list[Float[Array, "n d"]], key: jax.Array
    ) -> Float[Array, ""]:
        """The loss of some of the masked edges, of all hops but the last."""
        config = self.config
        nodes = draw_nodes(
            self.mask.graph.get_value(),
            self.mask.weights[...] == 0,
            config.num_edges,
            config.num_negatives,
            self.num_items if config.sample_last_item else self.num_items - 1,
            key,
        )
        return reconstruction_loss(
            self.decoder, jnp.stack(hops[:-1], axis=1), nodes, log=config.log_contrast
        )


def _cross_entropy(score: Float[Array, "*cells"]) -> Float[Array, "*cells"]:
    """Of a score that ought to be high."""
    return -jnp.log(nnx.sigmoid(score) + 1e-24)


def _linear(num_in: int, num_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(num_in, num_out, kernel_init=layers.xavier_uniform, rngs=rngs)


def _norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
