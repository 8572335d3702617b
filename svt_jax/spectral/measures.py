"""Measures of token uniformity and of the spectrum, of one matrix or of a batch of them; masked and jitted.

x is float[..., L, D]: the tokens of one input, or a set of sentence embeddings. `mask` is bool[..., L], true for real
rows. Masked rows have no influence, whatever they hold. Results are float32 (float64 for float64 input), one for each
matrix. A matrix without rows or columns counts as one whose rows are all masked: each measure of it is 0.

All have first derivatives, forward and reverse. They are also finite at zero rows and at equal or zero singular values,
where the measure itself may have none.

The two programs published with the method define several measures differently. Ours are the paper's definitions; each
docstring says how the others differ.

References:
  Yan, Gui, Li, He, UAI 2022, arXiv 2208.11790, section 3 (token uniformity, skewness) and section 5 (RBF distance,
  explained variance, local structure). Explained variance is there after IsoBN: Zhou et al., arXiv 2005.02178.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from svt_jax.spectral.base import first_order_only, prepare
from svt_jax.spectral.solvers import decompose, per_matrix, product

Array = jax.Array


def _work(x: Array, mask: Array | None) -> tuple[Array, Array]:
    """Returns x in float32 or float64 with masked rows zero, and the mask."""
    work, mask = prepare(x, mask, "a measure")
    return work, jnp.ones(work.shape[:-1], bool) if mask is None else mask


def _unit_rows(x: Array) -> Array:
    # keeps squares of very large or small entries finite; constant to differentiation, as the result is scale-free
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0.0))
    x = x / jnp.where(scale > 0, scale, 1.0)
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(squares > 0, squares, 1.0))


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
    x, mask = _work(x, mask)
    unit = _unit_rows(x)
    total = jnp.sum(jnp.square(jnp.sum(unit, axis=-2)), axis=-1)  # sum of all cosines, i = j included
    itself = jnp.sum(jnp.square(unit), axis=(-2, -1))
    n = jnp.sum(mask, axis=-1).astype(x.dtype)
    return (total - itself) / jnp.maximum(n * (n - 1.0), 1.0)


@jax.jit
def cls_uniformity(x: Array, mask: Array | None = None) -> Array:
    r"""Mean cosine similarity of the first token with all n tokens, itself included as published: 1/n sum_i cos(x_0, x_i).

    Example:
      >>> import jax.numpy as jnp
      >>> float(cls_uniformity(jnp.array([[1.0, 0.0], [0.0, 2.0]])))  # cosines 1 and 0
      0.5
    """
    x, mask = _work(x, mask)
    unit = _unit_rows(x)
    n = jnp.sum(mask, axis=-1).astype(x.dtype)
    first = unit[..., :1, :]  # empty for a matrix without rows
    return jnp.sum(first * jnp.sum(unit, axis=-2, keepdims=True), axis=(-2, -1)) / jnp.maximum(n, 1.0)


def _singular_values_of_one(x: Array) -> Array:
    if x.dtype != jnp.float32 or jax.default_backend() != "cpu":
        return jnp.linalg.svd(x, compute_uv=False)
    # float64 holds the squares of float32's small singular values: as exact as svd, up to twice as fast
    with jax.enable_x64(True):
        double = (x if x.shape[0] <= x.shape[1] else x.T).astype(jnp.float64)
        squares = jnp.linalg.eigvalsh(double @ double.T, symmetrize_input=False)
        return jnp.sqrt(jnp.maximum(squares[::-1], 0.0)).astype(x.dtype)


@jax.custom_jvp
def _singular_values(x: Array) -> Array:
    if x.size == 0:
        return jnp.zeros((*x.shape[:-2], min(x.shape[-2:])), x.dtype)
    return per_matrix(_singular_values_of_one, x)


@_singular_values.defjvp
def _singular_values_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # dsigma_i = u_i^T dX v_i. Equal values leave the directions open, but not their sum; 0 where sigma_i is 0.
    x, dx = first_order_only(primals[0]), tangents[0]
    if x.size == 0:
        return _singular_values(x), jnp.zeros((*x.shape[:-2], min(x.shape[-2:])), x.dtype)
    wide, dwide = (x, dx) if x.shape[-2] <= x.shape[-1] else (x.mT, dx.mT)
    u, sigma, rows, unit, _ = decompose(wide, "svd" if x.dtype == jnp.float64 else "auto")
    tolerance = jnp.finfo(x.dtype).eps * max(x.shape[-2:])
    live = sigma > tolerance * jnp.max(sigma, axis=-1, keepdims=True)
    slopes = jnp.sum(product(u.mT, dwide) * rows, axis=-1) * unit
    return _singular_values(x), jnp.where(live, slopes, 0.0)


@jax.jit
def singular_values(x: Array, mask: Array | None = None) -> Array:
    """Singular values [..., min(L, D)], descending; masked rows add zeros at the end.

    (The published code drops the smallest one, because of a limit of its solver.)

    Example:
      >>> import jax.numpy as jnp
      >>> singular_values(jnp.array([[3.0, 0.0], [0.0, -4.0], [9.0, 9.0]]), jnp.array([True, True, False]))
      Array([4., 3.], dtype=float32)
    """
    x, _ = _work(x, mask)
    return _singular_values(x)


@functools.partial(jax.jit, static_argnames="k")
def explained_variance(x: Array, k: int, mask: Array | None = None) -> Array:
    r"""Share of the first k singular values, EV_k = sum_{i <= k} sigma_i^2 / sum_i sigma_i^2, in [0, 1].

    It is 0 for a zero matrix. (The published visualisation divides by the sum over the k smallest instead, which has no
    bound.)

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(explained_variance(jnp.diag(jnp.array([2.0, 1.0, 1.0])), k=1)), 4)  # 4 / 6
      0.6667
    """
    return explained_variance_of(singular_values(x, mask), k)


def explained_variance_of(sigma: Array, k: int) -> Array:
    """`explained_variance` of singular values [..., R], descending."""
    if sigma.shape[-1] == 0 and k >= 1:
        return jnp.zeros(sigma.shape[:-1], sigma.dtype)
    if not 1 <= k <= sigma.shape[-1]:
        raise ValueError(f"k must lie in [1, {sigma.shape[-1]}], the number of singular values; got {k}.")
    largest = jnp.max(sigma, axis=-1, keepdims=True)
    squares = jnp.square(sigma / jnp.where(largest > 0, largest, 1.0))
    total = jnp.sum(squares, axis=-1)
    return jnp.sum(squares[..., :k], axis=-1) / jnp.where(total > 0, total, 1.0)


@jax.jit
def rbf_distance(x: Array, t: float = 2.0, mask: Array | None = None) -> Array:
    r"""Logarithm of the mean Gaussian kernel of pairs of unit rows; the lower, the more evenly they are spread.

        log mean_{i < j} exp(-t |u_i - u_j|^2),     u_i = x_i / |x_i|

    With fewer than two rows the result is 0. (The published code for token matrices does not normalise the rows.)

    Example:
      >>> import jax.numpy as jnp
      >>> float(rbf_distance(jnp.array([[1.0, 0.0], [0.0, 5.0]])))  # |u_0 - u_1|^2 = 2
      -4.0

    References:
      Wang, Isola: "Understanding Contrastive Representation Learning through Alignment and Uniformity", ICML 2020,
      arXiv 2005.10242, equation 2.
    """
    x, mask = _work(x, mask)
    unit = _unit_rows(x)
    cosines = product(unit, unit.mT)
    lengths = jnp.sum(jnp.square(unit), axis=-1)
    squares = jnp.maximum(lengths[..., :, None] + lengths[..., None, :] - 2.0 * cosines, 0.0)
    rows = x.shape[-2]
    others = jnp.broadcast_to(~jnp.eye(rows, dtype=bool), cosines.shape)
    pairs = mask[..., :, None] & mask[..., None, :] & others
    n = jnp.sum(pairs, axis=(-2, -1)).astype(x.dtype)
    if rows == 0:
        return n
    counted = pairs | (n == 0)[..., None, None]  # a logarithm of no pairs at all has no derivative
    summed = jax.nn.logsumexp(jnp.where(counted, -t * squares, -jnp.inf), axis=(-2, -1))
    return jnp.where(n > 0, summed - jnp.log(jnp.maximum(n, 1.0)), 0.0)


class SpectrumSummary(NamedTuple):
    """The shape of a spectrum; see `spectrum_summary`."""

    skewness: Array
    kurtosis: Array
    median_ratio: Array
    effective_rank: Array


@jax.jit
def spectrum_summary(x: Array, mask: Array | None = None) -> SpectrumSummary:
    r"""The shape of the spectrum of r = min(number of real rows, D) singular values.

        skewness       m_3 / m_2^{3/2}     with m_p the central moments of sigma (biased, as scipy's default)
        kurtosis       m_4 / m_2^2 - 3     (excess)
        median_ratio   median of sigma_i / sigma_1, in [0, 1]
        effective_rank exp(-sum p_i ln p_i),  p_i = sigma_i / sum sigma, in [1, r]

    Equal singular values have skewness and kurtosis 0; a zero matrix has median ratio and effective rank 0. (The
    published code leaves the smallest singular value out of all of them.)

    Example:
      >>> import jax.numpy as jnp
      >>> summary = spectrum_summary(jnp.diag(jnp.array([4.0, 2.0, 2.0, 2.0])))
      >>> [round(float(value), 4) for value in summary]
      [1.1547, -0.6667, 0.5, 3.7893]

    References:
      Effective rank: Roy, Vetterli, "The effective rank", EUSIPCO 2007, definition 1.
    """
    x, mask = _work(x, mask)
    return spectrum_summary_of(singular_values(x, mask), jnp.minimum(jnp.sum(mask, axis=-1), x.shape[-1]))


def ratios_to_largest(sigma: Array, count: Array) -> tuple[Array, Array]:
    """sigma_i / sigma_1 [..., R] of the first `count` [...] singular values, 0 for the others; and which are first."""
    real = jax.lax.broadcasted_iota(count.dtype, sigma.shape, sigma.ndim - 1) < count[..., None]
    largest = jnp.max(sigma, axis=-1, keepdims=True)
    return jnp.where(real, sigma / jnp.where(largest > 0, largest, 1.0), 0.0), real


def spectrum_summary_of(sigma: Array, count: Array) -> SpectrumSummary:
    """`spectrum_summary` of singular values [..., R], descending, of which the first `count` [...] are real."""
    if sigma.shape[-1] == 0:
        return SpectrumSummary(*[jnp.zeros(sigma.shape[:-1], sigma.dtype)] * 4)
    ratios, real = ratios_to_largest(sigma, count)  # the shape does not depend on scale
    r = count[..., None]
    count = jnp.maximum(r, 1).astype(sigma.dtype)

    def mean(values: Array) -> Array:
        return jnp.sum(jnp.where(real, values, 0.0), axis=-1, keepdims=True) / count

    centered = ratios - mean(ratios)
    variance = mean(centered**2)
    spread = variance > jnp.finfo(sigma.dtype).eps ** 2
    safe = jnp.where(spread, variance, 1.0)
    skewness = jnp.where(spread, mean(centered**3) / safe**1.5, 0.0)
    kurtosis = jnp.where(spread, mean(centered**4) / safe**2 - 3.0, 0.0)
    # descending order: the median of the first r values is at (r - 1)/2, between two places for even r
    low, high = (jnp.maximum(r, 1) - 1) // 2, jnp.maximum(r, 1) // 2
    median = 0.5 * (jnp.take_along_axis(ratios, low, axis=-1) + jnp.take_along_axis(ratios, high, axis=-1))
    total = jnp.sum(ratios, axis=-1, keepdims=True)
    shares = ratios / jnp.where(total > 0, total, 1.0)
    entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1.0)), 0.0), axis=-1)
    rank = jnp.where(total[..., 0] > 0, jnp.exp(entropy), 0.0)
    return SpectrumSummary(skewness[..., 0], kurtosis[..., 0], median[..., 0], rank)


def _barycentric_weights(gram: Array) -> Array:
    weights = jnp.linalg.solve(gram, jnp.ones(gram.shape[-1], gram.dtype))
    return weights / jnp.sum(weights)


@jax.custom_jvp
def _weights(gram: Array) -> Array:
    """w [..., k] = G^-1 1 / (1^T G^-1 1) of symmetric matrices G [..., k, k]."""
    return per_matrix(_barycentric_weights, gram)


@_weights.defjvp
def _weights_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # dw = -(G^-1 - s w w^T) dG w with s = 1^T G^-1 1
    gram = first_order_only(primals[0])
    weights, inverse = _weights(gram), per_matrix(jnp.linalg.inv, gram)
    moved = product(inverse, product(tangents[0], weights[..., None]))[..., 0]
    return weights, weights * jnp.sum(moved, axis=-1, keepdims=True) - moved


@functools.partial(jax.jit, static_argnames="k")
def local_structure(x: Array, y: Array, k: int = 12) -> Array:
    r"""How well y keeps the neighbourhoods of x: the error of rebuilding each y_i from its neighbours in x; 0 is perfect.

    With u, v the unit rows of x and y, N(i) the k nearest u_j to u_i with j != i, and w_ij the barycentric weights that
    rebuild u_i best from them (summing to 1, regularised by 1e-3 of the trace as in locally linear embedding),

        sqrt( sum_i | v_i - sum_{j in N(i)} w_ij v_j |^2 )

    `local_structure(x, x)` is the error that x itself has. (The published code counts each point among its own
    neighbours. The point takes nearly all the weight, so the score is near 0 whatever the transformation.)

    Args:
      x: float[N, D], before.
      y: float[N, D'], after.
      k: number of neighbours, less than N.
    Raises:
      ValueError: if x and y have different numbers of rows, or no more than k.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jax.random.normal(jax.random.key(0), (50, 8))
      >>> rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (8, 8)))[0]
      >>> bool(jnp.allclose(local_structure(x, x @ rotation), local_structure(x, x), rtol=1e-4))
      True

    References:
      arXiv 2208.11790, section 5 (LSDS); Roweis, Saul, "Nonlinear dimensionality reduction by locally linear
      embedding", Science 290, 2000.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0] or x.shape[0] <= k:
        raise ValueError(f"local_structure needs x [N, D] and y [N, D'] with N > k = {k}; got {x.shape} and {y.shape}.")
    u, v = (_unit_rows(_work(rows, None)[0]) for rows in (x, y))
    cosines = jnp.where(jnp.eye(u.shape[0], dtype=bool), -jnp.inf, jax.lax.stop_gradient(product(u, u.mT)))
    neighbours = jnp.argsort(-cosines, axis=-1)[:, :k]  # (lax.top_k would gather a batch sharded over devices)
    offsets = u[neighbours] - u[:, None]  # [N, k, D]
    gram = product(offsets, offsets.mT)
    trace = jnp.trace(gram, axis1=-2, axis2=-1)
    ridge = jnp.where(trace > 0, 1e-3 * trace, 1.0)  # equal points: any weights rebuild them
    weights = _weights(gram + ridge[:, None, None] * jnp.eye(k, dtype=gram.dtype)[None])
    rebuilt = jnp.einsum("nk,nkd->nd", weights, v[neighbours], precision=jax.lax.Precision.HIGHEST)
    total = jnp.sum(jnp.square(v - rebuilt))
    return jnp.where(total > 0, jnp.sqrt(jnp.where(total > 0, total, 1.0)), 0.0)
