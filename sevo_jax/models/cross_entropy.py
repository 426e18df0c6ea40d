"""Cross-entropy of a softmax over all items, without all the logits at once."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

# A block of logits that stays in the processor's cache (8 MB) halves the time. On
# accelerators one product is best, as long as its result is no burden (1 GB).
_CPU_LOGITS = 2**21
_DEVICE_LOGITS = 2**28


@jax.custom_vjp
def cross_entropy(
    features: Float[Array, "m d"],
    table: Float[Array, "n d"],
    bias: Float[Array, " n"] | None,
    labels: Int[Array, " m"],
    weights: Float[Array, " m"],
) -> Float[Array, ""]:
    """Returns `-sum_i weights_i log softmax(table @ features_i + bias)[labels_i]`.

    Logits are made a block of rows at a time and used up at once, for the loss and its
    gradients: `m * n` numbers are neither kept nor computed twice. Rows without weight
    that stand behind all others cost next to nothing.

    Args:
      features: what to classify.
      table: a row for each class.
      bias: a number for each class; None for none.
      labels: the true classes, in `0..n-1`.
      weights: of each row in the sum, no parameters: they get no gradient.

    Examples:
      >>> table = jnp.eye(2)
      >>> loss = cross_entropy(
      ...     table, table, jnp.zeros(2), jnp.array([0, 1]), jnp.full(2, 0.5)
      ... )
      >>> print(f"{loss:.4f}")  # log(1 + exp(-1))
      0.3133
    """
    return _loss_and_gradients(features, table, bias, labels, weights)[0]


def _loss_and_gradients(*arrays):
    return lax.platform_dependent(
        # Outside jit they may be NumPy's, which no tracer can index.
        *jax.tree.map(jnp.asarray, arrays),
        cpu=partial(_by_blocks, most_logits=_CPU_LOGITS),
        default=partial(_by_blocks, most_logits=_DEVICE_LOGITS),
    )


def _backward(gradients, cotangent):
    return *jax.tree.map(lambda gradient: cotangent * gradient, gradients), None, None


cross_entropy.defvjp(_loss_and_gradients, _backward)


def _by_blocks(features, table, bias, labels, weights, *, most_logits):
    """The loss, and its gradients with respect to features, table and bias."""
    num_rows = len(labels)
    num_blocks = -(-num_rows * len(table) // most_logits)
    size = -(-num_rows // num_blocks)
    # What fills the last block up has weight 0.
    missing = num_blocks * size - num_rows
    features = jnp.pad(features, ((0, missing), (0, 0)))
    labels, weights = (jnp.pad(x, (0, missing)) for x in (labels, weights))
    weighted = weights[:, None] * features

    def add_block(index, sums):
        loss, d_features, d_columns, d_bias = sums
        start = index * size
        x, own, weight, weighted_x = (
            lax.dynamic_slice_in_dim(rows, start, size)
            for rows in (features, labels, weights, weighted)
        )
        logits = x @ table.T
        if bias is not None:
            logits += bias
        highest = jnp.max(logits, axis=1)
        exponentials = jnp.exp(logits - highest[:, None])
        totals = jnp.sum(exponentials, axis=1)
        own_logits = jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]
        loss += jnp.sum(weight * (highest + jnp.log(totals) - own_logits))

        scale = weight / totals
        d_x = scale[:, None] * (exponentials @ table) - weight[:, None] * table[own]
        d_features = lax.dynamic_update_slice_in_dim(d_features, d_x, start, 0)
        # Transposed, as the product so is twice as fast on a CPU.
        d_columns += (weighted_x / totals[:, None]).T @ exponentials
        if bias is not None:
            d_bias += scale @ exponentials
        return loss, d_features, d_columns, d_bias

    initial = (
        jnp.zeros((), features.dtype),
        jnp.zeros_like(features),
        # What the labels add; the blocks add what the softmax does.
        jnp.zeros_like(table).at[labels].add(-weighted).T,
        None if bias is None else jnp.zeros_like(bias).at[labels].add(-weights),
    )
    # Rows without weight, if they stand at the end, are not worth a block.
    num_used = jnp.max(jnp.where(weights != 0, jnp.arange(len(weights)) + 1, 0))
    loss, d_features, d_columns, d_bias = lax.fori_loop(
        0, -(-num_used // size), add_block, initial
    )
    return loss, (d_features[:num_rows], d_columns.T, d_bias)
