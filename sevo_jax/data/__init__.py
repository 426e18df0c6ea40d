"""Interaction data: reading, filtering, splitting, sampling and a built-in log."""

from sevo_jax.data.filtering import k_core
from sevo_jax.data.log import InteractionLog
from sevo_jax.data.masking import MaskedBatch, MaskedEpochs
from sevo_jax.data.packing import PackedBatch, PackedEpochs, left_pad
from sevo_jax.data.prefixes import PrefixBatch, PrefixEpochs
from sevo_jax.data.readers import read
from sevo_jax.data.samplers import NegativeSampler
from sevo_jax.data.sequences import Sequences
from sevo_jax.data.split import LeaveOneOut, leave_one_out
from sevo_jax.data.statistics import Statistics, statistics
from sevo_jax.data.streaming import stream
from sevo_jax.data.synthetic import planted
from sevo_jax.data.triplets import TripletBatch, TripletEpochs
from sevo_jax.data.writers import write

__all__ = [
    "InteractionLog",
    "LeaveOneOut",
    "MaskedBatch",
    "MaskedEpochs",
    "NegativeSampler",
    "PackedBatch",
    "PackedEpochs",
    "PrefixBatch",
    "PrefixEpochs",
    "Sequences",
    "Statistics",
    "TripletBatch",
    "TripletEpochs",
    "k_core",
    "leave_one_out",
    "left_pad",
    "planted",
    "read",
    "statistics",
    "stream",
    "write",
]
