"""Reference recommenders, one a file, by the name they go by on the command line."""

from typing import Any

from flax import nnx

from sevo_jax.models.gru4rec import GRU4Rec, GRU4RecConfig
from sevo_jax.models.sasrec import SASRec, SASRecConfig
from sevo_jax.models.sequence import SequenceModel

MODELS = {"sasrec": SASRec, "gru4rec": GRU4Rec}

ModelConfig = SASRecConfig | GRU4RecConfig

__all__ = [
    "GRU4Rec",
    "GRU4RecConfig",
    "MODELS",
    "ModelConfig",
    "SASRec",
    "SASRecConfig",
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
    return MODELS[name](num_items, config, rngs=rngs)
