import math

import numpy as np
import pytest
import scipy.stats

from sevo_jax.evaluation import PAPER_METRICS
from sevo_jax.reports import comparison


def _run(optimizer, seed, value, **changes):
    metrics = {name: value for name in PAPER_METRICS}
    return {
        "model": "sasrec",
        "optimizer": optimizer,
        "dataset": "tiny",
        "seed": seed,
        "protocol": "leave-one-out",
        "best_epoch": 10 + seed,
        "valid": {name: 2 * value for name in PAPER_METRICS},
        "test": metrics,
        "seconds_per_epoch": 0.5 if optimizer == "adamw" else 0.6,
        "versions": {"jax": "0.10.2"},
        "machine": {"device": "cpu"},
    } | changes


@pytest.fixture
def runs():
    return [
        _run("adamw", 0, 0.10),
        _run("adamw", 1, 0.12),
        _run("adamw", 2, 0.14),
        _run("sevo_adamw", 2, 0.19),
        _run("sevo_adamw", 0, 0.13),
        _run("sevo_adamw", 1, 0.16),
    ]


def test_spread_by_hand():
    spread = comparison.Spread.of([1.0, 2.0, 6.0])
    assert spread.mean == 3.0
    assert spread.std == pytest.approx(math.sqrt(7.0))
    assert math.isnan(comparison.Spread.of([1.0]).std)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [2, 5])
def test_paired_test_is_scipys(seed, count):
    before, after = np.random.default_rng(seed).normal(1.0, 0.1, (2, count))
    difference = comparison.paired_difference(before, after)
    assert difference.p_value == scipy.stats.ttest_rel(before, after).pvalue
    assert difference.improvement == pytest.approx(np.mean(after) / np.mean(before) - 1)


def test_paired_test_by_hand():
    # Differences 1, 1, 2: mean 4/3, std 1/sqrt(3), t = 4 with two degrees of freedom,
    # whose two-sided tail is 1 - t / sqrt(2 + t^2).
    difference = comparison.paired_difference([1.0, 2.0, 3.0], [2.0, 3.0, 5.0])
    assert difference.p_value == pytest.approx(1.0 - 4.0 / math.sqrt(18.0))
    assert difference.improvement == pytest.approx(2.0 / 3.0)


def test_paired_test_without_spread_gives_no_warning():
    equal = comparison.paired_difference([0.1, 0.2], [0.1, 0.2])
    assert equal.improvement == 0.0 and math.isnan(equal.p_value)
    assert comparison.paired_difference([0.1, 0.2], [0.3, 0.4]).p_value == 0.0
    # A spread beyond rounding, however small, is tested.
    assert comparison.paired_difference([0.1, 0.2], [0.3, 0.4001]).p_value > 0.0
    assert math.isnan(comparison.paired_difference([0.1], [0.3]).p_value)
    assert math.isnan(comparison.paired_difference([0.0, 0.0], [0.3, 0.4]).improvement)


def test_table_shows_means_changes_and_the_protocol(runs):
    lines = comparison.format_table(runs).splitlines()
    assert lines[0] == "sasrec on tiny, seeds 0 1 2"
    assert lines[1] == "protocol: leave-one-out"
    cells = {line.split("  ")[0]: line.split() for line in lines[4:] if line}
    p_value = scipy.stats.ttest_rel([0.13, 0.16, 0.19], [0.10, 0.12, 0.14]).pvalue
    assert cells["test NDCG@10"][2:] == [
        *("0.1200", "±", "0.0200"),
        *("0.1600", "±", "0.0300"),
        *("+33.3", "%"),
        f"{p_value:.2g}",
    ]
    assert cells["valid HR@1"][2:5] == ["0.2400", "±", "0.0400"]
    assert cells["seconds per epoch"][3:] == "0.500 ± 0.000 0.600 ± 0.000".split()
    assert lines[-1] == "an epoch of sevo_adamw takes 1.20 times that of adamw"


def test_table_of_one_seed_and_one_optimizer(runs):
    text = comparison.format_table(runs[:1])
    assert "one seed" in text and "±" not in text and "nan" not in text


def test_table_pairs_by_seed_not_by_order(runs):
    assert comparison.format_table(runs) == comparison.format_table(
        sorted(runs, key=lambda run: (run["optimizer"], -run["seed"]))
    )


def test_the_tables_have_the_metrics_that_were_measured(runs):
    def measured(run):
        return {**run, "valid": {"MRR": 0.5, "HR@2": 1.0}, "test": {"MRR": 0.25}}

    text = comparison.format_table([measured(run) for run in runs])
    labels = [line.split("  ")[0] for line in text.splitlines()[4:]]
    assert labels[:4] == ["test MRR", "", "valid MRR", "valid HR@2"]


def test_metrics_of_one_model_are_aligned(runs):
    parts = {"valid": runs[0]["valid"], "test": runs[0]["test"]}
    heading, valid, test = comparison.format_metrics(parts).splitlines()
    assert heading.split() == list(PAPER_METRICS)
    assert valid.split() == ["valid", *["0.2000"] * 5]
    assert test.split() == ["test", *["0.1000"] * 5]
    assert len(heading) == len(valid) == len(test)


def test_unequal_seeds_are_refused(runs):
    with pytest.raises(ValueError, match="different seeds.*same seeds for each"):
        comparison.format_table(runs[:-1])
    with pytest.raises(ValueError, match="'adamw' has a seed twice"):
        comparison.format_table([*runs, runs[0]])
    with pytest.raises(ValueError, match="no runs"):
        comparison.format_table([])


def test_results_round_trip(runs, tmp_path):
    path = tmp_path / "results.json"
    comparison.write_results(path, runs)
    assert comparison.read_results(path) == runs
    assert [item.name for item in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "text, match",
    [
        ("[", "is not JSON"),
        ("{}", "no list of runs"),
        ('[{"model": "sasrec"}]', "run 0 lacks optimizer"),
    ],
)
def test_bad_results_are_refused(text, match, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        comparison.read_results(path)
