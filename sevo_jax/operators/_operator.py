"""The normalised adjacency matrix as an object that multiplies tables."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jaxtyping import Array, Float, Int

from sevo_jax.operators import _kernels


class GraphOperator(abc.ABC):
    r"""The symmetric operator :math:`\tilde A = D^{-1/2} A D^{-1/2}`, ready to apply.

    Made by :func:`sevo_jax.prepare` or :func:`sevo_jax.shard_rows`. ``op @ x`` is the
    product with a table, under every transformation of JAX but forward-mode
    differentiation. It is a pytree: pass it through :func:`jax.jit` as an argument to
    keep a large graph out of the compiled program.

    Examples:
      >>> import jax.numpy as jnp, scipy.sparse
      >>> import sevo_jax as sevo
      >>> op = sevo.prepare(scipy.sparse.csr_array([[0.0, 2.0], [2.0, 0.0]]))
      >>> op.num_nodes, op.num_entries
      (2, 2)
      >>> op @ jnp.array([[3.0], [5.0]])
      Array([[5.],
             [3.]], dtype=float32)

    .. note:: :func:`jax.export.export` for a CPU wants to be told that the native
      kernel may change from one version of JAX to another: pass it ``disabled_checks=
      [jax.export.DisabledSafetyCheck.custom_call("cpu_csr_sparse_dense_ffi")]``, and
      run the exported program with the version of JAX that exported it. For other
      platforms there is nothing to pass. To serialize an exported update, export a
      function of the flat list of its arguments' leaves: JAX serializes no classes that
      are not registered with it, and states (Optax's too) and operators are not.
    """

    num_nodes: int
    """Number of rows and columns."""

    leaves: tuple[int, ...] | None = None
    """Number of rows of each leaf, where a joint table is dealt out in blocks."""

    @property
    def num_blocks(self) -> int:
        """In how many blocks the rows of a joint table are dealt out.

        Each block holds as many rows of each of its leaves. In a single block, as
        everywhere but after `shard_rows(..., leaves=)`, a leaf lies behind the other.
        """
        return 1

    @property
    @abc.abstractmethod
    def num_entries(self) -> int:
        """Number of stored entries, filling included; an edge counts twice."""

    def __matmul__(self, x: Float[Array, "... n d"]) -> Float[Array, "... n d"]:
        r"""The product :math:`\tilde A X` with each of the tables in ``x``.

        Under :func:`jax.vmap` over tables the tables are put side by side as columns,
        under ``vmap`` over graphs they are taken one after another. The gradient is
        the same product, since the operator is symmetric; none flows to its entries.
        A table sharded over its columns needs no communication.

        Args:
          x: floating point. bfloat16 and float16 are computed in float32.

        Returns:
          The products, shape and dtype of ``x``.

        Raises:
          TypeError: if ``x`` is not floating point.
          ValueError: if a table does not have a row for each node.
        """
        table, dtype = checked_table(x, self.num_nodes)
        return keep_sharding(_symmetric_product, self, table).astype(dtype)

    @abc.abstractmethod
    def _apply(self, x: jax.Array) -> jax.Array:
        """The product with ``x``, without the rules for sharding and gradients."""


def checked_table(x: Any, num_nodes: int) -> tuple[jax.Array, jnp.dtype]:
    """The tables of a graph in the dtype to compute in, and their own dtype."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"the table must be floating point, got {x.dtype}")
    if x.ndim < 2 or x.shape[-2] != num_nodes:
        raise ValueError(
            f"the table has shape {x.shape}, its graph {num_nodes} nodes: it must be "
            f"[..., {num_nodes}, d]"
        )
    return x.astype(np.promote_types(x.dtype, np.float32)), x.dtype


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weights", "columns", "row_starts", "rows"],
    meta_fields=["num_nodes"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CSROperator(GraphOperator):
    """An operator in compressed rows, on one device or whole on each.

    Attributes:
      weights: entries of the operator, ordered by row, ``[num_entries]``.
      columns: column of each entry, int32 ``[num_entries]``.
      row_starts: where each row begins in the two above, int32 ``[num_nodes + 1]``.
      rows: row of each entry, int32 ``[num_entries]`` (the GPU and TPU layout).
      num_nodes: number of rows and columns; static.
    """

    weights: Float[Array, " e"]
    columns: Int[Array, " e"]
    row_starts: Int[Array, " n+1"]
    rows: Int[Array, " e"]
    num_nodes: int

    @property
    def num_entries(self) -> int:
        return self.columns.shape[-1]

    def _apply(self, x: jax.Array) -> jax.Array:
        return _kernels.csr_product(
            self.weights, self.columns, self.row_starts, self.rows, x
        )

    def __repr__(self) -> str:
        return f"CSROperator({self.num_nodes} nodes, {self.num_entries} entries)"


def keep_sharding(function: Any, *args: Any) -> jax.Array:
    """``function(*args)``, of which the result is sharded like the last argument.

    On an explicit mesh every operation must carry sharding types, which neither the
    kernel nor flattening does. There this lets the partitioner place them, and promises
    the sharding of the result. Elsewhere it is only the call.
    """
    sharding = jax.typeof(args[-1]).sharding
    if not sharding.mesh.empty and AxisType.Explicit in sharding.mesh.axis_types:
        placed: Any = jax.sharding.auto_axes(function, out_sharding=sharding)
        return placed(*args)
    return function(*args)


@jax.custom_vjp
def _symmetric_product(graph: GraphOperator, x: jax.Array) -> jax.Array:
    return graph._apply(x)


# Both rules go through the custom_vjp function again, so that higher derivatives exist.
def _symmetric_product_fwd(graph: GraphOperator, x: jax.Array):
    return _symmetric_product(graph, x), graph


def _symmetric_product_bwd(graph: GraphOperator, cotangent: jax.Array):
    # None stands for a zero cotangent: the graph is data, not a parameter.
    return None, _symmetric_product(graph, cotangent)


_symmetric_product.defvjp(_symmetric_product_fwd, _symmetric_product_bwd)
