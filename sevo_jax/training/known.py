"""The users and items that a run knows, by the ids of its log."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sevo_jax._messages import listed
from sevo_jax.data.log import InteractionLog
from sevo_jax.data.sequences import Sequences
from sevo_jax.data.split import LeaveOneOut


@dataclass(frozen=True)
class Translated:
    """What came of ids that were not all known.

    Attributes:
      log: the interactions with known items; its item `i` is the model's item `i`.
      users: int64 `[num_users]`, the model's row of each user of `log`, -1 for a user
        that the run does not know.
      unknown_items: ids that were skipped, each once.
      skipped: how many interactions that were.
      unserved: ids of the users that had no other items.
    """

    log: InteractionLog
    users: np.ndarray
    unknown_items: list[str]
    skipped: int
    unserved: list[str]

    def take(self, users: np.ndarray) -> Translated:
        """That of some users, by their numbers in `log`."""
        return dataclasses.replace(
            self, log=take_users(self.log, users), users=self.users[users]
        )


@dataclass(frozen=True, eq=False)
class Known:
    """Users and items by their ids, and what the model was trained on.

    Attributes:
      user_ids: the id of each row of the model's users, int or str.
      item_ids: the id of each of the model's items, likewise.
      train: items of each user that the model was trained on.
      name: what the log was called.
    """

    user_ids: Sequence[int | str]
    item_ids: Sequence[int | str]
    train: Sequences
    name: str

    @functools.cached_property
    def _items(self) -> dict[str, int]:
        return {str(name): item for item, name in enumerate(self.item_ids)}

    @functools.cached_property
    def _users(self) -> dict[str, int]:
        return {str(name): row for row, name in enumerate(self.user_ids)}

    def items(self, ids: Iterable[int | str]) -> np.ndarray:
        """int32, the item of each id, -1 for one that is not known."""
        return np.array([self._items.get(str(name), -1) for name in ids], np.int32)

    def users(self, ids: Iterable[int | str]) -> np.ndarray:
        """int64, the row of each user id, -1 for one that is not known."""
        return np.array([self._users.get(str(name), -1) for name in ids], np.int64)

    def translate(self, log: InteractionLog) -> Translated:
        """The interactions of a log, of the run's or any other, in the model's items.

        Args:
          log: any log; its items are known by their ids.

        Returns:
          Its interactions with known items, and the users that have any.

        Raises:
          ValueError: if no item is known.
        """
        items = self.items(log.item_ids.tolist())
        values = items[log.sequences.values]
        known = values >= 0
        if not known.any():
            raise ValueError(
                f"the run knows no item of {log.name!r}: its items are such as "
                f"{listed([*self._items][:3])}, those of the log such as "
                f"{listed([str(name) for name in log.item_ids[:3].tolist()])}"
            )
        lengths = np.bincount(log.sequences.rows[known], minlength=log.num_users)
        users = np.flatnonzero(lengths)
        translated = InteractionLog(
            Sequences.from_lengths(values[known], lengths[users]),
            log.user_ids[users],
            np.array(self.item_ids, object),
            log.name,
        )
        return Translated(
            log=translated,
            users=self.users(translated.user_ids.tolist()),
            unknown_items=[str(name) for name in log.item_ids[items < 0].tolist()],
            skipped=int((~known).sum()),
            unserved=[str(name) for name in log.user_ids[lengths == 0].tolist()],
        )

    def trained_on(
        self, users: np.ndarray, inputs: Sequences, targets: np.ndarray
    ) -> np.ndarray:
        """Whether the model was trained on what it is to be tested with.

        Args:
          users: as in `Translated`.
          inputs: the items that the model is given of each user.
          targets: the item that it is to find, -1 for none.

        Returns:
          bool `[len(users)]`: whether the user's training items hold the target more
          often than the input does.
        """
        # A user without a row reads an empty one.
        wanted = np.full(len(self.train) + 1, -1)
        wanted[users] = targets
        wanted[-1] = -1
        in_train = np.bincount(
            self.train.rows[self.train.values == wanted[self.train.rows]],
            minlength=len(wanted),
        )
        in_input = np.bincount(
            inputs.rows[inputs.values == targets[inputs.rows]], minlength=len(inputs)
        )
        return in_train[users] > in_input


def honest(known: Known, users: np.ndarray, split: LeaveOneOut) -> LeaveOneOut:
    """A split of another log without the targets that the model was trained on.

    A validation item that is no target is a training item: it stands before the test
    item as ever.
    """
    test_inputs = split.train.append(split.valid)
    known_valid, known_test = (
        known.trained_on(users, inputs, targets)
        for inputs, targets in ((split.train, split.valid), (test_inputs, split.test))
    )
    return LeaveOneOut(
        split.train.append(np.where(known_valid, split.valid, -1)),
        np.where(known_valid, -1, split.valid),
        np.where(known_test, -1, split.test),
        split.log,
    )


def take_users(log: InteractionLog, users: np.ndarray) -> InteractionLog:
    """The log of some users, by their numbers, in that order."""
    return dataclasses.replace(
        log, sequences=log.sequences.take(users), user_ids=log.user_ids[users]
    )
