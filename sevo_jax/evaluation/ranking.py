"""Full ranking of the catalogue for each user, what the user has seen left out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from sevo_jax.data.sequences import Sequences
from sevo_jax.data.split import LeaveOneOut
from sevo_jax.evaluation.metrics import metrics

Part = Literal["valid", "test"]

# About two million scores (8 MB) stay in a processor's last-level cache between the
# product and the comparison; on 12,101 items, batches of 64 to 256 users take equally
# long, 1024 a third longer.
_SCORES_PER_BATCH = 2**21
_LARGEST_BATCH = 1024


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
) -> Int[Array, " b"]:
    """Rank of each row's target among the items its user has not seen.

    One plus the number of items scored strictly above the target, less the seen ones
    among them: equal to sorting, without a sort. Ties go to the target.

    Args:
      scores: a score for each of the `n` items.
      targets: the item whose rank is asked, in `[0, n)`; not among the seen ones.
      seen: distinct items to leave out, padded with -1.

    Returns:
      1-based ranks, int32.

    Examples:
      >>> scores = jnp.array([[0.9, 0.8, 0.1, 0.5]])
      >>> target_ranks(scores, jnp.array([3]), jnp.array([[0, -1]])).tolist()
      [2]
    """
    target = jnp.take_along_axis(scores, targets[:, None], axis=1)
    above = jnp.sum(scores > target, axis=1, dtype=jnp.int32)
    # Padding reads item 0 and is not counted: a negative index would wrap around.
    seen_scores = jnp.take_along_axis(scores, jnp.maximum(seen, 0), axis=1)
    seen_above = (seen_scores > target) & (seen >= 0)
    return 1 + above - jnp.sum(seen_above, axis=1, dtype=jnp.int32)


class Evaluator:
    """Ranks every user's validation or test item under the leave-one-out protocol.

    Validation: the input is the train sequence, which is also what was seen. Test: the
    validation item is appended to both. Users without a target are left out. Inputs
    are made once, and grouped so that short ones need not be as wide as long ones.

    Args:
      model: gives `inputs`; its parameters are not kept.
      split: the data.
      part: which item of a user is the target, `"valid"` or `"test"`.
      batch_size: users scored at a time; by default as many as keep the scores in
        the processor's cache.
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
        *,
        batch_size: int | None = None,
        sharding: NamedSharding | None = None,
    ):
        if part not in ("valid", "test"):
            raise ValueError(f"part is {part!r}: choose 'valid' or 'test'")
        targets = split.valid if part == "valid" else split.test
        users = np.flatnonzero(targets >= 0)
        if users.size == 0:
            raise ValueError(
                f"no user of {split.log.name!r} has a {part} item: leave-one-out needs "
                "users with more than 3 interactions"
            )
        history = split.train if part == "valid" else split.train.append(split.valid)
        history = _take(history, users)
        size = min(batch_size or _batch_size(split.num_items), users.size)
        shards = 1 if sharding is None else len(sharding.device_set)
        size = -(-size // shards) * shards
        self.part = part
        self.users = users
        self._sharding = sharding
        self._batches = [
            (rows, [self._put(x) for x in (inputs, targets[users[rows]], seen)])
            for rows, inputs, seen in _batches(model, history, users, history, size)
        ]

    def ranks(self, model: nnx.Module) -> Int[np.ndarray, " u"]:
        """1-based rank of the target of each of `users`, int32.

        Args:
          model: the same kind of model as at construction, any parameters.

        Raises:
          FloatingPointError: if a score is not finite: such a row has no ranking.
        """
        graphdef, state = nnx.split(model)
        results = [
            (rows, self._replicated(_batch_ranks(graphdef, state, *batch)))
            for rows, batch in self._batches
        ]
        ranks = np.empty(self.users.size, np.int32)
        finite = np.empty(self.users.size, bool)
        for rows, result in results:
            ranks[rows], finite[rows] = result
        if not finite.all():
            raise FloatingPointError(
                f"{np.sum(~finite)} of {self.users.size} users have scores that are "
                f"not finite ({self.part} items, first user {self.users[~finite][0]}): "
                "the parameters have diverged, lower the learning rate"
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
        """The five metrics of `sevo_jax.evaluation.metrics`, means over `users`."""
        return metrics(self.ranks(model))


def evaluate(
    model: Any,
    split: LeaveOneOut,
    part: Part = "test",
    *,
    batch_size: int | None = None,
) -> dict[str, float]:
    """HR and NDCG of a model under the leave-one-out protocol, seen items masked.

    Args:
      model: a recommender of `sevo_jax.models`.
      split: the data; item `i` must be the item `i` the model was trained with.
      part: `"valid"` or `"test"`.
      batch_size: users scored at a time.

    Returns:
      HR@1, HR@5, HR@10, NDCG@5, NDCG@10, each in [0, 1].

    Raises:
      ValueError: if `part` is neither, or no user has a target.
      FloatingPointError: if a score is not finite.
    """
    return Evaluator(model, split, part, batch_size=batch_size)(model)


def recommend(
    model: Any,
    sequences: Sequences,
    k: int,
    *,
    users: Int[np.ndarray, " b"] | None = None,
    seen: Sequences | None = None,
    batch_size: int | None = None,
) -> tuple[Int[np.ndarray, "b k"], Float[np.ndarray, "b k"]]:
    """The `k` best items for each sequence, best first, seen ones left out.

    Args:
      model: a recommender of `sevo_jax.models`.
      sequences: histories, items `0..num_items-1`, oldest first.
      k: how many items, from 1 to the number of items.
      users: whose they are, for a model that knows its users; by default the user
        `i` of the training data has row `i`.
      seen: items to leave out, one row a sequence; by default the history itself.
      batch_size: sequences scored at a time.

    Returns:
      Items (int32) and their scores (float32), both `[len(sequences), k]`; where a
      row has fewer than `k` unseen items the rest is item -1 with score -inf.

    Raises:
      ValueError: if `k` is out of range, or `seen` or `users` has another number of
        rows.
      FloatingPointError: if a score is not finite.
    """
    seen = sequences if seen is None else seen
    users = np.arange(len(sequences)) if users is None else np.asarray(users)
    num_items = model.num_items
    if not 1 <= k <= num_items:
        raise ValueError(f"k is {k}: choose 1 to {num_items}, the number of items")
    if len(seen) != len(sequences):
        raise ValueError(f"seen has {len(seen)} rows, sequences {len(sequences)}")
    if users.shape != (len(sequences),):
        raise ValueError(
            f"users has shape {users.shape}, but there are {len(sequences)} sequences"
        )
    items = np.empty((len(sequences), k), np.int32)
    scores = np.empty((len(sequences), k), np.float32)
    graphdef, state = nnx.split(model)
    size = min(batch_size or _batch_size(num_items), len(sequences))
    for rows, inputs, seen_rows in _batches(model, sequences, users, seen, size):
        batch = _batch_top(graphdef, state, inputs, seen_rows, k=k)
        items[rows], scores[rows], finite = jax.device_get(batch)
        if not finite.all():
            raise FloatingPointError("scores are not finite: the model has diverged")
    return items, scores


@partial(jax.jit, static_argnames="graphdef")
def _batch_ranks(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    inputs: Int[Array, "b t"],
    targets: Int[Array, " b"],
    seen: Int[Array, "b m"],
) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """Ranks, and whether all scores of a row are finite."""
    scores = nnx.merge(graphdef, state).score(inputs)
    return target_ranks(scores, targets, seen), jnp.isfinite(scores).all(axis=1)


@partial(jax.jit, static_argnames=("graphdef", "k"))
def _batch_top(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    inputs: Int[Array, "b t"],
    seen: Int[Array, "b m"],
    *,
    k: int,
) -> tuple[Int[Array, "b k"], Float[Array, "b k"], Bool[Array, " b"]]:
    """Best items, their scores, and whether all scores of a row are finite."""
    scores = nnx.merge(graphdef, state).score(inputs)
    finite = jnp.isfinite(scores).all(axis=1)
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
    """
    for rows in _groups(model, sequences, users):
        inputs = model.inputs(_take(sequences, rows), users[rows])
        padded = _padded(_take(seen, rows))
        for chunk in np.resize(np.arange(rows.size), (-(-rows.size // size), size)):
            yield rows[chunk], inputs[chunk], padded[chunk]


def _groups(
    model: Scorer, sequences: Sequences, users: np.ndarray
) -> Iterator[Int[np.ndarray, " g"]]:
    """Rows of like length, apart where a model gives shorter ones narrower inputs.

    A group costs a compilation: those of less than a twentieth of the rows are joined
    with the next wider one.
    """
    lengths, inverse = np.unique(sequences.lengths, return_inverse=True)
    probes = [Sequences.from_lists([[0] * length]) for length in lengths]
    widths = [model.inputs(probe, users[:1]).shape[1] for probe in probes]
    widths = np.array(widths)[inverse]
    group = np.zeros(len(sequences), bool)
    for width in np.unique(widths):
        group |= widths == width
        if 20 * group.sum() >= group.size or width == widths.max():
            yield np.flatnonzero(group)
            group[:] = False


def _batch_size(num_items: int) -> int:
    return max(1, min(_LARGEST_BATCH, _SCORES_PER_BATCH // num_items))


def _take(sequences: Sequences, rows: Int[np.ndarray, " g"]) -> Sequences:
    """The sequences of `rows`, which ascend."""
    kept = np.zeros(len(sequences), bool)
    kept[rows] = True
    lengths = sequences.lengths
    values = sequences.values[np.repeat(kept, lengths)]
    return Sequences.from_lengths(values, lengths[kept])


def _padded(sequences: Sequences) -> Int[np.ndarray, "g m"]:
    """Ragged rows as one array, padded with -1 on the right."""
    lengths = sequences.lengths
    # In steps: one item more in the test than in validation is the same program.
    width = -(-max(1, int(lengths.max())) // 8) * 8
    padded = np.full((len(sequences), width), -1, np.int32)
    padded[np.arange(width) < lengths[:, None]] = sequences.values
    return padded
