"""BERT4Rec: next-item recommendation by attention to both sides of hidden items.

Sun et al., "BERT4Rec: sequential recommendation with bidirectional encoder
representations from transformer", CIKM 2019, in the form that the SEvo paper trains:
every hidden item is replaced by the mask, none by another item or itself; no sample
hides the last item on purpose; the output weights are a table of their own, behind no
further layer.

Training reads packed rows (`sevo_jax.samples.masked`). Pads are no keys, so a user's
segment of a row has all that the padded frame has; and logits are computed for the
hidden cells alone.
"""

import typing
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences, check_items
from sevo_jax.models import layers
from sevo_jax.models.cross_entropy import cross_entropy
from sevo_jax.models.recommender import SequenceModel
from sevo_jax.models.registry import register
from sevo_jax.samples.masked import MASK, MaskedBatch, MaskedEpochs, Sampling


@dataclass(frozen=True)
class BERT4RecConfig:
    """Hyper-parameters of `BERT4Rec`.

    Attributes:
      max_len: longest input, the most recent items of a user; when ranking, one
        less and the mask.
      width: size of the item embeddings and of every layer; a feed-forward layer is
        four times as wide inside.
      num_heads: attention heads, a divisor of `width`.
      num_blocks: blocks of attention and feed-forward.
      dropout: rate in [0, 1) on embeddings, attention weights and feed-forward.
      mask_prob: share in (0, 1] of the items that are hidden in training.
      sampling: how training draws the users of an epoch, each once ("users") or as
        four loading processes do ("loaders"); see `MaskedEpochs`.
    """

    max_len: int = 50
    width: int = 64
    num_heads: int = 4
    num_blocks: int = 2
    dropout: float = 0.2
    mask_prob: float = 0.5
    sampling: Sampling = "users"

    def __post_init__(self):
        # An item and the mask.
        _checks.at_least(self, 2, "max_len")
        _checks.at_least(self, 1, "width", "num_heads", "num_blocks")
        divides = self.width % self.num_heads == 0
        _checks.require_field(self, "num_heads", divides, "a divisor of width")
        _checks.rates(self, "dropout")
        in_range = 0 < self.mask_prob <= 1
        _checks.require_field(self, "mask_prob", in_range, "in (0, 1]")
        _checks.one_of(self, "sampling", typing.get_args(Sampling))


class Block(nnx.Module):
    """Attention and feed-forward, each added to its input and then normalised."""

    def __init__(self, config: BERT4RecConfig, kernel_in: jax.Array, *, rngs: nnx.Rngs):
        width = config.width
        self.dropout = config.dropout
        self.attention = layers.Attention(
            kernel_in, config.num_heads, config.dropout, _clipped_normal, rngs=rngs
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
        keys = layers.split(key, 4)
        mixed = self.attention(x, visibility, keys[0])
        x = self.attention_norm(x + layers.dropout(mixed, self.dropout, keys[1]))
        hidden = nnx.gelu(self.expand(x), approximate=False)
        y = self.contract(layers.dropout(hidden, self.dropout, keys[2]))
        return self.feed_forward_norm(x + layers.dropout(y, self.dropout, keys[3]))


@register("bert4rec")
class BERT4Rec(SequenceModel):
    """Bidirectional encoder that recommends what it would put in the mask's place.

    Item `i` is row `i + 2` of the input and of the output table; row 0 stands for
    padding, row 1 is the mask. As input, padding never gets a gradient; as classes of
    the softmax both do.

    Args:
      num_items: how many items there are.
      config: Hyper-parameters.
      rngs: source of the initial values (stream `params`).

    Examples:
      >>> import numpy as np
      >>> from flax import nnx
      >>> from sevo_jax.data.sequences import Sequences
      >>> model = BERT4Rec(9, BERT4RecConfig(max_len=4, width=8), rngs=nnx.Rngs(0))
      >>> train = Sequences.from_lists([[0, 1, 2], [3, 4]])
      >>> epochs = model.epochs(train, batch_size=2, seed=0)
      >>> step = MaskedBatch(*(field[0] for field in epochs[0]))
      >>> model.loss(step, rng=jax.random.key(0)).shape
      ()
      >>> model.score(model.inputs(train)).shape
      (2, 9)
    """

    Config = BERT4RecConfig
    item_offset = MASK + 1
    smoothed = {"item-item": ("item_embedding", "output_embedding")}

    def __init__(self, num_items: int, config: BERT4RecConfig, *, rngs: nnx.Rngs):
        _checks.require(num_items >= 1, "num_items", num_items, "at least 1")
        self.num_items = num_items
        self.config = config
        width, num_rows = config.width, num_items + self.item_offset
        self.item_embedding = nnx.Param(
            _clipped_normal(rngs.params(), (num_rows, width))
        )
        self.position_embedding = nnx.Param(
            _clipped_normal(rngs.params(), (config.max_len, width))
        )
        self.input_norm = _norm(width, rngs)
        # One kernel for query, key and value: Xavier's bound is that of the stack. All
        # blocks start from the same.
        kernel_in = layers.xavier_uniform(rngs.params(), (width, 3 * width))
        self.blocks = nnx.List(
            [
                Block(config, jnp.copy(kernel_in), rngs=rngs)
                for _ in range(config.num_blocks)
            ]
        )
        self.output_embedding = nnx.Param(
            _clipped_normal(rngs.params(), (num_rows, width))
        )
        self.output_bias = nnx.Param(jnp.zeros(num_rows))

    def loss(self, batch: MaskedBatch, *, rng: jax.Array | None) -> Float[Array, ""]:
        """Returns the mean cross-entropy of the hidden items.

        The softmax is over all rows of the output table, those of padding and mask
        too. It is 0 where nothing is hidden.

        Args:
          batch: one step.
          rng: key of the step's dropout; None trains without dropout.
        """
        features = self._features(batch.inputs, batch.segments, batch.positions, rng)
        features = features.reshape(-1, self.config.width)[batch.masked]
        weights = (batch.labels > 0).astype(features.dtype)
        return cross_entropy(
            features,
            self.output_embedding[...],
            self.output_bias[...],
            batch.labels,
            weights / jnp.maximum(jnp.sum(weights), 1),
        )

    def encode(
        self, inputs: Int[Array, "users cells"]
    ) -> Float[Array, "users cells width"]:
        """Returns the features of left-padded frames, without dropout.

        Those of the pads mean nothing.

        Args:
          inputs: rows of the item table, 1 for a hidden item, 0 for the pads (see
            `inputs`). A frame narrower than `max_len` stands for one with that
            many more pads.
        """
        # A padded frame is a packed row of one segment.
        positions = jnp.arange(
            self.config.max_len - inputs.shape[1], self.config.max_len
        )
        segments = (inputs > 0).astype(jnp.int32)
        return self._features(
            inputs, segments, jnp.broadcast_to(positions, inputs.shape), None
        )

    def score(
        self, inputs: Int[Array, "users cells"]
    ) -> Float[Array, "users num_items"]:
        """Returns each item's logit in the last cell of left-padded frames."""
        items = slice(self.item_offset, None)
        last = self.encode(inputs)[:, -1]
        return last @ self.output_embedding[items].T + self.output_bias[items]

    def inputs(
        self, sequences: Sequences, users: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the frames that `score` takes, int32 `[len(sequences), cells]`.

        The last cell is the mask, the place of the item that comes next; the last
        `max_len - 1` items stand before it. `cells` is the smallest of 8, 16, 32, ...
        that holds the longest sequence and the mask, and `max_len` at most.

        Args:
          sequences: items of each user, `0..num_items-1`, the oldest first.
          users: ignored.

        Raises:
          ValueError: If an item is out of range.
        """
        # Whatever comes next, the mask takes its cell.
        anything = np.zeros(len(sequences), np.int32)
        frames = super().inputs(sequences.append(anything), users)
        frames[:, -1] = MASK
        return frames

    def epochs(self, train: Sequences, *, batch_size: int, seed: int) -> MaskedEpochs:
        """Returns the epochs of `train`, by number; a step of one is a loss's batch."""
        check_items(train, self.num_items)
        return MaskedEpochs(
            train,
            max_len=self.config.max_len,
            batch_size=batch_size,
            mask_prob=self.config.mask_prob,
            seed=seed,
            sampling=self.config.sampling,
            item_offset=self.item_offset,
        )

    def _features(self, inputs, segments, positions, rng):
        """Encodes packed rows `[rows, cells]`."""
        keys = layers.split(rng, 1 + self.config.num_blocks)
        x = self.item_embedding[...][inputs] + self.position_embedding[...][positions]
        x = layers.dropout(self.input_norm(x), self.config.dropout, keys[0])
        visibility = layers.visibility(segments, x.dtype)
        cells = layers.flatten_cells(x)
        for block, key in zip(self.blocks, keys[1:], strict=True):
            cells = block(cells, visibility, key)
        return cells.reshape(x.shape)


def _clipped_normal(key, shape, dtype=jnp.float32):
    """Draws Xavier's normal and clips it to +-0.02, where much of it then lies."""
    return jnp.clip(layers.xavier_normal(key, shape, dtype), -0.02, 0.02)


def _linear(num_in: int, num_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(num_in, num_out, kernel_init=_clipped_normal, rngs=rngs)


def _norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The initial embeddings are small enough for the fast variance to lose digits.
    return nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
