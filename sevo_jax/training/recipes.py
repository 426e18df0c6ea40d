"""The hyper-parameters of the paper's runs, by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from sevo_jax.training.recipe import GraphConfig, OptimizerConfig, Recipe, suggestion


def find_recipe(name: str) -> Recipe:
    """The recipe registered under `name` in `RECIPES`.

    Raises:
      ValueError: if there is none, listing those of like names.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r}: {suggestion(name, RECIPES)}")
    return RECIPES[name]


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a JSON file: by itself, or as a run has written it.

    Args:
      path: what :meth:`Recipe.to_dict` gave, as JSON; or ``run.json`` or
        ``result.json`` of a run; or the folder of a run.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it holds no recipe, or a field that is none or a wrong value.
    """
    path = Path(path)
    if path.is_dir():
        path /= "run.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if isinstance(values, dict):
        values = values.get("recipe", values)
    if not isinstance(values, dict) or "model" not in values:
        raise ValueError(
            f"{path} holds no recipe: give run.json or result.json of a run, or an "
            'object like {"model": "sasrec", "epochs": 50, "optimizer": {...}}'
        )
    try:
        return Recipe.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _vary(base: Recipe, **changes: Any) -> Recipe:
    """`base` with other values of its fields and of the fields of its parts.

    A name that several parts have is changed in all of them: `max_len` is the model's
    and the graph's. A part that is given as a whole stays as it is.
    """
    own = {name: changes.pop(name) for name in vars(base) if name in changes}
    unknown = changes.keys()
    for part in ("architecture", "optimizer", "graph"):
        config = getattr(base, part)
        fitting = {name: changes[name] for name in changes if name in vars(config)}
        own.setdefault(part, replace(config, **fitting))
        unknown -= fitting.keys()
    if unknown:
        raise TypeError(f"no part of a {base.model} recipe has {sorted(unknown)}")
    return replace(base, **own)


_MF_BPR = Recipe("mf-bpr", batch_size=2048, epochs=1000)
_GRU4REC = Recipe("gru4rec", batch_size=512, epochs=300)
_SASREC = Recipe("sasrec", optimizer=OptimizerConfig(b2=0.98), epochs=200)
_BERT4REC = Recipe(
    "bert4rec", optimizer=OptimizerConfig(b2=0.95), batch_size=256, epochs=500
)
_STOSA = _vary(Recipe("stosa"), max_len=100, batch_size=256, epochs=500)
# The paper's of these are unpublished: RecBoard's, by an author of it. A run of it
# stops where it has not been better for a tenth of its epochs; of LESSR, for a fifth.
_LIGHTGCN = Recipe(
    "lightgcn",
    optimizer=OptimizerConfig("adam", weight_decay=0.0),
    batch_size=2048,
    epochs=1000,
    patience=20,
)
# Likewise: the authors', but for the width, as all models here have it, the epochs (the
# authors stop after 20, chosen by another protocol), and the weight of the
# reconstruction, theirs 1: by validation on Beauty (experiments/tuning.py).
_MAEREC = _vary(
    Recipe("maerec", batch_size=256, epochs=200, patience=4),
    optimizer=OptimizerConfig("adam", weight_decay=0.0),
    reconstruction_weight=0.0,
)
# The paper's are unpublished: the batches and epochs of SR-GNN's authors, who let the
# learning rate fall; rate and decay by validation on Beauty (experiments/tuning.py).
_SR_GNN = Recipe(
    "sr-gnn",
    optimizer=OptimizerConfig("adamw", learning_rate=5e-3, weight_decay=0.01),
    batch_size=100,
    epochs=30,
)
# RecBoard's for Beauty, which the search did not improve on; dropout on MovieLens-1M as
# LESSR's authors have it.
_LESSR = Recipe(
    "lessr",
    optimizer=OptimizerConfig("adamw", weight_decay=1e-6),
    batch_size=512,
    epochs=100,
    patience=4,
)
# The softmax over all items, which the paper trains none of its backbones with. As far
# as they are known, the settings of RecBoard's numbers with it; not tuned for SEvo. An
# epoch is dear: a run stops once it has not been better for 30.
_CE: dict[str, Any] = dict(
    learning_rate=5e-4, weight_decay=0.0, beta=0.5, dropout=0.5, loss="ce"
)
_PATIENCE = 6
_SASREC_CE = _vary(_SASREC, **_CE, patience=_PATIENCE)
_GRU4REC_CE = _vary(_GRU4REC, **_CE, epochs=100, patience=_PATIENCE)
_ZERO_BLOCK = _vary(Recipe("zero-block", patience=_PATIENCE), **_CE)
# RecBoard's. Its Adam has the decay in the gradient.
_BSAREC = Recipe(
    "bsarec",
    optimizer=OptimizerConfig("adam_l2", learning_rate=1e-4, weight_decay=1e-4),
    batch_size=256,
    epochs=200,
    patience=_PATIENCE,
)
# Quick ones, for the built-in log.
_SMALL: dict[str, Any] = dict(learning_rate=3e-3, max_len=20)

RECIPES: dict[str, Recipe] = {
    "mf-bpr-ii-beauty": _vary(_MF_BPR, beta=0.9),
    "mf-bpr-ii-toys": _MF_BPR,
    "mf-bpr-ii-tools": _vary(_MF_BPR, beta=0.5, weight_decay=0.5),
    "mf-bpr-ii-ml-1m": _vary(_MF_BPR, weight_decay=0.05, max_len=10),
    "mf-bpr-ui-beauty": _vary(_MF_BPR, kind="user-item"),
    "mf-bpr-ui-toys": _vary(_MF_BPR, kind="user-item", beta=0.7),
    "mf-bpr-ui-tools": _vary(_MF_BPR, kind="user-item", beta=0.7, weight_decay=0.5),
    "mf-bpr-ui-ml-1m": _vary(_MF_BPR, kind="user-item", beta=0.7, weight_decay=0.05),
    "mf-bpr-synthetic": _vary(_MF_BPR, learning_rate=1e-2, batch_size=1024, epochs=60),
    "gru4rec-beauty": _vary(_GRU4REC, dropout=0.4),
    "gru4rec-toys": _vary(_GRU4REC, dropout=0.4),
    "gru4rec-tools": _vary(_GRU4REC, dropout=0.5, learning_rate=5e-3),
    "gru4rec-ml-1m": _vary(_GRU4REC, dropout=0.3, weight_decay=0.01, max_len=200),
    "gru4rec-synthetic": _vary(_GRU4REC, **_SMALL, batch_size=256, epochs=50),
    "sasrec-beauty": _vary(_SASREC, dropout=0.3),
    "sasrec-toys": _vary(_SASREC, dropout=0.3),
    "sasrec-tools": _vary(_SASREC, dropout=0.7),
    "sasrec-ml-1m": _vary(_SASREC, dropout=0.1, max_len=200, batch_size=128),
    "sasrec-synthetic": _vary(_SASREC, **_SMALL, batch_size=128, epochs=30),
    "bert4rec-beauty": _vary(_BERT4REC, dropout=0.2, mask_prob=0.5, learning_rate=5e-4),
    "bert4rec-toys": _vary(_BERT4REC, dropout=0.1, mask_prob=0.5),
    "bert4rec-tools": _vary(_BERT4REC, dropout=0.3, mask_prob=0.4),
    "bert4rec-ml-1m": _vary(
        _BERT4REC,
        dropout=0.1,
        mask_prob=0.2,
        b2=0.999,
        max_len=200,
        graph=GraphConfig(max_len=10),
    ),
    "bert4rec-synthetic": _vary(_BERT4REC, **_SMALL, batch_size=128, epochs=50),
    "stosa-beauty": _vary(_STOSA, hidden_dropout=0.2, attention_dropout=0.5),
    "stosa-toys": _vary(_STOSA, hidden_dropout=0.2, attention_dropout=0.6),
    "stosa-tools": _vary(_STOSA, hidden_dropout=0.3, attention_dropout=0.1),
    "stosa-ml-1m": _vary(
        _STOSA,
        max_len=200,
        hidden_dropout=0.1,
        attention_dropout=0.2,
        pvn_weight=0.001,
        learning_rate=5e-3,
    ),
    "stosa-synthetic": _vary(_STOSA, **_SMALL, batch_size=128, epochs=30),
    "lightgcn-beauty": _LIGHTGCN,
    "lightgcn-toys": _vary(_LIGHTGCN, num_hops=2),
    "lightgcn-tools": _LIGHTGCN,
    "lightgcn-ml-1m": _LIGHTGCN,
    "lightgcn-synthetic": _vary(
        _LIGHTGCN, learning_rate=1e-2, batch_size=1024, epochs=60
    ),
    "maerec-beauty": _MAEREC,
    "maerec-toys": _MAEREC,
    "maerec-tools": _MAEREC,
    "maerec-ml-1m": _vary(_MAEREC, max_len=200),
    "maerec-synthetic": _vary(
        _MAEREC,
        **_SMALL,
        batch_size=128,
        epochs=30,
        num_edges=256,
        reconstruction_weight=1.0,
    ),
    "sr-gnn-beauty": _SR_GNN,
    "sr-gnn-toys": _SR_GNN,
    "sr-gnn-tools": _SR_GNN,
    "sr-gnn-ml-1m": _SR_GNN,
    "sr-gnn-synthetic": _vary(_SR_GNN, **_SMALL, epochs=10),
    "lessr-beauty": _vary(_LESSR, dropout=0.7),
    "lessr-toys": _vary(_LESSR, dropout=0.7),
    "lessr-tools": _vary(_LESSR, dropout=0.7),
    "lessr-ml-1m": _vary(_LESSR, dropout=0.2),
    "lessr-synthetic": _vary(
        _LESSR, **_SMALL, weight_decay=0.1, batch_size=256, epochs=30
    ),
    "sasrec-ce-beauty": _SASREC_CE,
    "sasrec-ce-toys": _SASREC_CE,
    "sasrec-ce-tools": _vary(_SASREC_CE, dropout=0.6),
    "sasrec-ce-ml-1m": _vary(_SASREC_CE, dropout=0.2, max_len=200, batch_size=128),
    "gru4rec-ce-beauty": _GRU4REC_CE,
    "gru4rec-ce-toys": _GRU4REC_CE,
    "gru4rec-ce-tools": _vary(_GRU4REC_CE, dropout=0.6),
    "gru4rec-ce-ml-1m": _vary(_GRU4REC_CE, dropout=0.2, max_len=200),
    "zero-block-beauty": _ZERO_BLOCK,
    "zero-block-toys": _ZERO_BLOCK,
    "zero-block-tools": _vary(_ZERO_BLOCK, dropout=0.6),
    "zero-block-ml-1m": _vary(_ZERO_BLOCK, dropout=0.2, max_len=200, batch_size=128),
    "zero-block-synthetic": _vary(_ZERO_BLOCK, **_SMALL, batch_size=128, epochs=30),
    "bsarec-beauty": _BSAREC,
    "bsarec-toys": _vary(_BSAREC, attention_dropout=0.3),
    "bsarec-synthetic": _vary(_BSAREC, **_SMALL, batch_size=128, epochs=10),
    "mf-bpr-adamw-beauty": _vary(
        _MF_BPR, name="adamw", kind="user-item", weight_decay=0.5, learning_rate=5e-3
    ),
    "gru4rec-adamw-beauty": _vary(_GRU4REC, name="adamw", dropout=0.4),
    "sasrec-adamw-beauty": _vary(_SASREC, name="adamw", dropout=0.3),
    "bert4rec-adamw-beauty": _vary(
        _BERT4REC, name="adamw", dropout=0.2, mask_prob=0.5, learning_rate=5e-4
    ),
    "stosa-adamw-beauty": _vary(
        _STOSA, name="adamw", hidden_dropout=0.2, attention_dropout=0.5
    ),
}
"""The hyper-parameters of the paper's runs by `<model>-<dataset>`, of MF-BPR by
`mf-bpr-<graph>-<dataset>` with the graph `ii` (item-item) or `ui` (user-item); those of
`synthetic` are quick ones for the built-in log. With `-ce-` in the name the loss is the
softmax over all items (`sevo_jax.models.losses`).

Those of the paper's plain backbones are unpublished: `<model>-adamw-beauty` are what
tuning by validation comes to on Beauty (`experiments/tuning.py`), which for all but
MF-BPR is what SEvo has."""
