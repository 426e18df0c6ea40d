"""The graphs of all prefixes, shared or not, against literal loops."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from sevo_jax.data import Sequences
from sevo_jax.samples.sessions import SessionBatch, SessionEpochs

MAX_LEN = 7


def random_train(repeats, longest=30):
    """Sequences of all lengths; the last item tells the user and the place."""
    rng = np.random.default_rng(0)
    lengths = rng.permutation(np.r_[np.arange(longest), rng.integers(0, 9, 40)])
    num_items = 9 if repeats else 40
    return Sequences.from_lists(
        rng.choice(num_items, length, replace=repeats) for length in lengths
    )


def make(train, **changes):
    options: Any = {"max_len": MAX_LEN, "batch_size": 32, "seed": 0} | changes
    return SessionEpochs(train, **options)


def steps_of(epoch):
    return [SessionBatch(*fields) for fields in zip(*epoch, strict=True)]


def literal(items):
    """The graph of a prefix: items, counts and the two sides of each edge."""
    edges = set(zip(items, items[1:], strict=False))
    return (
        frozenset(Counter(items).items()),
        frozenset(edges),
        frozenset((after, before) for before, after in edges),
        items[-1],
    )


def graphs_of(step):
    """The graph and the target of each prefix of a step, read off its nodes."""
    senders = [{}, {}]
    for neighbours, edges in zip(senders, (step.in_edges, step.out_edges), strict=True):
        for sender, receiver in edges[(edges != 0).any(axis=1)]:
            assert sender > 0 and receiver > 0
            assert sender not in neighbours.setdefault(receiver, [])
            neighbours[receiver].append(sender)
    pairs = np.flatnonzero(step.begins)
    for index, size in enumerate(step.sizes):
        if size == 0:
            assert step.targets[index] == step.last[index] == 0
            continue
        nodes = [step.last[index]]
        if size > 1:
            inner = step.inner[index] + np.arange(size - 2)
            nodes = [step.first[index], *inner, *nodes]
        assert len(set(nodes)) == size and 0 not in nodes
        assert pairs[index] == step.sizes[:index].sum()
        items = [int(step.items[node]) for node in nodes]
        sides = [
            frozenset(
                (int(step.items[sender]), int(step.items[node]))
                for node in nodes
                for sender in neighbours.get(node, [])
            )
            for neighbours in senders
        ]
        counts = zip(items, step.counts[nodes].tolist(), strict=True)
        yield (frozenset(counts), *sides, items[-1]), int(step.targets[index])


def expected_graphs(train, max_len):
    return Counter(
        (literal((items[max(k - max_len, 0) : k] + 1).tolist()), int(items[k]) + 1)
        for items in train
        for k in range(1, len(items))
    )


@pytest.mark.parametrize("max_len", [1, 2, 3, MAX_LEN, 50])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("sampling", ["sequence", "prefix"])
@pytest.mark.parametrize("repeats", [False, True])
def test_every_prefix_has_its_graph_once_an_epoch(repeats, sampling, share, max_len):
    train = random_train(repeats)
    epochs = make(train, sampling=sampling, share=share, max_len=max_len)
    steps = steps_of(epochs[1])
    assert len(steps) == epochs.num_steps > 3
    found = Counter(graph for step in steps for graph in graphs_of(step))
    assert found == expected_graphs(train, max_len)


def test_prefixes_without_repeats_share_their_nodes():
    train = Sequences.from_lists([range(20)])
    nodes = {
        share: (make(train, share=share, max_len=50)[0].items > 0).sum()
        for share in (True, False)
    }
    # The run's own, and another last one for all prefixes but the longest.
    assert nodes == {True: 19 + 18, False: sum(range(1, 20))}
    # In windows of 5: three runs of 5 more, which read 4 before; a first node for all
    # windows that neither the sequence nor a run begins with.
    cut = make(train, max_len=5)[0]
    assert (cut.items > 0).sum() == 5 + 9 + 9 + 8 + (4 + 4 + 4 + 3) + (0 + 4 + 4 + 3)


def test_only_windows_with_a_repeat_have_graphs_of_their_own():
    train = Sequences.from_lists([[0, 1, 2, 0, 3, 4, 5, 6]])
    # Windows of 3 before a target: 0 stands twice in none.
    assert make(train, max_len=3)[0].counts.max() == 1
    step = steps_of(make(train, max_len=4)[0])[0]
    assert sorted(step.counts[step.counts > 0].tolist())[-2:] == [1, 2]


def test_epochs_have_one_shape_and_are_functions_of_seed_and_number():
    train = random_train(True)
    epochs = make(train)
    shapes = {tuple(field.shape for field in epochs[e]) for e in range(5)}
    assert len(shapes) == 1
    other = tuple(field.shape for field in make(train, seed=1)[0])
    assert shapes == {other}, "two seeds need two programs"

    def same(one, two):
        return all(np.array_equal(*fields) for fields in zip(one, two, strict=True))

    assert same(epochs[2], make(train)[2])
    next_seed = make(train, seed=1)
    for other in (epochs[3], next_seed[2], next_seed[1]):
        assert not same(epochs[2], other)


def test_a_draw_that_needs_more_gets_it(monkeypatch):
    train = random_train(False)
    epochs = make(train)
    expected = [Counter(graphs_of(step)) for step in steps_of(epochs[0])]
    monkeypatch.setattr(epochs, "_rooms", [1] * len(SessionBatch._fields))
    steps = steps_of(epochs[0])
    assert [Counter(graphs_of(step)) for step in steps] == expected
    assert {len(field) % 64 for field in steps[0]} == {0}


def test_steps_have_about_the_batch_size():
    train = random_train(False)
    for batch_size in (5, 32):
        epochs = make(train, batch_size=batch_size, max_len=10)
        sizes = (epochs[0].targets > 0).sum(axis=1)
        assert epochs.num_steps == len(sizes) == -(-sizes.sum() // batch_size)
        assert sizes.min() > 0 and sizes.max() < 2 * batch_size


@pytest.mark.parametrize(
    "option, message",
    [
        ({"max_len": 0}, "max_len is 0: it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"item_offset": 0}, "item_offset is 0: it must be at least 1"),
        ({"sampling": "user"}, "sampling is 'user': choose 'sequence' or 'prefix'"),
    ],
)
def test_bad_arguments_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        make(random_train(False), **option)


def test_a_log_without_targets_is_refused():
    with pytest.raises(ValueError, match="none of the 2 users has two train items"):
        make(Sequences.from_lists([[1], []]))
