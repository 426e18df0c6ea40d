"""LESSR, with the graphs of a batch in one, without pads."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sevo_jax import models
from sevo_jax.samples import RunBatch
from torch_models.samples import (
    PrefixSamples,
    cut_to_longest,
    first_of_equal,
    linear_weights,
    prefix_rows,
    right_pad,
)


class Graphs:
    """The graphs of right-padded sessions.

    Attributes:
      items: of each node.
      sessions: of each node.
      last: node of the last item of each session.
      senders: `[nodes, most]`, where the edges of the multigraph to a node come from,
        in their order.
      degrees: how many these are.
      shortcuts: from and to of the edges of the shortcut graph.
    """

    def __init__(self, inputs):
        valid = inputs != 0
        cells = torch.arange(inputs.shape[1], device=inputs.device)
        # The node of an item is the cell where it comes first.
        first = first_of_equal(inputs)
        last = cells[-1] - first_of_equal(inputs.flip(1)).flip(1)
        is_node = valid & (first == cells)
        self.sessions, _ = is_node.nonzero(as_tuple=True)
        self.items = inputs[is_node]
        numbers = (is_node.flatten().cumsum(0) - 1).view_as(inputs)
        nodes = numbers.gather(1, first)
        rows = torch.arange(len(inputs), device=inputs.device)
        self.last = nodes[rows, valid.sum(1) - 1]

        senders, receivers = nodes[:, :-1][valid[:, 1:]], nodes[:, 1:][valid[:, 1:]]
        receivers, order = receivers.sort(stable=True)
        self.degrees = receivers.bincount(minlength=len(self.items))
        begins = self.degrees.cumsum(0) - self.degrees
        places = torch.arange(len(receivers), device=inputs.device) - begins[receivers]
        most = max(int(self.degrees.max()), 1)
        self.senders = nodes.new_zeros(len(self.items), most)
        self.senders[receivers, places] = senders[order]

        # From each node to those whose item comes again later, or not before it.
        later = cells[:, None] <= last[:, None]
        row, one, other = (is_node[:, :, None] & is_node[:, None] & later).nonzero(
            as_tuple=True
        )
        self.shortcuts = numbers[row, one], numbers[row, other]


def softmax_within(scores, groups, num_groups):
    """Softmax of scores among those of one group."""
    highest = scores.new_full((num_groups,), -torch.inf)
    highest = highest.scatter_reduce(0, groups, scores.detach(), "amax")
    weights = (scores - highest[groups]).exp()
    total = weights.new_zeros(num_groups).index_add(0, groups, weights)
    return weights / total[groups]


def sum_within(x, groups, num_groups):
    """Sum of rows of one group."""
    return x.new_zeros(num_groups, x.shape[1]).index_add(0, groups, x)


class EdgeOrder(nn.Module):
    def __init__(self, config: models.LESSRConfig, width_in: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(width_in)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(width_in, width_in, batch_first=True)
        self.own = nn.Linear(width_in, config.width, bias=False)
        self.neighbours = nn.Linear(width_in, config.width, bias=False)
        self.activation = nn.PReLU(config.width)

    def forward(self, x, graphs):
        x = self.norm(x)
        receives = graphs.degrees > 0
        states = torch.zeros_like(x)
        if receives.any():
            sent = self.dropout(x)[graphs.senders[receives]]
            degrees = graphs.degrees[receives].cpu()
            packed = nn.utils.rnn.pack_padded_sequence(
                sent, degrees, batch_first=True, enforce_sorted=False
            )
            states[receives] = self.gru(packed)[1][0]
        return self.activation(self.own(x) + self.neighbours(states))


class Shortcut(nn.Module):
    def __init__(self, config: models.LESSRConfig, width_in: int):
        super().__init__()
        width = config.width
        self.norm = nn.BatchNorm1d(width_in)
        self.dropout = nn.Dropout(config.dropout)
        self.query = nn.Linear(width_in, width)
        self.key = nn.Linear(width_in, width, bias=False)
        self.value = nn.Linear(width_in, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)
        self.activation = nn.PReLU(width)

    def forward(self, x, graphs):
        x = self.dropout(self.norm(x))
        one, other = graphs.shortcuts
        hidden = F.embedding(one, self.query(x)) + F.embedding(other, self.key(x))
        scores = self.score(hidden.sigmoid()).squeeze(-1)
        weights = softmax_within(scores, other, len(x)).unsqueeze(-1)
        mixed = sum_within(weights * F.embedding(one, self.value(x)), other, len(x))
        return self.activation(mixed)


class Readout(nn.Module):
    def __init__(self, config: models.LESSRConfig, width_in: int):
        super().__init__()
        width = config.width
        self.norm = nn.BatchNorm1d(width_in)
        self.dropout = nn.Dropout(config.dropout)
        self.each = nn.Linear(width_in, width, bias=False)
        self.last = nn.Linear(width_in, width)
        self.score = nn.Linear(width, 1, bias=False)
        self.output = nn.Linear(width_in, width, bias=False)
        self.activation = nn.PReLU(width)

    def forward(self, x, graphs):
        x = self.dropout(self.norm(x))
        num_sessions = len(graphs.last)
        hidden = self.each(x) + self.last(x[graphs.last])[graphs.sessions]
        scores = self.score(hidden.sigmoid()).squeeze(-1)
        weights = softmax_within(scores, graphs.sessions, num_sessions)
        mixed = sum_within(weights.unsqueeze(-1) * x, graphs.sessions, num_sessions)
        return self.activation(self.output(mixed))


class TorchLESSR(nn.Module):
    Samples = PrefixSamples

    def __init__(self, original: models.LESSR):
        super().__init__()
        config = original.config
        width, self.max_len = config.width, config.max_len
        self.items = nn.Embedding(original.num_items, width, max_norm=1)
        self.blocks = nn.ModuleList(
            (Shortcut if number % 2 else EdgeOrder)(config, (number + 1) * width)
            for number in range(config.num_blocks)
        )
        width_out = (config.num_blocks + 1) * width
        self.readout = Readout(config, width_out)
        self.norm = nn.BatchNorm1d(width_out + width)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(width_out + width, width, bias=False)

    def score(self, inputs):
        graphs = Graphs(cut_to_longest(inputs))
        # Looked up whole: rows that are not would not be cut to the norm.
        every = torch.arange(self.items.num_embeddings, device=inputs.device)
        table = self.items(every)
        x = F.embedding(graphs.items - 1, table)
        for block in self.blocks:
            x = torch.cat([block(x, graphs), x], -1)
        out = torch.cat([x[graphs.last], self.readout(x, graphs)], -1)
        return self.output(self.dropout(self.norm(out))) @ table.T

    def loss(self, inputs, targets):
        return F.cross_entropy(self.score(inputs), targets - 1)

    def frames(self, sequences, users):
        return torch.from_numpy(right_pad(sequences, self.max_len))

    @staticmethod
    def weights(original: models.LESSR):
        def norm_weights(name, norm):
            return {
                f"{name}.weight": norm.scale[...],
                f"{name}.bias": norm.bias[...],
                f"{name}.running_mean": norm.mean[...],
                f"{name}.running_var": norm.variance[...],
                f"{name}.num_batches_tracked": 0,
            }

        weights = {"items.weight": original.item_embedding[...]}
        blocks: Any = original.blocks
        for index, block in enumerate(blocks):
            name = f"blocks.{index}"
            weights |= norm_weights(f"{name}.norm", block.norm)
            weights[f"{name}.activation.weight"] = block.slope[...]
            if index % 2:
                # The original's query is of the node that sees, its key of the seen.
                weights |= {
                    **linear_weights(f"{name}.key", block.project_query),
                    **linear_weights(f"{name}.query", block.project_key),
                    **linear_weights(f"{name}.value", block.project_value),
                    **linear_weights(f"{name}.score", block.score),
                }
            else:
                weights |= {
                    f"{name}.gru.weight_ih_l0": block.kernel_in[...].T,
                    f"{name}.gru.weight_hh_l0": block.kernel_hidden[...].T,
                    f"{name}.gru.bias_ih_l0": block.bias_in[...],
                    f"{name}.gru.bias_hh_l0": block.bias_hidden[...],
                    f"{name}.own.weight": block.kernel_self[...].T,
                    f"{name}.neighbours.weight": block.kernel_neighbours[...].T,
                }
        readout = original.readout
        return {
            **weights,
            **norm_weights("readout.norm", readout.norm),
            **linear_weights("readout.last", readout.project_query),
            **linear_weights("readout.each", readout.project_key),
            **linear_weights("readout.score", readout.score),
            **linear_weights("readout.output", readout.project_out),
            "readout.activation.weight": readout.slope[...],
            **norm_weights("norm", original.norm),
            **linear_weights("output", original.project_out),
        }

    @staticmethod
    def original_batch(inputs, targets):
        return RunBatch(*prefix_rows(inputs), np.asarray(targets, np.int32))
