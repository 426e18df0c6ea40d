"""Ranking metrics of one relevant item a user: hit rate and NDCG from ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

HIT_RATE_CUTOFFS = (1, 5, 10)
NDCG_CUTOFFS = (5, 10)


def hit_rate(ranks: ArrayLike, k: int) -> float:
    """Share of users whose target is among the first `k` of their ranking.

    Args:
      ranks: 1-based ranks of the targets, `[num_users]`, integers.
      k: cut-off, at least 1.

    Returns:
      HR@k in [0, 1].

    Raises:
      ValueError: if there are no ranks, a rank is below 1, or `k` is below 1.

    Examples:
      >>> hit_rate([1, 4, 11, 2], 10)
      0.75
    """
    return float(np.mean(_checked(ranks, k) <= k))


def ndcg(ranks: ArrayLike, k: int) -> float:
    r"""Normalised discounted cumulative gain at `k` for a single target a user.

    .. math::
      \mathrm{NDCG@}k = \frac{1}{|U|} \sum_u \frac{[r_u \le k]}{\log_2(r_u + 1)}

    The ideal gain is 1, since one item is relevant.

    Args:
      ranks: 1-based ranks of the targets, `[num_users]`, integers.
      k: cut-off, at least 1.

    Returns:
      NDCG@k in [0, 1].

    Raises:
      ValueError: if there are no ranks, a rank is below 1, or `k` is below 1.

    Examples:
      >>> ndcg([1, 3, 11], 10)
      0.5
    """
    ranks = _checked(ranks, k)
    return float(np.mean(np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)))


def metrics(ranks: ArrayLike) -> dict[str, float]:
    """The paper's five metrics: HR@1, HR@5, HR@10, NDCG@5, NDCG@10.

    Args:
      ranks: 1-based ranks of the targets, `[num_users]`, integers.

    Returns:
      Metric by name, each in [0, 1].

    Raises:
      ValueError: if there are no ranks or a rank is below 1.

    Examples:
      >>> metrics([1, 3, 11])["NDCG@10"]
      0.5
    """
    return {f"HR@{k}": hit_rate(ranks, k) for k in HIT_RATE_CUTOFFS} | {
        f"NDCG@{k}": ndcg(ranks, k) for k in NDCG_CUTOFFS
    }


def _checked(ranks: ArrayLike, k: int) -> np.ndarray:
    ranks = np.asarray(ranks)
    if k < 1:
        raise ValueError(f"the cut-off k is {k}: it counts items, give at least 1")
    if ranks.size == 0:
        raise ValueError("there are no ranks: no user has a target item")
    if ranks.min() < 1:
        raise ValueError(f"a rank is {ranks.min()}: ranks count from 1, the best")
    return ranks
