"""An epoch of SASRec on Beauty: packed, padded, and in plain PyTorch.

    python benchmarks/training.py

Needs PyTorch besides ``sevo-jax[train]``. Every candidate trains the same model with
the same batch size on the same number of cores; the second figure of each adds one
full ranking of all users, as it is done after an epoch. PyTorch stands twice: as it is
usually written, with a data loader, and tuned, with ready-made batches and without
attention weights. Then a seed's share of an epoch of SEvo-AdamW when five seeds train
in one program, and the time of each phase of an epoch. Writes
``results/training-cpu.json`` or ``-gpu``.
"""

import argparse
import dataclasses
import subprocess
import sys

import numpy as np
from candidates import JaxRun, TorchRun
from harness import peak_bytes, save, time_in_turns
from paper import load, recipe_of
from torch_models.samples import packed

from sevo_jax.data import LeaveOneOut
from sevo_jax.samples import PackedBatch, left_pad
from sevo_jax.training import Trainer
from sevo_jax.training.profiling import format_phases, measure_phases


class Padded(JaxRun):
    """The same compiled step on left-padded frames, one user a row."""

    def draw(self, epoch: int) -> PackedBatch:
        return packed(*padded_frames(self.trainer, self.epochs, epoch))


def padded_frames(
    trainer: Trainer, epochs, epoch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and negatives, int32 ``[steps, batch, max_len]``, shuffled."""
    rng = np.random.default_rng(epoch)
    recipe, train = trainer.recipe, trainer.split.train
    frames = left_pad(train, recipe.architecture.max_len + 1)
    inputs, targets = frames[:, :-1] * (frames[:, :-1] > 0), frames[:, 1:]
    # The frame of the targets starts one item later: no target under a pad.
    targets = np.where(inputs > 0, targets, 0)
    users = np.broadcast_to(np.arange(len(train))[:, None], targets.shape)[targets > 0]
    negatives = np.zeros_like(targets)
    negatives[targets > 0] = epochs.sampler.sample(rng, users) + 1
    order = np.resize(
        rng.permutation(len(train)), (epochs.num_steps, recipe.batch_size)
    )
    return inputs[order], targets[order], negatives[order]


class TunedTorch(TorchRun):
    """PyTorch on ready-made batches, spared the attention weights nobody reads."""

    def __init__(self, trainer: Trainer):
        super().__init__(trainer)
        for block in self.model.blocks:
            block.need_weights = False
        self.trainer, self.epochs = trainer, trainer.epochs(0)
        self.epoch = 0

    def batches(self):
        frames = padded_frames(self.trainer, self.epochs, self.epoch)
        self.epoch += 1
        return zip(*(part.astype(np.int64) for part in frames))


def candidate(name: str, split: LeaveOneOut) -> JaxRun | TorchRun:
    optimizer = "sevo_adamw" if "SEvo" in name else "adamw"
    trainer = Trainer(recipe_of("sasrec", "beauty", optimizer), split)
    if name.startswith("packed"):
        return JaxRun(trainer)
    if name.startswith("padded"):
        return Padded(trainer)
    return TunedTorch(trainer) if "tuned" in name else TorchRun(trainer)


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
    command = [sys.executable, __file__, "--once", name]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout.split()[-1])


def seeds_at_once(trainer: Trainer) -> dict[str, float]:
    """Median seconds of an epoch of SEvo-AdamW alone, and its share of five at once."""
    recipe = dataclasses.replace(trainer.recipe, epochs=5)
    trainer = Trainer(recipe, trainer.split)
    alone = trainer.run(progress=False)
    together = trainer.run_together(range(5), progress=False)
    seconds = {
        "alone": alone.seconds_per_epoch,
        "of five": together[0].seconds_per_epoch,
    }
    return seconds | {"times faster": seconds["alone"] / seconds["of five"]}


def run_once(name: str, split: LeaveOneOut) -> None:
    """Trains an epoch, ranks all users, and prints the peak memory in MB."""
    run = candidate(name, split)
    run.train()
    run.evaluate()
    print(peak_bytes() / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--once", choices=NAMES, metavar="CANDIDATE", help="print its peak memory"
    )
    once = parser.parse_args().once
    split = load("beauty")
    if once:
        run_once(once, split)
        return
    runs = {name: candidate(name, split) for name in NAMES}
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
    trainer = Trainer(recipe_of("sasrec", "beauty", "sevo_adamw"), split)
    together = seeds_at_once(trainer)
    print("a seed's epoch, five at once:", together)
    phases = measure_phases(trainer)
    print(format_phases(phases))
    results = {"candidates": results, "five seeds at once": together, "phases": phases}
    print("written to", save("training", results))


if __name__ == "__main__":
    main()
