"""The contract of a recommender: what trainer, evaluator and runs ask of a model.

A new model derives from `Recommender`: from `SequenceModel` if it knows a user by the
user's items alone, from `UserModel` if by the row of a table. It is registered by name
(`sevo_jax.models.register`).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self, TypeAlias

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sevo_jax._leaves import LeafName
from sevo_jax.data.sequences import Sequences, check_items
from sevo_jax.graphs.kinds import GraphConfig
from sevo_jax.samples import Epochs, PackedEpochs, TripletEpochs, left_pad

Loss: TypeAlias = Float[Array, ""] | tuple[Float[Array, ""], Mapping[str, jax.Array]]


class GraphVariable(nnx.Variable):
    """A graph that a model propagates over: a `sevo_jax.GraphOperator`.

    Compiled programs get it as an argument. It is neither trained nor saved.
    """


class Sizes(Protocol):
    """How many users and items a log has; a split of it knows."""

    @property
    def num_users(self) -> int: ...

    @property
    def num_items(self) -> int: ...


class Recommender(nnx.Module):
    """A model that is trained on samples of a log and scores all items for a user.

    Its NNX variables are of three kinds. `nnx.Param` is differentiated, optimized and
    saved. `GraphVariable` is given to compiled programs and not saved. Every other
    variable (batch statistics, masks, generators) is carried through training and
    saved; no optimizer changes it.

    Attributes:
      num_items: number of items. The model's item `i` is the log's item `i`.
      config: hyper-parameters, a `Config`.
      Config: a frozen dataclass of hyper-parameters, each with a default.
      knows_users: whether a user is a row of the model's, so that it serves those that
        it was trained on alone.
      item_offset: rows of the item tables in front of the items.
      smoothed: by what a graph links, "item-item" or "user-item", the leaves that SEvo
        smooths over it. A tuple of names is one table over the nodes of the graph.
    """

    Config: ClassVar[type]
    knows_users: ClassVar[bool] = True
    item_offset: ClassVar[int] = 0
    smoothed: ClassVar[Mapping[str, tuple[LeafName, ...]]] = {}

    num_items: int
    config: Any

    @classmethod
    def propagated(cls, config: Any) -> Mapping[str, GraphConfig]:
        """Returns the graphs that a forward pass needs, by names of the model's own."""
        del config
        return {}

    @classmethod
    @abc.abstractmethod
    def for_data(
        cls, sizes: Sizes, config: Any, *, graphs: Mapping[str, Any], rngs: nnx.Rngs
    ) -> Self:
        """Makes the model for a log.

        Args:
          sizes: how many users and items there are, such as a split.
          config: hyper-parameters.
          graphs: a `sevo_jax.GraphOperator` for each name in `propagated(config)`.
          rngs: source of the initial values (stream `params`).
        """

    @abc.abstractmethod
    def epochs(self, train: Sequences, *, batch_size: int, seed: int) -> Epochs:
        """Returns the epochs of training; a step of one is a batch of `loss`.

        Args:
          train: train items of each user.
          batch_size: samples of a step; what a sample is, the model says.
          seed: in [0, 2**32).
        """

    @abc.abstractmethod
    def loss(self, batch: Any, *, rng: jax.Array | None) -> Loss:
        """Returns the loss of a step, or the loss and its parts by name.

        The parts are logged. Carried variables may be changed.

        Args:
          batch: one step of `epochs`.
          rng: key of the step; None for a loss without dropout.
        """

    def before_step(self) -> None:
        """Changes parameters ahead of a step, outside its gradient; here none.

        `loss` and the optimizer go on from what it leaves. Carried variables may be
        changed too.
        """

    @abc.abstractmethod
    def inputs(self, sequences: Sequences, users: np.ndarray | None = None) -> Any:
        """Returns what `score` takes, made on the host: an array `[b, ...]`.

        It may be narrower where all sequences are short.

        Args:
          sequences: items of each user, `0..num_items-1`, the oldest first.
          users: rows of the users, for a model that knows its users.

        Raises:
          ValueError: if an item or a user is out of range.
        """

    @abc.abstractmethod
    def score(self, inputs: Any) -> Float[Array, "b num_items"]:
        """Returns a score of every item, without dropout; the higher, the better."""

    def for_ranking(self) -> Recommender:
        """Returns the model as it ranks; here itself.

        A model that propagates over a graph returns one that holds the propagated
        tables, which is made once an evaluation. It is what a run saves as its best.
        """
        return self


class SequenceModel(Recommender):
    """A recommender that knows a user by the items of the user's history alone.

    Item `i` is row `i + item_offset` of the item tables, and row 0 stands for padding.
    It is made by `cls(num_items, config, rngs=rngs)`.
    """

    knows_users: ClassVar[bool] = False
    item_offset: ClassVar[int] = 1
    smoothed: ClassVar[Mapping[str, tuple[LeafName, ...]]] = {
        "item-item": ("item_embedding",)
    }

    @abc.abstractmethod
    def __init__(self, num_items: int, config: Any, *, rngs: nnx.Rngs): ...

    @classmethod
    def for_data(
        cls, sizes: Sizes, config: Any, *, graphs: Mapping[str, Any], rngs: nnx.Rngs
    ) -> Self:
        del graphs
        return cls(sizes.num_items, config, rngs=rngs)

    def inputs(
        self, sequences: Sequences, users: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns left-padded frames, int32 `[len(sequences), cells]`.

        `cells` is the smallest of 8, 16, 32, ... that holds the longest sequence, and
        `max_len` at most: few widths to compile for, and little work on pads.

        Args:
          sequences: items of each user, `0..num_items-1`, the oldest first.
          users: ignored.

        Raises:
          ValueError: if an item is out of range.
        """
        del users
        return self._frames(sequences, self.item_offset)

    def _frames(self, sequences: Sequences, item_offset: int) -> np.ndarray:
        check_items(sequences, self.num_items)
        cells = 8
        while cells < sequences.lengths.max(initial=0):
            cells *= 2
        return left_pad(sequences, min(cells, self.config.max_len), item_offset)

    def epochs(self, train: Sequences, *, batch_size: int, seed: int) -> Epochs:
        """Returns the epochs of next-item training (`PackedEpochs`).

        Args:
          train: train items of each user.
          batch_size: users of a step.
          seed: in [0, 2**32).
        """
        check_items(train, self.num_items)
        return PackedEpochs(
            train,
            self.num_items,
            max_len=self.config.max_len,
            batch_size=batch_size,
            seed=seed,
            item_offset=self.item_offset,
            with_negatives=self.takes_negatives,
        )

    @property
    def takes_negatives(self) -> bool:
        """Whether the samples of next-item training have negatives."""
        return True


class UserModel(Recommender):
    """A recommender with a table of users: it serves those of the training data alone.

    User `u` and item `i` are the rows `u` and `i` of `user_embedding` and
    `item_embedding`. It is made by `cls(num_users, num_items, config, rngs=rngs)`.

    Attributes:
      num_users: number of users.
    """

    smoothed: ClassVar[Mapping[str, tuple[LeafName, ...]]] = {
        "user-item": (("user_embedding", "item_embedding"),),
        "item-item": ("item_embedding",),
    }

    num_users: int

    @abc.abstractmethod
    def __init__(
        self, num_users: int, num_items: int, config: Any, *, rngs: nnx.Rngs
    ): ...

    @classmethod
    def for_data(
        cls, sizes: Sizes, config: Any, *, graphs: Mapping[str, Any], rngs: nnx.Rngs
    ) -> Self:
        del graphs
        return cls(sizes.num_users, sizes.num_items, config, rngs=rngs)

    def inputs(
        self, sequences: Sequences, users: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the rows of users, int32 `[len(sequences), 1]`.

        Args:
          sequences: items of each user, `0..num_items-1`; they are not looked at but
            for being the items of the training data.
          users: whose they are, `0..num_users-1`, as in the training data.

        Raises:
          ValueError: if `users` is missing, does not fit `sequences` or is out of
            range, or an item is.
        """
        check_items(sequences, self.num_items)
        if users is None:
            raise ValueError(
                f"{type(self).__name__} knows users by their rows alone: give `users`"
            )
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
        """Returns the epochs of pairwise ranking (`TripletEpochs`).

        Args:
          train: train items of each user.
          batch_size: triplets of a step.
          seed: in [0, 2**32).

        Raises:
          ValueError: if `train` does not have one row for each user.
        """
        if len(train) != self.num_users:
            raise ValueError(
                f"train has {len(train)} users, the model {self.num_users}"
            )
        return TripletEpochs(train, self.num_items, batch_size=batch_size, seed=seed)
