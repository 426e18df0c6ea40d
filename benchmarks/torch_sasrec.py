"""A plain PyTorch SASRec as a baseline of speed: padded frames, full attention.

The same model and loss as ``sevo_jax.models.SASRec``, written the usual way: a dataset
that pads and samples user by user, a data loader, ``nn.MultiheadAttention`` as it
comes. ``tuned=True`` spares it the attention weights that nobody reads.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class UserSamples(torch.utils.data.Dataset):
    """Input, targets and negatives of one user, left-padded to ``max_len``."""

    def __init__(self, sequences, num_items: int, max_len: int):
        self.sequences = [np.asarray(items) + 1 for items in sequences]
        self.num_items = num_items
        self.max_len = max_len

    def __len__(self):
        return len(self.sequences)

    def __getitem__(self, user):
        items = self.sequences[user]
        inputs, targets, negatives = np.zeros((3, self.max_len), np.int64)
        length = min(len(items) - 1, self.max_len)
        inputs[-length:] = items[:-1][-length:]
        targets[-length:] = items[1:][-length:]
        seen = set(items.tolist())
        for place in range(self.max_len - length, self.max_len):
            negative = np.random.randint(1, self.num_items + 1)
            while negative in seen:
                negative = np.random.randint(1, self.num_items + 1)
            negatives[place] = negative
        return inputs, targets, negatives


class Block(nn.Module):
    def __init__(self, width: int, dropout: float, tuned: bool):
        super().__init__()
        self.tuned = tuned
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
        need_weights = not self.tuned
        mixed, _ = self.attention(
            query, x, x, attn_mask=hidden, need_weights=need_weights
        )
        x = x + mixed
        y = self.feed_forward_norm(x)
        return (self.feed_forward(y) + y) * valid


class TorchSASRec(nn.Module):
    def __init__(self, num_items, *, max_len, width, num_blocks, dropout, tuned):
        super().__init__()
        self.items = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.positions = nn.Parameter(torch.empty(max_len, width))
        nn.init.xavier_normal_(self.items.weight)
        nn.init.xavier_normal_(self.positions)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, dropout, tuned) for _ in range(num_blocks)
        )
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
