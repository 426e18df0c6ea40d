"""MF-BPR."""

import random
from typing import Any

import jax.numpy as jnp
import torch
from torch import nn
from torch.nn import functional as F

from sevo_jax import models
from sevo_jax.data import Sequences
from sevo_jax.samples import TripletBatch


class TripletSamples(torch.utils.data.Dataset):
    """A random user, a random train item of theirs, and one that is none.

    An epoch has as many as there are train interactions, whatever the index.
    """

    def __init__(self, train: Sequences, num_items: int, config: Any):
        self.items = [items.tolist() for items in train]
        self.seen = [set(items) for items in self.items]
        self.users = [user for user, items in enumerate(self.items) if items]
        self.num_samples = len(train.values)
        self.num_items = num_items

    def __len__(self):
        return self.num_samples

    def __getitem__(self, index):
        user = random.choice(self.users)
        positive = random.choice(self.items[user])
        while (negative := random.randrange(self.num_items)) in self.seen[user]:
            pass
        return user, positive, negative


class TorchMFBPR(nn.Module):
    Samples = TripletSamples

    def __init__(self, original: models.MFBPR | models.LightGCN):
        super().__init__()
        width = original.config.width
        self.users = nn.Embedding(original.num_users, width)
        self.items = nn.Embedding(original.num_items, width)

    def loss(self, users, positives, negatives):
        features = self.users(users)
        positive = (features * self.items(positives)).sum(-1)
        negative = (features * self.items(negatives)).sum(-1)
        return F.softplus(negative - positive).mean()

    def score(self, users):
        return self.users(users) @ self.items.weight.T

    def frames(self, sequences, users):
        return torch.tensor(users)

    @staticmethod
    def weights(original: models.MFBPR):
        return {
            "users.weight": original.user_embedding[...],
            "items.weight": original.item_embedding[...],
        }

    @staticmethod
    def original_batch(*batch):
        users, positives, negatives = (jnp.asarray(part, jnp.int32) for part in batch)
        return TripletBatch(users, positives, negatives, jnp.ones(len(users), bool))
