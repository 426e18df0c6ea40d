"""Training on prefixes one by one, each in a left-padded frame of its own.

For models that read a frame as a whole, pads included, so that prefixes can neither
share a pass nor a row.
"""

from typing import NamedTuple

import numpy as np

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences, ranges
from sevo_jax.samples.runs import Runs


class FrameBatch(NamedTuple):
    """Prefixes and what follows them; both int32, 0 where there is none.

    An epoch is `[steps, ...]`, one step of it without that axis.

    Attributes:
      inputs: `[batch_size, max_len]`, rows of the item table, left-padded.
      targets: `[batch_size]`, the item that follows, as a row of the table.
    """

    inputs: np.ndarray
    targets: np.ndarray


class FrameEpochs:
    """The epochs of training on prefixes in frames, addressed by number.

    Of each user's last `max_len` train items every one but the first is the target of
    one prefix, all those before it. An epoch is a fresh permutation of the prefixes,
    the partial last batch kept. `epochs[e]` depends on the arguments and `e` alone.

    Args:
      train: train items of each user. Users with fewer than two have no target and are
        left out.
      max_len: width of a frame; a prefix is shorter.
      batch_size: prefixes of a step.
      seed: non-negative.
      item_offset: row of the table where item 0 stands.

    Raises:
      ValueError: if an argument is out of range or no user has two train items.

    Examples:
      >>> train = Sequences.from_lists([[4, 5, 6, 7]])
      >>> epochs = FrameEpochs(train, max_len=3, batch_size=2, seed=0)
      >>> epochs[0].inputs[0].tolist(), epochs[0].targets[0].tolist()
      ([[0, 0, 6], [0, 6, 7]], [7, 8])
    """

    def __init__(
        self,
        train: Sequences,
        *,
        max_len: int,
        batch_size: int,
        seed: int,
        item_offset: int = 1,
    ):
        for name, value, least in (
            ("max_len", max_len, 2),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("item_offset", item_offset, 1),
        ):
            _checks.require(value >= least, name, value, f"at least {least}")
        train = train.last(max_len)
        self._items = train.values + item_offset
        self._runs = Runs.prefixes(train, max_len)
        self.max_len = max_len
        self.batch_size = batch_size
        self.seed = seed
        self.num_steps = self._runs.num_steps(batch_size)

    def __getitem__(self, epoch: int) -> FrameBatch:
        """Returns the epoch: arrays `[num_steps, ...]`.

        Args:
          epoch: from 0.
        """
        rng = np.random.default_rng([self.seed, epoch])
        drawn, _ = self._runs.draw(rng, self.batch_size)
        num = self.num_steps * self.batch_size
        inputs = np.zeros((num, self.max_len), np.int32)
        targets = np.zeros(num, np.int32)
        ends = drawn.firsts + drawn.lengths
        places = self.max_len * np.arange(1, 1 + len(ends)) - drawn.lengths
        cells = ranges(places, drawn.lengths)
        inputs.reshape(-1)[cells] = self._items[ranges(drawn.firsts, drawn.lengths)]
        targets[: len(ends)] = self._items[ends]
        shape = self.num_steps, self.batch_size
        return FrameBatch(inputs.reshape(*shape, -1), targets.reshape(shape))
