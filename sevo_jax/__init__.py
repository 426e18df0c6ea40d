"""Structure-aware embedding evolution (SEvo) for Optax.

SEvo smooths the *updates* of embedding tables over a graph of their rows, so that
related rows evolve alike. It changes training only: the model and its inference stay
as they are.

The library: :func:`sevo_adamw`, :func:`sevo_adam`, :func:`sevo_sgd` and the
transformations they are chained from, :mod:`sevo_jax.graphs` to build graphs,
:mod:`sevo_jax.smoothing` for the mathematics. The reference recommenders
(``sevo_jax.data``, ``models``, ``evaluation``, ``training`` and the command
``sevo-jax``) need the extra ``sevo-jax[train]`` and are not imported here.
"""

from sevo_jax import graphs, smoothing
from sevo_jax.moments import (
    ScaleByMomentCorrectedAdamState,
    scale_by_moment_corrected_adam,
)
from sevo_jax.operators import (
    CSROperator,
    GraphOperator,
    ShardedGraphOperator,
    prepare,
    shard_rows,
    weighted_sum,
)
from sevo_jax.optimizers import sevo_adam, sevo_adamw, sevo_sgd
from sevo_jax.states import carry_over
from sevo_jax.transforms import ScaleBySevoState, scale_by_sevo

__version__ = "0.1.0"

__all__ = [
    "CSROperator",
    "GraphOperator",
    "ScaleByMomentCorrectedAdamState",
    "ScaleBySevoState",
    "ShardedGraphOperator",
    "carry_over",
    "graphs",
    "prepare",
    "scale_by_moment_corrected_adam",
    "scale_by_sevo",
    "sevo_adam",
    "sevo_adamw",
    "sevo_sgd",
    "shard_rows",
    "smoothing",
    "weighted_sum",
]
