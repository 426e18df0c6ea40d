import numpy as np
import pytest

from sevo_jax.data import InteractionLog, leave_one_out
from sevo_jax.evaluation import EvaluationConfig, describe

# By hand: of user 0 the validation item is repeated, of user 1 both, of user 2 the test
# item (of the validation item); user 3 has no target.
ROWS = [[0, 1, 1, 2], [3, 4, 3, 4], [5, 6, 7, 7], [0, 0, 0]]


def split_of(rows):
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return leave_one_out(
        InteractionLog.from_columns(users, np.concatenate(rows), name="toy")
    )


def test_the_paper_s_metrics_and_the_one_that_selects_by_default():
    config = EvaluationConfig()
    assert config.metrics == ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10")
    assert (config.selection, config.seen) == ("NDCG@10", "mask")
    assert config.measured == config.metrics


def test_the_metric_that_selects_is_measured_too():
    config = EvaluationConfig(metrics=["MRR", "HR@20"], selection="MRR@5")  # pyright: ignore
    assert config.metrics == ("MRR", "HR@20")
    assert config.measured == ("MRR", "HR@20", "MRR@5")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("metrics", ("HR@1", "NDGC@10"), "no metric 'NDGC@10'"),
        ("selection", "loss", "no metric 'loss'"),
        (
            "seen",
            "drop",
            "EvaluationConfig.seen is 'drop': it must be one of mask, keep",
        ),
    ],
)
def test_bad_fields_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**{field: value})


def test_words_count_the_targets_that_are_in_the_history():
    words = describe(split_of(ROWS), EvaluationConfig())
    assert words == (
        "leave-one-out, full ranking of 8 items with seen ones masked; of 3 valid and "
        "3 test targets 2 and 2 are in the user's history and are ranked all the same; "
        "ties at their mean rank; mean over users; test input includes the validation "
        "item"
    )


def test_words_say_what_is_kept_and_what_selects():
    config = EvaluationConfig(seen="keep", selection="MRR")
    words = describe(split_of(ROWS), config, ["valid"], eval_every=3)
    assert (
        "full ranking of 8 items, seen ones among them; of 3 valid targets 2 are"
        in words
    )
    assert words.endswith("best epoch by validation MRR every 3 epochs")
    assert "test" not in words
    words = describe(split_of(ROWS), config, ["valid"], eval_every=3, patience=4)
    assert words.endswith("every 3 epochs, until 4 in a row are not better")


def test_a_target_that_was_seen_twice_is_one():
    words = describe(split_of([[1, 1, 1, 0], [0, 2, 3, 4]]), EvaluationConfig())
    assert "of 2 valid and 2 test targets 1 and 0 are in" in words


def test_metrics_are_a_list():
    with pytest.raises(ValueError, match="metrics is 'HR@10': it must be a list"):
        EvaluationConfig(metrics="HR@10")  # pyright: ignore
