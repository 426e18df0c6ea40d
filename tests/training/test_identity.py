import dataclasses
import importlib.metadata

import numpy as np
import optax
import pytest

import sevo_jax as sevo
from sevo_jax.data import leave_one_out
from sevo_jax.training import CheckpointError, Trainer, fingerprint
from sevo_jax.training.identity import check_same, versions


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
    others = dataclasses.replace(log, user_ids=log.user_ids[::-1])
    for other in (swapped, renamed, moved, others):
        assert fingerprint(leave_one_out(other))["sha256"] != mark["sha256"]
    for other in (renamed, others):
        assert fingerprint(leave_one_out(other))["ids"] != mark["ids"]


def test_the_fingerprint_covers_each_part_of_the_split(tiny_split):
    mark = fingerprint(tiny_split)
    for changes in (
        {"train": tiny_split.train.append(tiny_split.valid)},
        {"valid": tiny_split.valid[::-1]},
        {"test": tiny_split.test[::-1]},
    ):
        other = fingerprint(dataclasses.replace(tiny_split, **changes))
        assert [name for name in mark if other[name] != mark[name]] == ["split"]


def test_a_run_is_told_by_the_program_of_its_optimizer_and_the_values_of_its_graphs(
    tiny_recipe, tiny_split
):
    """Those that are given in Python, which the recipe does not know."""

    def identity(rate, weight):
        path = np.eye(tiny_split.num_items + 1, k=1)
        path[3, 4] = weight
        given = {"optimizer": optax.adam(rate), "graphs": path + path.T}
        return Trainer(tiny_recipe, tiny_split, **given).identity(0)

    one, again, other = identity(1e-3, 1.0), identity(1e-3, 1.0), identity(1e-2, 2.0)
    assert one == again
    differ = {name for name in one if one[name] != other[name]}
    assert differ == {"optimizer", "graphs"}


def test_versions_are_those_of_all_that_computes():
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    assert versions() == {"sevo_jax": sevo.__version__, **found}


def test_check_same_names_every_difference():
    with pytest.raises(
        CheckpointError, match="a.b was 1 and is 2; c was 'x' and is None"
    ):
        check_same({"a": {"b": 1, "d": 0}, "c": "x"}, {"a": {"b": 2, "d": 0}})
