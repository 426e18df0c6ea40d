"""Training samples of user, positive and negative, drawn on the device.

An epoch of triplets is nothing but random numbers and look-ups, so the device draws it
whole, and nothing has to be made on the host or sent.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences
from sevo_jax.samples.negatives import distinct_items

# No epoch has this number, so these keys are apart from those of initial values and
# dropout, which fold small numbers into the key of the seed.
_STREAM = 2**32 - 1


class TripletBatch(NamedTuple):
    """Samples of `TripletEpochs`; all fields have one shape.

    An epoch is `[steps, batch_size]`, one step of it `[batch_size]`.

    Attributes:
      users: int32, `0..num_users-1`.
      positives: int32, an item the user has in train.
      negatives: int32, an item the user has not in train.
      valid: whether the sample counts; false only at the end of an epoch's last step.
    """

    users: Int[Array, "*steps batch"]
    positives: Int[Array, "*steps batch"]
    negatives: Int[Array, "*steps batch"]
    valid: Bool[Array, "*steps batch"]


class TripletEpochs:
    """The epochs of pairwise ranking by users, addressed by number.

    An epoch has as many samples as there are train interactions. For each the user is
    drawn uniformly, with replacement, from those who have train items, whatever their
    number (not interactions, as in BPR's own sampling); the positive uniformly from
    the distinct train items of the user; the negative uniformly from all other items.
    `epochs[e]` depends on the arguments and `e` alone, so a run that resumes at epoch
    `e` sees what the uninterrupted run saw.

    Args:
      train: train items of each user, `0..num_items-1`. Users without any are never
        drawn.
      num_items: how many items there are.
      batch_size: samples of a step.
      seed: in [0, 2**32).

    Attributes:
      num_samples: samples of an epoch.
      num_steps: steps of an epoch, the last one partial.

    Raises:
      ValueError: a number is out of range, there are no interactions, or a user has
        all items in train, so that no negative is left.

    Examples:
      >>> train = Sequences.from_lists([[0, 1], [], [2]])
      >>> epochs = TripletEpochs(train, 3, batch_size=2, seed=0)
      >>> epochs[0].users.shape, epochs[0].valid.tolist()
      ((2, 2), [[True, True], [True, False]])
      >>> [all(epochs[e].negatives[epochs[e].users == 0] == 2) for e in range(3)]
      [True, True, True]
    """

    def __init__(self, train: Sequences, num_items: int, *, batch_size: int, seed: int):
        _checks.require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        _checks.require(0 <= seed < 2**32, "seed", seed, "in [0, 2**32)")
        if not 0 < len(train.values) < 2**31:
            raise ValueError(
                f"train has {len(train.values)} interactions: triplets are drawn from "
                "at least 1 and, as they are counted in int32, fewer than 2**31"
            )
        distinct = distinct_items(train, num_items)
        users = np.flatnonzero(distinct.lengths)
        self.num_samples = len(train.values)
        self.num_steps = -(-self.num_samples // batch_size)
        self._shape = (self.num_steps, batch_size)
        self._num_items = np.int32(num_items)
        self._known = _Known(
            *(
                jnp.asarray(field, jnp.int32)
                for field in (
                    users,
                    distinct.offsets[users],
                    distinct.lengths[users],
                    distinct.values,
                )
            )
        )
        cells = np.arange(self.num_steps * batch_size).reshape(self._shape)
        self._valid = jnp.asarray(cells < self.num_samples)
        self._search_bits = int(distinct.lengths.max()).bit_length()
        self._key = jax.random.fold_in(jax.random.key(np.uint32(seed)), _STREAM)

    def __getitem__(self, epoch: int) -> TripletBatch:
        """Returns the epoch, arrays `[num_steps, batch_size]` on the device.

        Args:
          epoch: from 0.
        """
        drawn = _draw(
            self._known,
            self._num_items,
            jax.random.fold_in(self._key, epoch),
            shape=self._shape,
            search_bits=self._search_bits,
        )
        return TripletBatch(*drawn, valid=self._valid)


class _Known(NamedTuple):
    """Who has train items, and which.

    Attributes:
      users: int32 `[active]`.
      starts: int32 `[active]`, where the items of each of them begin in `items`.
      counts: int32 `[active]`, how many they are, at least 1.
      items: int32 `[total]`, ascending within a user and distinct.
    """

    users: Int[Array, " active"]
    starts: Int[Array, " active"]
    counts: Int[Array, " active"]
    items: Int[Array, " total"]


@partial(jax.jit, static_argnames=("shape", "search_bits"))
def _draw(
    known: _Known,
    num_items: Int[Array, ""],
    key: jax.Array,
    *,
    shape: tuple[int, int],
    search_bits: int,
) -> tuple[Int[Array, "steps batch"], ...]:
    """Draws users, positives and negatives."""

    def below(key, bound):
        return jax.random.randint(key, shape, 0, bound, jnp.int32)

    user_key, positive_key, negative_key = jax.random.split(key, 3)
    active = below(user_key, len(known.users))
    starts, counts = known.starts[active], known.counts[active]
    positives = known.items[starts + below(positive_key, counts)]
    ranks = below(negative_key, num_items - counts)
    negatives = item_outside(known.items, starts, counts, ranks, search_bits)
    return known.users[active], positives, negatives


def item_outside(
    items: Int[Array, " total"],
    starts: Int[Array, "*shape"],
    counts: Int[Array, "*shape"],
    ranks: Int[Array, "*shape"],
    search_bits: int,
) -> Int[Array, "*shape"]:
    """Returns the item with a rank, from 0, among those outside a user's own.

    It is the rank plus the number of own items below it. Before own item `j` stand
    `items[j] - j` outside, which never decreases, so that a binary search finds how
    many own items have at most `rank` outside before them: bit by bit, the highest
    first.

    Args:
      items: the own items of all users, ascending within a user and distinct.
      starts: where a user's begin.
      counts: how many they are, fewer than `2**search_bits`.
      ranks: from 0, less than the number of items outside.
      search_bits: static.
    """
    inside = jnp.zeros_like(ranks)
    for bit in reversed(range(search_bits)):
        more = inside + (1 << bit)
        last = jnp.minimum(more, counts) - 1
        passed = items[starts + last] - last <= ranks
        inside = jnp.where((more <= counts) & passed, more, inside)
    return ranks + inside
