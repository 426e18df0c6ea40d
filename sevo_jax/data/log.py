"""The interaction log: which user touched which items, in which order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sevo_jax.data import ids, times
from sevo_jax.data.sequences import Sequences, ranges


@dataclass(frozen=True, eq=False)
class InteractionLog:
    """The interactions of all users in chronological order, with their ids.

    Inside the library users and items are 0, 1, 2, ...; `user_ids` and `item_ids`
    lead back to what the file called them.

    Attributes:
      sequences: one row a user; items are 0..num_items-1, the oldest first.
      user_ids: `[num_users]`, the original id of each user: int64, or Python strings
        in an array of objects.
      item_ids: `[num_items]`, likewise for the items.
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
        # Whatever is made of them names its users by their ids.
        sequences = dataclasses.replace(self.sequences, names=self.user_ids)
        object.__setattr__(self, "sequences", sequences)
        if not sequences.lengths.all():
            user = sequences.name(int(np.argmin(sequences.lengths)))
            raise ValueError(f"user {user} has no interactions: leave such users out")
        low, high = sequences.values.min(), sequences.values.max()
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
          users: `[num_interactions]` ids, all of them integers or all text; a float
            that is a whole number, such as 123.0, is that integer.
          items: likewise.
          timestamps: `[num_interactions]` numbers in any unit, `datetime64`,
            `datetime` or ISO text; without them the interactions are taken as
            chronological already.
          name: what tables and pictures call this data.

        Raises:
          TypeError: ids are neither numbers nor text, or timestamps no times.
          ValueError: the columns differ in length, are empty or have several
            dimensions, an id is empty or not a whole number of 64 bits, or a timestamp
            is not finite.

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
        for title, column in columns.items():
            if (ndim := getattr(column, "ndim", 1)) != 1:
                raise ValueError(
                    f"the {title} of {name!r} have {ndim} dimensions: pass one "
                    "column, with an entry for each interaction"
                )
        sizes = {title: len(column) for title, column in columns.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the columns of {name!r} differ in length: {sizes}")
        if not len(users):
            raise ValueError(f"the log {name!r} has no interactions")
        return cls.from_codes(
            ids.number(users, "user"),
            ids.number(items, "item"),
            None if timestamps is None else times.sortable(timestamps),
            name=name,
        )

    @classmethod
    def from_codes(
        cls,
        users: ids.Numbered,
        items: ids.Numbered,
        timestamps: np.ndarray | None,
        *,
        name: str,
    ) -> InteractionLog:
        """Builds the log from columns whose ids are numbered already.

        Args:
          users: the users, one code an interaction.
          items: likewise.
          timestamps: numbers that sort as the times do; None if the interactions are
            in chronological order.
          name: what tables and pictures call this data.
        """
        if timestamps is None:
            order = np.argsort(users.codes, kind="stable")
        else:
            order = np.lexsort((timestamps, users.codes))
        lengths = np.bincount(users.codes, minlength=len(users.ids))
        sequences = Sequences.from_lengths(items.codes[order], lengths)
        return cls(sequences, users.ids, items.ids, name)

    def to_columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the original user and item ids, and the positions in the sequences.

        Each has one entry an interaction, user by user. `from_columns` makes the same
        log of them.
        """
        rows = self.sequences.rows
        positions = ranges(0, self.sequences.lengths)
        return self.user_ids[rows], self.item_ids[self.sequences.values], positions

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
