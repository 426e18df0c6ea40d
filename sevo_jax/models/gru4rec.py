"""GRU4Rec: next-item recommendation by a gated recurrence over the items.

Hidasi et al., "Session-based recommendations with recurrent neural networks", ICLR
2016, in the form that the SEvo paper trains: one layer without biases, a dense layer
behind it, and on every prefix the loss of BPR (Rendle et al., UAI 2009) with one
negative, instead of session-parallel batches and their losses.
"""

import typing
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sevo_jax import _checks
from sevo_jax.data.sequences import Sequences, check_items
from sevo_jax.models import layers
from sevo_jax.models.losses import LossConfig, LossName, next_item_loss
from sevo_jax.models.recommender import SequenceModel
from sevo_jax.models.registry import register
from sevo_jax.samples.prefixes import PrefixBatch, PrefixEpochs, Sampling


@dataclass(frozen=True)
class GRU4RecConfig(LossConfig):
    """Hyper-parameters of `GRU4Rec`.

    Attributes:
      max_len: longest input, the most recent items of a user.
      width: size of the item embeddings.
      hidden_width: size of the recurrent state.
      dropout: rate in [0, 1) on the entries of the input embeddings.
      sampling: how training draws prefixes, all of a user together ("sequence") or
        each by itself ("prefix").
      loss: of a target (`sevo_jax.models.losses`); bpr is the paper's.
    """

    max_len: int = 50
    width: int = 64
    hidden_width: int = 64
    dropout: float = 0.4
    sampling: Sampling = "sequence"
    loss: LossName = field(default="bpr", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(self, 1, "max_len", "width", "hidden_width")
        _checks.rates(self, "dropout")
        _checks.one_of(self, "sampling", typing.get_args(Sampling))


@register("gru4rec")
class GRU4Rec(SequenceModel):
    """Recommender by a gated recurrent unit.

    Item `i` is row `i + 1` of the item table, which is input and output table in one;
    row 0 stands for padding and never gets a gradient.

    Training has a loss at every prefix of a user's items, drawn as `config.sampling`
    says (`sevo_jax.samples.prefixes`). The authors draw each prefix as a sample of its
    own: that is `"prefix"`. The default, `"sequence"`, passes once over a user's items
    for all of the user's prefixes, which is faster, and with SEvo ends up better (see
    the README). It differs in three things: the prefixes of a step come from fewer
    users, and share the dropout of the items they have in common; and a prefix longer
    than `max_len`, of which the authors read the last `max_len` items, is read from
    somewhere between its last `max_len // 2 + 1` and its last `max_len`.

    Args:
      num_items: how many items there are.
      config: Hyper-parameters.
      rngs: source of the initial values (stream `params`).

    Examples:
      >>> import jax
      >>> from flax import nnx
      >>> from sevo_jax.data.sequences import Sequences
      >>> config = GRU4RecConfig(max_len=4, width=8, hidden_width=16)
      >>> model = GRU4Rec(9, config, rngs=nnx.Rngs(0))
      >>> train = Sequences.from_lists([[0, 1, 2], [3, 4]])
      >>> epochs = model.epochs(train, batch_size=3, seed=0)
      >>> step = PrefixBatch(*(field[0] for field in epochs[0]))
      >>> model.loss(step, rng=jax.random.key(0)).shape
      ()
      >>> model.score(model.inputs(train)).shape
      (2, 9)
    """

    Config = GRU4RecConfig

    def __init__(self, num_items: int, config: GRU4RecConfig, *, rngs: nnx.Rngs):
        config.check_num_items(num_items)
        self.num_items = num_items
        self.config = config
        width, hidden_width = config.width, config.hidden_width
        self.item_embedding = nnx.Param(
            layers.xavier_normal(rngs.params(), (num_items + self.item_offset, width))
        )
        # Reset, update and new state side by side: Xavier's bound is that of the stack.
        self.kernel_in, self.kernel_hidden = (
            nnx.Param(layers.xavier_uniform(rngs.params(), (size, 3 * hidden_width)))
            for size in (width, hidden_width)
        )
        initial = layers.fan_in_uniform(hidden_width)
        self.project_out = nnx.Linear(
            hidden_width, width, kernel_init=initial, bias_init=initial, rngs=rngs
        )

    def loss(self, batch: PrefixBatch, *, rng: jax.Array | None) -> Float[Array, ""]:
        """Returns the mean of `config.loss` over all targets.

        Args:
          batch: one step, `inputs` and `starts` `[rows, cells]`, the rest
            `[targets]`.
          rng: key of the step's dropout and draws; None is without dropout.
        """
        rows, cells = batch.inputs.shape

        def encode(inputs):
            inputs = layers.dropout(inputs, self.config.dropout, rng)
            states = self._states(inputs.reshape(cells, rows, -1), batch.starts.T)
            return self.project_out(states[batch.cells % cells, batch.cells // cells])

        return next_item_loss(
            self.config,
            self.item_embedding[...],
            # Cell by cell, as the recurrence reads it.
            batch.inputs.T.reshape(-1),
            batch.targets,
            batch.negatives,
            batch.targets > 0,
            encode,
            item_offset=self.item_offset,
            rng=rng,
        )

    def encode(
        self, inputs: Int[Array, "users cells"]
    ) -> Float[Array, "users cells width"]:
        """Returns the features of left-padded frames, without dropout.

        Args:
          inputs: rows of the item table, 0 for the pads (see `inputs`). At the pads
            the state is 0, so their number makes no difference.
        """
        return self.project_out(self._frame_states(inputs).swapaxes(0, 1))

    def score(
        self, inputs: Int[Array, "users cells"]
    ) -> Float[Array, "users num_items"]:
        """Returns each item's score as the next one after left-padded frames."""
        features = self.project_out(self._frame_states(inputs)[-1])
        return features @ self.item_embedding[self.item_offset :].T

    def epochs(self, train: Sequences, *, batch_size: int, seed: int) -> PrefixEpochs:
        """Returns the epochs of `train`, by number; a step of one is a loss's batch.

        Args:
          train: train items of each user.
          batch_size: prefixes of a step.
          seed: Non-negative.
        """
        check_items(train, self.num_items)
        return PrefixEpochs(
            train,
            self.num_items,
            max_len=self.config.max_len,
            batch_size=batch_size,
            seed=seed,
            sampling=self.config.sampling,
            with_negatives=self.config.takes_negatives,
            item_offset=self.item_offset,
        )

    def _frame_states(self, inputs):
        """States `[cells, users, hidden_width]` of left-padded frames."""
        valid = inputs.T > 0
        starts = jnp.roll(~valid, 1, axis=0).at[0].set(True)
        states = self._states(self.item_embedding[...][inputs.T], starts)
        return jnp.where(valid[..., None], states, 0)

    def _states(self, inputs, starts):
        """States `[cells, rows, hidden_width]` of inputs `[cells, rows, width]`."""
        return recur(inputs @ self.kernel_in[...], starts, self.kernel_hidden[...])


def recur(
    projected: Float[Array, "cells rows gates"],
    starts: Bool[Array, "cells rows"],
    kernel: Float[Array, "width gates"],
) -> Float[Array, "cells rows width"]:
    """Passes a gated recurrent unit without biases over the first axis.

    With reset `r`, update `z` and candidate `n`, whose parts of `projected` (inputs
    times input kernel) and of `kernel` stand side by side in this order:

    .. math:: h \\leftarrow (1 - z) n + z h, \\quad n = \\tanh(x_n + r \\circ (h W_n))

    Args:
      projected: `gates` is `3 * width`.
      starts: where the state before is zero, as it is before the first cell.
      kernel: of the state.

    Returns:
      The state after each cell.
    """
    width = kernel.shape[0]

    def step(state, cell):
        projected, start = cell
        state = jnp.where(start[:, None], 0, state)
        recurrent = state @ kernel
        gates = jax.nn.sigmoid(projected[:, : 2 * width] + recurrent[:, : 2 * width])
        reset, update = jnp.split(gates, 2, axis=1)
        new = jnp.tanh(projected[:, 2 * width :] + reset * recurrent[:, 2 * width :])
        state = new + update * (state - new)
        return state, state

    initial = jnp.zeros((projected.shape[1], width), projected.dtype)
    return jax.lax.scan(step, initial, (projected, starts))[1]
