"""How an epoch's samples are drawn: as this library does and as the authors do.

    python experiments/sampling.py run --backbone gru4rec --dataset beauty
    python experiments/sampling.py run --backbone bert4rec --dataset toys --seeds 0 1
    python experiments/sampling.py table --backbone gru4rec --dataset beauty

GRU4Rec: the authors draw every prefix of a sequence as a sample of its own; by default
this library passes once over a user's items for all of the user's prefixes, as
`sevo_jax.models.GRU4Rec` says.

BERT4Rec: here an epoch has every user once. The authors load with four processes, each
of which shuffles all users on its own and takes every fourth: an epoch has a user
Binomial(4, 1/4) times, a third of them not at all. Theirs is so for every backbone.

Both train by the paper's recipe. Runs are resumable and may be done side by side, as
those of ``table3.py``, which the library's own are; the others go to
``results/sampling``.
"""

import argparse
import dataclasses
from pathlib import Path
from unittest import mock

import numpy as np
from jobs import Job, do
from paper import DATASETS, NUMBERS, RESULTS
from table3 import COLUMNS, authors_spreads, job, spreads

from sevo_jax.models import bert4rec
from sevo_jax.samples.masked import MASK, MaskedBatch, MaskedEpochs
from sevo_jax.samples.packing import PackedRows, round_up

FOLDER = RESULTS / "sampling"
OPTIMIZERS = ("sevo_adamw", "adamw")
# What the runs on samples drawn as the authors do are called.
SUFFIXES = {"gru4rec": "prefix", "bert4rec": "loaders"}


class LoaderEpochs(MaskedEpochs):
    """Epochs drawn as by the authors' four loading processes.

    Each batches what it takes by itself; their batches take turns.
    """

    num_loaders = 4

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_steps = len(self._draw(np.random.default_rng(0)))
        self._starts = np.cumsum(self._lengths) - self._lengths

    def __getitem__(self, epoch: int) -> MaskedBatch:
        rng = np.random.default_rng([self.seed, epoch])
        batches = self._draw(rng)
        # Every time a user is drawn makes a sample of its own, with a mask of its own.
        order = np.concatenate(batches)
        lengths = self._lengths[order]
        ends = np.cumsum(lengths)
        cells = np.repeat(self._starts[order] - (ends - lengths), lengths)
        cells += np.arange(ends[-1])
        hidden = rng.random(cells.size) < self.mask_prob
        samples = np.split(
            np.arange(order.size), np.cumsum([len(batch) for batch in batches])[:-1]
        )
        rows = PackedRows(lengths, samples, self.max_len, self.num_rows)
        inputs = np.where(hidden, MASK, self._items[cells])
        labels = rows.fill(np.where(hidden, self._items[cells], 0))
        labels = labels.reshape(self.num_steps, -1)
        width = max(self.num_masked, round_up(np.count_nonzero(labels, 1).max(), 32))
        # The hidden cells in their order, then others, whose label is 0.
        masked = np.argsort(labels == 0, axis=1, kind="stable")[:, :width]
        labels = np.take_along_axis(labels, masked, 1)
        return MaskedBatch(
            inputs=rows.fill(inputs),
            segments=rows.fill(rows.segments),
            positions=rows.fill(self._positions[cells]),
            masked=np.where(labels > 0, masked, 0).astype(np.int32),
            labels=labels.astype(np.int32),
        )

    def _draw(self, rng: np.random.Generator) -> list[np.ndarray]:
        """The users of each step."""
        batches = []
        for loader in range(self.num_loaders):
            users = rng.permutation(self.num_samples)[loader :: self.num_loaders]
            cuts = range(self.batch_size, users.size, self.batch_size)
            batches.append(np.split(users, cuts))
        turns = range(len(batches[0]))  # the first takes the most
        return [each[turn] for turn in turns for each in batches if turn < len(each)]


def authors_job(backbone: str, dataset: str, optimizer: str, seed: int) -> Job:
    """The run of Table 3, but on samples drawn as the authors do.

    BERT4Rec's recipe does not say how: see `main`.
    """
    run = job(backbone, dataset, optimizer, seed)
    recipe = run.recipe
    if backbone == "gru4rec":
        architecture = dataclasses.replace(recipe.architecture, sampling="prefix")
        recipe = dataclasses.replace(recipe, architecture=architecture)
    name = f"{run.name}-{SUFFIXES[backbone]}"
    return dataclasses.replace(run, name=name, recipe=recipe, folder=FOLDER)


def table(backbone: str, dataset: str) -> str:
    """Both ways, over the seeds there are."""
    lines = [_row("", COLUMNS)]
    for optimizer in OPTIMIZERS:
        for way, make in (("ours", job), (SUFFIXES[backbone], authors_job)):
            jobs = [make(backbone, dataset, optimizer, seed) for seed in range(5)]
            group = {each.seed: result for each in jobs if (result := each.result())}
            if group:
                label = f"{optimizer}, {way}, {len(group)} seeds"
                lines.append(_row(label, spreads(group)))
    authors = NUMBERS["with"][f"{backbone}-{dataset}"]
    lines.append(_row("the authors, SEvo, 5 seeds", authors_spreads(authors)))
    return "\n".join(lines)


def _row(label, cells):
    return f"{label:32}" + "".join(f"{cell:>18}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--backbone", choices=SUFFIXES, default="gru4rec")
    parser.add_argument("--dataset", choices=DATASETS, default="beauty")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS)
    parser.add_argument("--work", type=Path, default=Path("runs/table3"))
    options = parser.parse_args()
    if options.command == "run":
        for seed in options.seeds:
            for optimizer in options.optimizers:
                run = (options.backbone, options.dataset, optimizer, seed)
                do([job(*run)], options.work)
                # Only BERT4Rec uses this class: GRU4Rec's sampling is in its recipe.
                with mock.patch.object(bert4rec, "MaskedEpochs", LoaderEpochs):
                    do([authors_job(*run)], options.work)
    print(table(options.backbone, options.dataset))


if __name__ == "__main__":
    main()
