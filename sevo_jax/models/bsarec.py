"""BSARec: next-item recommendation by attention and a filter of frequencies.

Shin, Choi, Wi and Park, "An attentive inductive bias for sequential recommendation
beyond the self-attention", AAAI 2024, in the form of RecBoard, by an author of the SEvo
paper: the matrices start from Xavier's normal, a prefix has an item at least, and the
softmax is over the items alone.

The model reads a left-padded frame as a whole. The filter mixes its cells, and a pad
attends to all of them, later ones too: so the pads and the width of the frame are part
of the model, and neither users nor prefixes can share a row. Two forms are cheaper here
and exact: the low frequencies are one product with a constant matrix, and the last
block computes the last cell alone, whose feature is all that counts.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences, check_items
from sevo_jax.models import layers
from sevo_jax.models.cross_entropy import cross_entropy
from sevo_jax.models.recommender import SequenceModel
from sevo_jax.models.registry import register
from sevo_jax.samples.frames import FrameBatch, FrameEpochs
from sevo_jax.samples.packing import left_pad


@dataclass(frozen=True)
class BSARecConfig:
    """Hyper-parameters of `BSARec`.

    Attributes:
      max_len: width of the frame, the most recent items of a user; at least 2.
      width: size of the item embeddings and of every layer; a feed-forward layer is
        four times as wide inside.
      num_heads: attention heads, a divisor of `width`.
      num_blocks: blocks of attention, filter and feed-forward.
      hidden_dropout: rate in [0, 1) on embeddings and the outputs of layers.
      attention_dropout: rate in [0, 1) on attention weights.
      alpha: share in [0, 1] of the filter in what it and attention give.
      cutoff: the filter's low frequencies are the lowest `cutoff // 2 + 1`.
    """

    max_len: int = 50
    width: int = 64
    num_heads: int = 1
    num_blocks: int = 2
    hidden_dropout: float = 0.5
    attention_dropout: float = 0.0
    alpha: float = 0.7
    cutoff: int = 5

    def __post_init__(self):
        # A prefix, and its target.
        _checks.at_least(self, 2, "max_len")
        _checks.at_least(self, 1, "width", "num_heads", "num_blocks")
        divides = self.width % self.num_heads == 0
        _checks.require_field(self, "num_heads", divides, "a divisor of width")
        _checks.rates(self, "hidden_dropout", "attention_dropout")
        _checks.require_field(self, "alpha", 0 <= self.alpha <= 1, "in [0, 1]")
        _checks.at_least(self, 0, "cutoff")


def low_pass(size: int, cutoff: int) -> Float[np.ndarray, "size size"]:
    r"""Returns the matrix that keeps the low frequencies of a sequence.

    .. math::

        L_{st} = \frac{1}{S} \Big(1 + \sum_{k=1}^{K-1} w_k
        \cos \frac{2 \pi k (s - t)}{S}\Big), \qquad K = \lfloor c / 2 \rfloor + 1,

    with :math:`w_k = 2`, but 1 for :math:`2 k = S`: a real Fourier transform, its first
    `K` numbers kept, and transformed back.

    Args:
      size: length `S` of the sequence.
      cutoff: `c`.

    Examples:
      >>> low_pass(4, 0)[0].tolist()  # The mean.
      [0.25, 0.25, 0.25, 0.25]
    """
    distance = np.subtract.outer(np.arange(size), np.arange(size))
    matrix = np.ones((size, size))
    for k in range(1, min(cutoff // 2, size // 2) + 1):
        weight = 1 if 2 * k == size else 2
        matrix += weight * np.cos(2 * np.pi * k * distance / size)
    return matrix / size


def visible(inputs: Int[Array, "rows cells"]) -> Bool[Array, "rows cells cells"]:
    """Returns which cells (last axis) a cell attends to: a pad to all of them.

    An item attends to itself and the items before it.
    """
    real = inputs > 0
    causal = real[:, None, :] & np.tri(inputs.shape[1], dtype=bool)
    return causal | ~real[:, :, None]


class Block(nnx.Module):
    """Filter and attention side by side, and a feed-forward, all behind norms."""

    def __init__(self, config: BSARecConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.config = config
        # Enters squared, so that the weight of the high frequencies is not negative.
        self.high_weight = nnx.Param(jax.random.normal(rngs.params(), (width,)))
        kernel_in = jnp.concatenate(
            [layers.xavier_normal(rngs.params(), (width, width)) for _ in range(3)], 1
        )
        self.attention = layers.Attention(
            kernel_in,
            config.num_heads,
            config.attention_dropout,
            layers.xavier_normal,
            rngs=rngs,
        )
        self.expand, self.contract = (
            nnx.Linear(*shape, kernel_init=layers.xavier_normal, rngs=rngs)
            for shape in ((width, 4 * width), (4 * width, width))
        )
        self.filter_norm, self.attention_norm, self.feed_forward_norm = (
            _norm(width, rngs) for _ in range(3)
        )

    def __call__(
        self,
        x: Float[Array, "rows cells width"],
        visibility: Float[Array, "rows queries cells"],
        key: jax.Array | None,
    ) -> Float[Array, "rows queries width"]:
        """Returns the last cells of the rows, as many as there are queries."""
        config = self.config
        filter_key, weights_key, attention_key, mlp_key = layers.split(key, 4)

        def drop(y, key):
            return layers.dropout(y, config.hidden_dropout, key)

        own = x[:, -visibility.shape[1] :]
        matrix = low_pass(x.shape[1], config.cutoff)[-own.shape[1] :].astype(x.dtype)
        low = jnp.einsum("st,rtd->rsd", matrix, x)
        filtered = low + jnp.square(self.high_weight[...]) * (own - low)
        filtered = self.filter_norm(drop(filtered, filter_key) + own)

        mixed = self.attention(layers.flatten_cells(x), visibility, weights_key)
        attended = drop(mixed.reshape(own.shape), attention_key) + own
        attended = self.attention_norm(attended)

        m = layers.flatten_cells(
            config.alpha * filtered + (1 - config.alpha) * attended
        )
        hidden = nnx.gelu(self.expand(m), approximate=False)
        y = self.feed_forward_norm(drop(self.contract(hidden), mlp_key) + m)
        return y.reshape(own.shape)


@register("bsarec")
class BSARec(SequenceModel):
    """Sequential recommender by attention and a filter of frequencies.

    Item `i` is row `i + 1` of the item table, which is input and output table in one.
    Row 0 is what a pad is embedded as. It keeps its initial value but for weight decay.

    Args:
      num_items: how many items there are.
      config: hyper-parameters.
      rngs: source of the initial values (stream `params`).

    Examples:
      >>> config = BSARecConfig(max_len=4, width=8)
      >>> model = BSARec(9, config, rngs=nnx.Rngs(0))
      >>> train = Sequences.from_lists([[0, 1, 2], [3, 4]])
      >>> epochs = model.epochs(train, batch_size=2, seed=0)
      >>> step = FrameBatch(*(field[0] for field in epochs[0]))
      >>> model.loss(step, rng=jax.random.key(0)).shape
      ()
      >>> model.score(model.inputs(train)).shape
      (2, 9)
    """

    Config = BSARecConfig

    def __init__(self, num_items: int, config: BSARecConfig, *, rngs: nnx.Rngs):
        _checks.require(num_items >= 1, "num_items", num_items, "at least 1")
        self.num_items = num_items
        self.config = config
        initial = nnx.initializers.normal(0.02)
        rows = num_items + self.item_offset
        self.item_embedding, self.position_embedding = (
            nnx.Param(initial(rngs.params(), (size, config.width)))
            for size in (rows, config.max_len)
        )
        self.input_norm = _norm(config.width, rngs)
        self.blocks = nnx.List(
            [Block(config, rngs=rngs) for _ in range(config.num_blocks)]
        )

    def loss(self, batch: FrameBatch, *, rng: jax.Array | None) -> Float[Array, ""]:
        """Returns the mean cross-entropy of the targets, over all items.

        Args:
          batch: one step.
          rng: key of the step's dropout; None trains without dropout.
        """
        features = self.encode(jnp.asarray(batch.inputs), rng)
        valid = batch.targets > 0
        weights = valid.astype(features.dtype)
        return cross_entropy(
            features,
            self.item_embedding[...][self.item_offset :],
            None,
            jnp.where(valid, batch.targets - self.item_offset, 0),
            weights / jnp.maximum(jnp.sum(weights), 1),
        )

    def encode(
        self, inputs: Int[Array, "users max_len"], rng: jax.Array | None = None
    ) -> Float[Array, "users width"]:
        """Returns the features of left-padded frames.

        Args:
          inputs: rows of the item table, 0 for the pads.
          rng: key of the dropout; None for none.
        """
        config = self.config
        keys = layers.split(rng, 1 + config.num_blocks)
        embedded = self.item_embedding[...][inputs]
        pads = jax.lax.stop_gradient(embedded)
        embedded = jnp.where(inputs[..., None] > 0, embedded, pads)
        x = self.input_norm(embedded + self.position_embedding[...])
        x = layers.dropout(x, config.hidden_dropout, keys[0])
        visibility = jnp.where(visible(inputs), 0, -math.inf).astype(x.dtype)
        for number, block in enumerate(self.blocks, start=1):
            is_last = number == config.num_blocks
            x = block(x, visibility[:, -1:] if is_last else visibility, keys[number])
        return x[:, -1]

    def score(
        self, inputs: Int[Array, "users max_len"]
    ) -> Float[Array, "users num_items"]:
        """Returns each item's score as the next one after left-padded frames."""
        return self.encode(inputs) @ self.item_embedding[self.item_offset :].T

    def inputs(
        self, sequences: Sequences, users: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns left-padded frames of the full width, int32 `[users, max_len]`.

        Args:
          sequences: items of each user, `0..num_items-1`, the oldest first.
          users: ignored.

        Raises:
          ValueError: if an item is out of range.
        """
        del users
        check_items(sequences, self.num_items)
        return left_pad(sequences, self.config.max_len, self.item_offset)

    def epochs(self, train: Sequences, *, batch_size: int, seed: int) -> FrameEpochs:
        """Returns the epochs of `train`, by number; a step of one is a loss's batch.

        Args:
          train: train items of each user.
          batch_size: prefixes of a step.
          seed: in [0, 2**32).
        """
        check_items(train, self.num_items)
        return FrameEpochs(
            train,
            max_len=self.config.max_len,
            batch_size=batch_size,
            seed=seed,
            item_offset=self.item_offset,
        )


def _norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance loses the digits that so small an epsilon relies on.
    return nnx.LayerNorm(width, epsilon=1e-12, use_fast_variance=False, rngs=rngs)
