"""STOSA, in the default form: only the covariances pass through the blocks.

The layers that would propagate the means have no effect there and are left out.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sevo_jax import models
from sevo_jax.samples import left_pad
from torch_models.samples import UserSamples, linear_weights, norm_weights, packed


def root(covariance):
    return covariance.clamp(min=1e-24).sqrt()


def distance(mean, covariance, other_mean, other_covariance):
    """Squared Wasserstein distance of Gaussians, one by one."""
    means = (mean - other_mean).square().sum(-1)
    return means + (root(covariance) - root(other_covariance)).square().sum(-1)


def all_distances(mean, covariance, other_mean, other_covariance):
    """Squared Wasserstein distance of every Gaussian from every other one."""
    means = (
        mean.square().sum(-1, keepdim=True)
        + other_mean.square().sum(-1).unsqueeze(-2)
        - 2 * mean @ other_mean.transpose(-1, -2)
    )
    return (
        means
        + covariance.sum(-1, keepdim=True)
        + other_covariance.sum(-1).unsqueeze(-2)
        - 2 * root(covariance) @ root(other_covariance).transpose(-1, -2)
    )


class Attention(nn.Module):
    def __init__(self, config: models.STOSAConfig):
        super().__init__()
        width, self.num_heads = config.width, config.num_heads
        self.mean_query = nn.Linear(width, width)
        self.mean_key = nn.Linear(width, width)
        self.covariance_query = nn.Linear(width, width)
        self.covariance_key = nn.Linear(width, width)
        self.covariance_value = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.attention_dropout)
        self.output = nn.Linear(width, width)

    def heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, mean, covariance, hidden):
        query = self.heads(F.elu(self.covariance_query(covariance)) + 1)
        key = self.heads(F.elu(self.covariance_key(covariance)) + 1)
        value = self.heads(F.elu(self.covariance_value(covariance)) + 1)
        mean_query = self.heads(self.mean_query(mean))
        mean_key = self.heads(self.mean_key(mean))
        scores = -all_distances(mean_query, query, mean_key, key)
        scores = scores / math.sqrt(query.shape[-1])
        weights = scores.masked_fill(hidden, -(2.0**32)).softmax(-1)
        mixed = self.dropout(weights).square() @ value
        return self.output(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config: models.STOSAConfig):
        super().__init__()
        width = config.width
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.ELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(config.hidden_dropout),
        )
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, mean, covariance, hidden):
        mixed = self.dropout(self.attention(mean, covariance, hidden))
        x = self.attention_norm(mixed + covariance)
        return F.elu(self.feed_forward_norm(self.feed_forward(x) + x)) + 1


class TorchSTOSA(nn.Module):
    Samples = UserSamples

    def __init__(self, original: models.STOSA):
        super().__init__()
        config = original.config
        width, self.max_len = config.width, config.max_len
        if config.propagate_mean:
            raise ValueError("propagate_mean=True has no PyTorch form here")
        self.pvn_weight = config.pvn_weight
        num_rows = original.num_items + 1
        self.item_mean = nn.Embedding(num_rows, width, padding_idx=0)
        self.item_covariance = nn.Embedding(num_rows, width, padding_idx=0)
        self.position_mean = nn.Parameter(torch.empty(self.max_len, width))
        self.position_covariance = nn.Parameter(torch.empty(self.max_len, width))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        later = torch.ones(self.max_len, self.max_len, dtype=torch.bool).triu(1)
        self.register_buffer("later", later, persistent=False)

    def forward(self, inputs):
        mean = self.item_mean(inputs) + self.position_mean
        covariance = self.item_covariance(inputs) + self.position_covariance
        mean = F.elu(self.dropout(self.norm(mean)))
        covariance = F.elu(self.dropout(self.norm(covariance))) + 1
        hidden = self.later | (inputs == 0)[:, None, None, :]
        for block in self.blocks:
            covariance = block(mean, covariance, hidden)
        return mean, covariance

    def loss(self, inputs, targets, negatives):
        users: tuple[Any, Any] = self(inputs)
        target = self.item_mean(targets), F.elu(self.item_covariance(targets)) + 1
        other = self.item_mean(negatives), F.elu(self.item_covariance(negatives)) + 1
        valid = targets != 0
        positive = distance(*users, *target)[valid]
        negative = distance(*users, *other)[valid]
        nearer = F.relu(positive - distance(*target, *other)[valid])
        loss = F.softplus(positive - negative).mean()
        return loss + self.pvn_weight * nearer.mean()

    def score(self, inputs):
        mean, covariance = self(inputs)
        item_covariance = F.elu(self.item_covariance.weight[1:]) + 1
        return -all_distances(
            mean[:, -1], covariance[:, -1], self.item_mean.weight[1:], item_covariance
        )

    def frames(self, sequences, users):
        return torch.from_numpy(left_pad(sequences, self.max_len)).long()

    @staticmethod
    def weights(original: models.STOSA):
        weights = {
            "item_mean.weight": original.item_mean[...],
            "item_covariance.weight": original.item_covariance[...],
            "position_mean": original.position_mean[...],
            "position_covariance": original.position_covariance[...],
            **norm_weights("norm", original.input_norm),
        }
        for index, block in enumerate(original.blocks):
            name = f"blocks.{index}"
            attention, feed_forward = block.attention, block.covariance_feed_forward
            weights |= {
                **linear_weights(f"{name}.attention.output", attention.covariance_out),
                **norm_weights(f"{name}.attention_norm", block.attention_norm),
                **linear_weights(f"{name}.feed_forward.0", feed_forward.expand),
                **linear_weights(f"{name}.feed_forward.2", feed_forward.contract),
                **norm_weights(f"{name}.feed_forward_norm", feed_forward.norm),
            }
            # The original's stand side by side: query, key and value.
            streams: dict[str, tuple[Any, tuple[str, ...]]] = {
                "mean": (attention.mean_in, ("query", "key")),
                "covariance": (attention.covariance_in, ("query", "key", "value")),
            }
            for stream, (linear, parts) in streams.items():
                kernels = np.split(np.asarray(linear.kernel[...]).T, 3)
                biases = np.split(np.asarray(linear.bias[...]), 3)
                for part, kernel, bias in zip(parts, kernels, biases, strict=False):
                    weights[f"{name}.attention.{stream}_{part}.weight"] = kernel
                    weights[f"{name}.attention.{stream}_{part}.bias"] = bias
        return weights

    original_batch = staticmethod(packed)
