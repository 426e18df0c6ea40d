"""The user-item graph against a dense table filled one interaction at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevo_jax.graphs import bipartite

NUM_USERS, NUM_ITEMS = 4, 5


@settings(max_examples=100)
@given(
    pairs=st.lists(
        st.tuples(st.integers(0, NUM_USERS - 1), st.integers(0, NUM_ITEMS - 1)),
        max_size=30,
    ),
    item_offset=st.integers(0, 2),
)
def test_equals_the_dense_table(to_dense, pairs, item_offset):
    num_nodes = NUM_USERS + item_offset + NUM_ITEMS
    expected = np.zeros((num_nodes, num_nodes))
    for user, item in pairs:
        node = NUM_USERS + item_offset + item
        expected[user, node] = expected[node, user] = 1
    users, items = [user for user, _ in pairs], [item for _, item in pairs]
    graph = bipartite(users, items, NUM_USERS, NUM_ITEMS, item_offset=item_offset)
    np.testing.assert_array_equal(to_dense(graph), expected)


def test_no_interaction_is_a_graph_without_entries(to_dense):
    graph = bipartite([], [], 2, 3)
    assert graph.nse == 0 and to_dense(graph).shape == (5, 5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64])
def test_dtypes_of_ids_do_not_matter(to_dense, dtype):
    users = np.array([255], dtype)
    matrix = to_dense(bipartite(users, users, 256, 256, item_offset=1))
    assert np.argwhere(matrix).tolist() == [[255, 512], [512, 255]]


def test_real_interactions(train_sequences):
    """No user of Beauty repeats an item: each train interaction is two entries."""
    sequences, num_items = train_sequences("beauty")
    users = np.repeat(np.arange(len(sequences)), [len(row) for row in sequences])
    items = np.concatenate(sequences)
    graph = bipartite(users, items, len(sequences), num_items)
    assert graph.shape == (34_464, 34_464)
    assert graph.nse == 2 * 153_776


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        ([0, 2], [0, 0], r"users\[1\] is user 2, outside 0\.\.1 \(num_users=2\)"),
        ([0, 1], [-1, 0], r"items\[0\] is item -1, outside 0\.\.2 \(num_items=3\)"),
        ([0, 1], [0], "users has 2 entries, items has 1"),
    ],
)
def test_ids_out_of_range(users, items, message):
    with pytest.raises(ValueError, match=message):
        bipartite(users, items, 2, 3)


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        ([0.0], [0], "users must hold integers, not float64"),
        ([0], [[0]], "items must be a one-dimensional sequence"),
        (["u1"], [0], "users must hold integers"),
    ],
)
def test_what_is_no_id(users, items, message):
    with pytest.raises(TypeError, match=message):
        bipartite(users, items, 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_users=0), "num_users must be at least 1"),
        (dict(num_items=0), "num_items must be at least 1"),
        (dict(item_offset=-1), "item_offset must be at least 0"),
        (dict(num_users=2**31), "int32"),
    ],
)
def test_counts_out_of_range(changes, message):
    arguments = {"num_users": 2, "num_items": 3, **changes}
    with pytest.raises(ValueError, match=message):
        bipartite([0], [0], **arguments)
