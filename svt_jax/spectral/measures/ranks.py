r"""Ranks and entropies of one spectrum: how many directions the tokens use.

All are functions of the singular values sigma_i of the real rows, r = min(number of real rows, D) of them, and none
depends on scale. They are of X itself, as in the paper on token uniformity: there the tokens' common part is the
largest singular value. Where a source takes the covariance's spectrum, `centered=True` subtracts the mean row first.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from svt_jax.spectral.measures.arrays import centred, checked, over
from svt_jax.spectral.measures.spectrum import ratios_to_largest, singular_values, values_of

Array = jax.Array


def count_of(x: Array, mask: Array) -> Array:
    """How many singular values [...] of x [..., L, D] are of its real rows."""
    return jnp.minimum(jnp.sum(mask, axis=-1), x.shape[-1])


@jax.jit
def stable_rank(x: Array, mask: Array | None = None) -> Array:
    r"""Sum of squares over the largest one, |X|_F^2 / sigma_1^2, in [1, r]; 0 for a zero matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> float(stable_rank(jnp.diag(jnp.array([2.0, 1.0, 1.0]))))  # 6 / 4
      1.5

    References:
      Rudelson, Vershynin, "Sampling from large matrices", J. ACM 54, 2007, arXiv math/0503442.
    """
    return stable_rank_of(singular_values(x, mask))


def stable_rank_of(sigma: Array) -> Array:
    """`stable_rank` of singular values [..., R]."""
    return jnp.sum(jnp.square(_ratios(sigma)), axis=-1)


@functools.partial(jax.jit, static_argnames="centered")
def participation_ratio(x: Array, mask: Array | None = None, *, centered: bool = False) -> Array:
    r"""(sum sigma_i^2)^2 / sum sigma_i^4, in [1, r]: the number of equal squares that would spread as much.

    With `centered=True` it is tr(C)^2 / |C|_F^2 of the rows' covariance C, as in neuroscience and in IsoScore. 0 for a
    zero matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> float(participation_ratio(jnp.diag(jnp.array([2.0, 1.0, 1.0]))))  # 6^2 / (16 + 1 + 1)
      2.0

    References:
      Gao et al., "A theory of multineuronal dimensionality, dynamics and measurement", 2017, bioRxiv 214262.
    """
    x, mask = checked(x, mask)
    return participation_ratio_of(values_of(centred(x, mask) if centered else x))


def participation_ratio_of(sigma: Array) -> Array:
    """`participation_ratio` of singular values [..., R]."""
    squares = jnp.square(_ratios(sigma))
    return over(jnp.square(jnp.sum(squares, axis=-1)), jnp.sum(jnp.square(squares), axis=-1))


@functools.partial(jax.jit, static_argnames="order")
def matrix_entropy(x: Array, mask: Array | None = None, *, order: float = 1.0) -> Array:
    r"""Entropy of the squares as shares, p_i = sigma_i^2 / sum sigma^2, in nats, in [0, ln r]; "prompt entropy".

        order 1: -sum p_i ln p_i        order a: ln(sum p_i^a) / (1 - a)   (Renyi)

    This is the von Neumann (or Renyi) entropy of X X^T / tr(X X^T). 0 for a zero matrix. (The published code sets
    negative entries of X X^T to zero before it decomposes, and divides order 2 by the squared number of rows in place of
    the squared trace. For orders below 1 null directions count as absent here, not as rounding.)

    Args:
      order: above 0.
    Raises:
      ValueError: if the order is not above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.diag(jnp.array([1.0, 1.0]))  # two equal shares: ln 2, whatever the order
      >>> [round(float(matrix_entropy(x, order=order)), 4) for order in (0.5, 1.0, 2.0)]
      [0.6931, 0.6931, 0.6931]

    References:
      Skean et al., "Layer by layer: uncovering hidden representations in language models", 2025, arXiv 2502.02013;
      Giraldo, Rao, Principe, "Measures of entropy from data using infinitely divisible kernels", 2015, arXiv 1211.2459.
    """
    if not order > 0:
        raise ValueError(f"order is {order}; allowed are numbers above 0. Use 1 for the usual entropy.")
    return matrix_entropy_of(singular_values(x, mask), order=order)


def matrix_entropy_of(sigma: Array, *, order: float = 1.0) -> Array:
    """`matrix_entropy` of singular values [..., R]."""
    squares = jnp.square(_ratios(sigma))
    total = jnp.sum(squares, axis=-1, keepdims=True)
    shares = over(squares, total)
    if order == 1.0:
        return _entropy(shares)
    live = shares > jnp.square(_tolerance(sigma))
    powers = jnp.where(live, jnp.where(live, shares, 1.0) ** order, 0.0)
    summed = jnp.sum(powers, axis=-1)
    return jnp.where(summed > 0, jnp.log(jnp.where(summed > 0, summed, 1.0)) / (1.0 - order), 0.0)


@jax.jit
def rank_me(x: Array, mask: Array | None = None, *, eps: float = 1e-7) -> Array:
    r"""RankMe, exp(-sum p_i ln p_i) with p_i = sigma_i / sum sigma + eps, in [1, r (1 + r eps)]; 0 for a zero matrix.

    It is `effective_rank` of `spectrum_summary` but for `eps`. (Published programs put eps elsewhere, or take 1e-5.)

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(rank_me(jnp.diag(jnp.array([2.0, 1.0, 1.0])))), 4)  # shares 1/2, 1/4, 1/4: exp(1.5 ln 2)
      2.8284

    References:
      Garrido et al., "RankMe: assessing the downstream performance of pretrained self-supervised representations by their
      rank", ICML 2023, arXiv 2210.02885, equation 1.
    """
    x, mask = checked(x, mask)
    return rank_me_of(values_of(x), count_of(x, mask), eps)


def rank_me_of(sigma: Array, count: Array, eps: float | Array = 1e-7) -> Array:
    """`rank_me` of singular values [..., R], of which the first `count` [...] are real."""
    ratios, real = ratios_to_largest(sigma, count)
    total = jnp.sum(ratios, axis=-1, keepdims=True)
    shares = jnp.where(real, over(ratios, total) + jnp.asarray(eps, sigma.dtype), 0.0)
    return jnp.where(total[..., 0] > 0, jnp.exp(_entropy(shares)), 0.0)


@functools.partial(jax.jit, static_argnames=("first", "last", "centered"))
def alpha_req(x: Array, mask: Array | None = None, *, first: int = 3, last: int = 100, centered: bool = False) -> Array:
    r"""Exponent alpha of a power law sigma_i^2 ~ i^-alpha, at least 0: the steeper, the fewer directions count.

    It is the slope, with its sign changed, of ln sigma_i^2 over ln i by least squares, weighted 1/i, for the ranks
    `first` to `last`, as far as there are singular values above rounding; 0 with fewer than two of them. The source
    takes the covariance's spectrum (`centered=True`).

    Raises:
      ValueError: unless 1 <= first < last.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.diag(jnp.arange(1.0, 9.0) ** -0.75)  # sigma_i^2 = i^-1.5
      >>> round(float(alpha_req(x)), 3)
      1.5

    References:
      Agrawal et al., "alpha-ReQ: assessing representation quality in self-supervised learning by measuring eigenspectrum
      decay", NeurIPS 2022; the fit is that of Stringer et al., Nature 571, 2019.
    """
    if not 1 <= first < last:
        raise ValueError(f"first is {first} and last {last}; allowed is 1 <= first < last. Correct the ranks.")
    x, mask = checked(x, mask)
    return alpha_req_of(values_of(centred(x, mask) if centered else x), count_of(x, mask), first=first, last=last)


def alpha_req_of(sigma: Array, count: Array, *, first: int = 3, last: int = 100) -> Array:
    """`alpha_req` of singular values [..., R], descending, of which the first `count` [...] are real."""
    ratios, real = ratios_to_largest(sigma, count)
    rank = jnp.arange(1, sigma.shape[-1] + 1)
    live = (
        real
        & (ratios > _tolerance(sigma))
        & ((rank >= first) & (rank <= last)).reshape((1,) * (sigma.ndim - 1) + (-1,))
    )
    place = jnp.broadcast_to(rank.astype(sigma.dtype), sigma.shape)
    weights = jnp.where(live, 1.0 / place, 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = over(weights, total)
    across, up = jnp.log(place), 2.0 * jnp.log(jnp.where(live, ratios, 1.0))
    across = across - jnp.sum(weights * across, axis=-1, keepdims=True)
    several = jnp.sum(live, axis=-1) > 1
    spread = jnp.where(several, jnp.sum(weights * jnp.square(across), axis=-1), 0.0)
    return -over(jnp.sum(weights * across * up, axis=-1), spread)


def _ratios(sigma: Array) -> Array:
    largest = jnp.max(sigma, axis=-1, keepdims=True, initial=0.0)
    return over(sigma, largest)


def _tolerance(sigma: Array) -> float:
    """The ratio sigma_i / sigma_1 below which a singular value is rounding."""
    return float(jnp.finfo(sigma.dtype).eps) * max(sigma.shape[-1], 1)


def _entropy(shares: Array) -> Array:
    """-sum p ln p over the last axis, with 0 ln 0 = 0."""
    live = shares > 0
    return -jnp.sum(jnp.where(live, shares * jnp.log(jnp.where(live, shares, 1.0)), 0.0), axis=-1)
