"""The operator of a graph: made once on the host, applied by the fastest product."""

from sevo_jax.operators._adjacency import (
    Adjacency,
    AdjacencyLike,
    as_csr,
    bcoo_from_scipy,
    canonical,
    checked_csr,
    degrees_of,
    in_float32,
    prepare,
    to_scipy,
)
from sevo_jax.operators._operator import (
    CSROperator,
    GraphOperator,
    checked_table,
    keep_sharding,
)
from sevo_jax.operators._sharded import ShardedGraphOperator, shard_rows
from sevo_jax.operators._sum import weighted_sum

__all__ = [
    "Adjacency",
    "AdjacencyLike",
    "CSROperator",
    "GraphOperator",
    "ShardedGraphOperator",
    "as_csr",
    "bcoo_from_scipy",
    "canonical",
    "checked_csr",
    "checked_table",
    "degrees_of",
    "in_float32",
    "keep_sharding",
    "prepare",
    "shard_rows",
    "to_scipy",
    "weighted_sum",
]
