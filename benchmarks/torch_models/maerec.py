"""MAERec, with sparse matrices of PyTorch's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sevo_jax import models
from sevo_jax.models.edge_masks import draw_kept
from sevo_jax.models.reconstruction import draw_nodes
from sevo_jax.samples import left_pad
from torch_models.samples import (
    UserSamples,
    edges_of,
    linear_weights,
    norm_weights,
    packed,
    sparse_matrix,
)

# What is added to the score of a key that a query does not see.
INVISIBLE = -1e4


def samples(train: Any, num_items: int, config: models.MAERecConfig) -> UserSamples:
    """Of the negatives, the authors leave the last item out."""
    return UserSamples(train, num_items - (not config.sample_last_item), config)


def cross_entropy(scores):
    """Of scores that ought to be high."""
    return -(scores.sigmoid() + 1e-24).log()


class Block(nn.Module):
    def __init__(self, config: models.MAERecConfig):
        super().__init__()
        width = config.width
        self.attention = nn.MultiheadAttention(
            width, config.num_heads, dropout=config.dropout, batch_first=True
        )
        self.dropout = nn.Dropout(config.dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(config.dropout),
        )
        self.feed_forward_norm = nn.LayerNorm(width)

    def forward(self, x, later, padding):
        mixed, _ = self.attention(x, x, x, attn_mask=later, key_padding_mask=padding)
        x = self.attention_norm(self.dropout(mixed) + x)
        return self.feed_forward_norm(self.feed_forward(x))


class Mask(nn.Module):
    """The edges of the graph, and which of them are left.

    What is random has methods of its own: see `TorchMAERec.take_draws`.
    """

    edges: Any
    keys: Any
    left: Any
    masked: Any

    def __init__(self, original: models.MAERec):
        super().__init__()
        self.config = original.config
        self.num_items = original.num_items - (not self.config.sample_last_item)
        graph = original.mask.graph.get_value()
        self.num_nodes = graph.num_nodes
        edges, weights = edges_of(graph)
        whole = sparse_matrix(edges, weights, self.num_nodes)
        self.register_buffer("edges", edges, persistent=False)
        keys = edges[0] * self.num_nodes + edges[1]
        self.register_buffer("keys", keys, persistent=False)
        self.register_buffer("whole", whole, persistent=False)

    def renew(self, table):
        """Masks other edges; returns how related nodes are to their surroundings."""
        related = self.relatedness(table) + self.draw_noise()
        num_seeds = min(self.config.num_seeds, self.num_nodes)
        self.left = self.spread(related.topk(num_seeds).indices)
        rows, columns = edges = self.edges[:, self.left]
        scale = (rows.bincount(minlength=self.num_nodes) + 1e-12).rsqrt()
        weights = scale[rows] * scale[columns]
        self.masked = sparse_matrix(edges, weights, self.num_nodes)
        return related

    def relatedness(self, table):
        ones = table.new_ones(self.num_nodes, 1)
        left = torch.ones_like(self.keys, dtype=torch.bool)
        adjacency = self.adjacency(left, table)
        degrees = paths = all_paths = adjacency @ ones
        found = total = adjacency @ table - table
        for hop in range(self.config.mask_depth):
            left = left & self.draw_kept(hop)
            adjacency = self.adjacency(left, table)
            found = adjacency @ found - found - degrees * found
            paths = adjacency @ paths - paths - degrees
            degrees = adjacency @ ones
            total, all_paths = total + found, all_paths + paths
        # Without surroundings a gradient, divided by a norm of 0, would swallow others.
        alone = (total == 0).all(1, keepdim=True)
        total = total.masked_fill(alone, 0)
        return F.cosine_similarity(total / (all_paths + 1e-8), table)

    def adjacency(self, left, like):
        edges = self.edges[:, left]
        return sparse_matrix(edges, like.new_ones(edges.shape[1]), self.num_nodes)

    def spread(self, nodes):
        """Which edges are left when they are masked from some nodes on."""
        rows, columns = self.edges
        left = torch.ones_like(rows, dtype=torch.bool)
        for hop in range(self.config.mask_depth):
            at = left.new_zeros(self.num_nodes)
            at[nodes] = True
            hit = left & (at[rows] | at[columns])
            left = left & ~hit
            nodes = rows[hit]
            if not self.config.seeds_from_ends:
                nodes = nodes + columns[hit]
            nodes = nodes.unique()
            order = self.draw_order(hop)[nodes].argsort()
            nodes = nodes[order[: int(len(nodes) * 0.5 ** (hop + 1))]]
            nodes = nodes[nodes < self.num_nodes]
        return left

    def draw_kept(self, hop):
        """Which edges the next hop keeps."""
        return torch.rand(self.keys.shape, device=self.keys.device) < 0.5 ** (hop + 1)

    def draw_noise(self):
        """Gumbel's."""
        uniform = torch.rand(self.num_nodes, device=self.keys.device)
        return -(-uniform.log()).log()

    def draw_order(self, hop):
        """In which order nodes, and sums of two, are chosen: by these numbers."""
        return torch.rand(2 * self.num_nodes, device=self.keys.device)

    def draw_nodes(self):
        """Ends of masked edges; in place of the first, then of the second, others."""
        masked = (~self.left).nonzero().squeeze(1)
        order = torch.randperm(len(masked), device=masked.device)
        first, second = self.edges[:, masked[order[: self.config.num_edges]]]
        others = self.draw_unlinked(second), self.draw_unlinked(first)
        return torch.cat([first[:, None], second[:, None], *others], 1)

    def draw_unlinked(self, nodes):
        """Items that no edge links to each of some nodes."""
        shape = len(nodes), self.config.num_negatives // 2
        nodes = nodes[:, None].expand(shape)
        items = torch.randint(1, self.num_items + 1, shape, device=nodes.device)
        while (linked := self.is_edge(nodes, items)).any():
            number = int(linked.sum())
            items[linked] = torch.randint(
                1, self.num_items + 1, (number,), device=nodes.device
            )
        return items

    def is_edge(self, one, other):
        keys = one * self.num_nodes + other
        places = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return self.keys[places] == keys


class TorchMAERec(nn.Module):
    Samples = staticmethod(samples)
    table: Any

    def __init__(self, original: models.MAERec):
        super().__init__()
        self.config = config = original.config
        width, self.max_len = config.width, config.max_len
        self.items = nn.Embedding(original.num_items + 1, width)
        self.positions = nn.Parameter(torch.empty(self.max_len, width))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        hops = config.num_hops
        self.decoder = nn.Sequential(
            nn.Linear(width * hops**2, width * hops),
            nn.ReLU(),
            nn.Linear(width * hops, width),
            nn.ReLU(),
            nn.Linear(width, 1),
            nn.Sigmoid(),
        )
        self.mask = Mask(original)
        later = torch.full((self.max_len, self.max_len), INVISIBLE).triu(1)
        self.register_buffer("later", later, persistent=False)
        self.step = 0
        # Main losses, from the step on in which the mask was new.
        self.losses: list[float] = []

    def train(self, mode=True):
        super().train(mode)
        # To rank, the table is propagated once.
        self.table = None if mode else sum(self.propagate(self.mask.whole))
        return self

    def propagate(self, graph):
        hops = [self.items.weight]
        for _ in range(self.config.num_hops):
            hops.append(graph @ hops[-1])
        return hops

    def forward(self, inputs, table):
        x = self.dropout(self.norm(F.embedding(inputs, table) + self.positions))
        padding = (inputs == 0) * INVISIBLE
        total = x
        for block in self.blocks:
            x = block(x, self.later, padding)
            total = total + x
        return total

    def loss(self, inputs, targets, negatives):
        config = self.config
        related = None
        if self.step % config.mask_steps == 0:
            related = self.mask.renew(self.items.weight)
        self.step += 1
        hops = self.propagate(self.mask.masked)
        table: Any = sum(hops)
        features = self(inputs, table)
        valid = targets != 0
        positive = (features * F.embedding(targets, table)).sum(-1)[valid]
        negative = (features * F.embedding(negatives, table)).sum(-1)[valid]
        main = cross_entropy(positive).mean() + cross_entropy(-negative).mean()
        squares: Any = sum(each.square().sum() for each in self.parameters())
        loss = main + config.regularization * squares
        if config.reconstruction_weight:
            loss = loss + config.reconstruction_weight * self.reconstruction(hops[:-1])
        self.losses.append(main.item())
        if related is not None:
            loss = loss - related.mean() * self.reward()
            self.losses = self.losses[-1:]
        return loss

    def reward(self):
        """What a new mask counts: less if the loss fell no faster than before."""
        falls = -np.diff(self.losses)
        return 1 if len(falls) < 2 or falls[-1] > falls[:-1].mean() else 0.2

    def reconstruction(self, hops):
        nodes = self.mask.draw_nodes()
        num = self.config.num_negatives // 2
        states = torch.stack(hops, 1)[nodes]
        one, other = states[:, :1], states[:, 1:2]
        firsts = [one, states[:, 2 : 2 + num], one.expand(-1, num, -1, -1)]
        seconds = [other.expand(-1, 1 + num, -1, -1), states[:, 2 + num :]]
        firsts, seconds = torch.cat(firsts, 1), torch.cat(seconds, 1)
        products = firsts.unsqueeze(3) * seconds.unsqueeze(2)
        pairs = self.decoder(products.flatten(2)).squeeze(2).exp()
        share = pairs[:, 0] / (pairs.sum(1) + 1e-8) + 1e-8
        return -share.log().mean() if self.config.log_contrast else -share.sum()

    def score(self, inputs):
        return self(inputs, self.table)[:, -1] @ self.table[1:].T

    def frames(self, sequences, users):
        return torch.from_numpy(left_pad(sequences, self.max_len)).long()

    def take_draws(self, original: models.MAERec, key: jax.Array) -> None:
        """Draws from now on what the original draws in a step of this key."""
        mask, graph = self.mask, original.mask.graph.get_value()
        _, mask_key, nodes_key = jax.random.split(key, 3)
        kept_key, noise_key, order_key = jax.random.split(mask_key, 3)
        depth = mask.config.mask_depth
        kept = draw_kept(kept_key, graph.num_entries, depth)
        noise = jax.random.gumbel(noise_key, (mask.num_nodes,))
        orders = [
            jax.random.uniform(each, (2 * mask.num_nodes,))
            for each in jax.random.split(order_key, depth)
        ]

        def nodes():
            drawn = draw_nodes(
                graph,
                jnp.asarray(~mask.left.numpy()),
                mask.config.num_edges,
                mask.config.num_negatives,
                mask.num_items,
                nodes_key,
            )
            drawn = torch.tensor(np.asarray(drawn)).long()
            return drawn[drawn[:, 0] >= 0]

        mask.draw_kept = lambda hop: torch.tensor(np.asarray(kept[hop]))
        mask.draw_noise = lambda: torch.tensor(np.asarray(noise))
        mask.draw_order = lambda hop: torch.tensor(np.asarray(orders[hop]))
        mask.draw_nodes = nodes

    @staticmethod
    def weights(original: models.MAERec):
        weights = {
            "items.weight": original.item_embedding[...],
            "positions": original.position_embedding[...],
            **norm_weights("norm", original.input_norm),
        }
        for index, layer in enumerate(original.decoder.layers):
            weights |= linear_weights(f"decoder.{2 * index}", layer)
        for index, block in enumerate(original.blocks):
            name = f"blocks.{index}"
            attention = block.attention
            weights |= {
                f"{name}.attention.in_proj_weight": attention.kernel_in[...].T,
                f"{name}.attention.in_proj_bias": attention.bias_in[...],
                **linear_weights(f"{name}.attention.out_proj", attention.project_out),
                **linear_weights(f"{name}.feed_forward.0", block.expand),
                **linear_weights(f"{name}.feed_forward.2", block.contract),
                **norm_weights(f"{name}.attention_norm", block.attention_norm),
                **norm_weights(f"{name}.feed_forward_norm", block.feed_forward_norm),
            }
        return weights

    original_batch = staticmethod(packed)
