"""STOSA: items and users as Gaussians, nearer ones by Wasserstein distance first.

Fan et al., "Sequential recommendation via stochastic self-attention", WWW 2022, in the
form that the SEvo paper trains.

The squared 2-Wasserstein distance of two Gaussians with diagonal covariances is the
squared Euclidean distance of their means plus that of their standard deviations. So a
Gaussian is a point here, mean and standard deviations side by side, and attention,
loss and scores are about distances of points. A covariance is `ELU(raw) + 1` of what
the tables and layers hold; `deviation` is its square root.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sevo_jax import _checks
from sevo_jax.models import layers
from sevo_jax.models.recommender import SequenceModel
from sevo_jax.models.registry import register
from sevo_jax.samples.packing import PackedBatch

# Far below any score, and finite.
_MASKED = -1e30


@dataclass(frozen=True)
class STOSAConfig:
    """Hyper-parameters of `STOSA`.

    Attributes:
      max_len: longest input, the most recent items of a user.
      width: size of the means, of the covariances, and of the layers of either.
      num_heads: attention heads, a divisor of `width`.
      num_blocks: blocks of attention and feed-forward.
      hidden_dropout: rate in [0, 1) on embeddings and on what the attention and the
        feed-forward give out.
      attention_dropout: rate in [0, 1) on attention weights.
      pvn_weight: Weight, at least 0, of the part of the loss that wants the next
        item nearer to the user than to the negative item.
      propagate_mean: whether the means too pass through the blocks, as published.
        Otherwise only the covariances do, as in the published code.
    """

    max_len: int = 100
    width: int = 64
    num_heads: int = 4
    num_blocks: int = 1
    hidden_dropout: float = 0.2
    attention_dropout: float = 0.5
    pvn_weight: float = 0.005
    propagate_mean: bool = False

    def __post_init__(self):
        _checks.at_least(self, 1, "max_len", "width", "num_heads", "num_blocks")
        divides = self.width % self.num_heads == 0
        _checks.require_field(self, "num_heads", divides, "a divisor of width")
        _checks.rates(self, "hidden_dropout", "attention_dropout")
        in_range = 0 <= self.pvn_weight < math.inf
        _checks.require_field(self, "pvn_weight", in_range, "finite and at least 0")


class Attention(nnx.Module):
    """Causal attention within segments, the nearer of two Gaussians the more.

    The weights `P` are a softmax over the negative squared distances of keys from a
    query. A mean is mixed as `P v`, a covariance as `P^2 v`, as those of independent
    Gaussians.
    """

    def __init__(self, config: STOSAConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        # Query, key and value side by side.
        self.mean_in = _linear(width, 3 * width, rngs)
        self.covariance_in = _linear(width, 3 * width, rngs)
        self.mean_out = _linear(width, width, rngs)
        self.covariance_out = _linear(width, width, rngs)

    def __call__(
        self,
        mean: Float[Array, "cells width"],
        covariance: Float[Array, "cells width"],
        visible: Bool[Array, "rows row_cells row_cells"],
        key: jax.Array | None,
    ) -> tuple[Float[Array, "cells width"] | None, Float[Array, "cells width"]]:
        """Returns what is attended: the mean if it propagates, and the covariance."""
        config = self.config
        rows, num_heads = len(visible), config.num_heads
        propagate = config.propagate_mean
        # Heads part by part: slices of an array of all parts take half as long again.
        means = _project(self.mean_in, mean, 3 if propagate else 2)
        means = [layers.split_heads(part, rows, num_heads) for part in means]
        deviations = _project(self.covariance_in, covariance, 3)
        deviations = [
            layers.split_heads(deviation(part), rows, num_heads) for part in deviations
        ]
        queries, keys = (
            jnp.concatenate([means[part], deviations[part]], axis=-1)
            for part in range(2)
        )

        # The square of the query is the same for all keys: the softmax drops it.
        scale = 1 / math.sqrt(config.width // num_heads)
        scores = jnp.einsum("nqd,nkd->nqk", 2 * scale * queries, keys)
        scores -= scale * jnp.sum(jnp.square(keys), axis=-1)[:, None]
        visible = jnp.repeat(visible, num_heads, axis=0)
        weights = jax.nn.softmax(jnp.where(visible, scores, _MASKED))
        weights = layers.dropout(weights, config.attention_dropout, key)

        def mix(weights, values, out):
            mixed = jnp.einsum("nqk,nkd->nqd", weights, values)
            return out(layers.merge_heads(mixed, rows))

        attended_mean = mix(weights, means[2], self.mean_out) if propagate else None
        values = jnp.square(deviations[2])
        return attended_mean, mix(jnp.square(weights), values, self.covariance_out)


class FeedForward(nnx.Module):
    """Two layers of which the inner one is four times as wide, residual and norm."""

    def __init__(self, config: STOSAConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.dropout = config.hidden_dropout
        self.expand = _linear(width, 4 * width, rngs)
        self.contract = _linear(4 * width, width, rngs)
        self.norm = _norm(width, rngs)

    def __call__(
        self, x: Float[Array, "cells width"], key: jax.Array | None
    ) -> Float[Array, "cells width"]:
        y = self.contract(jax.nn.elu(self.expand(x)))
        return self.norm(layers.dropout(y, self.dropout, key) + x)


class Block(nnx.Module):
    """Attention and feed-forward of both streams, each behind a residual and a norm."""

    def __init__(self, config: STOSAConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.attention = Attention(config, rngs=rngs)
        self.attention_norm = _norm(config.width, rngs)
        self.mean_feed_forward = FeedForward(config, rngs=rngs)
        self.covariance_feed_forward = FeedForward(config, rngs=rngs)

    def __call__(
        self,
        mean: Float[Array, "cells width"],
        raw: Float[Array, "cells width"],
        visible: Bool[Array, "rows row_cells row_cells"],
        key: jax.Array | None,
    ) -> tuple[Float[Array, "cells width"], Float[Array, "cells width"]]:
        """Returns the mean and the raw covariance after the block."""
        rate = self.config.hidden_dropout
        keys = layers.split(key, 5)
        covariance = _covariance(raw)
        attended_mean, attended = self.attention(mean, covariance, visible, keys[0])
        attended = layers.dropout(attended, rate, keys[1])
        raw = self.covariance_feed_forward(
            self.attention_norm(attended + covariance), keys[2]
        )
        if attended_mean is None:
            return mean, raw
        attended_mean = layers.dropout(attended_mean, rate, keys[3])
        mean = self.mean_feed_forward(
            self.attention_norm(attended_mean + mean), keys[4]
        )
        return mean, raw


@register("stosa")
class STOSA(SequenceModel):
    """Stochastic self-attention: a Gaussian for each item and each moment of a user.

    Item `i` is row `i + 1` of the item tables, which serve inputs and outputs; row 0
    stands for padding and never gets a gradient.

    The published equations pass both the mean and the covariance of a sequence through
    the blocks. In the published code the mean that a block computes is not used: the
    mean of a user is that of the last item and position, before any block, and only
    the covariance sees the rest of the history. All numbers in publications, those of
    the SEvo paper among them, come from the code, so this is the default here;
    `propagate_mean=True` follows the equations. Both have the same parameters. In the
    default those that would propagate the mean get gradient zero.

    Args:
      num_items: how many items there are.
      config: Hyper-parameters.
      rngs: source of the initial values (stream `params`).

    Examples:
      >>> import numpy as np
      >>> from flax import nnx
      >>> from sevo_jax.data.sequences import Sequences
      >>> model = STOSA(9, STOSAConfig(max_len=4, width=8), rngs=nnx.Rngs(0))
      >>> train = Sequences.from_lists([[0, 1, 2], [3, 4]])
      >>> epochs = model.epochs(train, batch_size=2, seed=0)
      >>> step = PackedBatch(*(field[0] for field in epochs[0]))
      >>> model.loss(step, rng=jax.random.key(0)).shape
      ()
      >>> model.score(model.inputs(train)).shape
      (2, 9)
    """

    Config = STOSAConfig
    smoothed = {"item-item": ("item_mean", "item_covariance")}

    def __init__(self, num_items: int, config: STOSAConfig, *, rngs: nnx.Rngs):
        _checks.require(num_items >= 1, "num_items", num_items, "at least 1")
        self.num_items = num_items
        self.config = config

        def table(rows):
            return nnx.Param(_initial(rngs.params(), (rows, config.width)))

        self.item_mean = table(num_items + self.item_offset)
        self.item_covariance = table(num_items + self.item_offset)
        self.position_mean = table(config.max_len)
        self.position_covariance = table(config.max_len)
        self.input_norm = _norm(config.width, rngs)
        # Of the default form, an optimizer with decoupled weight decay shrinks the
        # leaves without gradient too, where PyTorch's would skip them. Nothing reads
        # them, so nothing depends on it.
        self.blocks = nnx.List(
            [Block(config, rngs=rngs) for _ in range(config.num_blocks)]
        )

    def loss(self, batch: PackedBatch, *, rng: jax.Array | None) -> Float[Array, ""]:
        """Returns the loss of triples of user, next item and negative item.

        The mean over all cells that hold an item of `softplus(d(user, next) -
        d(user, negative)) + pvn_weight * relu(d(user, next) - d(next, negative))`,
        where `d` is the squared Wasserstein distance.

        Args:
          batch: one step, fields `[rows, cells]`.
          rng: key of the step's dropout; None trains without dropout.
        """
        users = self._features(batch.inputs, batch.segments, batch.positions, rng)
        targets, negatives = self._items(jnp.stack([batch.targets, batch.negatives]))
        positive = _distance(users, targets)
        losses = jax.nn.softplus(positive - _distance(users, negatives))
        nearer = jax.nn.relu(positive - _distance(targets, negatives))
        losses += self.config.pvn_weight * nearer
        valid = batch.segments > 0
        return jnp.sum(losses, where=valid) / jnp.maximum(jnp.sum(valid), 1)

    def encode(
        self, inputs: Int[Array, "users cells"]
    ) -> Float[Array, "users cells twice_width"]:
        """Returns means and standard deviations of left-padded frames, side by side.

        Without dropout. What a pad gets has no meaning.

        Args:
          inputs: rows of the item tables, 0 for the pads (see `inputs`). A frame
            narrower than `max_len` stands for one with that many more pads.
        """
        # A padded frame is a packed row of one segment.
        max_len = self.config.max_len
        positions = jnp.arange(max_len - inputs.shape[1], max_len)
        positions = jnp.broadcast_to(positions, inputs.shape)
        return self._features(inputs, inputs > 0, positions, None)

    def score(
        self, inputs: Int[Array, "users cells"]
    ) -> Float[Array, "users num_items"]:
        """Returns each item's score as the next one after left-padded frames.

        The negative squared Wasserstein distance.
        """
        users = self.encode(inputs)[:, -1]
        items = self._items(jnp.arange(self.item_offset, self.num_items + 1))
        # Distances do not depend on the origin, but the digits that cancel do.
        origin = jnp.mean(items, axis=0)
        users, items = users - origin, items - origin
        products = jnp.matmul(users, items.T, precision="highest")
        squares = [jnp.sum(jnp.square(x), axis=-1) for x in (users, items)]
        return 2 * products - squares[0][:, None] - squares[1]

    def _items(self, ids):
        """The points of items, as targets: rows of the tables as they are."""
        means, raw = self.item_mean[...][ids], self.item_covariance[...][ids]
        return jnp.concatenate([means, deviation(raw)], axis=-1)

    def _features(self, inputs, segments, positions, rng):
        """Encodes packed rows `[rows, cells]` as points."""
        config = self.config
        # An empty cell sees the empty ones before it, so no query is without a key.
        visible = jnp.tril(segments[:, :, None] == segments[:, None, :])
        keys = layers.split(rng, 1 + config.num_blocks)
        x = jnp.stack(
            [
                self.item_mean[...][inputs] + self.position_mean[...][positions],
                self.item_covariance[...][inputs]
                + self.position_covariance[...][positions],
            ]
        )
        x = layers.dropout(self.input_norm(x), config.hidden_dropout, keys[0])
        mean, raw = map(layers.flatten_cells, (jax.nn.elu(x[0]), x[1]))
        for block, key in zip(self.blocks, keys[1:], strict=True):
            mean, raw = block(mean, raw, visible, key)
        users = jnp.concatenate([mean, deviation(raw)], axis=-1)
        return users.reshape(*inputs.shape, -1)


def deviation(raw: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns `sqrt(ELU(raw) + 1)`, the standard deviations of raw covariances.

    Where `raw` is negative this is `exp(raw / 2)`: no digits cancel and no root is
    taken near zero, so it needs no lower bound for the sake of its derivative (the
    published code bounds the covariance by 1e-24 from below).

    Examples:
      >>> deviation(jnp.array([0.0, 8.0])).tolist()
      [1.0, 3.0]
    """
    positive = raw > 0
    # Each branch gets arguments of its own side alone: its derivative is finite there.
    root = jnp.sqrt(1 + jnp.where(positive, raw, 0))
    return jnp.where(positive, root, jnp.exp(jnp.where(positive, 0, raw) / 2))


def _project(linear, x, num_parts):
    """Returns the first parts, each as wide as `x`, of what a linear gives."""
    width = num_parts * x.shape[-1]
    y = x @ linear.kernel[:, :width] + linear.bias[:width]
    return jnp.split(y, num_parts, axis=-1)


def _covariance(raw):
    return jax.nn.elu(raw) + 1


def _distance(a, b):
    """Squared 2-Wasserstein distance of Gaussians given as points."""
    return jnp.sum(jnp.square(a - b), axis=-1)


def _initial(key, shape, dtype=jnp.float32):
    return 0.01 + 0.02 * jax.random.normal(key, shape, dtype)


def _linear(in_features: int, out_features: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(in_features, out_features, kernel_init=_initial, rngs=rngs)


def _norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance loses the digits that so small an epsilon relies on.
    return nnx.LayerNorm(width, epsilon=1e-12, use_fast_variance=False, rngs=rngs)
