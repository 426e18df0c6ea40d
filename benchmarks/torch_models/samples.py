"""What several datasets and models have in common."""

import random
from typing import Any

import numpy as np
import torch

from sevo_jax.data import Sequences
from sevo_jax.samples import PackedBatch


def draw_negative(seen: set[int], num_items: int) -> int:
    """A random row of the item table, from 1, that is none of `seen`."""
    while (item := random.randint(1, num_items)) in seen:
        pass
    return item


class UserSamples(torch.utils.data.Dataset):
    """Inputs, targets and negatives of one user, left-padded to ``max_len``."""

    def __init__(self, train: Sequences, num_items: int, config: Any):
        self.sequences = [items + 1 for items in train if len(items) > 1]
        self.seen = [set(items.tolist()) for items in self.sequences]
        self.num_items = num_items
        self.max_len = config.max_len

    def __len__(self):
        return len(self.sequences)

    def __getitem__(self, user):
        items = self.sequences[user]
        inputs, targets, negatives = np.zeros((3, self.max_len), np.int64)
        length = min(len(items) - 1, self.max_len)
        inputs[-length:] = items[:-1][-length:]
        targets[-length:] = items[1:][-length:]
        negatives[-length:] = [
            draw_negative(self.seen[user], self.num_items) for _ in range(length)
        ]
        return inputs, targets, negatives


def packed(inputs, targets, negatives) -> PackedBatch:
    """Left-padded frames ``[..., max_len]`` as packed rows of one user each."""
    inputs, targets, negatives = (
        np.asarray(part, np.int32) for part in (inputs, targets, negatives)
    )
    valid = (targets > 0).astype(np.int32)
    pads = np.sum(valid == 0, axis=-1, keepdims=True, dtype=np.int32) * valid
    positions = np.arange(valid.shape[-1], dtype=np.int32) * valid
    return PackedBatch(inputs, targets, negatives, valid, positions, pads)


def linear_weights(name: str, linear: Any) -> dict[str, Any]:
    """The entries of a PyTorch linear layer, from one of Flax."""
    kernel, bias = linear.kernel[...], linear.bias[...]
    return {f"{name}.weight": kernel.T, f"{name}.bias": bias}


def norm_weights(name: str, norm: Any) -> dict[str, Any]:
    """The entries of a PyTorch layer norm, from one of Flax."""
    return {f"{name}.weight": norm.scale[...], f"{name}.bias": norm.bias[...]}
