"""Measures of the tokens of one input: how alike they are, and which entries stand out. No decomposition.

References:
  Token uniformity: Yan, Gui, Li, He, UAI 2022, arXiv 2208.11790, section 3. The others name their own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from svt_jax.spectral.measures.arrays import centred, checked, mean_row, number_of, over, scaled, unit_rows
from svt_jax.spectral.solvers import product

Array = jax.Array


@jax.jit
def token_uniformity(x: Array, mask: Array | None = None) -> Array:
    r"""Mean cosine similarity of distinct tokens, in [-1, 1]; near 1 the tokens are alike.

        1/(n (n - 1)) sum_{i != j} cos(x_i, x_j)

    Zero rows have cosine 0 with all others; with fewer than two tokens the result is 0. (The published evaluation of
    sentence embeddings includes i = j, which adds (1 - u)/n.)

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(token_uniformity(jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]]))), 4)  # cosines 0, 0, 1
      0.3333
    """
    x, mask = checked(x, mask)
    unit = unit_rows(x)
    total = jnp.sum(jnp.square(jnp.sum(unit, axis=-2)), axis=-1)  # sum of all cosines, i = j included
    itself = jnp.sum(jnp.square(unit), axis=(-2, -1))
    n = number_of(mask, x.dtype)
    return (total - itself) / jnp.maximum(n * (n - 1.0), 1.0)


@jax.jit
def cls_uniformity(x: Array, mask: Array | None = None) -> Array:
    r"""Mean cosine similarity of the first token with all n tokens, itself included as published: 1/n sum_i cos(x_0, x_i).

    Example:
      >>> import jax.numpy as jnp
      >>> float(cls_uniformity(jnp.array([[1.0, 0.0], [0.0, 2.0]])))  # cosines 1 and 0
      0.5
    """
    x, mask = checked(x, mask)
    unit = unit_rows(x)
    n = number_of(mask, x.dtype)
    first = unit[..., :1, :]  # empty for a matrix without rows
    return jnp.sum(first * jnp.sum(unit, axis=-2, keepdims=True), axis=(-2, -1)) / jnp.maximum(n, 1.0)


@jax.jit
def mean_token_share(x: Array, mask: Array | None = None) -> Array:
    r"""Share of the tokens' mean in their energy, n |m|^2 / |X|_F^2 = |Pi X|_F^2 / |X|_F^2, in [0, 1]; "t_sim".

    1 means that all tokens are equal; 0 that their mean is zero. m is the mean of the n real rows, Pi = 1 1^T / n.
    0 for a zero matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(mean_token_share(jnp.array([[1.0, 0.0], [1.0, 2.0]]))), 4)  # m = (1, 1): 2 * 2 / 6
      0.6667

    References:
      Yu, Zhang, "Why 'classic' transformers are shallow and how to make them go deep", 2023, arXiv 2312.06182.
    """
    x, mask = checked(x, mask)
    x = scaled(x)
    n = number_of(mask, x.dtype)
    common = n * jnp.sum(jnp.square(mean_row(x, mask)), axis=(-2, -1))
    return over(common, jnp.sum(jnp.square(x), axis=(-2, -1)))


@jax.jit
def rank_one_residual(x: Array, mask: Array | None = None) -> Array:
    r"""What is left of X without its mean row, |X - 1 m^T|_(1,inf) / |X|_(1,inf), at least 0; 0 if all tokens are equal.

        |X|_(1,inf) = sqrt(largest column sum of |x| * largest row sum of |x|)

    It is above 1 where the mean row points away from the tokens. Dong et al. show that it falls doubly exponentially in a
    stack of attention layers alone. (Their definition takes the best row in place of the mean; their program the mean.)

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[3.0, 0.0], [1.0, 0.0]])  # m = (2, 0), rest +-1: sqrt(2 * 1) / sqrt(4 * 3)
      >>> round(float(rank_one_residual(x)), 4)
      0.4082

    References:
      Dong, Cordonnier, Loukas, "Attention is not all you need: pure attention loses rank doubly exponentially with depth",
      ICML 2021, arXiv 2103.03404.
    """
    x, mask = checked(x, mask)
    x = scaled(x)
    return over(_composite_norm(centred(x, mask)), _composite_norm(x))


def _composite_norm(x: Array) -> Array:
    entries = jnp.abs(x)
    columns = jnp.max(jnp.sum(entries, axis=-2), axis=-1, initial=0.0)
    product = columns * jnp.max(jnp.sum(entries, axis=-1), axis=-1, initial=0.0)
    return jnp.where(product > 0, jnp.sqrt(jnp.where(product > 0, product, 1.0)), 0.0)


@jax.jit
def dirichlet_energy(x: Array, mask: Array | None = None, *, attention: Array | None = None) -> Array:
    r"""How far tokens are from those that they attend to, 1/2 sum_ij a_ij |x_i - x_j|^2, at least 0.

    Without `attention` each of the n tokens attends to all alike, a_ij = 1/n. Then it is tr(X^T (I - Pi) X), the energy
    |X|_F^2 without the share of the mean: |X|_F^2 (1 - `mean_token_share`). It has the units of x squared.

    Args:
      attention: float[..., L, L] >= 0, rows ask, columns are keys; entries of masked rows and columns do not count.
    Raises:
      ValueError: if `attention` does not have the shape [..., L, L].

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 0.0], [1.0, 2.0]])  # 1/2 (4/2 + 4/2)
      >>> float(dirichlet_energy(x)), float(dirichlet_energy(x, attention=jnp.eye(2)))
      (2.0, 0.0)

    References:
      Rusch, Bronstein, Mishra, "A survey on oversmoothing in graph neural networks", 2023, arXiv 2303.10993; Nguyen et
      al. (NeuTRENO), 2023, arXiv 2312.00751, section 2.
    """
    x, mask = checked(x, mask)
    rest = centred(x, mask)
    if attention is None:
        return jnp.sum(jnp.square(rest), axis=(-2, -1))
    weights = jnp.asarray(attention)
    if weights.shape != (*x.shape[:-1], x.shape[-2]):
        raise ValueError(
            f"attention must be [..., L, L] for x [..., L, D], {(*x.shape[:-1], x.shape[-2])}; got {weights.shape}."
        )
    weights = jnp.where(mask[..., :, None] & mask[..., None, :], weights.astype(x.dtype), 0.0)
    lengths = jnp.sum(jnp.square(rest), axis=-1)
    asking, asked = jnp.sum(weights, axis=-1), jnp.sum(weights, axis=-2)
    alike = jnp.sum(rest * product(weights, rest), axis=(-2, -1))
    return jnp.maximum(0.5 * jnp.sum((asking + asked) * lengths, axis=-1) - alike, 0.0)


@jax.jit
def massive_activation(x: Array, mask: Array | None = None) -> Array:
    r"""The largest entry over the median one, max |x| / median |x|, at least 1; 0 where the median is 0.

    Sun et al. call an activation massive if it is above 100 and about 1000 times the median.

    Example:
      >>> import jax.numpy as jnp
      >>> float(massive_activation(jnp.array([[1.0, -2.0], [3.0, 100.0]])))  # median of 1, 2, 3, 100 is 2.5
      40.0

    References:
      Sun, Chen, Kolter, Liu, "Massive activations in large language models", 2024, arXiv 2402.17762.
    """
    x, mask = checked(x, mask)
    entries = jnp.abs(x).reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
    real = jnp.broadcast_to(mask[..., None], x.shape).reshape(entries.shape)
    number = jnp.sum(mask, axis=-1) * x.shape[-1]
    return over(jnp.max(entries, axis=-1, initial=0.0), _median(entries, real, number))


def _median(values: Array, real: Array, number: Array) -> Array:
    """The median of the `number` [...] real ones among values [..., N] >= 0.

    Bisection on the bits, which are in the order of the numbers: a sort takes several times as long on a CPU.
    """
    bits = jnp.where(real, jax.lax.bitcast_convert_type(jax.lax.stop_gradient(values), _INTEGER[values.dtype]), -1)
    width = jnp.iinfo(bits.dtype).bits - 1

    def below(limit: Array) -> Array:
        return jnp.sum((bits >= 0) & (bits < limit[..., None]), axis=-1)

    def ordered(place: Array) -> Array:  # the bits of the value that has `place` values before it
        def step(n: Array, found: Array) -> Array:
            tried = found | jnp.asarray(1, bits.dtype) << (width - 1 - n).astype(bits.dtype)
            return jnp.where(below(tried) <= place, tried, found)

        # (zeros made from the counts: under shard_map and Explicit axes a carry must be divided as they are)
        return jax.lax.fori_loop(0, width, step, (place * 0).astype(bits.dtype))

    def value_at(chosen: Array) -> Array:  # differentiable: the mean of the entries that have it
        equal = (bits == chosen[..., None]) & real
        return over(jnp.sum(jnp.where(equal, values, 0.0), axis=-1), jnp.sum(equal, axis=-1).astype(values.dtype))

    low = ordered(jnp.maximum(number - 1, 0) // 2)
    above = jnp.min(
        jnp.where(bits > low[..., None], bits, jnp.iinfo(bits.dtype).max), axis=-1, initial=jnp.iinfo(bits.dtype).max
    )
    upto = jnp.sum((bits >= 0) & (bits <= low[..., None]), axis=-1)
    high = jnp.where(upto > number // 2, low, above)
    return 0.5 * (value_at(low) + value_at(high))


_INTEGER = {jnp.dtype(jnp.float32): jnp.int32, jnp.dtype(jnp.float64): jnp.int64}


@jax.jit
def outlier_dimensions(x: Array, mask: Array | None = None, *, factor: float = 5.0) -> Array:
    r"""Number of dimensions whose variance over the tokens is at least `factor` times the mean of all, in [0, D/factor].

    It is a count, whose derivative is 0.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.zeros((2, 8)).at[:, 3].set(jnp.array([-1.0, 1.0]))  # one variance is 1, the mean 1/8
      >>> float(outlier_dimensions(x))
      1.0

    References:
      Rudman, Chen, Eickhoff, "Outlier dimensions encode task-specific knowledge", EMNLP 2023, arXiv 2310.17715.
    """
    x, mask = checked(x, mask)
    energy = jnp.sum(jnp.square(scaled(centred(x, mask))), axis=-2)  # n times the variances
    limit = jnp.asarray(factor, x.dtype) * jnp.sum(energy, axis=-1, keepdims=True) / max(x.shape[-1], 1)
    return jnp.sum((energy >= limit) & (limit > 0), axis=-1).astype(x.dtype)
