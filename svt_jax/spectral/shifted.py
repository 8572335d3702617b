r"""Solver `shifted`: the transformation by inverses of shifted Gram matrices, without an eigenproblem.

With G = X X^T and its eigenvalues lambda, F(X) = h(G) X, h(lambda) = phi(sqrt(lambda))/sqrt(lambda). If phi vanishes at
zero and is concave, h falls slowly in log(lambda), and a constant and a few poles describe it over six decades:

    h(lambda) ~ w_0 + sum_k w_k / (lambda + z_k s^2)        F(X) ~ w_0 X + [ sum_k w_k (G + z_k s^2 I)^-1 ] X

s is sigma_1, the shifts z_k are spaced evenly in their logarithm. w = P phi(nodes) is linear in the new values at fixed
nodes between 0 and sigma_1: P solves a weighted least squares problem, once, in float64. So the weights follow every
parameter of phi, and a function needs no constants of its own. An error of h at lambda counts sqrt(lambda) times in the
value, and once in the gradient, of which small directions get their share; so the fit weighs it by sqrt(lambda) + 0.001 s.

Each inverse goes through Cholesky's factor: SHIFTS independent problems a matrix, which fill an accelerator, where an
eigenproblem is a chain of small steps. The derivative has no gaps in it: with R = (G + z s^2 I)^-1, dR = -R dG R. The
s of shifts and nodes is held fixed: h does not depend on it. phi's own sigma_1 is not: d sigma_1 = u^T dG u / (2 sigma_1).

Errors are in docs/accuracy.md: about 3e-5 of ||F(X)|| at all condition numbers, if phi is not bent too much. The sum is flat
below the smallest shift, at a thousandth of sigma_1. So it errs more for centred SoftDecay with beta sigma_1 = |alpha|/(1 -
alpha^2) sigma_1 of some hundreds. Where phi at the nodes is missed by more than `TOLERANCE` sigma_1, which happens in the
thousands, the result is NaN, which `svt` counts as a failure. A function that does not vanish at zero cannot be served at
all: it would lift null directions, which shifts cannot tell from small ones.

References:
  Hale, Higham, Trefethen: "Computing A^alpha, log(A), and related matrix functions by contour integrals", SIAM J. Numer.
  Anal. 46(5), 2008, for sums of shifted inverses. Here the weights are fitted instead.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from svt_jax.spectral.base import SpectralFunction, first_order_only
from svt_jax.spectral.solvers import DECOMPOSITION, per_matrix, product

Array = jax.Array

SHIFTS = 10
"""Number of inverses. Centred SoftDecay(-0.2) is off by 8e-5 with 9, 3e-5 with 10, 1e-5 with 11. (Without the constant it
takes 14 for 3e-5, with weights so large that their rounding shows.)"""
TOLERANCE = 1e-2
"""The largest error of phi, as a share of sigma_1, that is not a failure."""
_SMALLEST, _LARGEST = 1e-6, 3.0
"""The range of z. G's rounding leaves eigenvalues down to -6e-7 s^2 (2 rows of 4096), so smaller shifts sometimes fail."""
_NODES = np.geomspace(1e-12, 1.05, 400)
"""lambda/s^2 at the nodes."""
_GRADIENT = 0.001
_SQUARINGS = 11
_HIGHEST = jax.lax.Precision.HIGHEST  # accelerators' default would spoil the weights


def transform_by_shifts(x: Array, function: SpectralFunction) -> Array:
    """Computes F(x) approximately for float32/float64 x [..., L, D] with L <= D.

    Args:
      function: vanishes at zero, and needs only the largest value of the spectrum.
    Returns:
      [..., L, D]; NaN, with derivative 0, where a factorisation fails or phi is missed by more than `TOLERANCE`.
    """
    scale = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    scale = jax.lax.stop_gradient(jnp.where(scale > 0, scale, 1.0))  # keeps squares of 1e+-18 inside float32
    rows, unit = x / scale, scale[..., 0]
    gram = product(rows, rows.mT)
    leading = _leading(gram)
    square = jnp.einsum("...i,...ij,...j->...", leading, gram, leading, precision=_HIGHEST)
    square = jnp.where(square > 0, square, 1.0)  # 1: any number serves a matrix of zeros
    fixed = jax.lax.stop_gradient(square)

    shifts, nodes, fit, _ = (jnp.asarray(each, x.dtype) for each in _constants())
    shifts, nodes = (each.reshape(*[1] * square.ndim, -1) for each in (shifts, nodes))
    s = jnp.sqrt(fixed)[..., None]
    phi = function(s * nodes * unit, jnp.sqrt(square)[..., None] * unit) / (s * unit)  # as a share of s
    weights = jnp.einsum("kj,...j->...k", fit, phi, precision=_HIGHEST)
    eye = jnp.eye(x.shape[-2], dtype=x.dtype).reshape(*[1] * (square.ndim + 1), *gram.shape[-2:])
    inverses = _inverse(gram[..., None, :, :] + (shifts * s**2)[..., None, None] * eye)
    failed = jnp.any(jnp.isnan(inverses), axis=(-3, -2, -1))[..., None, None]
    failed |= ~(_error(weights, phi) <= TOLERANCE)[..., None, None]  # not <: NaN is also a failure
    inverses = jnp.where(failed[..., None], 0.0, inverses)
    h = jnp.einsum("...k,...kij->...ij", weights[..., 1:] * s**2, inverses, precision=_HIGHEST)
    return jnp.where(failed, jnp.nan, (product(h, rows) + weights[..., :1, None] * rows) * scale)


def _error(weights: Array, phi: Array) -> Array:
    """max |phi - its approximation| / s [...] at the nodes."""
    terms = jnp.asarray(_constants()[3], phi.dtype)
    found = jnp.einsum("jk,...k->...j", terms, weights, precision=_HIGHEST)
    return jax.lax.stop_gradient(jnp.max(jnp.abs(found - phi), axis=-1))


@functools.cache
def _constants() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """z [K]; sqrt(lambda)/s at the nodes [m]; P [K + 1, m]; and phi/s at the nodes from the weights, [m, K + 1]."""
    shifts, nodes = np.geomspace(_SMALLEST, _LARGEST, SHIFTS), np.sqrt(_NODES)
    terms = np.column_stack([np.ones(len(nodes)), 1.0 / (_NODES[:, None] + shifts)])
    weights = nodes + _GRADIENT
    fit = np.linalg.pinv(weights[:, None] * terms) * (weights / nodes)
    return shifts, nodes, fit, nodes[:, None] * terms


@jax.custom_jvp
def _inverse(a: Array) -> Array:
    """The inverse of each positive definite matrix of a [..., L, L]; NaN where it is not positive definite."""
    inverse: Array = per_matrix(_inverse_of_one, a)
    return checkpoint_name(inverse, DECOMPOSITION)


def _inverse_of_one(a: Array) -> Array:
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)
    lower = jax.lax.linalg.cholesky(a, symmetrize_input=False)
    half = jax.lax.linalg.triangular_solve(lower, eye, left_side=True, lower=True)
    return product(half.mT, half)


@_inverse.defjvp
def _inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = _inverse(*primals)
    return inverse, -product(product(inverse, tangents[0]), inverse)


@jax.custom_jvp
def _leading(gram: Array) -> Array:
    """Nearly the leading eigenvector [..., L] of each gram [..., L, L].

    The largest column of gram^m, m = 2^_SQUARINGS. Its Rayleigh quotient is below the largest eigenvalue by a share of
    at most 1/(2 e m) = 9e-5, which happens only if the second one is 1 - 1/(2 m) of the first.
    """

    def square(_: int, power: Array) -> Array:
        power = product(power, power)
        trace = jnp.trace(power, axis1=-2, axis2=-1)[..., None, None]
        return power / jnp.where(trace > 0, trace, 1.0)

    power = jax.lax.fori_loop(0, _SQUARINGS, square, gram)
    best = jnp.argmax(jnp.diagonal(power, axis1=-2, axis2=-1), axis=-1)[..., None, None]
    leading = jnp.take_along_axis(power, best, axis=-2)[..., 0, :]
    norm = jnp.linalg.norm(leading, axis=-1, keepdims=True)
    return leading / jnp.where(norm > 0, norm, 1.0)


@_leading.defjvp
def _leading_is_held_fixed(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    out = _leading(first_order_only(primals[0]))  # a second derivative would miss how the eigenvector turns
    return out, jnp.zeros_like(out)
