"""Measures of how evenly rows are spread over directions: IsoScore, and Gaussian kernels of pairs. No decomposition."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from svt_jax.spectral.measures.arrays import (
    centred,
    checked,
    number_of,
    over,
    pairs_of,
    scaled,
    squared_distances,
    unit_rows,
)
from svt_jax.spectral.solvers import product

Array = jax.Array


@jax.jit
def iso_score(x: Array, mask: Array | None = None) -> Array:
    r"""IsoScore: 1 if the rows' variance is the same in all D directions, 0 if it all lies in one.

        (PR - 1) / (D - 1),    PR = tr(C)^2 / |C|_F^2,    C the covariance of the rows

    The published definition (the distance of the normalised spectrum to all ones, rescaled) is this number, which needs
    no decomposition. n rows reach at most (min(n - 1, D) - 1) / (D - 1); so the source takes all tokens of a data set as
    the rows. 0 where C is 0, and for D = 1.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
      >>> round(float(iso_score(x)), 4), round(float(iso_score(x * jnp.array([2.0, 1.0]))), 4)  # variances 1:1, 4:1
      (1.0, 0.4706)

    References:
      Rudman, Gillman, Rayne, Eickhoff, "IsoScore: measuring the uniformity of embedding space utilization", ACL 2022,
      arXiv 2108.07344.
    """
    x, mask = checked(x, mask)
    x = scaled(centred(x, mask))
    # The products of rows and of columns have the same norm: the smaller is computed.
    gram = product(x, x.mT) if x.shape[-2] <= x.shape[-1] else product(x.mT, x)
    return _rescaled(jnp.sum(jnp.square(x), axis=(-2, -1)), jnp.sum(jnp.square(gram), axis=(-2, -1)), x.shape[-1])


@jax.jit
def iso_score_star(
    x: Array, reference: Array | None = None, zeta: float | Array = 0.0, mask: Array | None = None
) -> Array:
    r"""IsoScore*, the IsoScore of a covariance that is drawn towards a reference: stable with few rows.

        (PR - 1) / (D - 1),    PR = tr(S)^2 / |S|_F^2,    S = (1 - zeta) C + zeta C_0

    C is the covariance of the rows with the divisor n - 1. With zeta = 0 it is `iso_score`. It is 0 where S is 0, and
    for D = 1.

    Args:
      reference: float[D, D], C_0, symmetric; None is the identity.
      zeta: the weight of the reference, in [0, 1].
    Raises:
      ValueError: if the reference is not [D, D].

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 0.0], [-1.0, 0.0]])  # C = diag(2, 0), S = diag(1.5, 0.5): PR = 4 / 2.5
      >>> round(float(iso_score_star(x)), 4), round(float(iso_score_star(x, zeta=0.5)), 4)
      (0.0, 0.6)

    References:
      Rudman, Eickhoff, "Stable anisotropic regularization" (I-STAR), ICLR 2024, arXiv 2305.19358.
    """
    x, mask = checked(x, mask)
    size = x.shape[-1]
    fixed = jnp.eye(size, dtype=x.dtype) if reference is None else jnp.asarray(reference, x.dtype)
    if fixed.shape != (size, size):
        raise ValueError(
            f"reference must be the covariance [D, D] of x [..., L, D], ({size}, {size}); got {fixed.shape}."
        )
    share, rest = jnp.asarray(zeta, x.dtype), centred(x, mask)
    freedom = jnp.maximum(number_of(mask, x.dtype) - 1.0, 1.0)[..., None, None]
    mixed = (1.0 - share) * product(rest.mT, rest) / freedom + share * fixed.reshape((1,) * (x.ndim - 2) + fixed.shape)
    mixed = scaled(mixed)
    return _rescaled(jnp.trace(mixed, axis1=-2, axis2=-1), jnp.sum(jnp.square(mixed), axis=(-2, -1)), size)


def _rescaled(trace: Array, squares: Array, size: int) -> Array:
    """(PR - 1) / (D - 1) of a covariance's trace and squared norm, and not below 0 by rounding."""
    ratio = over(jnp.square(trace), squares)
    return jnp.maximum(ratio - 1.0, 0.0) / max(size - 1, 1)


@functools.partial(jax.jit, static_argnames="normalize")
def uniformity(x: Array, t: float | Array = 2.0, mask: Array | None = None, *, normalize: bool = True) -> Array:
    r"""Logarithm of the mean Gaussian kernel of pairs of unit rows; the lower, the more evenly they are spread.

        log mean_{i < j} exp(-t |u_i - u_j|^2),     u_i = x_i / |x_i|,     in [-4t, 0]

    With fewer than two rows the result is 0.

    Args:
      normalize: false takes the rows as they are, as the published program does; then it has no lower bound.

    Example:
      >>> import jax.numpy as jnp
      >>> float(uniformity(jnp.array([[1.0, 0.0], [0.0, 5.0]])))  # |u_0 - u_1|^2 = 2
      -4.0

    References:
      Wang, Isola, "Understanding contrastive representation learning through alignment and uniformity on the
      hypersphere", ICML 2020, arXiv 2005.10242, equation 2.
    """
    x, mask = checked(x, mask)
    squares = squared_distances(unit_rows(x) if normalize else x)
    pairs = pairs_of(mask)
    n = jnp.sum(pairs, axis=(-2, -1)).astype(x.dtype)
    if x.shape[-2] == 0:
        return n
    counted = pairs | (n == 0)[..., None, None]  # a logarithm of no pairs at all has no derivative
    summed = jax.nn.logsumexp(jnp.where(counted, -jnp.asarray(t, x.dtype) * squares, -jnp.inf), axis=(-2, -1))
    return jnp.where(n > 0, summed - jnp.log(jnp.maximum(n, 1.0)), 0.0)


@jax.jit
def rbf_distance(x: Array, t: float | Array = 2.0, mask: Array | None = None) -> Array:
    """`uniformity` by the name that the paper of SoftDecay has for it.

    (The published code for token matrices does not normalise the rows.)

    Example:
      >>> import jax.numpy as jnp
      >>> float(rbf_distance(jnp.array([[1.0, 0.0], [0.0, 5.0]])))  # |u_0 - u_1|^2 = 2
      -4.0

    References:
      arXiv 2208.11790, section 5.
    """
    return uniformity(x, t, mask)


@functools.partial(jax.jit, static_argnames="normalize")
def alignment(
    x: Array, y: Array, power: float | Array = 2.0, mask: Array | None = None, *, normalize: bool = True
) -> Array:
    r"""Mean distance of the two members of a pair, mean_i |u_i - v_i|^power of unit rows, in [0, 2^power].

    0 means that the members of each pair are equal, and also that there are no pairs.

    Args:
      x, y: float[..., N, D], row i of each makes pair i.
      mask: bool[..., N], true for real pairs.
      normalize: false takes the rows as they are, as the published program does.
    Raises:
      ValueError: if x and y have different shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> x, y = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[3.0, 0.0], [1.0, 0.0]])
      >>> float(alignment(x, y))  # distances 0 and sqrt(2)
      1.0

    References:
      Wang, Isola, ICML 2020, arXiv 2005.10242, equation 1.
    """
    x, mask = checked(x, mask)
    y, _ = checked(y, mask)
    if x.shape != y.shape:
        raise ValueError(f"alignment needs pairs, x and y of one shape; got {x.shape} and {y.shape}.")
    u, v = (unit_rows(rows) if normalize else rows for rows in (x, y))
    squares = jnp.sum(jnp.square(u - v), axis=-1)
    apart = squares > 0
    distances = jnp.where(apart, jnp.where(apart, squares, 1.0) ** (0.5 * jnp.asarray(power, x.dtype)), 0.0)
    return jnp.sum(distances, axis=-1) / jnp.maximum(number_of(mask, x.dtype), 1.0)
