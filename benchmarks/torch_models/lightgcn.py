"""LightGCN, with a sparse matrix of PyTorch's."""

from typing import Any

import torch
from torch.nn import functional as F

from sevo_jax import models
from torch_models.mf_bpr import TorchMFBPR
from torch_models.samples import edges_of, sparse_matrix


class TorchLightGCN(TorchMFBPR):
    tables: Any

    def __init__(self, original: models.LightGCN):
        super().__init__(original)
        self.num_hops = original.config.num_hops
        self.regularization = original.config.regularization
        edges, weights = edges_of(original.graph.get_value())
        matrix = sparse_matrix(edges, weights, original.num_users + original.num_items)
        self.register_buffer("graph", matrix, persistent=False)

    def train(self, mode=True):
        super().train(mode)
        # To rank, the tables are propagated once.
        self.tables = None if mode else self.propagate()
        return self

    def propagate(self):
        hops = [torch.cat([self.users.weight, self.items.weight])]
        for _ in range(self.num_hops):
            hops.append(self.graph @ hops[-1])
        mean = torch.stack(hops).mean(0)
        return mean.split([self.users.num_embeddings, self.items.num_embeddings])

    def loss(self, users, positives, negatives):
        user_table, item_table = self.propagate()
        features = F.embedding(users, user_table)
        positive = (features * F.embedding(positives, item_table)).sum(-1)
        negative = (features * F.embedding(negatives, item_table)).sum(-1)
        rows = self.users(users), self.items(positives), self.items(negatives)
        squares: Any = sum(each.square().sum(-1) for each in rows)
        loss = F.softplus(negative - positive).mean()
        return loss + self.regularization * squares.mean() / 2

    def score(self, users):
        user_table, item_table = self.tables
        return user_table[users] @ item_table.T
