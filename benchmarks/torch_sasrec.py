"""A plain PyTorch SASRec as a baseline of speed: padded frames, full attention.

The same model, batches and loss as ``sevo_jax.models.SASRec``, written the usual way.
Frames and negatives come ready-made from NumPy, so that no Python data loader counts
against it.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-8)
        self.attention = nn.MultiheadAttention(
            width, num_heads=1, dropout=dropout, batch_first=True
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
        x = x + self.attention(query, x, x, attn_mask=hidden, need_weights=False)[0]
        y = self.feed_forward_norm(x)
        return (self.feed_forward(y) + y) * valid


class TorchSASRec(nn.Module):
    def __init__(self, num_items, *, max_len=50, width=64, num_blocks=2, dropout=0.3):
        super().__init__()
        self.items = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.positions = nn.Parameter(torch.empty(max_len, width))
        nn.init.xavier_normal_(self.items.weight)
        nn.init.xavier_normal_(self.positions)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(num_blocks))
        self.final_norm = nn.LayerNorm(width, eps=1e-8)
        hidden = torch.ones(max_len, max_len, dtype=torch.bool).triu(1)
        self.register_buffer("hidden", hidden)

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
