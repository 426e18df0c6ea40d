"""GRU4Rec."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sevo_jax import models
from sevo_jax.data import Sequences
from sevo_jax.samples import PrefixBatch
from torch_models.samples import (
    PrefixSamples,
    draw_negative,
    linear_weights,
    prefix_rows,
    right_pad,
)


class NegativeSamples(PrefixSamples):
    """As `PrefixSamples`, and an item that the user does not have."""

    def __init__(self, train: Sequences, num_items: int, config: Any):
        super().__init__(train, num_items, config)
        self.seen = [set(items.tolist()) for items in self.sequences]

    def __getitem__(self, index):
        inputs, target = super().__getitem__(index)
        user, _ = self.prefixes[index]
        return inputs, target, draw_negative(self.seen[user], self.num_items)


class TorchGRU4Rec(nn.Module):
    Samples = NegativeSamples

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
        return torch.from_numpy(right_pad(sequences, self.max_len))

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
        inputs, *others = batch
        targets, negatives = (np.asarray(part, np.int32) for part in others)
        return PrefixBatch(*prefix_rows(inputs), targets, negatives)
