"""Shared attributes against plain set intersections."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevo_jax.graphs import shared_attributes

attribute = st.sampled_from(["a", "b", "c", 0, 1, ("x", 2)])


@settings(max_examples=100)
@given(
    rows=st.lists(st.lists(attribute, max_size=4), min_size=1, max_size=9),
    item_offset=st.integers(0, 2),
    spare=st.integers(0, 2),
)
def test_equals_set_intersections(to_dense, rows, item_offset, spare):
    num_nodes = len(rows) + item_offset + spare
    expected = np.zeros((num_nodes, num_nodes))
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            if i != j and set(one) & set(other):
                expected[i + item_offset, j + item_offset] = 1
    for attributes in (rows, dict(enumerate(rows)), iter(rows)):
        graph = shared_attributes(
            attributes, len(rows), item_offset=item_offset, num_nodes=num_nodes
        )
        np.testing.assert_array_equal(to_dense(graph), expected)


def test_no_loops_and_weights_of_one(to_dense):
    matrix = to_dense(shared_attributes([["a", "b", "a"], ["b", "a"], ["c"]], 3))
    assert matrix.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_mapping_may_leave_items_out(to_dense):
    matrix = to_dense(shared_attributes({3: ["a"], np.int64(1): ("a",)}, 4))
    assert np.argwhere(matrix).tolist() == [[1, 3], [3, 1]]


@pytest.mark.parametrize("attributes", [[[], []], [["a"], ["b"]], {}])
def test_nothing_shared_is_a_graph_without_entries(to_dense, attributes):
    graph = shared_attributes(attributes, 2)
    assert graph.nse == 0 and not to_dense(graph).any()


def test_movie_genres(to_dense, genres):
    num_items = len(genres)
    assert num_items == 3_416
    names = sorted({name for row in genres.values() for name in row})
    assert len(names) == 18
    has = np.array([[name in genres[i] for name in names] for i in range(num_items)])
    expected = (has.astype(np.float32) @ has.T.astype(np.float32)) > 0
    np.fill_diagonal(expected, False)
    graph = shared_attributes(genres, num_items, item_offset=1)
    matrix = to_dense(graph)
    np.testing.assert_array_equal(matrix[1:, 1:], expected)
    assert not matrix[0].any()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ([["a"]], "attributes has 1 rows, but num_items=2"),
        ([["a"], [], ["b"]], "attributes has 3 rows, but num_items=2"),
        ({2: ["a"]}, r"attributes has the key 2, outside 0\.\.1 \(num_items=2\).*1"),
        ({-1: ["a"]}, r"attributes has the key -1, outside 0\.\.1"),
    ],
)
def test_rows_that_do_not_fit(attributes, message):
    with pytest.raises(ValueError, match=message):
        shared_attributes(attributes, 2)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (["drama", []], r"attributes\[0\] is 'drama', not a list.*\['drama'\]"),
        ([[], 5], r"attributes\[1\] is 5, not a list"),
        ([[], None], r"attributes\[1\] is None, not a list"),
        ([[["a"]], []], r"attributes\[0\] must be hashable.*list"),
        ({"1": ["a"]}, r"the key '1'.*int\(key\)"),
    ],
)
def test_what_is_no_list_of_attributes(attributes, message):
    with pytest.raises(TypeError, match=message):
        shared_attributes(attributes, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_items=0), "num_items must be at least 1"),
        (dict(item_offset=-1), "item_offset must be at least 0"),
        (dict(item_offset=1, num_nodes=2), "num_nodes=2 leaves no room"),
    ],
)
def test_counts_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        shared_attributes([["a"], ["a"]], **{"num_items": 2, **changes})


@pytest.mark.parametrize("missing", [None, "", float("nan"), np.nan])
def test_what_is_missing_is_no_attribute(missing):
    """It would link all items of which nothing is known."""
    with pytest.raises(
        ValueError, match=r"attributes\[1\] has .*: write \[\] for none"
    ):
        shared_attributes([["a"], ["b", missing], ["a"]], 3)
