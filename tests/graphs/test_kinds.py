"""The graphs of a recipe, on logs in which users repeat items, against loops."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevo_jax import graphs
from sevo_jax.data import InteractionLog, leave_one_out
from sevo_jax.graphs import kinds

logs = st.lists(
    st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=6
)


def split_of(rows):
    users = [user for user, row in enumerate(rows) for _ in row]
    items = [f"i{item}" for row in rows for item in row]
    split = leave_one_out(InteractionLog.from_columns(users, items, name="random"))
    # Users of three interactions or fewer are for training as they are.
    train = [row[:-2] if len(row) > 3 else row for row in rows]
    number = {name: item for item, name in enumerate(split.log.item_ids.tolist())}
    return split, [[number[f"i{item}"] for item in row] for row in train]


@settings(max_examples=60)
@given(
    rows=logs,
    item_offset=st.integers(0, 2),
    max_len=st.none() | st.integers(2, 9),
    keep=st.sampled_from(["first", "last"]),
    max_hop=st.integers(1, 3),
    weighting=st.sampled_from(["frequency", "distance"]),
)
def test_items_that_follow_each_other(
    to_dense, rows, item_offset, max_len, keep, max_hop, weighting
):
    split, train = split_of(rows)
    nodes = split.num_items + item_offset
    expected = np.zeros((nodes, nodes))
    for row in train:
        length = len(row) if max_len is None else max_len
        row = row[:length] if keep == "first" else row[-length:]
        for place, item in enumerate(row):
            for hop, other in enumerate(row[place + 1 : place + 1 + max_hop], 1):
                weight = 1 / hop if weighting == "distance" else 1
                expected[item + item_offset, other + item_offset] += weight
                expected[other + item_offset, item + item_offset] += weight
    config = kinds.GraphConfig(
        max_len=max_len, keep=keep, max_hop=max_hop, weighting=weighting
    )
    found = to_dense(kinds.build(config, split, item_offset))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@settings(max_examples=60)
@given(rows=logs, item_offset=st.integers(0, 2))
def test_users_and_their_items(to_dense, rows, item_offset):
    split, train = split_of(rows)
    first_item = split.num_users + item_offset
    expected = np.zeros((first_item + split.num_items,) * 2)
    for user, row in enumerate(train):
        for item in row:
            expected[user, first_item + item] = expected[first_item + item, user] = 1
    config = kinds.GraphConfig(kind="user-item")
    np.testing.assert_array_equal(
        to_dense(kinds.build(config, split, item_offset)), expected
    )


def test_binary_links_items_that_are_near_and_each_to_itself():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 15, length) for length in rng.integers(4, 9, 12)]
    users = np.repeat(np.arange(12), [len(row) for row in rows])
    log = InteractionLog.from_columns(users, np.concatenate(rows), name="repeats")
    split = leave_one_out(log)
    expected = np.eye(2 + split.num_items)
    repeated = 0
    for items in split.train:
        for i, one in enumerate(items):
            for other in items[max(0, i - 3) : i]:
                expected[2 + one, 2 + other] = expected[2 + other, 2 + one] = 1
                repeated += one == other
    assert repeated > 0
    config = kinds.GraphConfig("item-item-binary", max_len=None, max_hop=3)
    graph: Any = kinds.build(config, split, item_offset=2)
    np.testing.assert_array_equal(graph.todense(), expected)
    assert graph.indices_sorted and graph.unique_indices


@pytest.fixture
def split():
    users = [user for user in "uvw" for _ in range(5)]
    items = [*"abcde", *"bcdea", *"cabed"]
    return leave_one_out(InteractionLog.from_columns(users, items, name="tiny"))


@pytest.fixture
def genres(tmp_path):
    path = tmp_path / "genres.csv"
    path.write_text("a,War\nc,War\ne,Drama\nd,Drama\nd,War\n")
    return str(path)


def test_the_items_that_share_an_attribute(split, genres):
    config = kinds.GraphConfig("attributes", attributes=genres)
    expected = graphs.shared_attributes(
        {0: ["War"], 2: ["War"], 4: ["Drama"], 3: ["Drama", "War"]}, 5, item_offset=1
    )
    built: Any = kinds.build(config, split, 1)
    np.testing.assert_array_equal(built.todense(), expected.todense())
    assert config.links == "item-item"


def normalised(graph):
    dense = np.asarray(graph.todense(), np.float64)
    degrees = dense.sum(axis=1)
    scale = np.divide(
        1, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0
    )
    return scale[:, None] * dense * scale


def test_the_flow_from_each_item_to_those_that_follow(split, to_dense):
    config = kinds.GraphConfig("item-item-directed", max_hop=2)
    edges = graphs.cooccurrence(
        split.train, 5, max_len=50, max_hop=2, item_offset=1, directed=True
    )
    expected = graphs.from_directed(edges)
    built: Any = kinds.build(config, split, 1)
    np.testing.assert_array_equal(to_dense(built), to_dense(expected))


def test_a_sum_of_sequences_and_attributes(split, genres):
    config = kinds.GraphConfig("item-item+attributes", attributes=genres, share=0.25)
    operator: Any = kinds.build(config, split, 1)
    parts = kinds.GraphConfig(), kinds.GraphConfig("attributes", attributes=genres)
    one, two = (normalised(kinds.build(part, split, 1)) for part in parts)
    found = operator @ np.eye(6, dtype=np.float32)
    np.testing.assert_allclose(found, 0.75 * one + 0.25 * two, atol=1e-6)
    assert config.links == "item-item" and kinds.checksum(config)


@pytest.mark.parametrize("kind", ["user-item+item-item", "item-item+user-item"])
def test_a_sum_of_users_and_sequences(split, kind):
    config = kinds.GraphConfig(kind, share=0.4)
    assert config.links == "user-item"
    operator: Any = kinds.build(config, split, 1)
    terms = {
        part: normalised(kinds.build(kinds.GraphConfig(part), split, 1))
        for part in config.parts
    }
    users = split.num_users
    terms["item-item"] = np.pad(terms["item-item"], ((users, 0), (users, 0)))
    first, second = (terms[part] for part in config.parts)
    found = operator @ np.eye(users + 6, dtype=np.float32)
    np.testing.assert_allclose(found, 0.6 * first + 0.4 * second, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(kind="items"),
            "GraphConfig.kind is 'items': it must be one of item-item",
        ),
        (dict(kind="item-item+items"), "is 'item-item.items': .* joined by .;"),
        (dict(kind="user-item+item-item+user-item"), "or two of them joined by"),
        (dict(kind="user-item+item-item"), "share is None: it must be 0 to 1, as the"),
        (dict(kind="user-item+item-item", share=1.5), "share is 1.5: it must be 0 to"),
        (dict(share=0.5), "share is 0.5: it must be None, as the kind is item-item"),
        (dict(kind="item-item+attributes", share=0.5), "attributes is None: .* a file"),
        (dict(max_len=1), "GraphConfig.max_len is 1: it must be at least 2"),
        (dict(max_hop=0), "GraphConfig.max_hop is 0: it must be at least 1"),
        (dict(keep="middle"), "GraphConfig.keep is 'middle'"),
        (dict(weighting="age"), "GraphConfig.weighting is 'age'"),
    ],
)
def test_fields_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        kinds.GraphConfig(**changes)


def test_a_kind_is_a_function_and_a_line(split, monkeypatch):
    def ring(config, split, item_offset):
        del config
        return graphs.cooccurrence([[*range(5), 0]], 5, item_offset=item_offset)

    monkeypatch.setitem(kinds.KINDS, "ring", kinds.Kind("item-item", ring))
    built: Any = kinds.build(kinds.GraphConfig("ring"), split, 1)
    assert built.shape == (6, 6)


def test_attributes_belong_to_their_kind(genres):
    with pytest.raises(ValueError, match="attributes is None: .* a file, as the kind"):
        kinds.GraphConfig("attributes")
    with pytest.raises(
        ValueError, match="genres.csv.*: .* None, as the kind is item-i"
    ):
        kinds.GraphConfig(attributes=genres)


def test_the_checksum_follows_the_file(genres):
    config = kinds.GraphConfig("attributes", attributes=genres)
    before = kinds.checksum(config)
    assert before is not None and len(before) == 64
    with open(genres, "a") as file:
        file.write("e,War\n")
    assert kinds.checksum(config) != before
    assert kinds.checksum(kinds.GraphConfig()) is None
    with pytest.raises(FileNotFoundError):
        kinds.checksum(dataclasses.replace(config, attributes="none.csv"))
