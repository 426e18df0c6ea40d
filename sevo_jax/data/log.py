"""The interaction log: which user touched which items, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sevo_jax.data.sequences import Sequences


@dataclass(frozen=True, eq=False)
class InteractionLog:
    """The interactions of all users in chronological order, with their ids.

    Inside the library users and items are 0, 1, 2, ...; `user_ids` and `item_ids`
    lead back to what the file called them.

    Attributes:
      sequences: one row a user; items are 0..num_items-1, the oldest first.
      user_ids: `[num_users]`, int64 or str: the original id of each user.
      item_ids: `[num_items]`, int64 or str: the original id of each item.
      name: what tables and pictures call this data, such as "beauty".

    Raises:
      ValueError: there are no users, the ids do not match the sequences in number,
        a user has no interaction, or an item is outside 0..num_items-1.
    """

    sequences: Sequences
    user_ids: np.ndarray
    item_ids: np.ndarray
    name: str

    def __post_init__(self):
        if not len(self.sequences):
            raise ValueError(f"the log {self.name!r} has no interactions")
        if len(self.user_ids) != len(self.sequences):
            raise ValueError(
                f"{len(self.user_ids)} user ids for {len(self.sequences)} sequences: "
                "there must be one for each"
            )
        if not self.sequences.lengths.all():
            user = self.user_ids[np.argmin(self.sequences.lengths)]
            raise ValueError(f"user {user} has no interactions: leave such users out")
        low, high = self.sequences.values.min(), self.sequences.values.max()
        if low < 0 or high >= len(self.item_ids):
            raise ValueError(
                f"items run from {low} to {high}, but {len(self.item_ids)} item ids "
                f"allow only 0 to {len(self.item_ids) - 1}"
            )

    @classmethod
    def from_columns(
        cls,
        users: Sequence | np.ndarray,
        items: Sequence | np.ndarray,
        timestamps: Sequence | np.ndarray | None = None,
        *,
        name: str,
    ) -> InteractionLog:
        """Builds the log from one entry for each interaction.

        Ids are sorted (numbers by value, text by code point) and numbered in that
        order. Interactions are sorted by user and time; equal times keep their order.

        Args:
          users: `[num_interactions]` ids, all integers or all text.
          items: likewise.
          timestamps: `[num_interactions]` numbers or `datetime64`, in any unit;
            without them the interactions are taken as chronological already.
          name: what tables and pictures call this data.

        Raises:
          TypeError: ids are neither integers nor text, or timestamps no numbers.
          ValueError: the columns differ in length, are empty, or a timestamp is not
            a finite number.

        Example:
          >>> from sevo_jax.data import InteractionLog
          >>> log = InteractionLog.from_columns(
          ...     ["bo", "al", "al"], [70, 9, 70], [5, 8, 2], name="tiny")
          >>> log.user_ids.tolist(), log.item_ids.tolist()
          (['al', 'bo'], [9, 70])
          >>> [row.tolist() for row in log.sequences]
          [[1, 0], [1]]
        """
        columns = {"users": users, "items": items}
        if timestamps is not None:
            columns["timestamps"] = timestamps
        sizes = {title: len(column) for title, column in columns.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the columns of {name!r} differ in length: {sizes}")
        if not len(users):
            raise ValueError(f"the log {name!r} has no interactions")
        user_ids, user_codes = _number(users, "user")
        item_ids, item_codes = _number(items, "item")
        if timestamps is None:
            order = np.argsort(user_codes, kind="stable")
        else:
            order = np.lexsort((_checked_timestamps(timestamps), user_codes))
        lengths = np.bincount(user_codes, minlength=len(user_ids))
        sequences = Sequences.from_lengths(item_codes[order], lengths)
        return cls(sequences, user_ids, item_ids, name)

    @property
    def num_users(self) -> int:
        """The number of users."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """The number of items."""
        return len(self.item_ids)

    @property
    def num_interactions(self) -> int:
        """The number of interactions."""
        return len(self.sequences.values)


def _number(column: Sequence | np.ndarray, title: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted distinct ids and, for each entry, its index among them."""
    array = np.asarray(column)
    if array.dtype.kind == "O" and isinstance(array[0], int):
        array = np.asarray(array.tolist())
    if array.dtype.kind in "iu":
        if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
            raise ValueError(
                f"the {title} id {array.max()} does not fit in 64 signed bits: pass "
                "the ids as text"
            )
        return np.unique(array.astype(np.int64), return_inverse=True)
    if array.dtype.kind not in "UO":
        raise TypeError(
            f"{title} ids are {array.dtype}, but must be integers or text: convert them"
        )
    return _number_text(column, title)


def _number_text(column, title: str) -> tuple[np.ndarray, np.ndarray]:
    # A dictionary of the distinct ids is many times faster than sorting all of them.
    first_seen: dict[str, int] = {}
    codes = np.fromiter(
        (first_seen.setdefault(entry, len(first_seen)) for entry in column),
        np.int64,
        len(column),
    )
    for entry in first_seen:
        if not isinstance(entry, str):
            raise TypeError(
                f"the {title} id {entry!r} is {type(entry).__name__}, but ids must be "
                "all integers or all text: convert them"
            )
    ids = np.array(list(first_seen), dtype=np.str_)
    order = np.argsort(ids)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    return ids[order], position[codes]


def _checked_timestamps(timestamps: Sequence | np.ndarray) -> np.ndarray:
    array = np.asarray(timestamps)
    if array.dtype.kind not in "iufM":
        raise TypeError(
            f"timestamps are {array.dtype}, but must be numbers or datetime64: "
            "convert them"
        )
    bad = np.isnat(array) if array.dtype.kind == "M" else ~np.isfinite(array)
    if bad.any():
        entry = int(np.argmax(bad))
        raise ValueError(
            f"timestamp {entry} is {array[entry]}: drop or repair interactions "
            "without a time"
        )
    return array
