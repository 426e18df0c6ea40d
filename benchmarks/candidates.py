"""What the training benchmarks time: a trainer of sevo_jax, and plain PyTorch.

A candidate trains an epoch with `train` and ranks all users with `evaluate`.
"""

import os
import sys

# Idle OpenMP threads would spin on the cores of the candidate after PyTorch, which
# reads this when it is imported, and JAX would take most of a GPU's memory for itself.
if "torch" in sys.modules:
    raise ImportError("import candidates before torch, whose threads it settles")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import torch
from torch_models import copy_of

from sevo_jax.evaluation import Evaluator
from sevo_jax.training import Trainer
from sevo_jax.training.mesh import row_sharding, split_batches


class JaxRun:
    """What ``sevo-jax train`` does.

    The batches of an epoch are drawn, packed and sent to the device while the epoch
    before is trained; `train` ends when both are done.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.state = trainer.start(0)
        self.epochs = trainer.epochs(0)
        self.evaluator = Evaluator(
            trainer.new_model(0),
            trainer.split,
            "valid",
            sharding=row_sharding(trainer.mesh),
        )
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.epoch = 0
        self.batches = self.load(0)

    def draw(self, epoch: int) -> Any:
        """The batches of an epoch, as the model takes them."""
        return self.epochs[epoch]

    def load(self, epoch: int) -> Any:
        """The batches of an epoch, on the device."""
        batches = split_batches(self.trainer.mesh, self.draw(epoch))
        return jax.block_until_ready(batches)

    def train(self) -> jax.Array:
        """Trains an epoch and returns the loss of each step."""
        following = self.pool.submit(self.load, self.epoch + 1)
        self.state, losses = self.trainer.train_epoch(
            self.state, self.batches, seed=0, epoch=self.epoch
        )
        losses["loss"].block_until_ready()
        self.epoch += 1
        self.batches = following.result()
        return losses["loss"]

    def evaluate(self) -> float:
        """Ranks the validation items and returns their NDCG@10."""
        model = self.trainer.model(self.state)
        return self.evaluator(model.for_ranking())["NDCG@10"]


class TorchRun:
    """The same model in plain PyTorch, from the same parameters, with its AdamW.

    On a GPU the loader has four processes of its own, and products have the precision
    that is JAX's default there.

    Args:
      trainer: of sevo_jax; its optimizer's name and its graph make no difference.
      device: "cpu" or "cuda".
      max_steps: how many steps of an epoch `train` does, on so large a random part of
        the samples; None for all.

    Attributes:
      share: of an epoch's samples, how many `train` takes.
    """

    def __init__(
        self,
        trainer: Trainer,
        device: str = "cpu",
        *,
        max_steps: int | None = None,
    ):
        recipe, split = trainer.recipe, trainer.split
        self.split, self.device = split, device
        torch.manual_seed(0)
        self.model = copy_of(trainer.new_model(0)).to(device)
        config = recipe.optimizer
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.learning_rate,
            betas=(config.b1, config.b2),
            weight_decay=config.weight_decay,
        )
        on_gpu = device == "cuda"
        if on_gpu:
            torch.set_float32_matmul_precision("high")
        samples = self.model.Samples(split.train, split.num_items, recipe.architecture)
        size = len(samples)
        if max_steps is not None:
            # Not the loader cut short: what it does once an epoch would count in full.
            chosen = np.random.default_rng(0).permutation(size)
            chosen = chosen[: max_steps * recipe.batch_size].tolist()
            samples = torch.utils.data.Subset(samples, chosen)
        self.share = len(samples) / size
        self.loader = torch.utils.data.DataLoader(
            samples,
            batch_size=recipe.batch_size,
            shuffle=True,
            num_workers=4 if on_gpu else 0,
            persistent_workers=on_gpu,
            pin_memory=on_gpu,
            # JAX has threads, which a forked process would lack.
            multiprocessing_context="spawn" if on_gpu else None,
        )
        self.frames = self.model.frames(split.train, np.arange(split.num_users))

    def batches(self) -> Iterable[Any]:
        """The batches of an epoch, on the host."""
        return self.loader

    def train(self) -> float:
        """Trains an epoch, or the part of it, and returns the last loss."""
        self.model.train()
        loss: Any = None
        for batch in self.batches():
            batch = [
                torch.as_tensor(part).to(self.device, non_blocking=True)
                for part in batch
            ]
            self.optimizer.zero_grad()
            loss = self.model.loss(*batch)
            loss.backward()
            self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Ranks the validation items and returns their NDCG@10."""
        self.model.eval()
        train, valid = self.split.train, torch.from_numpy(self.split.valid).long()
        items = torch.from_numpy(train.values).long()
        ranks = []
        for start in range(0, len(train), 512):
            users = slice(start, start + 512)
            scores = self.model.score(self.frames[users].to(self.device))
            target = scores.gather(1, valid[users, None].to(self.device))
            lengths = torch.from_numpy(train.lengths[users])
            rows = torch.arange(len(lengths)).repeat_interleave(lengths)
            first, last = train.offsets[[start, start + len(lengths)]]
            scores[rows.to(self.device), items[first:last].to(self.device)] = -1e23
            ranks.append((scores > target).sum(1) + 1)
        ranks = torch.cat(ranks)
        gains = (1 / torch.log2(ranks + 1.0))[ranks <= 10]
        return float(gains.sum() / len(ranks))


def torch_device() -> str:
    """Where PyTorch can run, which must be where JAX does."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if (device == "cuda") != (jax.default_backend() == "gpu"):
        raise SystemExit(
            f"JAX would run on {jax.default_backend()}, PyTorch on {device}: install "
            "both for the same device, or say --device or JAX_PLATFORMS"
        )
    return device


def device_name(device: str) -> str:
    """The name of a device of PyTorch."""
    return torch.cuda.get_device_name() if device == "cuda" else device
