import math

import numpy as np
import pytest

from sevo_jax.evaluation import METRICS, PAPER_METRICS, measure

RANKS = np.array([1, 2, 5, 6, 10, 11])


def test_hit_rate_is_the_share_of_ranks_up_to_the_cutoff():
    expected = {"HR@1": 1 / 6, "HR@5": 3 / 6, "HR@10": 5 / 6, "Recall@5": 3 / 6}
    assert measure(RANKS, expected) == expected


def test_ndcg_is_the_mean_discount_of_the_hits():
    gains = [1 / math.log2(rank + 1) for rank in RANKS.tolist()]
    measured = measure(RANKS, ["NDCG@5", "NDCG@10", "NDCG"])
    assert measured["NDCG@5"] == pytest.approx(sum(gains[:3]) / 6)
    assert measured["NDCG@10"] == pytest.approx(sum(gains[:5]) / 6)
    assert measured["NDCG"] == pytest.approx(sum(gains) / 6)


def test_mrr_is_the_mean_of_one_over_the_rank():
    measured = measure([1, 2, 4], ["MRR", "MRR@2"])
    assert measured == pytest.approx({"MRR": 1.75 / 3, "MRR@2": 0.5})


def test_the_paper_s_five_by_default():
    measured = measure(RANKS)
    assert tuple(measured) == PAPER_METRICS
    assert all(type(value) is float for value in measured.values())


def test_ranks_between_integers():
    # A target that is tied with one other for the first place.
    assert measure([1.5], ["HR@1", "HR@2", "MRR", "NDCG@5"]) == {
        "HR@1": 0.0,
        "HR@2": 1.0,
        "MRR": 1 / 1.5,
        "NDCG@5": 1 / np.log2(2.5),
    }


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_the_table_are_1_at_the_top_and_never_rise_with_the_rank(name):
    values = [measure([rank], [f"{name}@9"])[f"{name}@9"] for rank in range(1, 12)]
    assert values[0] == 1.0 and values[9:] == [0.0, 0.0]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([], "no ranks"),
        ([0, 1], "rank is 0"),
        ([2, 0.5], "is 0.5"),
        ([1, np.nan], "nan"),
    ],
)
def test_what_is_no_ranking_is_refused(ranks, message):
    with pytest.raises(ValueError, match=message):
        measure(ranks)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ndcg@10", "no metric 'ndcg@10': choose from HR, Recall, NDCG, MRR"),
        ("NDCG@0", "no metric 'NDCG@0'"),
        ("NDCG@", "no metric"),
        ("NDCG@10 ", "no metric"),
        ("AUC", "no metric 'AUC'"),
        ("HR", "HR needs a cut-off, as in HR@10"),
        ("Recall", "Recall needs a cut-off"),
    ],
)
def test_what_is_no_metric_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        measure([1], [name])


def test_a_metric_of_your_own_is_finite(monkeypatch):
    monkeypatch.setitem(METRICS, "My-Gain", lambda rank: -1 / (rank - 2))
    assert measure([3.0], ["My-Gain@10"]) == {"My-Gain@10": -1.0}
    with (
        np.errstate(divide="ignore"),
        pytest.raises(ValueError, match="the metric My-Gain@10 is -inf"),
    ):
        measure([2.0, 3.0], ["My-Gain@10"])
