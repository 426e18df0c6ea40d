"""Reference recommenders, one a file, by the name they go by on the command line."""

from sevo_jax.models.bert4rec import BERT4Rec, BERT4RecConfig
from sevo_jax.models.bsarec import BSARec, BSARecConfig
from sevo_jax.models.gru4rec import GRU4Rec, GRU4RecConfig
from sevo_jax.models.lessr import LESSR, LESSRConfig
from sevo_jax.models.lightgcn import LightGCN, LightGCNConfig
from sevo_jax.models.losses import LossConfig
from sevo_jax.models.maerec import MAERec, MAERecConfig
from sevo_jax.models.mf_bpr import MFBPR, MFBPRConfig
from sevo_jax.models.recommender import (
    GraphVariable,
    Recommender,
    SequenceModel,
    UserModel,
)
from sevo_jax.models.registry import MODELS, register
from sevo_jax.models.sasrec import SASRec, SASRecConfig
from sevo_jax.models.sr_gnn import SRGNN, SRGNNConfig
from sevo_jax.models.stosa import STOSA, STOSAConfig
from sevo_jax.models.zero_block import ZeroBlock, ZeroBlockConfig

__all__ = [
    "LESSR",
    "MODELS",
    "SRGNN",
    "STOSA",
    "BERT4Rec",
    "BERT4RecConfig",
    "BSARec",
    "BSARecConfig",
    "GRU4Rec",
    "GRU4RecConfig",
    "GraphVariable",
    "LESSRConfig",
    "LightGCN",
    "LightGCNConfig",
    "LossConfig",
    "MAERec",
    "MAERecConfig",
    "MFBPR",
    "MFBPRConfig",
    "Recommender",
    "SASRec",
    "SASRecConfig",
    "SRGNNConfig",
    "STOSAConfig",
    "SequenceModel",
    "UserModel",
    "ZeroBlock",
    "ZeroBlockConfig",
    "register",
]
