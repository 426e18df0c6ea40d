"""MF-BPR: matrix factorisation, trained to rank pairs of items.

Rendle, Freudenthaler, Gantner and Schmidt-Thieme, "BPR: Bayesian personalized ranking
from implicit feedback", UAI 2009, in the form that the SEvo paper trains: users are
sampled uniformly, there are no biases, and nothing but the optimizer's weight decay
regularises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences
from sevo_jax.models import layers
from sevo_jax.models.recommender import Recommender, Sizes, check_items
from sevo_jax.models.registry import register
from sevo_jax.samples.triplets import TripletBatch, TripletEpochs


@dataclass(frozen=True)
class MFBPRConfig:
    """Hyper-parameters of `MFBPR`.

    Attributes:
      width: Size of the user and item embeddings.
    """

    width: int = 64

    def __post_init__(self):
        _checks.at_least(self, 1, "width")


@register("mf-bpr")
class MFBPR(Recommender):
    """Matrix factorisation: a user scores an item by their embeddings' inner product.

    User `u` and item `i` are the rows `u` and `i` of their tables. Embeddings start as
    N(0, 1e-4) (a deviation), nearly zero. A user is known by row and not by history:
    only those of the training data can be served.

    Args:
      num_users: How many users there are.
      num_items: How many items there are.
      config: Hyper-parameters.
      rngs: Source of the initial values (stream `params`).

    Examples:
      >>> import numpy as np
      >>> from flax import nnx
      >>> from sevo_jax.data.sequences import Sequences
      >>> model = MFBPR(2, 9, MFBPRConfig(width=8), rngs=nnx.Rngs(0))
      >>> train = Sequences.from_lists([[0, 1, 2], [3, 4]])
      >>> epochs = model.epochs(train, batch_size=2, seed=0)
      >>> step = TripletBatch(*(field[0] for field in epochs[0]))
      >>> model.loss(step, rng=None).shape
      ()
      >>> model.score(model.inputs(train, np.arange(2))).shape
      (2, 9)
    """

    Config = MFBPRConfig
    item_offset: ClassVar[int] = 0
    smoothed: ClassVar[dict[str, tuple[Any, ...]]] = {
        "user-item": (("user_embedding", "item_embedding"),),
        "item-item": ("item_embedding",),
    }

    def __init__(
        self, num_users: int, num_items: int, config: MFBPRConfig, *, rngs: nnx.Rngs
    ):
        for name, value in (("num_users", num_users), ("num_items", num_items)):
            _checks.require(value >= 1, name, value, "at least 1")
        self.num_users = num_users
        self.num_items = num_items
        self.config = config
        initial = nnx.initializers.normal(1e-4)
        shapes = ((rows, config.width) for rows in (num_users, num_items))
        self.user_embedding, self.item_embedding = (
            nnx.Param(initial(rngs.params(), shape)) for shape in shapes
        )

    @classmethod
    def for_data(
        cls, sizes: Sizes, config: Any, *, graphs: Mapping[str, Any], rngs: nnx.Rngs
    ) -> MFBPR:
        del graphs
        return cls(sizes.num_users, sizes.num_items, config, rngs=rngs)

    def loss(self, batch: TripletBatch, *, rng: jax.Array | None) -> Float[Array, ""]:
        """Returns BPR's loss, the mean of `softplus(s_negative - s_positive)`.

        Args:
          batch: One step, fields `[batch_size]`.
          rng: Ignored: nothing is dropped.
        """
        del rng
        users = self.user_embedding[...][batch.users]
        negatives, positives = layers.look_up(
            self.item_embedding[...], batch.negatives, batch.positives
        )
        losses = jax.nn.softplus(jnp.sum(users * (negatives - positives), axis=-1))
        return jnp.mean(losses, where=batch.valid)

    def score(self, inputs: Int[Array, "users 1"]) -> Float[Array, "users num_items"]:
        """Returns each item's score for users, rows of the user table."""
        return self.user_embedding[...][inputs[:, 0]] @ self.item_embedding[...].T

    def inputs(
        self, sequences: Sequences, users: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns what `score` takes, int32 `[len(sequences), 1]`: the users.

        Args:
          sequences: Items of each user, `0..num_items-1`; they are not looked at but
            for being the items of the training data.
          users: Whose they are, `0..num_users-1`, as in the training data.

        Raises:
          ValueError: If `users` is missing, does not fit `sequences` or is out of
            range, or an item is.
        """
        check_items(sequences, self.num_items)
        if users is None:
            raise ValueError("MFBPR knows users by their rows alone: give `users`")
        users = np.asarray(users)
        if users.shape != (len(sequences),):
            raise ValueError(
                f"users has shape {users.shape}, there are {len(sequences)} sequences"
            )
        if users.size and (users.min() < 0 or users.max() >= self.num_users):
            raise ValueError(
                f"users run from {users.min()} to {users.max()}, the model knows "
                f"0..{self.num_users - 1}: it cannot serve users it was not trained on"
            )
        return users.astype(np.int32)[:, None]

    def epochs(self, train: Sequences, *, batch_size: int, seed: int) -> TripletEpochs:
        """Returns the epochs of `train`, by number; a step of one is a loss's batch.

        Raises:
          ValueError: If `train` does not have one row for each user.
        """
        if len(train) != self.num_users:
            raise ValueError(
                f"train has {len(train)} users, the model {self.num_users}"
            )
        return TripletEpochs(train, self.num_items, batch_size=batch_size, seed=seed)
