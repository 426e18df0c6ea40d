import dataclasses

import pytest

from sevo_jax.data import leave_one_out
from sevo_jax.training import CheckpointError, fingerprint
from sevo_jax.training.identity import check_same


def test_the_fingerprint_covers_counts_order_and_ids(tiny_split):
    mark = fingerprint(tiny_split)
    assert (mark["num_users"], mark["num_items"]) == (
        tiny_split.num_users,
        tiny_split.num_items,
    )
    assert mark == fingerprint(leave_one_out(tiny_split.log))
    log = tiny_split.log
    values = log.sequences.values.copy()
    values[:2] = values[1], values[0]
    swapped = dataclasses.replace(
        log, sequences=dataclasses.replace(log.sequences, values=values)
    )
    renamed = dataclasses.replace(log, item_ids=log.item_ids[::-1])
    offsets = log.sequences.offsets.copy()
    offsets[1] -= 1
    moved = dataclasses.replace(
        log, sequences=dataclasses.replace(log.sequences, offsets=offsets)
    )
    for other in (swapped, renamed, moved):
        assert fingerprint(leave_one_out(other))["sha256"] != mark["sha256"]


def test_check_same_names_every_difference():
    with pytest.raises(
        CheckpointError, match="a.b was 1 and is 2; c was 'x' and is None"
    ):
        check_same({"a": {"b": 1, "d": 0}, "c": "x"}, {"a": {"b": 2, "d": 0}})
