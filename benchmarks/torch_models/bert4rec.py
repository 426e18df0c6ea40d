"""BERT4Rec, with ``nn.TransformerEncoder`` as it comes.

Logits are computed at the hidden cells alone: the more sparing of the two usual ways.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sevo_jax import models
from sevo_jax.data import Sequences
from sevo_jax.samples import MaskedBatch, left_pad
from torch_models.samples import linear_weights, norm_weights

MASK = 1


class MaskedSamples(torch.utils.data.Dataset):
    """Items of one user, some hidden, and what is hidden; padded on the left."""

    def __init__(self, train: Sequences, num_items: int, config: Any):
        recent = train.last(config.max_len)
        self.sequences = [items + 2 for items in recent if len(items)]
        self.max_len = config.max_len
        self.mask_prob = config.mask_prob

    def __len__(self):
        return len(self.sequences)

    def __getitem__(self, user):
        items = self.sequences[user]
        hidden = np.random.random(len(items)) < self.mask_prob
        inputs, labels = np.zeros((2, self.max_len), np.int64)
        inputs[-len(items) :] = np.where(hidden, MASK, items)
        labels[-len(items) :] = np.where(hidden, items, 0)
        return inputs, labels


class TorchBERT4Rec(nn.Module):
    Samples = MaskedSamples

    def __init__(self, original: models.BERT4Rec):
        super().__init__()
        config = original.config
        width, self.max_len = config.width, config.max_len
        num_rows = original.num_items + 2
        self.items = nn.Embedding(num_rows, width, padding_idx=0)
        self.positions = nn.Parameter(torch.empty(self.max_len, width))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        block = nn.TransformerEncoderLayer(
            width,
            config.num_heads,
            4 * width,
            config.dropout,
            activation="gelu",
            batch_first=True,
        )
        self.encoder = nn.TransformerEncoder(block, config.num_blocks)
        self.output = nn.Linear(width, num_rows)

    def forward(self, inputs):
        x = self.dropout(self.norm(self.items(inputs) + self.positions))
        return self.encoder(x, src_key_padding_mask=inputs == 0)

    def loss(self, inputs, labels):
        hidden = labels != 0
        return F.cross_entropy(self.output(self(inputs)[hidden]), labels[hidden])

    def score(self, inputs):
        return self.output(self(inputs)[:, -1])[:, 2:]

    def frames(self, sequences, users):
        frames = np.full((len(sequences), self.max_len), MASK)
        frames[:, :-1] = left_pad(sequences, self.max_len - 1, item_offset=2)
        return torch.from_numpy(frames)

    @staticmethod
    def weights(original: models.BERT4Rec):
        weights = {
            "items.weight": original.item_embedding[...],
            "positions": original.position_embedding[...],
            **norm_weights("norm", original.input_norm),
            "output.weight": original.output_embedding[...],
            "output.bias": original.output_bias[...],
        }
        for index, block in enumerate(original.blocks):
            name = f"encoder.layers.{index}"
            attention = block.attention
            weights |= {
                f"{name}.self_attn.in_proj_weight": attention.kernel_in[...].T,
                f"{name}.self_attn.in_proj_bias": attention.bias_in[...],
                **linear_weights(f"{name}.self_attn.out_proj", attention.project_out),
                **linear_weights(f"{name}.linear1", block.expand),
                **linear_weights(f"{name}.linear2", block.contract),
                **norm_weights(f"{name}.norm1", block.attention_norm),
                **norm_weights(f"{name}.norm2", block.feed_forward_norm),
            }
        return weights

    @staticmethod
    def original_batch(inputs, labels):
        inputs, labels = (np.asarray(part, np.int32) for part in (inputs, labels))
        positions = np.broadcast_to(np.arange(inputs.shape[1]), inputs.shape)
        hidden = np.flatnonzero(labels)
        return MaskedBatch(
            inputs,
            (inputs > 0).astype(np.int32),
            positions,
            hidden,
            labels.reshape(-1)[hidden],
        )
