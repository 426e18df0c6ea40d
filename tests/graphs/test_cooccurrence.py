"""Co-occurrence against the literal double loop, in exact fractions."""

import itertools
import tracemalloc
import weakref
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sevo_jax.data.sequences import Sequences
from sevo_jax.graphs import _cooccurrence, _pairs, cooccurrence


@dataclass(frozen=True)
class Flat:
    """The ragged form, as a user's own class would offer it."""

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows) -> "Flat":
        flat = np.fromiter(itertools.chain.from_iterable(rows), np.int32)
        return cls(flat, np.cumsum([0, *map(len, rows)]))


def literal(rows, *, max_len, keep, max_hop, weighting, item_offset=0):
    """Visits every pair of places, one after the other, in exact arithmetic."""
    table = defaultdict(Fraction)
    for row in rows:
        if max_len is None:
            window = list(row)
        else:
            window = row[:max_len] if keep == "first" else row[-max_len:]
        for place, item in enumerate(window):
            for distance, other in enumerate(window[place + 1 :], start=1):
                if distance > max_hop:
                    break
                weight = Fraction(1, distance if weighting == "distance" else 1)
                one, two = item + item_offset, other + item_offset
                table[one, two] += weight
                table[two, one] += weight
    return {pair: np.float32(float(weight)) for pair, weight in table.items()}


def entries(graph):
    pairs = map(tuple, np.asarray(graph.indices).tolist())
    return dict(zip(pairs, np.asarray(graph.data), strict=True))


NUM_ITEMS = 6
rows_of_items = st.lists(
    st.lists(st.integers(0, NUM_ITEMS - 1), max_size=12), max_size=10
)


@settings(max_examples=200)
@given(
    rows=rows_of_items,
    max_len=st.none() | st.integers(1, 14),
    keep=st.sampled_from(["first", "last"]),
    max_hop=st.integers(1, 13),
    weighting=st.sampled_from(["frequency", "distance"]),
    item_offset=st.integers(0, 2),
    spare=st.none() | st.integers(0, 3),
    block=st.integers(1, 20),
    cut=st.integers(1, 12),
)
@example([[3, 3, 3]], None, "last", 2, "distance", 1, 2, 1, 1)
@example([[], [0], []], 1, "first", 1, "frequency", 0, None, 2, 3)
def test_equals_the_literal_loop(
    to_dense, rows, max_len, keep, max_hop, weighting, item_offset, spare, block, cut
):
    needed = NUM_ITEMS + item_offset
    num_nodes = None if spare is None else needed + spare
    factors: dict[str, Any] = dict(
        max_len=max_len,
        keep=keep,
        max_hop=max_hop,
        weighting=weighting,
        item_offset=item_offset,
    )
    expected = literal(rows, **factors)
    chunks = [Flat.of(part) for part in (rows[:cut], rows[cut:])]
    for sequences in (iter(rows), Flat.of(rows), iter(chunks)):
        # So small that what is counted is merged over and over.
        with (
            mock.patch.object(_cooccurrence, "_BLOCK", block),
            mock.patch.object(_cooccurrence, "_ROWS", cut),
            mock.patch.object(_pairs, "_PENDING", 1),
        ):
            graph = cooccurrence(sequences, NUM_ITEMS, num_nodes=num_nodes, **factors)
        assert to_dense(graph).shape == (num_nodes or needed,) * 2
        assert entries(graph) == expected


def test_example_of_the_paper(to_dense):
    """Section 4 (d): v2 -> v1 -> v3 within two hops."""
    row = [[1, 0, 2]]
    distance = to_dense(cooccurrence(row, 3, max_hop=2))
    frequency = to_dense(cooccurrence(row, 3, max_hop=2, weighting="frequency"))
    np.testing.assert_array_equal(distance, [[0, 1, 1], [1, 0, 0.5], [1, 0.5, 0]])
    np.testing.assert_array_equal(frequency, [[0, 1, 1], [1, 0, 1], [1, 1, 0]])


def test_first_and_last_items(to_dense):
    row = [[0, 1, 2, 3]]
    first = to_dense(cooccurrence(row, 4, max_len=2, keep="first"))
    last = to_dense(cooccurrence(row, 4, max_len=2))
    assert np.argwhere(first).tolist() == [[0, 1], [1, 0]]
    assert np.argwhere(last).tolist() == [[2, 3], [3, 2]]


def test_consecutive_repeat_is_a_loop_of_weight_two(to_dense):
    assert to_dense(cooccurrence([[1, 1]], 2)).tolist() == [[0, 0], [0, 2]]


def test_neighbours_do_not_cross_sequences(to_dense):
    matrix = to_dense(cooccurrence([[0, 1], [2, 3]], 4, max_hop=3))
    assert matrix[1, 2] == 0 and matrix.sum() == 4


def test_rounds_once(to_dense):
    """1/2 + 1/3, which two float32 roundings make 0.8333334."""
    matrix = to_dense(cooccurrence([[0, 2, 1], [0, 2, 3, 1]], 4, max_hop=3))
    assert matrix[0, 1] == np.float32(5 / 6)


def test_many_thirds(to_dense):
    """30,000 thirds are 10,000; added up in float32 they are 9,999.83."""
    matrix = to_dense(cooccurrence([[0, 2, 3, 1]] * 30_000, 4, max_hop=3))
    assert matrix[0, 1] == 10_000


@pytest.mark.parametrize(
    "sequences",
    [
        [(0, 1, 2), (2, 1)],
        (row for row in ([0, 1, 2], [2, 1])),
        [[0, 1, 2], np.array([2, 1])],
        [np.array([0, 1, 2], np.uint8), np.array([2, 1], np.uint64), []],
        Flat(np.array([0, 1, 2, 2, 1], np.int8), np.array([0, 3, 5], np.uint16)),
        Flat(np.array([0, 1, 2, 2, 1]), np.array([0, 3, 3, 5], np.int32)),
        (Flat.of(rows) for rows in ([[0, 1, 2]], [], [[2, 1], []])),
        [Sequences.from_lists([[0, 1, 2]]), Sequences.from_lists([[2, 1]])],
    ],
    ids=[
        "tuples",
        "generator",
        "mixed",
        "arrays",
        "ragged",
        "ragged-empty-row",
        "generator-of-chunks",
        "list-of-chunks",
    ],
)
def test_forms_of_sequences(to_dense, sequences):
    matrix = to_dense(cooccurrence(sequences, 300))
    assert matrix.shape == (300, 300)
    np.testing.assert_array_equal(matrix[:3, :3], [[0, 1, 0], [1, 0, 2], [0, 2, 0]])
    assert matrix.sum() == 6


@pytest.mark.parametrize("sequences", [[], [[]], [[0], [1]]])
def test_nothing_to_connect_is_a_graph_without_entries(to_dense, sequences):
    graph = cooccurrence(sequences, 2, item_offset=1)
    assert graph.nse == 0
    assert not to_dense(graph).any() and graph.shape == (3, 3)


def test_arguments_that_exceed_every_sequence(to_dense):
    graph = cooccurrence([[0, 1]], 2, max_len=10**30, max_hop=10**30)
    assert to_dense(graph).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("name", "max_len", "edges", "isolated"),
    [
        ("beauty", 50, 109_426, 35),
        ("toys", 50, 98_050, 48),
        ("tools", 50, 80_085, 42),
        ("beauty", 100, 111_234, None),
        ("toys", 100, 99_869, None),
        ("tools", 100, 80_787, None),
    ],
)
def test_sizes_of_the_authors_graphs(train_sequences, name, max_len, edges, isolated):
    sequences, num_items = train_sequences(name)
    graph = cooccurrence(sequences, num_items, max_len=max_len, item_offset=1)
    assert graph.shape == (num_items + 1, num_items + 1)
    assert graph.nse == 2 * edges
    if isolated is not None:
        linked = np.unique(np.asarray(graph.indices)[:, 0])
        assert linked[0] > 0
        assert num_items - linked.size == isolated


@pytest.mark.parametrize("weighting", ["distance", "frequency"])
def test_real_sequences_equal_the_literal_loop(train_sequences, weighting):
    sequences, num_items = train_sequences("tools")
    sequences = sequences[:3_000]
    factors: dict[str, Any] = dict(
        max_len=20, keep="last", max_hop=4, weighting=weighting
    )
    graph = cooccurrence(sequences, num_items, **factors)
    assert entries(graph) == literal(sequences, **factors)


def test_rows_are_numbered_through_all_portions():
    rows = itertools.chain(itertools.repeat([0, 1], 2**16 + 3), [[1, 4]])
    with pytest.raises(ValueError, match=f"sequence {2**16 + 3} holds item 4"):
        cooccurrence(rows, 4)


def test_chunks_are_let_go_of():
    """What has been counted is not held: at most two chunks are alive at once."""
    alive = weakref.WeakValueDictionary()

    def chunks():
        for number in range(6):
            chunk = Flat.of([[0, 1], [2, 1]])
            alive[number] = chunk.values
            most.append(len(alive))
            yield chunk
            del chunk

    most: list[int] = []
    cooccurrence(chunks(), 3)
    assert max(most) <= 2


def test_memory_grows_with_pairs_not_interactions(monkeypatch):
    """Sixty-four times the interactions of a small buffer, and as many pairs again."""
    monkeypatch.setattr(_pairs, "_PENDING", 2**14)
    monkeypatch.setattr(_cooccurrence, "_BLOCK", 2**14)
    chunk = Flat.of([list(range(100)) * 2] * 100)

    def peak(repeats):
        tracemalloc.start()
        graph = cooccurrence(itertools.repeat(chunk, repeats), 100)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak, graph

    small, one = peak(1)
    large, many = peak(64)
    assert large < 1.5 * small
    np.testing.assert_array_equal(many.data, 64 * np.asarray(one.data))


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([[0], [1, 4]], r"sequence 1 holds item 4, outside 0\.\.3 \(num_items=4\).*1"),
        ([[0, 1], [], [2, 9]], r"sequence 2 holds item 9, outside 0\.\.3"),
        ([[-1, 0]], r"sequence 0 holds item -1, outside 0\.\.3"),
        (Flat(np.array([0, 7]), np.array([0, 0, 2])), r"sequence 1 holds item 7"),
        (Flat(np.array([0, 1]), np.array([0, 3])), r"from 0 to the 2 values.*\[0, 3\]"),
        (Flat(np.array([0, 1]), np.array([1, 2])), r"from 0 to the 2 values.*\[1, 2\]"),
        (Flat(np.array([0, 1]), np.array([], int)), r"from 0 to the 2 values"),
        (Flat(np.array([0, 1]), np.array([0, 2, 1, 2])), r"row 1 goes from 2 to 1"),
        ([Flat.of([[0], [1]]), Flat.of([[2], [3, 9]])], "sequence 3 holds item 9"),
        (
            [Flat.of([[0]]), Flat(np.array([0, 1]), np.array([0, 3]))],
            r"chunk 1 of sequences\.offsets must run from 0 to the 2 values",
        ),
    ],
)
def test_ids_out_of_range(sequences, message):
    with pytest.raises(ValueError, match=message):
        cooccurrence(sequences, 4)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([[0, 1], [1.0, 2.0]], "sequence 1 must hold integers, not float64"),
        ([np.array([0.5])], "sequence 0 must hold integers, not float64"),
        ([["a", "b"]], "sequence 0 must hold integers"),
        ([[True, False]], "sequence 0 must hold integers, not bool"),
        ([0, 1, 2], "sequence 0 must be a one-dimensional sequence"),
        ([[[0, 1], [1, 2]]], "sequence 0 must be a one-dimensional sequence"),
        ([[0, [1, 2]]], "sequence 0 must be a flat sequence"),
        ({7: [0, 1]}, "sequence 0 must be a one-dimensional sequence"),
        (Flat(np.array([0.5]), np.array([0, 1])), "values must hold integers"),
        (Flat(np.array([0]), np.array([0.0, 1.0])), "offsets must hold integers"),
        ([Flat.of([[0]]), [0, 1]], "chunk 1 of sequences is list without `values`"),
        ([[0], Flat.of([[0]])], "sequence 1 must be a one-dimensional sequence"),
        (
            [Flat(np.array([0.5]), np.array([0, 1]))],
            r"chunk 0 of sequences\.values must hold integers",
        ),
    ],
)
def test_what_is_no_sequence_of_ids(sequences, message):
    with pytest.raises(TypeError, match=message):
        cooccurrence(sequences, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_items=0), "num_items must be at least 1, not 0"),
        (dict(max_len=0), "max_len must be at least 1, not 0"),
        (dict(max_hop=0), "max_hop must be at least 1, not 0"),
        (dict(item_offset=-1), "item_offset must be at least 0, not -1"),
        (dict(keep="middle"), "keep must be 'last' or 'first', not 'middle'"),
        (
            dict(weighting="count"),
            "weighting must be 'distance' or 'frequency', not 'count'",
        ),
        (
            dict(item_offset=2, num_nodes=3),
            "num_nodes=3 leaves no room for 2 items at item_offset=2: at least 4",
        ),
        (dict(num_nodes=2**31), "int32"),
    ],
)
def test_arguments_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        cooccurrence([[0, 1]], **({"num_items": 2} | changes))


@pytest.mark.parametrize(
    "name", ["num_items", "max_len", "max_hop", "item_offset", "num_nodes"]
)
def test_counts_are_integers(name):
    arguments: dict[str, Any] = {"num_items": 2, name: 2.0}
    with pytest.raises(TypeError, match=f"{name} must be an integer, not 2.0"):
        cooccurrence([[0, 1]], **arguments)
