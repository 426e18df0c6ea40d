"""What the sequence models have in common: what they train on and rank from."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from flax import nnx

from sevo_jax.data.sequences import Sequences
from sevo_jax.samples.packing import PackedEpochs, left_pad


class SequenceModel(nnx.Module):
    """A recommender that knows a user by the items of the user's history alone.

    Item `i` is row `i + item_offset` of the item tables, and row 0 stands for padding.

    Attributes:
        num_items: How many items there are.
        config: Hyper-parameters, `max_len` among them.
        item_offset: Rows in front of the items.
        smoothed: By kind of graph, the leaves that SEvo smooths over it.
    """

    item_offset: ClassVar[int] = 1
    smoothed: ClassVar[dict[str, tuple[Any, ...]]] = {"item-item": ("item_embedding",)}

    num_items: int
    config: Any

    def inputs(
        self, sequences: Sequences, users: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the frames that `score` takes, int32 `[len(sequences), cells]`.

        `cells` is the smallest of 8, 16, 32, ... that holds the longest sequence, and
        `max_len` at most: few widths to compile for, and little work on pads.

        Args:
            sequences: Items of each user, `0..num_items-1`, the oldest first.
            users: Who they are, which makes no difference.

        Raises:
            ValueError: If an item is out of range.
        """
        del users
        check_items(sequences, self.num_items)
        cells = 8
        while cells < sequences.lengths.max(initial=0):
            cells *= 2
        return left_pad(sequences, min(cells, self.config.max_len), self.item_offset)

    def epochs(self, train: Sequences, *, batch_size: int, seed: int) -> Any:
        """Returns the epochs of `train`, by number; a step of one is a loss's batch.

        Those of next-item training, where a model has no others.

        Args:
            train: Train items of each user.
            batch_size: Users of a step.
            seed: Non-negative.
        """
        return PackedEpochs(
            train,
            self.num_items,
            max_len=self.config.max_len,
            batch_size=batch_size,
            seed=seed,
            item_offset=self.item_offset,
        )


def check_items(sequences: Sequences, num_items: int) -> None:
    """Makes sure that the items are those a model was made for.

    Raises:
        ValueError: If an item is out of range.
    """
    if sequences.values.size:
        least, most = sequences.values.min(), sequences.values.max()
        if least < 0 or most >= num_items:
            raise ValueError(
                f"items run from {least} to {most}, the model knows "
                f"0..{num_items - 1}: map them as its training data was"
            )
