"""Cross-entropy of a softmax over all items, without all the logits at once."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

# A block of logits that stays in the processor's cache (4 MB) halves the time. On
# accelerators one product is best, as long as its result is no burden (1 GB).
_CPU_LOGITS = 2**20
_DEVICE_LOGITS = 2**28


@jax.custom_vjp
def cross_entropy(
    features: Float[Array, "m d"],
    table: Float[Array, "n d"],
    bias: Float[Array, " n"],
    labels: Int[Array, " m"],
    weights: Float[Array, " m"],
) -> Float[Array, ""]:
    """Returns `-sum_i weights_i log softmax(table @ features_i + bias)[labels_i]`.

    Logits are made a block of rows at a time and used up at once, for the loss and its
    gradients: `m * n` numbers are neither kept nor computed twice.

    Args:
        features: What to classify.
        table: A row for each class.
        bias: A number for each class.
        labels: The true classes, in `0..n-1`.
        weights: Of each row in the sum, no parameters: they get no gradient.

    Example:
        >>> table = jnp.eye(2)
        >>> loss = cross_entropy(
        ...     table, table, jnp.zeros(2), jnp.array([0, 1]), jnp.full(2, 0.5)
        ... )
        >>> print(f"{loss:.4f}")  # log(1 + exp(-1))
        0.3133
    """
    return _loss_and_gradients(features, table, bias, labels, weights)[0]


def _loss_and_gradients(features, table, bias, labels, weights):
    return lax.platform_dependent(
        features,
        table,
        bias,
        labels,
        weights,
        cpu=partial(_by_blocks, most_logits=_CPU_LOGITS),
        default=partial(_by_blocks, most_logits=_DEVICE_LOGITS),
    )


def _backward(gradients, cotangent):
    return *(cotangent * gradient for gradient in gradients), None, None


cross_entropy.defvjp(_loss_and_gradients, _backward)


def _by_blocks(features, table, bias, labels, weights, *, most_logits):
    """The loss, and its gradients with respect to features, table and bias."""
    num_rows, width = features.shape
    num_blocks = -(-num_rows * len(table) // most_logits)
    size = -(-num_rows // num_blocks)
    missing = num_blocks * size - num_rows

    def blocks(x):
        # What fills the last block up has weight 0.
        x = jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(num_blocks, size, *x.shape[1:])

    def step(gradients, block):
        features, labels, weights = block
        logits = features @ table.T + bias
        highest = jnp.max(logits, axis=1)
        exponentials = jnp.exp(logits - highest[:, None])
        sums = jnp.sum(exponentials, axis=1)
        own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        losses = weights * (highest - own + jnp.log(sums))

        # Of the softmax part; what the labels add is in the initial values.
        scales = weights / sums
        d_table, d_bias = gradients
        d_table += exponentials.T @ (scales[:, None] * features)
        d_bias += scales @ exponentials
        d_features = scales[:, None] * (exponentials @ table)
        return (d_table, d_bias), (jnp.sum(losses), d_features)

    weighted = weights[:, None] * features
    initial = (
        jnp.zeros_like(table).at[labels].add(-weighted),
        jnp.zeros_like(bias).at[labels].add(-weights),
    )
    (d_table, d_bias), (losses, d_features) = lax.scan(
        step, initial, (blocks(features), blocks(labels), blocks(weights))
    )
    d_features = d_features.reshape(-1, width)[:num_rows]
    d_features -= weights[:, None] * table[labels]
    return jnp.sum(losses), (d_features, d_table, d_bias)
