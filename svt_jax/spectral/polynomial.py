r"""Solver `poly`: the transformation by matrix products only, without any decomposition. An experiment.

F(X) = h(X X^T) X with h(lambda) = phi(sqrt(lambda))/sqrt(lambda). h is replaced by its interpolating polynomial of degree n
at Chebyshev's nodes on [0, upper], where upper >= sigma_1^2. In y = 2 lambda/upper - 1:

    h(lambda) ~ sum_k c_k T_k(y)        c_k from h at the nodes by a cosine transform, so that phi may move (alpha)
              = sum_j q_j(y) T_j(T_s(y))    q_j of degree < s                        (Paterson, Stockmeyer)

So n = s J + s - 1 takes s - 1 products for T_2 .. T_s, and J for the sum over j by Clenshaw's recurrence. That is about
2 sqrt(n) products of L x L, and two with a side of D.

Repeated squaring of X X^T yields what must be known beforehand: upper = tr((X X^T)^m)^(1/m), which is never below
sigma_1^2, and sigma_1^2 itself as a Rayleigh quotient.

h has a square root's singularity at zero, so the error falls like n^-2; `error_bound` returns it. If phi is further
than `TOLERANCE` sigma_1 from its polynomial somewhere between 0 and sigma_1, the result is NaN, which `svt` counts as a
failure. The bound holds centred SoftDecay to 1e-2 up to beta sigma_1 = 52, beta = |alpha|/(1 - alpha^2):

    alpha      -0.1   -0.2   -0.4   -0.6   -0.8   -0.9
    sigma_1    515    250    109    56     23     11

References:
  Paterson, Stockmeyer: "On the number of nonscalar multiplications necessary to evaluate polynomials", SIAM J. Comput.
  2(1), 1973. Trefethen: "Approximation Theory and Approximation Practice", 2013, chapters 3 and 4.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from svt_jax.spectral.base import SpectralFunction, first_order_only
from svt_jax.spectral.solvers import product

Array = jax.Array

DEGREE = 63
TOLERANCE = 1e-2
"""The largest error of phi, as a share of sigma_1, that is not a failure."""
_SQUARINGS = 8
_HIGHEST = jax.lax.Precision.HIGHEST  # accelerators' default would spoil the coefficients


def transform_by_products(x: Array, function: SpectralFunction, degree: int = DEGREE) -> Array:
    """Computes F(x) approximately for float32/float64 x [..., L, D] with L <= D; differentiable by tracing through it.

    The result is NaN, with derivative 0, where it would be off by more than `TOLERANCE`.

    The derivative is the polynomial's: exact, while the ends of its interval are held fixed.

    Args:
      function: vanishes at zero, so that h is bounded, and needs only the largest value of the spectrum.
      degree: the polynomial's degree.
    """
    scale = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    scale = jax.lax.stop_gradient(jnp.where(scale > 0, scale, 1.0))  # keeps squares of 1e+-18 inside float32
    rows = x / scale
    gram = product(rows, rows.mT)
    return _interpolate(rows, gram, scale, *_leading(gram), function, degree)


def _interpolate(
    rows: Array, gram: Array, scale: Array, upper: Array, leading: Array, function: SpectralFunction, degree: int
) -> Array:
    """Computes F(rows * scale) by the polynomial on [0, upper], from the leading eigenvector of gram = rows rows^T."""
    quotient = jnp.einsum("...i,...ij,...j->...", leading, gram, leading, precision=_HIGHEST)
    largest = jnp.sqrt(jnp.where(quotient > 0, quotient, 1.0))  # 1: any number serves a matrix of zeros

    steps = max(1, math.isqrt(degree + 1))
    constants, nodes = _constants(degree, steps)
    values, unit = _roots(upper, nodes), scale[..., 0]
    h = function(values * unit, largest[..., None] * unit) / (values * unit)
    coefficients = jnp.einsum("jik,...k->...ji", jnp.asarray(constants, rows.dtype), h, precision=_HIGHEST)
    failed = ~(_error(function, h, upper, largest, scale, degree) <= TOLERANCE)  # not >: NaN is also a failure
    eye = jnp.broadcast_to(jnp.eye(rows.shape[-2], dtype=rows.dtype), gram.shape)
    y = gram * (2.0 / upper)[..., None, None] - eye
    out = product(_evaluate(coefficients, y, eye), rows) * scale
    return jnp.where(failed[..., None, None], jnp.nan, out)


def _roots(upper: Array, points: np.ndarray) -> Array:
    """sqrt(lambda) [..., P] where y in [-1, 1] is `points`."""
    shares = jnp.asarray((points + 1.0) / 2.0, upper.dtype)
    return jnp.sqrt(upper[..., None] * shares.reshape(*[1] * upper.ndim, -1))


def _error(function: SpectralFunction, h: Array, upper: Array, largest: Array, scale: Array, degree: int) -> Array:
    """max |phi - its polynomial| / sigma_1 [...] at points up to sigma_1, four between any two nodes."""
    interpolation, points = _between(degree)
    values, unit = _roots(upper, points), scale[..., 0]
    exact = function(values * unit, largest[..., None] * unit) / unit
    error = jnp.einsum("pk,...k->...p", jnp.asarray(interpolation, h.dtype), h, precision=_HIGHEST) * values - exact
    inside = values <= largest[..., None]
    return jax.lax.stop_gradient(jnp.max(jnp.where(inside, jnp.abs(error), 0.0), axis=-1) / largest)


def error_bound(gamma: float, degree: int = DEGREE) -> float:
    r"""Bound of ||F(X) - poly||_2 / sigma_1 for centred SoftDecay, rounding aside.

        0.06 gamma^2 / (ln(1 + gamma) (n + 1)^2)

    The error comes from phi's second derivative at zero, -sigma_1 beta^2 / ln(1 + gamma), which an odd polynomial cannot
    have: interpolation of u|u| at Chebyshev's nodes errs like n^-2. The constant is measured: the worst error of
    dense spectra is 0.7 to 0.95 of the bound at n = 63 and gamma up to 50, and closer for larger n.

    Args:
      gamma: beta sigma_1, with beta = |alpha|/(1 - alpha^2).
      degree: n.

    Example:
      >>> error_bound(20.0), error_bound(50.0)  # doctest: +ELLIPSIS
      (0.0019..., 0.0093...)
    """
    return 0.06 * gamma**2 / (math.log1p(gamma) * (degree + 1) ** 2)


@jax.custom_jvp
def _leading(gram: Array) -> tuple[Array, Array]:
    """(upper [...], leading [..., L]): an upper bound of the largest eigenvalue, and nearly its eigenvector."""
    power, log_trace = gram, jnp.zeros(gram.shape[:-2], gram.dtype)
    for n in range(_SQUARINGS + 1):  # power = gram^m / tr(gram^m), m = 1, 2, 4, ...
        power = product(power, power) if n else gram
        trace = jnp.trace(power, axis1=-2, axis2=-1)
        trace = jnp.where(trace > 0, trace, 1.0)  # 0 for a matrix of zeros
        power = power / trace[..., None, None]
        log_trace = log_trace + jnp.log(trace) / 2**n
    diagonal = jnp.diagonal(power, axis1=-2, axis2=-1)
    best = jnp.argmax(diagonal, axis=-1)[..., None, None]
    leading = jnp.take_along_axis(power, best, axis=-2)[..., 0, :]
    norm = jnp.linalg.norm(leading, axis=-1, keepdims=True)
    # rounding may have made the trace slightly too small
    return jnp.exp(log_trace) * (1.0 + 1e-5), leading / jnp.where(norm > 0, norm, 1.0)


@_leading.defjvp
def _leading_is_held_fixed(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple, tuple]:
    out = _leading(first_order_only(primals[0]))  # a second derivative would miss how the eigenvector turns
    return out, jax.tree.map(jnp.zeros_like, out)


@functools.cache
def _constants(degree: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """([J + 1, steps, degree + 1], nodes [degree + 1]): from h at the nodes to the coefficients of T_i in q_j."""
    count = degree + 1
    angles = math.pi * (np.arange(count) + 0.5) / count
    cosines = np.cos(np.outer(np.arange(count), angles)) * 2.0 / count
    cosines[0] /= 2.0  # c = cosines @ h
    blocks = -(-count // steps)
    c = np.zeros((blocks * steps, count))
    c[:count] = cosines
    q = np.zeros((blocks, steps, count))
    for j in range(blocks - 1, 0, -1):  # T_(js+i) = 2 T_i T_js - T_(js-i)
        q[j, 0] = c[j * steps]
        for i in range(1, steps):
            q[j, i] = 2.0 * c[j * steps + i]
            c[j * steps - i] -= c[j * steps + i]
    q[0] = c[:steps]
    return q, np.cos(angles)


@functools.cache
def _between(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """([P, degree + 1], points [P]): from h at the nodes to its polynomial at points between them."""
    count = degree + 1
    nodes = math.pi * (np.arange(count) + 0.5) / count
    points = math.pi * (np.arange(4 * count) + 0.5) / (4 * count)
    weights = np.full(count, 2.0 / count)
    weights[0] = 1.0 / count
    orders = np.arange(count)
    return (np.cos(np.outer(points, orders)) * weights) @ np.cos(np.outer(orders, nodes)), np.cos(points)


def _evaluate(coefficients: Array, y: Array, eye: Array) -> Array:
    """sum_j q_j(y) T_j(T_s(y)); coefficients: [..., J + 1, s]."""
    steps = coefficients.shape[-1]
    powers = [eye, y]
    while len(powers) <= steps:
        powers.append(2.0 * product(y, powers[-1]) - powers[-2])
    giant = powers[steps]

    def block(j: int) -> Array:
        terms = [coefficients[..., j, i, None, None] * powers[i] for i in range(steps)]
        return functools.reduce(jnp.add, terms)

    after, current = jnp.zeros_like(y), block(coefficients.shape[-2] - 1)
    for j in range(coefficients.shape[-2] - 2, -1, -1):
        twice = 1.0 if j == 0 else 2.0
        after, current = current, block(j) + twice * product(giant, current) - after
    return current
