"""The five recommenders in plain PyTorch, as they are usually written.

Padded frames, a dataset that draws its samples one by one, a data loader, PyTorch's own
layers. Each model is that of ``sevo_jax.models`` by the same name: `copy_of` takes over
its sizes and parameters, and `check` makes sure that scores and losses are the same.
"""

from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from sevo_jax.data import Sequences
from torch_models.bert4rec import TorchBERT4Rec
from torch_models.gru4rec import TorchGRU4Rec
from torch_models.mf_bpr import TorchMFBPR
from torch_models.sasrec import TorchSASRec
from torch_models.stosa import TorchSTOSA

MODELS = {
    "BERT4Rec": TorchBERT4Rec,
    "GRU4Rec": TorchGRU4Rec,
    "MFBPR": TorchMFBPR,
    "SASRec": TorchSASRec,
    "STOSA": TorchSTOSA,
}
"""By the class of the original. Each has

- `Samples(train, num_items, config)`, the dataset it trains on;
- `loss(*batch)` of a batch of samples, and `score(frames)` of all items;
- `frames(sequences, users)`, what users are ranked from;
- `weights(original)`, its parameters by name, taken from the original's;
- `original_batch(*batch)`, the same samples as a step of the original.
"""


def copy_of(original: Any) -> Any:
    """The PyTorch model with the sizes and the parameters of one of sevo_jax."""
    copy = MODELS[type(original).__name__](original)
    weights = copy.weights(original)
    # Strict: a parameter left out, unknown or of another shape is an error.
    copy.load_state_dict(
        {name: torch.tensor(np.asarray(value)) for name, value in weights.items()}
    )
    return copy


def check(original: Any, train: Sequences, num_users: int = 48) -> None:
    """Makes sure that a model of sevo_jax and its PyTorch copy are the same model.

    Compares, without dropout, the scores of some users, the shortest and the longest
    history among them, and the loss of one batch of the PyTorch dataset.

    Raises:
        AssertionError: If they differ by more than rounding.
    """
    rng = np.random.default_rng(0)
    graphdef, params = nnx.split(original)
    # Biases of 0 and scales of 1, as they are at first, would hide mistakes.
    params = jax.tree.map(
        lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), params
    )
    original = nnx.merge(graphdef, params)
    copy = copy_of(original).eval()

    evenly = np.linspace(0, len(train) - 1, num_users).astype(int)
    users = np.argsort(train.lengths, kind="stable")[evenly]
    sequences = Sequences.from_lists(train[user] for user in users)
    inputs = original.inputs(sequences, users)
    samples = copy.Samples(train, original.num_items, original.config)
    loader = torch.utils.data.DataLoader(samples, num_users, shuffle=True)
    batch = next(iter(loader))
    step = copy.original_batch(*batch)

    @jax.jit
    def score_and_loss(params):
        model = nnx.merge(graphdef, params)
        return model.score(inputs), model.loss(step, rng=None)

    # On accelerators the default product has fewer digits.
    with jax.default_matmul_precision("highest"):
        scores, loss = jax.device_get(score_and_loss(params))
    with torch.no_grad():
        torch_scores = copy.score(copy.frames(sequences, users)).numpy()
    torch_loss = copy.loss(*batch).item()
    np.testing.assert_allclose(
        torch_scores, scores, rtol=1e-4, atol=1e-5 * np.abs(scores).max()
    )
    np.testing.assert_allclose(torch_loss, loss, rtol=1e-4)
