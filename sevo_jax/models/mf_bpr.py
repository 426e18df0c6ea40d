"""MF-BPR: matrix factorisation, trained to rank pairs of items.

Rendle, Freudenthaler, Gantner and Schmidt-Thieme, "BPR: Bayesian personalized ranking
from implicit feedback", UAI 2009, in the form that the SEvo paper trains: users are
sampled uniformly, there are no biases, and nothing but the optimizer's weight decay
regularises.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from sevo_jax import _checks
from sevo_jax.models import layers
from sevo_jax.models.recommender import UserModel
from sevo_jax.models.registry import register
from sevo_jax.samples.triplets import TripletBatch


@dataclass(frozen=True)
class MFBPRConfig:
    """Hyper-parameters of `MFBPR`.

    Attributes:
      width: size of the user and item embeddings.
    """

    width: int = 64

    def __post_init__(self):
        _checks.at_least(self, 1, "width")


@register("mf-bpr")
class MFBPR(UserModel):
    """Matrix factorisation: a user scores an item by their embeddings' inner product.

    User `u` and item `i` are the rows `u` and `i` of their tables. Embeddings start as
    N(0, 1e-4) (a deviation), nearly zero. A user is known by row and not by history:
    only those of the training data can be served.

    Args:
      num_users: how many users there are.
      num_items: how many items there are.
      config: Hyper-parameters.
      rngs: source of the initial values (stream `params`).

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
    def of_tables(
        cls,
        users: Float[Array, "num_users width"],
        items: Float[Array, "num_items width"],
    ) -> MFBPR:
        """Makes the model that ranks with these tables."""
        (num_users, width), num_items = users.shape, len(items)
        config = MFBPRConfig(width)
        model = nnx.eval_shape(
            lambda: cls(num_users, num_items, config, rngs=nnx.Rngs(0))
        )
        model.user_embedding, model.item_embedding = nnx.Param(users), nnx.Param(items)
        return model

    def loss(self, batch: TripletBatch, *, rng: jax.Array | None) -> Float[Array, ""]:
        """Returns BPR's loss, the mean of `softplus(s_negative - s_positive)`.

        Args:
          batch: one step, fields `[batch_size]`.
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
