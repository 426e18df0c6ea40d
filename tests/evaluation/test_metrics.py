import math

import numpy as np
import pytest

from sevo_jax.evaluation import hit_rate, metrics, ndcg

RANKS = np.array([1, 2, 5, 6, 10, 11])


def test_hit_rate_is_the_share_of_ranks_up_to_the_cutoff():
    assert hit_rate(RANKS, 1) == 1 / 6
    assert hit_rate(RANKS, 5) == 3 / 6
    assert hit_rate(RANKS, 10) == 5 / 6


def test_ndcg_is_the_mean_discount_of_the_hits():
    def gain(rank):
        return 1 / math.log2(rank + 1)

    assert ndcg(RANKS, 5) == pytest.approx((gain(1) + gain(2) + gain(5)) / 6)
    expected = (gain(1) + gain(2) + gain(5) + gain(6) + gain(10)) / 6
    assert ndcg(RANKS, 10) == pytest.approx(expected)


def test_metrics_are_the_five_of_the_paper():
    assert metrics(RANKS) == {
        "HR@1": hit_rate(RANKS, 1),
        "HR@5": hit_rate(RANKS, 5),
        "HR@10": hit_rate(RANKS, 10),
        "NDCG@5": ndcg(RANKS, 5),
        "NDCG@10": ndcg(RANKS, 10),
    }
    assert all(type(value) is float for value in metrics(RANKS).values())


@pytest.mark.parametrize(
    ("ranks", "k", "message"),
    [([], 10, "no ranks"), ([0, 1], 10, "rank is 0"), ([1], 0, "k is 0")],
)
def test_what_is_no_ranking_is_refused(ranks, k, message):
    for metric in (hit_rate, ndcg):
        with pytest.raises(ValueError, match=message):
            metric(ranks, k)
