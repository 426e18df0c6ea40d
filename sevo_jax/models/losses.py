r"""The losses of next-item prediction, one of which a model is trained with.

A score :math:`s_i` is the product of a feature and the item's row of a table. With the
target :math:`p`, one negative :math:`n` or drawn items :math:`j` the losses of a target
are

==========  ========================================================================
`bce`       :math:`-\log \sigma(s_p) - \log(1 - \sigma(s_n))`
`bpr`       :math:`-\log \sigma(s_p - s_n)`, Rendle et al., UAI 2009
`ce`        :math:`-\log(\exp s_p / \sum_i \exp s_i)` over all items
`sampled`   the same over the target and the drawn items
`gbce`      :math:`-(b \log \sigma(s_p) + \sum_j \log(1 - \sigma(s_j))) / (k + 1)` with
            :math:`b = 1 - t (1 - k / (N - 1))`: Petrov and Macdonald, "gSASRec",
            RecSys 2023
==========  ========================================================================

and the loss of a step is their mean. The negative of `bce` and `bpr` is one that the
user has not in train, drawn with the samples; the `k` items of `sampled` and `gbce` are
drawn in the step, for each target by itself, uniformly and with replacement, from all
:math:`N` items but the target. The correction of the sampling (`log_q_correction`) adds
:math:`\log((N - 1) / k)` to the scores of the drawn, so that the sum under the target
has the mean of that over all items; the target, which is not drawn, keeps its score.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sevo_jax import _checks
from sevo_jax.models import layers
from sevo_jax.models.blocks import sum_over_blocks
from sevo_jax.models.cross_entropy import cross_entropy

LossName = Literal["bce", "bpr", "ce", "sampled", "gbce"]
# A batch is NumPy's or, in a compiled step, JAX's.
_Field: TypeAlias = Array | np.ndarray

# Numbers that are gathered at once: what a processor's cache holds.
_GATHERED = 2**20
# Apart from all keys that a model splits off the step's.
_DRAWS = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The choice of a loss, a part of a model's hyper-parameters.

    Attributes:
      loss: bce, bpr (one negative a target), ce (softmax over all items), sampled
        (softmax over drawn items) or gbce (gSASRec).
      num_negatives: items drawn for each target by sampled and gbce, at least 1.
      log_q_correction: whether sampled corrects for how it draws.
      calibration: t of gbce in [0, 1], 0.75 in the authors' experiments; 0 is plain
        binary cross-entropy.
    """

    loss: LossName = "bce"
    num_negatives: int | None = None
    log_q_correction: bool = False
    calibration: float | None = None

    def __post_init__(self):
        _checks.one_of(self, "loss", typing.get_args(LossName))
        unused = f"left out, as loss is {self.loss}"
        number, t = self.num_negatives, self.calibration
        if self.loss in ("sampled", "gbce"):
            what = f"at least 1, as loss is {self.loss}"
            holds = number is not None and number >= 1
            _checks.require_field(self, "num_negatives", holds, what)
        else:
            _checks.require_field(self, "num_negatives", number is None, unused)
        if self.loss != "sampled":
            holds = not self.log_q_correction
            _checks.require_field(self, "log_q_correction", holds, unused)
        if self.loss == "gbce":
            holds, what = t is not None and 0 <= t <= 1, "in [0, 1], as loss is gbce"
            _checks.require_field(self, "calibration", holds, what)
        else:
            _checks.require_field(self, "calibration", t is None, unused)

    @property
    def takes_negatives(self) -> bool:
        """Whether samples must have a negative for each target."""
        return self.loss in ("bce", "bpr")

    def check_num_items(self, num_items: int) -> None:
        """Makes sure that there are as many items as the loss needs.

        Raises:
          ValueError: naming the number.
        """
        _checks.require(num_items >= 1, "num_items", num_items, "at least 1")
        if self.num_negatives is not None:
            what = f"at least 2, as loss {self.loss} draws others than the target"
            _checks.require(num_items >= 2, "num_items", num_items, what)
        if self.loss == "gbce":
            what = f"below the number of items, {num_items}, as loss is gbce"
            holds = (self.num_negatives or 0) < num_items
            _checks.require_field(self, "num_negatives", holds, what)


def next_item_loss(
    config: LossConfig,
    table: Float[Array, "n d"],
    inputs: Int[_Field, "*cells"],
    targets: Int[_Field, "*m"],
    negatives: Int[_Field, "*m"],
    valid: Bool[_Field, "*m"],
    encode: Callable[[Float[Array, "*cells d"]], Float[Array, "*m d"]],
    *,
    item_offset: int,
    rng: jax.Array | None,
) -> Float[Array, ""]:
    """Returns the mean loss of the valid targets; 0 if there are none.

    Args:
      config: which loss.
      table: rows of the items, as input and as output.
      inputs: rows of the table.
      targets: rows of the table.
      negatives: rows of the table; only bce and bpr look at them.
      valid: which targets there are.
      encode: gives the feature of each target from the embedded inputs.
      item_offset: row of the table where item 0 stands.
      rng: key of the step. None draws always the same items.
    """
    if config.takes_negatives:
        embedded, positive, negative = layers.look_up(table, inputs, targets, negatives)
        losses = _pairwise(config.loss, encode(embedded), positive, negative)
        return jnp.sum(losses, where=valid) / jnp.maximum(jnp.sum(valid), 1)
    (embedded,) = layers.look_up(table, inputs)
    features = encode(embedded).reshape(-1, table.shape[1])
    targets, valid = targets.reshape(-1), valid.reshape(-1)
    if config.loss == "ce":
        weights = valid / jnp.maximum(jnp.sum(valid), 1)
        labels = jnp.where(valid, targets - item_offset, 0)
        weights = weights.astype(features.dtype)
        return cross_entropy(features, table[item_offset:], None, labels, weights)
    key = jax.random.key(0) if rng is None else jax.random.fold_in(rng, _DRAWS)
    drawn = draw_others(
        targets, config.num_negatives or 0, len(table), item_offset, key
    )
    term = _term(config, len(table) - item_offset)
    total: Any = _against_drawn(term, features, table, targets, drawn, valid)
    return total / jnp.maximum(jnp.sum(valid), 1)


def draw_others(
    rows: Int[_Field, " m"], num: int, num_rows: int, item_offset: int, key: jax.Array
) -> Int[Array, "m num"]:
    """Draws, for each row of a table, rows of other items, uniformly and independently.

    Args:
      rows: each of an item, or below all of them.
      num: how many to draw for each.
      num_rows: of the table.
      item_offset: row of the table where item 0 stands.
      key: of the draws.

    Examples:
      >>> draw_others(jnp.array([1, 2]), 3, 3, 1, jax.random.key(0)).tolist()
      [[2, 2, 2], [1, 1, 1]]
    """
    drawn = jax.random.randint(key, (len(rows), num), item_offset, num_rows - 1)
    return drawn + (drawn >= rows[:, None])


def _pairwise(name, features, positive, negative):
    if name == "bpr":
        return jax.nn.softplus(jnp.sum(features * (negative - positive), axis=-1))
    losses = jax.nn.softplus(-jnp.sum(features * positive, axis=-1))
    losses += jax.nn.softplus(jnp.sum(features * negative, axis=-1))
    return losses


def _term(config: LossConfig, num_items: int) -> Callable[[Any, Any], Any]:
    """The loss of targets by their scores, and those of the items drawn for each."""
    number = config.num_negatives or 0
    if config.loss == "gbce":
        assert config.calibration is not None
        power = 1 - config.calibration * (1 - number / (num_items - 1))

        def gbce(own, others):
            negative = jnp.sum(jax.nn.softplus(others), axis=1)
            return (power * jax.nn.softplus(-own) + negative) / (number + 1)

        return gbce
    shift = math.log((num_items - 1) / number) if config.log_q_correction else 0.0

    def sampled(own, others):
        others = jax.nn.logsumexp(others, axis=1) + shift
        return jax.nn.softplus(others - own)

    return sampled


def _against_drawn(term, features, table, targets, drawn, valid):
    """The sum of a term of the scores of valid targets and of the items drawn."""
    # A feature is one more row, gathered with those that it is multiplied by. Where
    # the table is split by its rows, putting them together would gather all of it.
    split = layers.split_by_rows.get()
    own = (0 if split else len(table)) + jnp.arange(len(features))
    ids = jnp.concatenate([own[:, None], targets[:, None], drawn], axis=1)
    ids = jnp.where(valid[:, None], ids, -1)

    def block_loss(params, block, rows):
        own = params[block[:, 0]] if split else rows[:, 0]
        scores = jnp.einsum("md,mkd->mk", own, rows[:, 1:])
        return jnp.sum(term(scores[:, 0], scores[:, 1:]), where=block[:, 0] >= 0)

    size = max(1, min(_GATHERED // (ids.shape[1] * table.shape[1]), len(ids)))
    if split:
        return sum_over_blocks(block_loss, size, features, table, ids)
    rows = jnp.concatenate([table, features])
    return sum_over_blocks(block_loss, size, (), rows, ids)
