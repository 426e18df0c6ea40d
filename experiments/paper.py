"""What the paper's experiments are about: its backbones, data sets and numbers."""

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sevo_jax.data import InteractionLog, LeaveOneOut, leave_one_out, read
from sevo_jax.training import RECIPES, Recipe

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("SEVO_DATA", Path(__file__).parents[2] / "shared" / "data"))

GENRES = DATA / "ml-1m_item2genres.json"


class Backbone(NamedTuple):
    """A model and the graph that SEvo smooths it over.

    Attributes:
      label: what people call it.
      plain: the backbone whose runs without SEvo are this one's too, as the graph
        makes no difference to them.
      paper: what the paper's numbers without SEvo go by.
    """

    label: str
    plain: str
    paper: str


BACKBONES = {
    "mf-bpr-ui": Backbone("MF-BPR (U-I)", "mf-bpr-ui", "mf-bpr"),
    "mf-bpr-ii": Backbone("MF-BPR (I-I)", "mf-bpr-ui", "mf-bpr"),
    "gru4rec": Backbone("GRU4Rec", "gru4rec", "gru4rec"),
    "sasrec": Backbone("SASRec", "sasrec", "sasrec"),
    "stosa": Backbone("STOSA", "stosa", "stosa"),
    "bert4rec": Backbone("BERT4Rec", "bert4rec", "bert4rec"),
}
"""By name; the recipes are called `<name>-<data set>`."""

GRAPH_MODELS = {
    name: Backbone(label, name, name)
    for name, label in {
        "lightgcn": "LightGCN",
        "sr-gnn": "SR-GNN",
        "lessr": "LESSR",
        "maerec": "MAERec",
    }.items()
}
"""The models that the paper compares SEvo with. It does not smooth their updates."""

DATASETS = {
    "beauty": "Beauty",
    "toys": "Toys",
    "tools": "Tools",
    "ml-1m": "MovieLens-1M",
}
"""What people call the data sets, by the names of their files."""

NUMBERS = json.loads((Path(__file__).parent / "paper_table3.json").read_text())
"""Table 3: `without` SEvo by model, `with` it, from the authors' logs, by backbone.

Of graph models there is none with it.
"""


def recipe_of(backbone: str, dataset: str, optimizer: str) -> Recipe:
    """The paper's recipe, with another optimizer of the same hyper-parameters."""
    return RECIPES[f"{backbone}-{dataset}"].with_optimizer(optimizer)


def load(dataset: str) -> LeaveOneOut:
    """A data set of the paper, from the folder in `SEVO_DATA`.

    Args:
      dataset: one of `DATASETS`, or with `-usersP` behind it P percent of its users.
    """
    name, _, percent = dataset.partition("-users")
    path = DATA / f"{name}.txt"
    if not path.exists():
        raise SystemExit(f"{path}: no such file, set SEVO_DATA to the folder of it")
    log = read(path)
    return leave_one_out(some_users(log, int(percent)) if percent else log)


def some_users(log: InteractionLog, percent: int) -> InteractionLog:
    """The log of so many percent of the users, and of the items that they have.

    They are the first of one permutation, so that a larger part has all of a smaller.
    """
    count = math.ceil(log.num_users * percent / 100)
    chosen = np.random.default_rng(0).permutation(log.num_users)[:count]
    mine = np.isin(log.sequences.rows, chosen)
    users, items, _ = log.to_columns()
    name = f"{log.name}-users{percent}"
    return InteractionLog.from_columns(users[mine], items[mine], name=name)
