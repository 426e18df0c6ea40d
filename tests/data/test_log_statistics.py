import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevo_jax.data import InteractionLog, Statistics, k_core, read, statistics

# The paper's Table 2; for Tools, and for the parts, the logs of the authors' runs.
PUBLISHED = {
    "beauty": (22_363, 12_101, 198_502, 153_776, 22_363, 33, "8.88", "0.0734"),
    "toys": (19_412, 11_924, 167_597, 128_773, 19_412, 48, "8.63", "0.0724"),
    "tools": (16_638, 10_217, 134_476, 101_200, 16_638, 42, "8.08", "0.0791"),
    "ml-1m": (6_040, 3_416, 999_611, 987_531, 6_040, 0, "165.50", "4.8448"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_datasets_of_the_paper(shared_file, name):
    log = read(shared_file(name))
    figures = statistics(log)
    found = (
        figures.num_users,
        figures.num_items,
        figures.num_interactions,
        figures.num_train,
        figures.num_valid,
        figures.items_never_in_train,
        f"{figures.mean_length:.2f}",
        f"{100 * figures.density:.4f}",
    )
    assert found == PUBLISHED[name]
    assert figures.num_test == figures.num_valid
    assert log.name == name
    # The ids of these files have no gaps, so they are the nodes but for the first id.
    assert (np.diff(log.item_ids) == 1).all()
    assert k_core(log).num_interactions == log.num_interactions


def test_a_small_log():
    log = InteractionLog.from_columns(
        [1] * 5 + [2] * 3, [10, 11, 12, 13, 14, 10, 11, 15], name="small"
    )
    assert statistics(log) == Statistics(
        num_users=2,
        num_items=6,
        num_interactions=8,
        density=8 / 12,
        repeats=0.0,
        mean_length=4.0,
        num_train=6,
        num_valid=1,
        num_test=1,
        items_never_in_train=2,
    )


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1))
def test_logs_with_repeats(pairs):
    users, items = zip(*pairs)
    figures = statistics(InteractionLog.from_columns(users, items, name="repeats"))
    seen = set(pairs)
    again = sum(pair in pairs[:at] for at, pair in enumerate(pairs))
    assert figures.repeats == pytest.approx(again / len(pairs))
    rows = [[i for u, i in pairs if u == user] for user in sorted(set(users))]
    train = [row[:-2] if len(row) > 3 else row for row in rows]
    assert figures == Statistics(
        num_users=len(set(users)),
        num_items=len(set(items)),
        num_interactions=len(pairs),
        density=len(seen) / (len(set(users)) * len(set(items))),
        repeats=1 - len(seen) / len(pairs),
        mean_length=len(pairs) / len(set(users)),
        num_train=sum(map(len, train)),
        num_valid=sum(len(row) > 3 for row in rows),
        num_test=sum(len(row) > 3 for row in rows),
        items_never_in_train=len(set(items).difference(*train)),
    )
