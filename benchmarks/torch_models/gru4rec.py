"""GRU4Rec."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sevo_jax import models
from sevo_jax.data import Sequences
from sevo_jax.samples import PrefixBatch
from torch_models.samples import draw_negative, linear_weights


class PrefixSamples(torch.utils.data.Dataset):
    """One prefix of one user, right-padded to ``max_len``, what follows, a negative."""

    def __init__(self, train: Sequences, num_items: int, config: Any):
        self.sequences = [items + 1 for items in train]
        self.seen = [set(items.tolist()) for items in self.sequences]
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
        negative = draw_negative(self.seen[user], self.num_items)
        return inputs, int(items[length]), negative


class TorchGRU4Rec(nn.Module):
    Samples = PrefixSamples

    def __init__(self, original: models.GRU4Rec):
        super().__init__()
        config = original.config
        self.max_len = config.max_len
        self.items = nn.Embedding(original.num_items + 1, config.width, padding_idx=0)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(
            config.width, config.hidden_width, bias=False, batch_first=True
        )
        self.output = nn.Linear(config.hidden_width, config.width)

    def forward(self, inputs):
        states, _ = self.gru(self.dropout(self.items(inputs)))
        last = (inputs != 0).sum(1) - 1
        rows = torch.arange(len(inputs), device=inputs.device)
        return self.output(states[rows, last])

    def loss(self, inputs, targets, negatives):
        features = self(inputs)
        positive = (features * self.items(targets)).sum(-1)
        negative = (features * self.items(negatives)).sum(-1)
        return F.softplus(negative - positive).mean()

    def score(self, inputs):
        return self(inputs) @ self.items.weight[1:].T

    def frames(self, sequences, users):
        frames = np.zeros((len(sequences), self.max_len), np.int64)
        for frame, items in zip(frames, sequences.last(self.max_len), strict=True):
            frame[: len(items)] = items + 1
        return torch.from_numpy(frames)

    @staticmethod
    def weights(original: models.GRU4Rec):
        return {
            "items.weight": original.item_embedding[...],
            "gru.weight_ih_l0": original.kernel_in[...].T,
            "gru.weight_hh_l0": original.kernel_hidden[...].T,
            **linear_weights("output", original.project_out),
        }

    @staticmethod
    def original_batch(*batch):
        inputs, targets, negatives = (np.asarray(part, np.int32) for part in batch)
        starts = np.zeros(inputs.shape, bool)
        starts[:, 0] = True
        rows, max_len = inputs.shape
        cells = np.arange(rows) * max_len + np.count_nonzero(inputs, axis=1) - 1
        return PrefixBatch(inputs, starts, cells.astype(np.int32), targets, negatives)
