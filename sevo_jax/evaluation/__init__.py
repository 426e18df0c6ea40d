"""Evaluation of recommenders: full ranking, metrics, and the protocol in words."""

from sevo_jax.evaluation.metrics import METRICS, PAPER_METRICS, measure
from sevo_jax.evaluation.protocol import EvaluationConfig, describe
from sevo_jax.evaluation.ranking import Evaluator, evaluate, recommend, target_ranks

__all__ = [
    "METRICS",
    "PAPER_METRICS",
    "EvaluationConfig",
    "Evaluator",
    "describe",
    "evaluate",
    "measure",
    "recommend",
    "target_ranks",
]
