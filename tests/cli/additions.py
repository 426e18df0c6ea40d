"""A metric, a graph, an optimizer and a format of one's own: a line in a table each."""

import numpy as np
import optax
import scipy.sparse

import sevo_jax as sevo
from sevo_jax.data.formats import FORMATS, Format, sequences
from sevo_jax.evaluation.metrics import METRICS
from sevo_jax.graphs.kinds import KINDS, Kind
from sevo_jax.operators import bcoo_from_scipy
from sevo_jax.training.optimizers import SEVO


def _ring(config, split, item_offset):
    """Each item beside the next of the log's."""
    del config
    items = np.arange(split.num_items) + item_offset
    ends = items, np.roll(items, 1)
    nodes = split.num_items + item_offset
    links = scipy.sparse.coo_array((np.ones(items.size), ends), shape=(nodes, nodes))
    return bcoo_from_scipy(links.tocsr() + links.T.tocsr())


def _sevo_lion(learning_rate, graphs, b1=0.9, b2=0.99, *, beta=0.99, num_layers=3):
    return optax.chain(
        optax.scale_by_lion(b1, b2),
        sevo.scale_by_sevo(graphs, beta, num_layers),
        optax.scale_by_learning_rate(learning_rate),
    )


METRICS["Reciprocal"] = lambda rank: 1.0 / rank
KINDS["ring"] = Kind("item-item", _ring)
SEVO["sevo_lion"] = _sevo_lion
FORMATS["walks"] = Format((".walks",), sequences.read, sequences.write)
