"""Measures of one spectrum: singular values, their shape, and how many directions they stand for.

Each has a form `..._of` of singular values [..., R], descending, of which the first `count` [...] are real. A reading of
several measures decomposes once and calls these (`evaluation.layer_measures`).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from svt_jax.spectral.base import first_order_only
from svt_jax.spectral.measures.arrays import checked
from svt_jax.spectral.solvers import decompose, of_leading_rows, per_matrix, product

Array = jax.Array


def _singular_values_of_one(x: Array) -> Array:
    if x.dtype != jnp.float32 or jax.default_backend() != "cpu":
        return jnp.linalg.svd(x, compute_uv=False)
    # float64 holds the squares of float32's small singular values: as exact as svd, up to twice as fast
    with jax.enable_x64(True):
        double = (x if x.shape[0] <= x.shape[1] else x.T).astype(jnp.float64)
        squares = jnp.linalg.eigvalsh(double @ double.T, symmetrize_input=False)
        return jnp.sqrt(jnp.maximum(squares[::-1], 0.0)).astype(x.dtype)


def _singular_values_of_leading(x: Array) -> Array:
    rows, columns = x.shape
    if rows > columns:  # rows of zeros at its end make the eigenproblem no smaller
        return _singular_values_of_one(x)
    return of_leading_rows(lambda size: jnp.pad(_singular_values_of_one(x[:size]), (0, rows - size)), x)[0]


@jax.custom_jvp
def values_of(x: Array) -> Array:
    if x.size == 0:
        return jnp.zeros((*x.shape[:-2], min(x.shape[-2:])), x.dtype)
    return per_matrix(_singular_values_of_one, x, one=_singular_values_of_leading)


@values_of.defjvp
def _values_of_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # dsigma_i = u_i^T dX v_i. Equal values leave the directions open, but not their sum; 0 where sigma_i is 0.
    x, dx = first_order_only(primals[0]), tangents[0]
    if x.size == 0:
        return values_of(x), jnp.zeros((*x.shape[:-2], min(x.shape[-2:])), x.dtype)
    wide, dwide = (x, dx) if x.shape[-2] <= x.shape[-1] else (x.mT, dx.mT)
    u, sigma, rows, unit, _ = decompose(wide, "svd" if x.dtype == jnp.float64 else "auto")
    tolerance = jnp.finfo(x.dtype).eps * max(x.shape[-2:])
    live = sigma > tolerance * jnp.max(sigma, axis=-1, keepdims=True)
    slopes = jnp.sum(product(u.mT, dwide) * rows, axis=-1) * unit
    return values_of(x), jnp.where(live, slopes, 0.0)


@jax.jit
def singular_values(x: Array, mask: Array | None = None) -> Array:
    """Singular values [..., min(L, D)], descending; masked rows add zeros at the end.

    (The published code drops the smallest one, because of a limit of its solver.)

    Example:
      >>> import jax.numpy as jnp
      >>> singular_values(jnp.array([[3.0, 0.0], [0.0, -4.0], [9.0, 9.0]]), jnp.array([True, True, False]))
      Array([4., 3.], dtype=float32)
    """
    x, _ = checked(x, mask)
    return values_of(x)


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
    x, mask = checked(x, mask)
    return spectrum_summary_of(singular_values(x, mask), jnp.minimum(jnp.sum(mask, axis=-1), x.shape[-1]))


def ratios_to_largest(sigma: Array, count: Array) -> tuple[Array, Array]:
    """sigma_i / sigma_1 [..., R] of the first `count` [...] singular values, 0 for the others; and which are first."""
    real = jax.lax.broadcasted_iota(count.dtype, sigma.shape, sigma.ndim - 1) < count[..., None]
    largest = jnp.max(sigma, axis=-1, keepdims=True, initial=0.0)
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
