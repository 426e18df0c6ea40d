"""The hyper-parameters of the paper's runs, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from sevo_jax.models import (
    BERT4RecConfig,
    GRU4RecConfig,
    LightGCNConfig,
    MFBPRConfig,
    SASRecConfig,
    STOSAConfig,
)
from sevo_jax.training.recipe import (
    GraphConfig,
    OptimizerConfig,
    Recipe,
    suggestion,
)


def find_recipe(name: str) -> Recipe:
    """The recipe registered under `name` in `RECIPES`.

    Raises:
      ValueError: if there is none, listing those of like names.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r}: {suggestion(name, RECIPES)}")
    return RECIPES[name]


def _mf_bpr(
    kind: Literal["item-item", "user-item"],
    *,
    beta: float = 0.99,
    weight_decay: float = 0.1,
    learning_rate: float = 1e-3,
    max_len: int = 50,
) -> Recipe:
    return Recipe(
        model="mf-bpr",
        architecture=MFBPRConfig(),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, weight_decay=weight_decay, beta=beta
        ),
        graph=GraphConfig(kind, max_len=max_len),
        batch_size=2048,
        epochs=1000,
    )


def _gru4rec(
    *,
    dropout: float,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.1,
    max_len: int = 50,
) -> Recipe:
    return Recipe(
        model="gru4rec",
        architecture=GRU4RecConfig(max_len=max_len, dropout=dropout),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, weight_decay=weight_decay
        ),
        graph=GraphConfig(max_len=max_len),
        batch_size=512,
        epochs=300,
    )


def _sasrec(*, max_len: int, dropout: float, batch_size: int) -> Recipe:
    return Recipe(
        architecture=SASRecConfig(max_len=max_len, dropout=dropout),
        optimizer=OptimizerConfig(b2=0.98),
        graph=GraphConfig(max_len=max_len),
        batch_size=batch_size,
    )


def _bert4rec(
    *,
    dropout: float,
    mask_prob: float,
    learning_rate: float = 1e-3,
    b2: float = 0.95,
    max_len: int = 50,
    graph_max_len: int = 50,
) -> Recipe:
    return Recipe(
        model="bert4rec",
        architecture=BERT4RecConfig(
            max_len=max_len, dropout=dropout, mask_prob=mask_prob
        ),
        optimizer=OptimizerConfig(learning_rate=learning_rate, b2=b2),
        graph=GraphConfig(max_len=graph_max_len),
        batch_size=256,
        epochs=500,
    )


def _stosa(
    *,
    max_len: int = 100,
    hidden_dropout: float,
    attention_dropout: float,
    pvn_weight: float = 0.005,
    learning_rate: float = 1e-3,
) -> Recipe:
    return Recipe(
        model="stosa",
        architecture=STOSAConfig(
            max_len=max_len,
            hidden_dropout=hidden_dropout,
            attention_dropout=attention_dropout,
            pvn_weight=pvn_weight,
        ),
        optimizer=OptimizerConfig(learning_rate=learning_rate),
        graph=GraphConfig(max_len=max_len),
        batch_size=256,
        epochs=500,
    )


RECIPES: dict[str, Recipe] = {
    "mf-bpr-ii-beauty": _mf_bpr("item-item", beta=0.9),
    "mf-bpr-ii-toys": _mf_bpr("item-item"),
    "mf-bpr-ii-tools": _mf_bpr("item-item", beta=0.5, weight_decay=0.5),
    "mf-bpr-ii-ml-1m": _mf_bpr("item-item", weight_decay=0.05, max_len=10),
    "mf-bpr-ui-beauty": _mf_bpr("user-item"),
    "mf-bpr-ui-toys": _mf_bpr("user-item", beta=0.7),
    "mf-bpr-ui-tools": _mf_bpr("user-item", beta=0.7, weight_decay=0.5),
    "mf-bpr-ui-ml-1m": _mf_bpr("user-item", beta=0.7, weight_decay=0.05),
    "mf-bpr-synthetic": Recipe(
        model="mf-bpr",
        architecture=MFBPRConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        batch_size=1024,
        epochs=60,
    ),
    "gru4rec-beauty": _gru4rec(dropout=0.4),
    "gru4rec-toys": _gru4rec(dropout=0.4),
    "gru4rec-tools": _gru4rec(dropout=0.5, learning_rate=5e-3),
    "gru4rec-ml-1m": _gru4rec(dropout=0.3, weight_decay=0.01, max_len=200),
    "gru4rec-synthetic": Recipe(
        model="gru4rec",
        architecture=GRU4RecConfig(max_len=20),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        graph=GraphConfig(max_len=20),
        batch_size=256,
        epochs=50,
    ),
    "sasrec-beauty": _sasrec(max_len=50, dropout=0.3, batch_size=512),
    "sasrec-toys": _sasrec(max_len=50, dropout=0.3, batch_size=512),
    "sasrec-tools": _sasrec(max_len=50, dropout=0.7, batch_size=512),
    "sasrec-ml-1m": _sasrec(max_len=200, dropout=0.1, batch_size=128),
    "sasrec-synthetic": Recipe(
        architecture=SASRecConfig(max_len=20),
        optimizer=OptimizerConfig(learning_rate=3e-3, b2=0.98),
        graph=GraphConfig(max_len=20),
        batch_size=128,
        epochs=30,
    ),
    "bert4rec-beauty": _bert4rec(dropout=0.2, mask_prob=0.5, learning_rate=5e-4),
    "bert4rec-toys": _bert4rec(dropout=0.1, mask_prob=0.5),
    "bert4rec-tools": _bert4rec(dropout=0.3, mask_prob=0.4),
    "bert4rec-ml-1m": _bert4rec(
        dropout=0.1, mask_prob=0.2, b2=0.999, max_len=200, graph_max_len=10
    ),
    "bert4rec-synthetic": Recipe(
        model="bert4rec",
        architecture=BERT4RecConfig(max_len=20),
        optimizer=OptimizerConfig(learning_rate=3e-3, b2=0.95),
        graph=GraphConfig(max_len=20),
        batch_size=128,
        epochs=50,
    ),
    "stosa-beauty": _stosa(hidden_dropout=0.2, attention_dropout=0.5),
    "stosa-toys": _stosa(hidden_dropout=0.2, attention_dropout=0.6),
    "stosa-tools": _stosa(hidden_dropout=0.3, attention_dropout=0.1),
    "stosa-ml-1m": _stosa(
        max_len=200,
        hidden_dropout=0.1,
        attention_dropout=0.2,
        pvn_weight=0.001,
        learning_rate=5e-3,
    ),
    "stosa-synthetic": Recipe(
        model="stosa",
        architecture=STOSAConfig(max_len=20),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        graph=GraphConfig(max_len=20),
        batch_size=128,
        epochs=30,
    ),
}
"""The hyper-parameters of the paper's runs by `<model>-<dataset>`, of MF-BPR by
`mf-bpr-<graph>-<dataset>` with the graph `ii` (item-item) or `ui` (user-item); those of
`synthetic` are quick ones for the built-in log.

Those of the paper's plain backbones are unpublished: `<model>-adamw-beauty` are what
tuning by validation comes to on Beauty (`experiments/tuning.py`), which for all but
MF-BPR is what SEvo has."""

RECIPES["mf-bpr-adamw-beauty"] = _mf_bpr(
    "user-item", weight_decay=0.5, learning_rate=5e-3
).with_optimizer("adamw")
RECIPES |= {
    f"{model}-adamw-beauty": RECIPES[f"{model}-beauty"].with_optimizer("adamw")
    for model in ("gru4rec", "sasrec", "bert4rec", "stosa")
}

# Those of the paper are unpublished: RecBoard's, by an author of it.
_LIGHTGCN = Recipe(
    model="lightgcn",
    architecture=LightGCNConfig(),
    optimizer=OptimizerConfig("adam", weight_decay=0.0),
    batch_size=2048,
    epochs=1000,
)
RECIPES |= {
    "lightgcn-beauty": _LIGHTGCN,
    "lightgcn-toys": replace(_LIGHTGCN, architecture=LightGCNConfig(num_hops=2)),
    "lightgcn-tools": _LIGHTGCN,
    "lightgcn-ml-1m": _LIGHTGCN,
    "lightgcn-synthetic": replace(
        _LIGHTGCN,
        optimizer=replace(_LIGHTGCN.optimizer, learning_rate=1e-2),
        batch_size=1024,
        epochs=60,
    ),
}
