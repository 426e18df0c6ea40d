"""The nine recommenders in plain PyTorch, as they are usually written.

A dataset that draws its samples one by one, a data loader, PyTorch's own layers, padded
frames but for LESSR. Each model is that of ``sevo_jax.models`` by the same name:
`copy_of` takes over its sizes, parameters and graph, and `check` makes sure that
scores, losses and gradients are the same.
"""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from sevo_jax.data import LeaveOneOut, Sequences
from sevo_jax.training import Recipe, Trainer
from sevo_jax.training.epoch import split_model, with_parts
from torch_models.bert4rec import TorchBERT4Rec
from torch_models.gru4rec import TorchGRU4Rec
from torch_models.lessr import TorchLESSR
from torch_models.lightgcn import TorchLightGCN
from torch_models.maerec import TorchMAERec
from torch_models.mf_bpr import TorchMFBPR
from torch_models.sasrec import TorchSASRec
from torch_models.sr_gnn import TorchSRGNN
from torch_models.stosa import TorchSTOSA

MODELS = {
    "BERT4Rec": TorchBERT4Rec,
    "GRU4Rec": TorchGRU4Rec,
    "LESSR": TorchLESSR,
    "LightGCN": TorchLightGCN,
    "MAERec": TorchMAERec,
    "MFBPR": TorchMFBPR,
    "SASRec": TorchSASRec,
    "SRGNN": TorchSRGNN,
    "STOSA": TorchSTOSA,
}
"""By the class of the original. Each has

- `Samples(train, num_items, config)`, the dataset it trains on;
- `loss(*batch)` of a batch of samples, and `score(frames)` of all items;
- `frames(sequences, users)`, what users are ranked from;
- `weights(original)`, its parameters by name, taken from the original's;
- `original_batch(*batch)`, the same samples as a step of the original;
- where its loss draws more than dropout, `take_draws(original, key)`, which makes it
  draw what a step of the original draws.
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


def check(recipe: Recipe, split: LeaveOneOut, num_users: int = 48) -> None:
    """Makes sure that a recipe's model and its PyTorch copy are the same model.

    Compares, without dropout, the loss of one batch of the PyTorch dataset with its
    gradients, and then the scores of some users, the shortest and the longest history
    among them: on the split, and on histories of the same lengths where few items come
    again and again.

    Raises:
        AssertionError: If they differ by more than rounding.
    """
    config = recipe.architecture
    rates = {name: 0.0 for name in vars(config) if name.endswith("dropout")}
    recipe = replace(recipe, architecture=replace(config, **rates))
    original: Any = Trainer(recipe, split).new_model(0)
    rng = np.random.default_rng(0)
    graphdef, params, graphs, carried = split_model(original)
    # Biases of 0 and scales of 1, as they are at first, would hide mistakes.
    params = jax.tree.map(
        lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), params
    )
    original = nnx.merge(graphdef, params, graphs, carried)
    original.before_step()
    graphdef, params, graphs, carried = split_model(original)
    key = jax.random.key(0)

    @jax.jit
    def in_jax(params, carried, step, inputs):
        def loss_of(params):
            # Made anew: NNX lets no variable from outside a trace be changed in it.
            fresh = jax.tree.map(lambda leaf: leaf, carried)
            model: Any = nnx.merge(graphdef, params, graphs, fresh)
            loss, _ = with_parts(model.loss(step, rng=key))
            return loss, split_model(model)[3]

        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, carried), gradients = gradient(params)
        model: Any = nnx.merge(graphdef, params, graphs, carried)
        return model.score(inputs), loss, gradients

    repeating = Sequences(split.train.values % 5, split.train.offsets)
    for train in (split.train, repeating):
        copy = copy_of(original)
        if hasattr(copy, "take_draws"):
            copy.take_draws(original, key)
        evenly = np.linspace(0, len(train) - 1, num_users).astype(int)
        users = np.argsort(train.lengths, kind="stable")[evenly]
        sequences = Sequences.from_lists(train[user] for user in users)
        samples = copy.Samples(train, original.num_items, original.config)
        loader = torch.utils.data.DataLoader(samples, num_users, shuffle=True)
        batch = next(iter(loader))
        step = copy.original_batch(*batch)
        inputs = original.inputs(sequences, users)
        # On accelerators the default product has fewer digits.
        with jax.default_matmul_precision("highest"):
            scores, loss, gradients = jax.device_get(
                in_jax(params, carried, step, inputs)
            )
        torch_loss = copy.loss(*batch)
        torch_loss.backward()
        copy.eval()
        with torch.no_grad():
            torch_scores = copy.score(copy.frames(sequences, users)).numpy()
        np.testing.assert_allclose(
            torch_scores, scores, rtol=1e-4, atol=1e-5 * np.abs(scores).max()
        )
        np.testing.assert_allclose(torch_loss.item(), loss, rtol=1e-4)
        # Laid out as the parameters are.
        gradients = copy.weights(nnx.merge(graphdef, gradients, graphs, carried))
        for name, parameter in copy.named_parameters():
            expected = np.asarray(gradients[name])
            found = 0 if parameter.grad is None else parameter.grad.numpy()
            np.testing.assert_allclose(
                found,
                expected,
                rtol=1e-3,
                atol=1e-4 * np.abs(expected).max(),
                err_msg=f"gradient of {name}",
            )
