"""SASRec, with ``nn.MultiheadAttention`` as it comes."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from sevo_jax import models
from sevo_jax.samples import left_pad
from torch_models.samples import UserSamples, linear_weights, norm_weights, packed


class Block(nn.Module):
    need_weights = True
    """Whether the attention returns its weights, which nobody reads: its default."""

    def __init__(self, config: models.SASRecConfig):
        super().__init__()
        width, dropout = config.width, config.dropout
        self.attention_norm = nn.LayerNorm(width, eps=1e-8)
        self.attention = nn.MultiheadAttention(
            width, config.num_heads, dropout=dropout, batch_first=True
        )
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-8)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, width),
            nn.Dropout(dropout),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x, hidden, valid):
        query = self.attention_norm(x)
        mixed, _ = self.attention(
            query, x, x, attn_mask=hidden, need_weights=self.need_weights
        )
        x = x + mixed
        y = self.feed_forward_norm(x)
        return (self.feed_forward(y) + y) * valid


class TorchSASRec(nn.Module):
    Samples = UserSamples

    def __init__(self, original: models.SASRec):
        super().__init__()
        config = original.config
        width, self.max_len = config.width, config.max_len
        self.items = nn.Embedding(original.num_items + 1, width, padding_idx=0)
        self.positions = nn.Parameter(torch.empty(self.max_len, width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.final_norm = nn.LayerNorm(width, eps=1e-8)
        hidden = torch.ones(self.max_len, self.max_len, dtype=torch.bool).triu(1)
        self.register_buffer("hidden", hidden, persistent=False)

    def forward(self, inputs):
        valid = (inputs != 0).unsqueeze(-1)
        width = self.items.embedding_dim
        x = self.items(inputs) * math.sqrt(width) + self.positions
        x = self.dropout(x) * valid
        for block in self.blocks:
            x = block(x, self.hidden, valid)
        return self.final_norm(x)

    def loss(self, inputs, targets, negatives):
        features = self(inputs)
        valid = targets != 0
        positive = (features * self.items(targets)).sum(-1)[valid]
        negative = (features * self.items(negatives)).sum(-1)[valid]
        return F.softplus(-positive).mean() + F.softplus(negative).mean()

    def score(self, inputs):
        return self(inputs)[:, -1] @ self.items.weight[1:].T

    def frames(self, sequences, users):
        return torch.from_numpy(left_pad(sequences, self.max_len)).long()

    @staticmethod
    def weights(original: models.SASRec):
        weights = {
            "items.weight": original.item_embedding[...],
            "positions": original.position_embedding[...],
            **norm_weights("final_norm", original.final_norm),
        }
        for index, block in enumerate(original.blocks):
            name = f"blocks.{index}"
            attention = block.attention
            weights |= {
                f"{name}.attention.in_proj_weight": attention.kernel_in[...].T,
                f"{name}.attention.in_proj_bias": attention.bias_in[...],
                **linear_weights(f"{name}.attention.out_proj", attention.project_out),
                **linear_weights(f"{name}.feed_forward.0", block.expand),
                **linear_weights(f"{name}.feed_forward.3", block.contract),
                **norm_weights(f"{name}.attention_norm", block.attention_norm),
                **norm_weights(f"{name}.feed_forward_norm", block.feed_forward_norm),
            }
        return weights

    original_batch = staticmethod(packed)
