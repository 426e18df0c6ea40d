"""SASRec: next-item recommendation by causal self-attention.

Kang and McAuley, "Self-attentive sequential recommendation", ICDM 2018, in the form
that the SEvo paper trains: the residual of the attention is the un-normalised input,
that of the feed-forward its normalised one, and the left pads of a short sequence
take part in the attention as keys.

Training reads packed rows (`sevo_jax.samples.packing`) and computes what the padded
frame would: a pad is a zero cell, so all pads of a user have one same key and value,
the biases of the in-projection, and enter the softmax in closed form.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from scipy import special

from sevo_jax import _checks
from sevo_jax.models import layers
from sevo_jax.models.losses import LossConfig, next_item_loss
from sevo_jax.models.recommender import SequenceModel
from sevo_jax.models.registry import register
from sevo_jax.samples.packing import PackedBatch


@dataclass(frozen=True)
class SASRecConfig(LossConfig):
    """Hyper-parameters of `SASRec`.

    Attributes:
      max_len: longest input, the most recent items of a user.
      width: size of the item embeddings and of every layer.
      num_heads: attention heads, a divisor of `width`.
      num_blocks: blocks of attention and feed-forward.
      dropout: rate in [0, 1) on embeddings, attention weights and feed-forward.
      loss: of a target (`sevo_jax.models.losses`); bce is the paper's.
    """

    max_len: int = 50
    width: int = 64
    num_heads: int = 1
    num_blocks: int = 2
    dropout: float = 0.3

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(self, 1, "max_len", "width", "num_heads", "num_blocks")
        divides = self.width % self.num_heads == 0
        _checks.require_field(self, "num_heads", divides, "a divisor of width")
        _checks.rates(self, "dropout")


class Layout(NamedTuple):
    """Where the cells of packed rows belong, for the blocks.

    Attributes:
      valid: whether a cell holds an item.
      num_pads: left pads of a cell's user.
      visibility: what is added to the score of a query (second last axis) and a key
        (last axis): 0 for the query's own cell and the earlier ones of its
        segment, `-inf` for the rest.
    """

    valid: Bool[Array, "rows row_cells"]
    num_pads: Int[Array, "rows row_cells"]
    visibility: Float[Array, "rows row_cells row_cells"]


def lay_out(segments, num_pads, dtype) -> Layout:
    """Returns the `Layout` of packed rows."""
    visible = jnp.tril(segments[:, :, None] == segments[:, None, :])
    return Layout(segments > 0, num_pads, jnp.where(visible, 0, -jnp.inf).astype(dtype))


class Attention(nnx.Module):
    """Causal multi-head attention within segments, the left pads included.

    Queries come from one input, keys and values from another.
    """

    def __init__(self, config: SASRecConfig, *, rngs: nnx.Rngs):
        self.config = config
        # One kernel for query, key and value: Xavier's bound is that of the stack.
        shape = (config.width, 3 * config.width)
        self.kernel_in = nnx.Param(layers.xavier_uniform(rngs.params(), shape))
        self.bias_in = nnx.Param(jnp.zeros(3 * config.width))
        self.project_out = nnx.Linear(
            config.width, config.width, kernel_init=layers.xavier_normal, rngs=rngs
        )

    def __call__(
        self,
        queries: Float[Array, "cells width"],
        x: Float[Array, "cells width"],
        layout: Layout,
        key: jax.Array | None,
    ) -> Float[Array, "cells width"]:
        width, num_heads = self.config.width, self.config.num_heads
        rows = layout.valid.shape[0]
        kernel, bias = self.kernel_in[...], self.bias_in[...]
        query = queries @ kernel[:, :width] + bias[:width]
        query *= 1 / math.sqrt(width // num_heads)
        keys, values = jnp.split(x @ kernel[:, width:] + bias[width:], 2, axis=-1)
        query, keys, values = (
            layers.split_heads(part, rows, num_heads) for part in (query, keys, values)
        )
        scores = jnp.einsum("nqd,nkd->nqk", query, keys)
        scores += jnp.repeat(layout.visibility, num_heads, axis=0)

        # The left pads of a user are zero cells: one key and value for all of them,
        # the biases, and a weight for each.
        pad_key, pad_value = (
            jnp.tile(part.reshape(num_heads, 1, -1), (rows, 1, 1))
            for part in jnp.split(bias[width:], 2)
        )
        num_pads = jnp.repeat(layout.num_pads, num_heads, axis=0)
        pad_scores = jnp.sum(query * pad_key, axis=-1)
        pad_scores += jnp.log(num_pads.astype(scores.dtype))

        # A softmax whose sum divides the mixed values: fewer numbers than weights.
        highest = jnp.maximum(jnp.max(scores, axis=-1), pad_scores)
        highest = jax.lax.stop_gradient(highest)
        weights = jnp.exp(scores - highest[..., None])
        pad_weights = jnp.exp(pad_scores - highest)
        total = jnp.sum(weights, axis=-1) + pad_weights
        weights, pad_weights = self._dropout(weights, pad_weights, num_pads, key)
        mixed = jnp.einsum("nqk,nkd->nqd", weights, values)
        mixed = (mixed + pad_weights[..., None] * pad_value) / total[..., None]
        return self.project_out(layers.merge_heads(mixed, rows))

    def _dropout(self, weights, pad_weights, num_pads, key):
        """Drops weights of cells, and each pad for itself.

        Of n pads, equal but for the draw, Binomial(n, 1 - rate) keep their weight.
        """
        rate = self.config.dropout
        if key is None or rate == 0:
            return weights, pad_weights
        key, pads_key = jax.random.split(key)
        kept = sample_binomial(num_pads, 1 - rate, self.config.max_len, pads_key)
        share = kept / ((1 - rate) * jnp.maximum(num_pads, 1))
        weights = layers.dropout(weights, rate, key)
        return weights, pad_weights * share.astype(weights.dtype)


class Block(nnx.Module):
    """Attention and feed-forward, each behind a layer norm."""

    def __init__(self, config: SASRecConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.dropout = config.dropout
        self.attention_norm = _norm(width, rngs)
        self.attention = Attention(config, rngs=rngs)
        self.feed_forward_norm = _norm(width, rngs)
        initial = layers.fan_in_uniform(width)
        self.expand, self.contract = (
            nnx.Linear(width, width, kernel_init=initial, bias_init=initial, rngs=rngs)
            for _ in range(2)
        )

    def __call__(
        self,
        x: Float[Array, "cells width"],
        layout: Layout,
        key: jax.Array | None,
    ) -> Float[Array, "cells width"]:
        keys = layers.split(key, 3)
        x += self.attention(self.attention_norm(x), x, layout, keys[0])
        y = self.feed_forward_norm(x)
        hidden = nnx.relu(layers.dropout(self.expand(y), self.dropout, keys[1]))
        y += layers.dropout(self.contract(hidden), self.dropout, keys[2])
        return jnp.where(layout.valid.reshape(-1, 1), y, 0)


@register("sasrec")
class SASRec(SequenceModel):
    """Self-attentive sequential recommender.

    Item `i` is row `i + 1` of the item table, which is input and output table in one;
    row 0 stands for padding and never gets a gradient.

    Args:
      num_items: how many items there are.
      config: Hyper-parameters.
      rngs: source of the initial values (stream `params`).

    Examples:
      >>> import numpy as np
      >>> from flax import nnx
      >>> from sevo_jax.data.sequences import Sequences
      >>> model = SASRec(9, SASRecConfig(max_len=4, width=8), rngs=nnx.Rngs(0))
      >>> train = Sequences.from_lists([[0, 1, 2], [3, 4]])
      >>> epochs = model.epochs(train, batch_size=2, seed=0)
      >>> step = PackedBatch(*(field[0] for field in epochs[0]))
      >>> model.loss(step, rng=jax.random.key(0)).shape
      ()
      >>> model.score(model.inputs(train)).shape
      (2, 9)
    """

    Config = SASRecConfig

    def __init__(self, num_items: int, config: SASRecConfig, *, rngs: nnx.Rngs):
        config.check_num_items(num_items)
        self.num_items = num_items
        self.config = config
        width = config.width
        self.item_embedding = nnx.Param(
            layers.xavier_normal(rngs.params(), (num_items + self.item_offset, width))
        )
        self.position_embedding = nnx.Param(
            layers.xavier_normal(rngs.params(), (config.max_len, width))
        )
        self.blocks = nnx.List(
            [Block(config, rngs=rngs) for _ in range(config.num_blocks)]
        )
        self.final_norm = _norm(width, rngs)

    def loss(self, batch: PackedBatch, *, rng: jax.Array | None) -> Float[Array, ""]:
        """Returns the mean of `config.loss` over all cells that hold an item.

        Args:
          batch: one step, fields `[rows, cells]`.
          rng: key of the step's dropout and draws; None is without dropout.
        """
        return next_item_loss(
            self.config,
            self.item_embedding[...],
            batch.inputs,
            batch.targets,
            batch.negatives,
            batch.segments > 0,
            lambda embedded: self._features(
                embedded, batch.segments, batch.positions, batch.num_pads, rng
            ),
            item_offset=self.item_offset,
            rng=rng,
        )

    def encode(
        self, inputs: Int[Array, "users cells"]
    ) -> Float[Array, "users cells width"]:
        """Returns the features of left-padded frames, without dropout.

        Args:
          inputs: rows of the item table, 0 for the pads (see `inputs`). A frame
            narrower than `max_len` stands for one with that many more pads.
        """
        # A padded frame is a packed row of one segment.
        missing = self.config.max_len - inputs.shape[1]
        segments = (inputs > 0).astype(jnp.int32)
        positions = jnp.arange(missing, self.config.max_len)
        positions = jnp.broadcast_to(positions, inputs.shape)
        num_pads = missing + jnp.sum(inputs == 0, axis=1, keepdims=True)
        return self._features(
            self.item_embedding[...][inputs],
            segments,
            positions,
            jnp.broadcast_to(num_pads, inputs.shape),
            None,
        )

    def score(
        self, inputs: Int[Array, "users cells"]
    ) -> Float[Array, "users num_items"]:
        """Returns each item's score as the next one after left-padded frames."""
        return self.encode(inputs)[:, -1] @ self.item_embedding[self.item_offset :].T

    @property
    def takes_negatives(self) -> bool:
        return self.config.takes_negatives

    def _features(self, embedded, segments, positions, num_pads, rng):
        """Encodes packed rows `[rows, cells]` of embedded items."""
        config = self.config
        layout = lay_out(segments, num_pads, embedded.dtype)
        keys = layers.split(rng, 1 + config.num_blocks)
        x = math.sqrt(config.width) * embedded + self.position_embedding[...][positions]
        x = layers.dropout(x, config.dropout, keys[0])
        x = jnp.where(layout.valid[..., None], x, 0)
        x = layers.flatten_cells(x)
        for block, key in zip(self.blocks, keys[1:], strict=True):
            x = block(x, layout, key)
        return self.final_norm(x).reshape(embedded.shape)


def sample_binomial(
    num_trials: Int[Array, "..."],
    probability: float,
    max_trials: int,
    key: jax.Array,
) -> Int[Array, "..."]:
    """Draws from Binomial(num_trials, probability), one uniform number an entry.

    Inverts the distribution function, tabulated for every number of trials: exact up
    to the 2**-23 grid of the uniform numbers, and far cheaper than rejection.

    Args:
      num_trials: in `0..max_trials`.
      probability: of success, in (0, 1].
      max_trials: most trials.
      key: source of the draw.
    """
    trials = np.arange(max_trials + 1)
    successes = np.minimum(trials, trials[:, None])
    table = special.bdtr(successes, trials[:, None], probability).astype(np.float32)
    uniform = jax.random.uniform(key, num_trials.shape, jnp.float32)
    below = uniform[..., None] >= jnp.asarray(table)[num_trials]
    return jnp.sum(below, axis=-1, dtype=jnp.int32)


def _norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance loses the digits that so small an epsilon relies on.
    return nnx.LayerNorm(width, epsilon=1e-8, use_fast_variance=False, rngs=rngs)
