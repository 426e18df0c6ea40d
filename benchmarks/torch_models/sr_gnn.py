"""SR-GNN, with a dense matrix of edges for each session."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sevo_jax import models
from sevo_jax.samples import SessionBatch
from torch_models.samples import (
    PrefixSamples,
    cut_to_longest,
    first_of_equal,
    linear_weights,
    right_pad,
)


class TorchSRGNN(nn.Module):
    Samples = PrefixSamples

    def __init__(self, original: models.SRGNN):
        super().__init__()
        config = original.config
        width, self.max_len = config.width, config.max_len
        self.num_steps = config.num_steps
        self.items = nn.Embedding(original.num_items + 1, width, padding_idx=0)
        self.edges_in = nn.Linear(width, width)
        self.edges_out = nn.Linear(width, width)
        self.bias_in = nn.Parameter(torch.empty(width))
        self.bias_out = nn.Parameter(torch.empty(width))
        self.cell = nn.GRUCell(2 * width, width)
        self.attend_last = nn.Linear(width, width)
        self.attend_each = nn.Linear(width, width)
        self.attention = nn.Linear(width, 1, bias=False)
        self.output = nn.Linear(2 * width, width)

    def forward(self, inputs):
        inputs = cut_to_longest(inputs)
        valid = inputs != 0
        rows = torch.arange(len(inputs), device=inputs.device)
        # The node of an item is the cell where it comes first.
        nodes = first_of_equal(inputs)
        states = self.items(inputs)
        edges = states.new_zeros(*inputs.shape, inputs.shape[1])
        row, column = valid[:, 1:].nonzero(as_tuple=True)
        edges[row, nodes[row, column], nodes[row, column + 1]] = 1
        received = edges.transpose(1, 2)
        received = received / received.sum(2, keepdim=True).clamp(min=1)
        sent = edges / edges.sum(2, keepdim=True).clamp(min=1)
        for _ in range(self.num_steps):
            before = received @ self.edges_in(states) + self.bias_in
            after = sent @ self.edges_out(states) + self.bias_out
            messages = torch.cat([before, after], -1).flatten(0, 1)
            states = self.cell(messages, states.flatten(0, 1)).view_as(states)
        states = states[rows[:, None], nodes]
        last = states[rows, valid.sum(1) - 1]
        query = self.attend_last(last).unsqueeze(1)
        weights = self.attention((query + self.attend_each(states)).sigmoid())
        mixed = (weights * valid.unsqueeze(-1) * states).sum(1)
        return self.output(torch.cat([mixed, last], -1))

    def loss(self, inputs, targets):
        return F.cross_entropy(self.score(inputs), targets - 1)

    def score(self, inputs):
        return self(inputs) @ self.items.weight[1:].T

    def frames(self, sequences, users):
        return torch.from_numpy(right_pad(sequences, self.max_len))

    @staticmethod
    def weights(original: models.SRGNN):
        graph: Any = original.graph
        return {
            "items.weight": original.item_embedding[...],
            **linear_weights("edges_in", graph.edges_in),
            **linear_weights("edges_out", graph.edges_out),
            "bias_in": graph.bias_in[...],
            "bias_out": graph.bias_out[...],
            "cell.weight_ih": graph.read.kernel[...].T,
            "cell.bias_ih": graph.read.bias[...],
            "cell.weight_hh": graph.keep.kernel[...].T,
            "cell.bias_hh": graph.keep.bias[...],
            **linear_weights("attend_last", original.attend_last),
            **linear_weights("attend_each", original.attend_each),
            "attention.weight": original.attention[...][None],
            **linear_weights("output", original.project_out),
        }

    @staticmethod
    def original_batch(inputs, targets):
        items, counts, edges, sizes = [0], [0], [(0, 0)], []
        for frame in inputs:
            prefix = frame[frame > 0].tolist()
            # The node of the last item comes behind all others.
            nodes = [*dict.fromkeys(i for i in prefix if i != prefix[-1]), prefix[-1]]
            number = {item: len(items) + place for place, item in enumerate(nodes)}
            edges += {(number[one], number[other]) for one, other in pairwise(prefix)}
            items += nodes
            counts += [prefix.count(item) for item in nodes]
            sizes.append(len(nodes))
        last = np.cumsum(sizes)
        first = last - sizes + 1
        begins = np.zeros(sum(sizes), bool)
        begins[first - 1] = True
        ids = (items, counts, edges, np.flip(edges, 1), first, first + 1, last, sizes)
        fields: list[Any] = [np.asarray(each, np.int32) for each in (*ids, targets)]
        return SessionBatch(*fields + [begins])
