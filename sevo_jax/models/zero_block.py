"""The zero-block model: the row of the last item against the rows of all items.

What remains of SASRec without blocks, positions and norms: one table, input and output
in one, and no network. Whatever it learns, the optimizer has put into the table.
"""

from dataclasses import dataclass, field

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from sevo_jax import _checks
from sevo_jax.models import layers
from sevo_jax.models.losses import LossConfig, LossName, next_item_loss
from sevo_jax.models.recommender import SequenceModel
from sevo_jax.models.registry import register
from sevo_jax.samples.packing import PackedBatch


@dataclass(frozen=True)
class ZeroBlockConfig(LossConfig):
    """Hyper-parameters of `ZeroBlock`.

    Attributes:
      max_len: how many of a user's most recent transitions training has a loss at.
      width: size of the item embeddings.
      dropout: rate in [0, 1) on the entries of the last item's row.
      loss: of a target (`sevo_jax.models.losses`).
    """

    max_len: int = 50
    width: int = 64
    dropout: float = 0.5
    loss: LossName = field(default="ce", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(self, 1, "max_len", "width")
        _checks.rates(self, "dropout")


@register("zero-block")
class ZeroBlock(SequenceModel):
    """Scores an item by the product of its row and that of the last item.

    Item `i` is row `i + 1` of the table; row 0 stands for padding and never gets a
    gradient.

    Args:
      num_items: how many items there are.
      config: hyper-parameters.
      rngs: source of the initial values (stream `params`).

    Examples:
      >>> from sevo_jax.data.sequences import Sequences
      >>> model = ZeroBlock(9, ZeroBlockConfig(width=8), rngs=nnx.Rngs(0))
      >>> train = Sequences.from_lists([[0, 1, 2], [3, 4]])
      >>> epochs = model.epochs(train, batch_size=2, seed=0)
      >>> step = PackedBatch(*(field[0] for field in epochs[0]))
      >>> model.loss(step, rng=jax.random.key(0)).shape
      ()
      >>> model.score(model.inputs(train)).shape
      (2, 9)
    """

    Config = ZeroBlockConfig

    def __init__(self, num_items: int, config: ZeroBlockConfig, *, rngs: nnx.Rngs):
        config.check_num_items(num_items)
        self.num_items = num_items
        self.config = config
        shape = (num_items + self.item_offset, config.width)
        self.item_embedding = nnx.Param(layers.xavier_normal(rngs.params(), shape))

    @property
    def takes_negatives(self) -> bool:
        return self.config.takes_negatives

    def loss(self, batch: PackedBatch, *, rng: jax.Array | None) -> Float[Array, ""]:
        """Returns the mean of `config.loss` over all cells that hold an item.

        Args:
          batch: one step, fields `[rows, cells]`.
          rng: key of the step's dropout and draws; None is without dropout.
        """
        return next_item_loss(
            self.config,
            self.item_embedding[...],
            batch.inputs,
            batch.targets,
            batch.negatives,
            batch.segments > 0,
            lambda embedded: layers.dropout(embedded, self.config.dropout, rng),
            item_offset=self.item_offset,
            rng=rng,
        )

    def score(
        self, inputs: Int[Array, "users cells"]
    ) -> Float[Array, "users num_items"]:
        """Returns each item's score as the next one after left-padded frames."""
        table = self.item_embedding[...]
        return table[inputs[:, -1]] @ table[self.item_offset :].T
