"""Full ranking of the catalogue for each user, what the user has seen left out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences, check_items
from sevo_jax.data.split import LeaveOneOut
from sevo_jax.evaluation.metrics import measure
from sevo_jax.evaluation.protocol import (
    EvaluationConfig,
    Part,
    Seen,
    targets_and_histories,
)

# About two million scores (8 MB) stay in a processor's last-level cache between the
# product and the comparison; on 12,101 items, batches of 64 to 256 users take equally
# long, 1024 a third longer.
_SCORES_PER_BATCH = 2**21
_LARGEST_BATCH = 1024
# Where not even these fit, the table of items is read once for so many: a million of
# width 64 take 2.3 times as long by twos.
_SMALLEST_BATCH = 16


class Scorer(Protocol):
    """What evaluation asks of a model, besides being an `nnx.Module`."""

    def inputs(self, sequences: Sequences, users: np.ndarray) -> np.ndarray:
        """Model inputs `[b, t]`, a row a sequence, made on the host.

        They may be narrower where all sequences are short.
        """
        ...

    def score(self, inputs: Any) -> Float[Array, "b n"]:
        """Scores of all items, without dropout."""
        ...


def target_ranks(
    scores: Float[Array, "b n"], targets: Int[Array, " b"], seen: Int[Array, "b m"]
) -> Float[Array, " b"]:
    """Rank of each row's target among the items its user has not seen.

    One plus the number of other items scored above the target, plus half of those
    scored like it: the mean rank over all orders of the ties. No scores are sorted.

    Args:
      scores: a finite score for each of the `n` items.
      targets: the item whose rank is asked, in `[0, n)`; ranked even where it is seen.
      seen: items to leave out, padded with -1; one that comes twice is one item.

    Returns:
      1-based ranks, integers and halves, float32.

    Examples:
      >>> scores = jnp.array([[0.9, 0.8, 0.1, 0.5, 0.5]])
      >>> target_ranks(scores, jnp.array([3]), jnp.array([[0, 0, -1]])).tolist()
      [2.5]
    """
    seen = jnp.sort(seen, axis=1)
    again = jnp.diff(seen, axis=1, prepend=-1) == 0
    return _ranks(scores, targets, jnp.where(again, -1, seen))


def _ranks(
    scores: Float[Array, "b n"], targets: Int[Array, " b"], seen: Int[Array, "b m"]
) -> Float[Array, " b"]:
    """As `target_ranks`, of seen items that are distinct."""
    targets = targets[:, None]
    target = jnp.take_along_axis(scores, targets, axis=1)

    def halves(scores):
        return jnp.where(scores > target, 2, jnp.where(scores == target, 1, 0))

    # Padding reads item 0 and does not count: a negative index would wrap around.
    of_seen = halves(jnp.take_along_axis(scores, jnp.maximum(seen, 0), axis=1))
    counts = (seen >= 0) & (seen != targets)
    total = jnp.sum(halves(scores), axis=1) - jnp.sum(of_seen * counts, axis=1)
    # The target is tied with itself.
    return 1 + (total - 1) / jnp.float32(2)


class Evaluator:
    """Ranks every user's validation or test item under the leave-one-out protocol.

    Validation: the input is the train sequence, which is also what was seen. Test: the
    validation item is appended to both. Users without a target are left out. Inputs
    are made once, and grouped so that short ones need not be as wide as long ones.

    The rank of a target is the mean of those that it shares with items of the same
    score, so that a tie does not pay.

    Args:
      model: gives `inputs`; its parameters are not kept.
      split: the data.
      part: which item of a user is the target, `"valid"` or `"test"`.
      config: which metrics, and whether seen items are ranked.
      batch_size: users scored at a time; by default as many as keep the scores in
        the processor's cache.
      rows: int `[num_users]`, the model's row of each user of `split`, for a model
        that knows its users; by default the user's number.
      sharding: where the arrays of a batch go, which may split their first axis, the
        users; by default to the first device. It may span processes, each of which
        then makes the same evaluator and gets all ranks.

    Raises:
      ValueError: if `part` is neither, or no user has a target.
    """

    part: Part
    users: Int[np.ndarray, " u"]
    """The users that have a target, ascending; `ranks` follows this order."""

    def __init__(
        self,
        model: Scorer,
        split: LeaveOneOut,
        part: Part,
        config: EvaluationConfig | None = None,
        *,
        batch_size: int | None = None,
        rows: Int[np.ndarray, " u"] | None = None,
        sharding: NamedSharding | None = None,
    ):
        config = config or EvaluationConfig()
        targets, histories = targets_and_histories(split, part)
        users = np.flatnonzero(targets >= 0)
        if users.size == 0:
            raise ValueError(
                f"no user of {split.log.name!r} has a {part} item: leave-one-out needs "
                "users with more than 3 interactions"
            )
        histories = histories.take(users)
        size = min(batch_size or _batch_size(split.num_items), users.size)
        shards = 1 if sharding is None else len(sharding.device_set)
        size = -(-size // shards) * shards
        self.part = part
        self.users = users
        self._metrics = config.measured
        self._num_items = split.num_items
        self._user_name = split.train.name
        self._sharding = sharding
        seen = _seen(histories, config.seen)
        known = users if rows is None else rows[users]
        self._batches = [
            (chosen, [self._put(x) for x in (inputs, targets[users[chosen]], left_out)])
            for chosen, inputs, left_out in _batches(
                model, histories, known, seen, size
            )
        ]

    def ranks(self, model: nnx.Module) -> Float[np.ndarray, " u"]:
        """1-based rank of the target of each of `users`, as `target_ranks`.

        Args:
          model: the same kind of model as at construction, any parameters.

        Raises:
          ValueError: if the model gives another number of scores.
          FloatingPointError: if a score is not finite: such a row has no ranking.
        """
        graphdef, state = nnx.split(model)
        results = [
            (
                rows,
                self._replicated(
                    _batch_ranks(graphdef, state, *batch, num_items=self._num_items)
                ),
            )
            for rows, batch in self._batches
        ]
        ranks = np.empty(self.users.size, np.float32)
        for rows, result in results:
            ranks[rows] = result
        bad = np.isnan(ranks)
        if bad.any():
            first = self._user_name(self.users[bad][0])
            raise FloatingPointError(
                f"{bad.sum()} of {self.users.size} users have scores that are not "
                f"finite ({self.part} items, first user {first}): the parameters "
                "have diverged, lower the learning rate"
            )
        return ranks

    def _put(self, x: np.ndarray) -> jax.Array:
        if self._sharding is None:
            return jax.device_put(x)
        # Each process takes its parts; device_put would have all compare the whole.
        return jax.make_array_from_callback(x.shape, self._sharding, x.__getitem__)

    def _replicated(self, results: Any) -> Any:
        if self._sharding is None or self._sharding.is_fully_addressable:
            return results
        everywhere = NamedSharding(self._sharding.mesh, PartitionSpec())
        return jax.device_put(results, everywhere)

    def __call__(self, model: nnx.Module) -> dict[str, float]:
        """The metrics of the configuration, means over `users`."""
        return measure(self.ranks(model), self._metrics)


def evaluate(
    model: Any,
    split: LeaveOneOut,
    part: Part = "test",
    config: EvaluationConfig | None = None,
    *,
    batch_size: int | None = None,
    rows: Int[np.ndarray, " u"] | None = None,
) -> dict[str, float]:
    """Metrics of a model under the leave-one-out protocol.

    Args:
      model: a recommender of `sevo_jax.models`.
      split: the data; item `i` must be the item `i` the model was trained with.
      part: `"valid"` or `"test"`.
      config: which metrics, and whether seen items are ranked; by default the paper's
        five, and masked.
      batch_size: users scored at a time.
      rows: as for `Evaluator`.

    Returns:
      Metric by name, each in [0, 1].

    Raises:
      ValueError: if `part` is neither, or no user has a target.
      FloatingPointError: if a score is not finite.
    """
    return Evaluator(model, split, part, config, batch_size=batch_size, rows=rows)(
        model
    )


def recommend(
    model: Any,
    sequences: Sequences,
    k: int,
    *,
    users: Int[np.ndarray, " b"] | None = None,
    seen: Seen | Sequences = "mask",
    batch_size: int | None = None,
) -> tuple[Int[np.ndarray, "b k"], Float[np.ndarray, "b k"]]:
    """The `k` best items for each sequence, best first, of equal ones the lower first.

    Args:
      model: a recommender of `sevo_jax.models`.
      sequences: histories, items `0..num_items-1`, oldest first.
      k: how many items, from 1 to the number of items.
      users: whose they are, for a model that knows its users; by default the sequences
        are those of all its users, in their order.
      seen: `"mask"` leaves out what is in the history, `"keep"` nothing; or the items
        to leave out, one row a sequence.
      batch_size: sequences scored at a time.

    Returns:
      Items (int32) and their scores (float32), both `[len(sequences), k]`; where a
      row has fewer than `k` items left the rest is item -1 with score -inf.

    Raises:
      ValueError: if `k` or an item is out of range, `seen` or `users` has another
        number of rows or is missing, or the model gives another number of scores.
      FloatingPointError: if a score is not finite.
    """
    seen = seen if isinstance(seen, Sequences) else _seen(sequences, seen)
    if users is None:
        known = getattr(model, "num_users", len(sequences))
        if len(sequences) != known:
            raise ValueError(
                f"the model knows {known} users by their rows, and there are "
                f"{len(sequences)} sequences: give users=, the row of each"
            )
        users = np.arange(len(sequences))
    users = np.asarray(users)
    num_items = model.num_items
    if not 1 <= k <= num_items:
        raise ValueError(f"k is {k}: choose 1 to {num_items}, the number of items")
    if len(seen) != len(sequences):
        raise ValueError(f"seen has {len(seen)} rows, sequences {len(sequences)}")
    if users.shape != (len(sequences),):
        raise ValueError(
            f"users has shape {users.shape}, but there are {len(sequences)} sequences"
        )
    for each in (sequences, seen):
        # Others would be counted as items of other rows.
        check_items(each, num_items)
    items = np.empty((len(sequences), k), np.int32)
    scores = np.empty((len(sequences), k), np.float32)
    graphdef, state = nnx.split(model)
    size = min(batch_size or _batch_size(num_items), len(sequences))
    for rows, inputs, seen_rows in _batches(model, sequences, users, seen, size):
        batch = _batch_top(graphdef, state, inputs, seen_rows, k=k, num_items=num_items)
        items[rows], scores[rows], finite = jax.device_get(batch)
        if not finite.all():
            first = sequences.name(rows[~finite][0])
            raise FloatingPointError(
                f"the scores of user {first} are not finite: the model has diverged"
            )
    return items, scores


def _scores(
    graphdef: nnx.GraphDef, state: nnx.State, inputs: Any, num_items: int
) -> Float[Array, "b n"]:
    scores = nnx.merge(graphdef, state).score(inputs)
    expected = (len(inputs), num_items)
    if scores.shape != expected:
        raise ValueError(
            f"the model's scores have shape {scores.shape}, but of {expected[0]} rows "
            f"and {num_items} items {expected} is expected: a column an item, none for "
            "padding"
        )
    return scores


@partial(jax.jit, static_argnames=("graphdef", "num_items"))
def _batch_ranks(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    inputs: Int[Array, "b t"],
    targets: Int[Array, " b"],
    seen: Int[Array, "b m"],
    *,
    num_items: int,
) -> Float[Array, " b"]:
    """Ranks; NaN where a score of the row is not finite."""
    scores = _scores(graphdef, state, inputs, num_items)
    finite = jnp.isfinite(scores).all(axis=1)
    return jnp.where(finite, _ranks(scores, targets, seen), jnp.nan)


@partial(jax.jit, static_argnames=("graphdef", "k", "num_items"))
def _batch_top(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    inputs: Int[Array, "b t"],
    seen: Int[Array, "b m"],
    *,
    k: int,
    num_items: int,
) -> tuple[Int[Array, "b k"], Float[Array, "b k"], Bool[Array, " b"]]:
    """Best items, their scores, and whether all scores of a row are finite."""
    scores = _scores(graphdef, state, inputs, num_items)
    finite = jnp.isfinite(scores).all(axis=1)
    # Otherwise 0 came before -0, which is equal to it.
    scores = jnp.where(scores == 0, 0, scores)
    # An index out of range is dropped, and so is the padding.
    columns = jnp.where(seen < 0, scores.shape[1], seen)
    rows = jnp.arange(scores.shape[0])[:, None]
    scores = scores.at[rows, columns].set(-jnp.inf, mode="drop")
    best, items = jax.lax.top_k(scores, k)
    return jnp.where(jnp.isneginf(best), -1, items), best, finite


def _batches(
    model: Scorer, sequences: Sequences, users: np.ndarray, seen: Sequences, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches `(rows [b], inputs [b, t], seen [b, m])` that cover all sequences.

    All have as many rows, the last of a group filled up with some of its rows again.
    In a group those who have seen most come last, so that one of them does not set the
    width `m` of the others.
    """
    seen = seen.distinct()
    for rows in _groups(model, sequences, users):
        rows = rows[np.argsort(seen.lengths[rows], kind="stable")]
        inputs = model.inputs(sequences.take(rows), users[rows])
        for chunk in np.resize(np.arange(rows.size), (-(-rows.size // size), size)):
            left_out = seen.take(rows[chunk])
            yield rows[chunk], inputs[chunk], _padded(left_out)


def _groups(
    model: Scorer, sequences: Sequences, users: np.ndarray
) -> Iterator[Int[np.ndarray, " g"]]:
    """Rows of like length, apart where a model gives shorter ones narrower inputs.

    A group costs a compilation: those of less than a twentieth of the rows are joined
    with the next wider one.
    """
    lengths, inverse = np.unique(sequences.lengths, return_inverse=True)
    zeros = np.zeros(lengths.max(initial=0), np.int32)
    probes = [
        Sequences.from_lengths(zeros[:size], np.array([size])) for size in lengths
    ]
    widths = [model.inputs(probe, users[:1]).shape[1] for probe in probes]
    widths = np.array(widths)[inverse]
    group = np.zeros(len(sequences), bool)
    for width in np.unique(widths):
        group |= widths == width
        if 20 * group.sum() >= group.size or width == widths.max():
            yield np.flatnonzero(group)
            group[:] = False


def _batch_size(num_items: int) -> int:
    return max(_SMALLEST_BATCH, min(_LARGEST_BATCH, _SCORES_PER_BATCH // num_items))


def _seen(histories: Sequences, seen: Seen) -> Sequences:
    """What is left out of the ranking after each history."""
    _checks.require(seen in ("mask", "keep"), "seen", seen, "'mask' or 'keep'")
    return histories if seen == "mask" else histories.last(0)


def _padded(sequences: Sequences) -> Int[np.ndarray, "b m"]:
    """Ragged rows as one array, padded with -1 on the right.

    Its width is 8, 64, 512, ...: few to compile for.
    """
    lengths = sequences.lengths
    width = 8
    while width < lengths.max(initial=0):
        width *= 8
    padded = np.full((len(sequences), width), -1, np.int32)
    padded[np.arange(width) < lengths[:, None]] = sequences.values
    return padded
