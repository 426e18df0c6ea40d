"""An epoch of SASRec on Beauty: packed, padded, and in plain PyTorch.

    python benchmarks/training.py

Needs PyTorch besides ``sevo-jax[train]``. Every candidate trains the same model with
the same batch size on the same number of cores; the second figure of each adds one
full ranking of all users, as it is done after an epoch. PyTorch stands twice: as it is
usually written, with a data loader, and tuned, with ready-made batches and without
attention weights. Writes ``results/training-cpu.json`` or ``-gpu``.
"""

import os

# Idle OpenMP threads would spin on the cores of the candidate after PyTorch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import torch
from flax import nnx
from harness import load, save, time_in_turns
from torch_sasrec import TorchSASRec, UserSamples

import sevo_jax as sevo
from sevo_jax.data import PackedBatch, left_pad
from sevo_jax.evaluation import Evaluator
from sevo_jax.models import SASRec
from sevo_jax.training import RECIPES, Trainer
from sevo_jax.training.mesh import (
    make_mesh,
    row_sharding,
    split_batches,
    split_tables,
)
from sevo_jax.training.profile import format_phases, measure_phases
from sevo_jax.training.step import TrainState, train_epoch

RECIPE = RECIPES["sasrec-beauty"]
SPLIT = load("beauty")


class Packed:
    """What ``sevo-jax train`` does for an epoch, the host's packing included."""

    def __init__(self, optimizer: str):
        self.mesh = make_mesh()
        config = RECIPE.optimizer
        model = SASRec(SPLIT.num_items, RECIPE.architecture, rngs=nnx.Rngs(0))
        adjacency = sevo.graphs.cooccurrence(
            SPLIT.train,
            SPLIT.num_items,
            max_len=RECIPE.graph.max_len,
            item_offset=model.item_offset,
        )
        graph = split_tables(self.mesh, sevo.prepare(adjacency), ())
        self.graphs = {"item_embedding": graph}
        settings = dict(b1=config.b1, b2=config.b2, weight_decay=config.weight_decay)
        if optimizer == "sevo_adamw":
            self.optimizer = sevo.sevo_adamw(
                config.learning_rate, self.graphs, beta=config.beta, **settings
            )
        else:
            self.optimizer = optax.with_extra_args_support(
                optax.adamw(config.learning_rate, **settings)
            )
        self.graphdef, params = nnx.split(model)
        state = TrainState(params, self.optimizer.init(params))
        self.state = split_tables(self.mesh, state, self.graphs)
        self.epochs = model.epochs(SPLIT.train, batch_size=RECIPE.batch_size, seed=0)
        self.evaluator = Evaluator(
            model, SPLIT, "valid", sharding=row_sharding(self.mesh)
        )
        self.epoch = 0

    def batches(self) -> PackedBatch:
        return self.epochs[self.epoch]

    def train(self) -> jax.Array:
        self.state, losses = train_epoch(
            self.graphdef,
            self.optimizer,
            self.state,
            split_batches(self.mesh, self.batches()),
            self.graphs,
            np.uint32(0),
            np.int32(self.epoch),
        )
        self.epoch += 1
        return losses.block_until_ready()

    def evaluate(self) -> dict:
        return self.evaluator(nnx.merge(self.graphdef, self.state.params))


class Padded(Packed):
    """The same compiled step on left-padded frames, one user a row."""

    def batches(self) -> PackedBatch:
        inputs, targets, negatives = padded_frames(self.epochs, self.epoch)
        valid = (targets > 0).astype(np.int32)
        pads = np.sum(valid == 0, axis=-1, keepdims=True, dtype=np.int32) * valid
        positions = np.arange(valid.shape[-1], dtype=np.int32) * valid
        return PackedBatch(inputs, targets, negatives, valid, positions, pads)


def padded_frames(epochs, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and negatives, int32 ``[steps, batch, max_len]``, shuffled."""
    rng = np.random.default_rng(epoch)
    max_len, batch = RECIPE.architecture.max_len, RECIPE.batch_size
    train = SPLIT.train
    frames = left_pad(train, max_len + 1)
    inputs, targets = frames[:, :-1] * (frames[:, :-1] > 0), frames[:, 1:]
    # The frame of the targets starts one item later: no target under a pad.
    targets = np.where(inputs > 0, targets, 0)
    users = np.broadcast_to(np.arange(len(train))[:, None], targets.shape)[targets > 0]
    negatives = np.zeros_like(targets)
    negatives[targets > 0] = epochs.sampler.sample(rng, users) + 1
    order = np.resize(rng.permutation(len(train)), (epochs.num_steps, batch))
    return inputs[order], targets[order], negatives[order]


class Torch:
    """PyTorch, as usually written or tuned."""

    def __init__(self, tuned: bool):
        torch.manual_seed(0)
        architecture, config = RECIPE.architecture, RECIPE.optimizer
        self.model = TorchSASRec(
            SPLIT.num_items,
            max_len=architecture.max_len,
            width=architecture.width,
            num_blocks=architecture.num_blocks,
            dropout=architecture.dropout,
            tuned=tuned,
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.learning_rate,
            betas=(config.b1, config.b2),
            weight_decay=config.weight_decay,
        )
        self.inputs = left_pad(SPLIT.train, architecture.max_len)
        self.loader = torch.utils.data.DataLoader(
            UserSamples(SPLIT.train, SPLIT.num_items, architecture.max_len),
            batch_size=RECIPE.batch_size,
            shuffle=True,
        )
        self.epochs = Packed("adamw").epochs if tuned else None
        self.epoch = 0

    def batches(self):
        if self.epochs is None:
            return self.loader
        frames = padded_frames(self.epochs, self.epoch)
        return zip(*(torch.from_numpy(part).long() for part in frames))

    def train(self) -> float:
        self.model.train()
        for batch in self.batches():
            self.optimizer.zero_grad()
            loss = self.model.loss(*batch)
            loss.backward()
            self.optimizer.step()
        self.epoch += 1
        return float(loss.detach())

    @torch.no_grad()
    def evaluate(self) -> float:
        self.model.eval()
        lengths = SPLIT.train.lengths
        ranks = []
        for start in range(0, len(lengths), 512):
            users = slice(start, start + 512)
            scores = self.model.score(torch.from_numpy(self.inputs[users]).long())
            target = scores.gather(1, torch.from_numpy(SPLIT.valid[users, None]).long())
            first, last = SPLIT.train.offsets[[start, min(start + 512, len(lengths))]]
            rows = np.repeat(np.arange(len(lengths[users])), lengths[users])
            columns = SPLIT.train.values[first:last]
            scores[torch.from_numpy(rows), torch.from_numpy(columns).long()] = -1e23
            ranks.append((scores > target).sum(1) + 1)
        ranks = torch.cat(ranks)
        return float((1 / torch.log2(ranks + 1.0))[ranks <= 10].sum() / len(ranks))


def candidate(name: str):
    optimizer = "sevo_adamw" if "SEvo" in name else "adamw"
    if name.startswith("packed"):
        return Packed(optimizer)
    if name.startswith("padded"):
        return Padded(optimizer)
    return Torch(tuned="tuned" in name)


BASELINE = "PyTorch, AdamW"
NAMES = (
    "packed, AdamW",
    "packed, SEvo-AdamW",
    "padded, AdamW",
    BASELINE,
    "PyTorch tuned, AdamW",
)


def peak_memory(name: str) -> float:
    """Largest resident size, in MB, of a process that trains and ranks once (Linux)."""
    result = subprocess.run(
        [sys.executable, __file__, name], check=True, capture_output=True, text=True
    )
    return float(result.stdout.split()[-1])


def main() -> None:
    runs = {name: candidate(name) for name in NAMES}
    seconds = time_in_turns({name: run.train for name, run in runs.items()}, rounds=2)
    ranking = time_in_turns(
        {name: run.evaluate for name, run in runs.items()}, rounds=2
    )
    epoch = {name: seconds[name]["median"] for name in NAMES}
    ranked = {name: epoch[name] + ranking[name]["median"] for name in NAMES}
    base, base_ranked = epoch[BASELINE], ranked[BASELINE]
    results = {}
    print(f"{'':30} epoch s  PyTorch/it  with ranking s  PyTorch/it  peak MB")
    for name in NAMES:
        faster, faster_ranked = base / epoch[name], base_ranked / ranked[name]
        memory = peak_memory(name)
        results[name] = {
            "epoch": seconds[name],
            "ranking": ranking[name],
            "times faster than PyTorch": faster,
            "times faster than PyTorch, ranking included": faster_ranked,
            "peak memory MB": memory,
        }
        print(
            f"{name:30} {epoch[name]:7.2f} {faster:11.1f}"
            f" {ranked[name]:15.2f} {faster_ranked:11.1f} {memory:8.0f}"
        )
    phases = measure_phases(Trainer(RECIPE, SPLIT))
    print(format_phases(phases))
    results = {"candidates": results, "phases": phases}
    print("written to", save("training", results))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run = candidate(sys.argv[1])
        run.train()
        run.evaluate()
        # Unlike getrusage, this does not count the process that started this one.
        status = Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024)
    else:
        main()
