"""Reference recommenders, one a file, by the name they go by on the command line."""

from typing import Any

from flax import nnx

from sevo_jax.models.bert4rec import BERT4Rec, BERT4RecConfig
from sevo_jax.models.gru4rec import GRU4Rec, GRU4RecConfig
from sevo_jax.models.mf_bpr import MFBPR, MFBPRConfig
from sevo_jax.models.sasrec import SASRec, SASRecConfig
from sevo_jax.models.sequence import SequenceModel
from sevo_jax.models.stosa import STOSA, STOSAConfig

MODELS: dict[str, Any] = {
    "sasrec": SASRec,
    "mf-bpr": MFBPR,
    "gru4rec": GRU4Rec,
    "bert4rec": BERT4Rec,
    "stosa": STOSA,
}

ModelConfig = BERT4RecConfig | GRU4RecConfig | MFBPRConfig | SASRecConfig | STOSAConfig

__all__ = [
    "MODELS",
    "STOSA",
    "BERT4Rec",
    "BERT4RecConfig",
    "GRU4Rec",
    "GRU4RecConfig",
    "MFBPR",
    "MFBPRConfig",
    "ModelConfig",
    "SASRec",
    "SASRecConfig",
    "STOSAConfig",
    "SequenceModel",
    "make",
]


def make(
    name: str, num_users: int, num_items: int, config: ModelConfig, *, rngs: nnx.Rngs
) -> Any:
    """Makes the model that goes by `name`, for data of this size.

    Args:
        name: A key of `MODELS`.
        num_users: How many users there are; a sequence model takes no notice.
        num_items: How many items there are.
        config: Hyper-parameters, a `MODELS[name].Config`.
        rngs: Source of the initial values (stream `params`).
    """
    by_items = issubclass(MODELS[name], SequenceModel)
    sizes = (num_items,) if by_items else (num_users, num_items)
    return MODELS[name](*sizes, config, rngs=rngs)
