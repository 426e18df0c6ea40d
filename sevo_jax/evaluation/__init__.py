"""Evaluation of recommenders: full ranking with seen items masked."""

from sevo_jax.evaluation.metrics import hit_rate, metrics, ndcg
from sevo_jax.evaluation.ranking import Evaluator, evaluate, recommend, target_ranks

__all__ = [
    "Evaluator",
    "evaluate",
    "hit_rate",
    "metrics",
    "ndcg",
    "recommend",
    "target_ranks",
]
