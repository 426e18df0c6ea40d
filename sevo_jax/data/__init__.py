"""Interaction data: reading, filtering, splitting and a built-in log."""

from sevo_jax.data.attributes import read_attributes
from sevo_jax.data.fetching import fetch
from sevo_jax.data.filtering import k_core
from sevo_jax.data.log import InteractionLog
from sevo_jax.data.log_statistics import Statistics, statistics
from sevo_jax.data.readers import read
from sevo_jax.data.sequences import Sequences
from sevo_jax.data.split import LeaveOneOut, leave_one_out
from sevo_jax.data.streaming import read_item_ids, stream
from sevo_jax.data.synthetic import planted
from sevo_jax.data.writers import write

__all__ = [
    "InteractionLog",
    "LeaveOneOut",
    "Sequences",
    "Statistics",
    "fetch",
    "k_core",
    "leave_one_out",
    "planted",
    "read",
    "read_attributes",
    "read_item_ids",
    "statistics",
    "stream",
    "write",
]
