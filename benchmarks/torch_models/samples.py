"""What several datasets and models have in common."""

import random
from typing import Any

import numpy as np
import torch

from sevo_jax.data import Sequences
from sevo_jax.operators import CSROperator
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


class PrefixSamples(torch.utils.data.Dataset):
    """One prefix of one user, right-padded to ``max_len``, and what follows it."""

    def __init__(self, train: Sequences, num_items: int, config: Any):
        self.sequences = [items + 1 for items in train]
        self.prefixes = [
            (user, length)
            for user, items in enumerate(self.sequences)
            for length in range(1, len(items))
        ]
        self.num_items = num_items
        self.max_len = config.max_len

    def __len__(self):
        return len(self.prefixes)

    def __getitem__(self, index):
        user, length = self.prefixes[index]
        items = self.sequences[user]
        prefix = items[max(0, length - self.max_len) : length]
        inputs = np.zeros(self.max_len, np.int64)
        inputs[: len(prefix)] = prefix
        return inputs, int(items[length])


def right_pad(sequences: Sequences, max_len: int) -> np.ndarray:
    """The last items of each sequence from the left on, 0 behind them."""
    frames = np.zeros((len(sequences), max_len), np.int64)
    for frame, items in zip(frames, sequences.last(max_len), strict=True):
        frame[: len(items)] = items + 1
    return frames


def cut_to_longest(inputs: Any) -> Any:
    """Right-padded frames without what is padding in all of them."""
    return inputs[:, : int((inputs != 0).sum(1).max())]


def first_of_equal(rows: Any) -> Any:
    """For each entry, the first place in its row where the same stands."""
    same = rows[:, :, None] == rows[:, None, :]
    return same.byte().argmax(2)


def prefix_rows(inputs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right-padded frames, a run each: the rows, where runs start, their last cells."""
    inputs = np.asarray(inputs, np.int32)
    starts = np.zeros(inputs.shape, bool)
    starts[:, 0] = True
    rows, max_len = inputs.shape
    cells = np.arange(rows) * max_len + np.count_nonzero(inputs, axis=1) - 1
    return inputs, starts, cells.astype(np.int32)


def packed(inputs, targets, negatives) -> PackedBatch:
    """Left-padded frames ``[..., max_len]`` as packed rows of one user each."""
    inputs, targets, negatives = (
        np.asarray(part, np.int32) for part in (inputs, targets, negatives)
    )
    valid = (targets > 0).astype(np.int32)
    pads = np.sum(valid == 0, axis=-1, keepdims=True, dtype=np.int32) * valid
    positions = np.arange(valid.shape[-1], dtype=np.int32) * valid
    return PackedBatch(inputs, targets, negatives, valid, positions, pads)


def edges_of(graph: CSROperator) -> tuple[Any, Any]:
    """Rows and columns, `[2, edges]`, and weights of a graph of sevo_jax."""
    edges = np.stack([graph.rows, graph.columns])
    return torch.from_numpy(edges).long(), torch.tensor(np.asarray(graph.weights))


def sparse_matrix(edges: Any, weights: Any, size: int) -> Any:
    """A matrix of PyTorch's of edges that are sorted by row."""
    return torch.sparse_coo_tensor(
        edges, weights, (size, size), is_coalesced=True, check_invariants=False
    )


def linear_weights(name: str, linear: Any) -> dict[str, Any]:
    """The entries of a PyTorch linear layer, from one of Flax."""
    weights = {f"{name}.weight": linear.kernel[...].T}
    if linear.bias is not None:
        weights[f"{name}.bias"] = linear.bias[...]
    return weights


def norm_weights(name: str, norm: Any) -> dict[str, Any]:
    """The entries of a PyTorch layer norm, from one of Flax."""
    return {f"{name}.weight": norm.scale[...], f"{name}.bias": norm.bias[...]}
