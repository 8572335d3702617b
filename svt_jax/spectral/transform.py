r"""`svt`: the singular value transformation, with a derivative of its own.

For one token matrix X [L, D] = U diag(sigma) V^T and a spectral function phi,

    F(X) = U diag(phi(sigma)) V^T

where directions with sigma_i <= eps max(L, D) sigma_1 are null and stay null.

Differentiating the decomposition itself divides by sigma_i^2 - sigma_j^2: padded, repeated or equal tokens give NaN.
F's own derivative is bounded. With a tangent dX, A = U^T dX and B = A V:

    D-_ij = (phi_i - phi_j)/(sigma_i - sigma_j), g'(sigma_i) where they meet;   D+_ij = (phi_i + phi_j)/(sigma_i + sigma_j)
    K_ij  = (D-_ij + D+_ij)/2 B_ij + (D-_ij - D+_ij)/2 B_ji      off the diagonal
    K_ii  = [J_phi diag(B)]_i + (dphi/dtheta . dtheta)_i           with phi's coupling through sigma_1 and its parameters
    dF    = U [ K V^T + diag(phi/sigma) (A - B V^T) ]

It is linear in (dX, dtheta), so JAX transposes it for reverse mode.

References:
  Noferini: "A formula for the Frechet derivative of a generalized matrix function", SIAM J. Matrix Anal. Appl. 38(2),
  2017. The transformation: arXiv 2208.11790.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from svt_jax.spectral.base import SpectralFunction
from svt_jax.spectral.solvers import Solver, choose_solver, decompose, product

if TYPE_CHECKING:  # which builds on this file
    from svt_jax.spectral.peers import TokenOperation

Array = jax.Array

_NODES = (0.1127016653792583, 0.5, 0.8872983346207417)
_WEIGHTS = (5.0 / 18.0, 8.0 / 18.0, 5.0 / 18.0)
"""Three-point Gauss-Legendre rule on [0, 1]: D-_ij is the mean of g' between sigma_j and sigma_i."""
_TINY = 1e-18
"""Spectra are treated as if sigma_1 were at least this, so that an all-zero matrix gives zeros, not 0/0. Derivatives
divide by its square, which float32 can still hold."""


def svt(
    x: Array, function: SpectralFunction | TokenOperation, *, mask: Array | None = None, solver: Solver = "auto"
) -> Array:
    """Transforms the singular values of each token matrix.

    Args:
      x: float[..., L, D], finite where `mask` is true.
      function: the spectral function, or a token operation (`peers`) to apply instead; differentiable in its parameters.
      mask: bool[..., L], true for real tokens. The others do not take part and come back as zeros.
      solver: "svd", "gram" or "auto" (see `solvers.choose_solver`). Work is done in float32 (float64 for
        float64 input) whatever x's dtype.
    Returns:
      x's shape and dtype.
    Raises:
      ValueError: if x is not a floating-point array of at least two dimensions, or mask does not fit it.

    Example:
      >>> import jax.numpy as jnp, numpy as np, svt_jax
      >>> x = jnp.array([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [9.0, 9.0, 9.0]])
      >>> mask = jnp.array([True, True, False])
      >>> np.round(np.asarray(svt_jax.svt(x, svt_jax.SoftDecay(alpha=-0.5), mask=mask)), 3)
      array([[3.   , 0.   , 0.   ],
             [0.   , 0.826, 0.   ],
             [0.   , 0.   , 0.   ]], dtype=float32)
    """
    if not isinstance(function, SpectralFunction):
        return function(x, mask=mask, solver=solver)
    x = jnp.asarray(x)
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"svt needs a floating-point array [..., L, D], got {x.dtype}{list(x.shape)}. Cast or reshape it."
        )
    if mask is not None and mask.shape != x.shape[:-1]:
        raise ValueError(f"mask must have x's shape without its last axis, {x.shape[:-1]}; got {mask.shape}.")
    return _masked(x, function, mask, choose_solver(solver, function))


@functools.partial(jax.jit, static_argnames="solver")  # called eagerly, one compilation and not fifty
def _masked(x: Array, function: SpectralFunction, mask: Array | None, solver: str) -> Array:
    work_dtype = jnp.promote_types(x.dtype, jnp.float32)
    work = x.astype(work_dtype)
    if mask is not None:
        keep = mask.astype(bool)[..., None]
        work = jnp.where(keep, work, 0.0)
    function = jax.tree.map(lambda leaf: jnp.asarray(leaf, work_dtype), function)
    if x.shape[-2] <= x.shape[-1]:
        out = _transform(work, function, solver)
    else:
        out = _transform(work.mT, function, solver).mT
    if mask is not None:
        out = jnp.where(keep, out, 0.0)
    return out.astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _transform(x: Array, function: SpectralFunction, solver: str) -> Array:
    """F(x) for float32/float64 x [..., L, D] with L <= D."""
    u, sigma, vt = decompose(x, solver)
    _, _, phi = _new_values(function, sigma, x.shape[-1])
    return product(u * phi[..., None, :], vt)


@_transform.defjvp
def _transform_jvp(solver: str, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, function), (dx, dfunction) = primals, tangents
    u, sigma, vt = decompose(x, solver)
    spectrum, live, phi = _new_values(function, sigma, x.shape[-1])
    out = product(u * phi[..., None, :], vt)

    def slope(values: Array) -> Array:  # g'(values), the statistics of the spectrum held fixed
        return jax.jvp(lambda v: _evaluate(function, v, spectrum), (values,), (jnp.ones_like(values),))[1]

    # phi/sigma, and its limit g'(0) at zero singular values where there is one
    nonzero = spectrum > _TINY
    ratio = jnp.where(nonzero, phi / jnp.where(nonzero, spectrum, 1.0), jnp.where(live, slope(spectrum), 0.0))

    s_i, s_j = spectrum[..., :, None], spectrum[..., None, :]
    gap, total = s_i - s_j, s_i + s_j
    # Near pairs: the quotient loses eps / share digits, the quadrature errs by less than share^6. The share is 0.08 in
    # float32 and 1.5e-3 in float64, so either is as exact as the dtype.
    near = jnp.abs(gap) <= 2.0 * float(jnp.finfo(sigma.dtype).eps) ** 0.2 * total
    pairs = gap.shape
    mean_slope = sum(
        w * slope((s_j + t * gap).reshape(*pairs[:-2], -1)).reshape(pairs)
        for t, w in zip(_NODES, _WEIGHTS, strict=True)
    )
    both_live = live[..., :, None] & live[..., None, :]
    mean_slope = jnp.where(both_live, mean_slope, 0.0)
    phi_i, phi_j = phi[..., :, None], phi[..., None, :]
    d_minus = jnp.where(near, mean_slope, (phi_i - phi_j) / jnp.where(near, 1.0, gap))
    d_plus = jnp.where(total > _TINY, (phi_i + phi_j) / jnp.where(total > _TINY, total, 1.0), mean_slope)

    a = product(u.mT, dx)  # [..., L, D]
    b = product(a, vt.mT)  # [..., L, L]
    k = 0.5 * (d_minus + d_plus) * b + 0.5 * (d_minus - d_plus) * b.mT
    dsigma = jnp.where(live, jnp.diagonal(b, axis1=-2, axis2=-1), 0.0)
    _, dphi = jax.jvp(lambda f, s: _evaluate(f, s, s), (function, spectrum), (dfunction, dsigma))
    dphi = jnp.where(live, dphi, 0.0)
    eye = jnp.eye(sigma.shape[-1], dtype=bool)
    k = jnp.where(eye, dphi[..., :, None], k)
    dout = product(u, product(k - ratio[..., None] * b, vt) + ratio[..., None] * a)
    return out, dout


def _new_values(function: SpectralFunction, sigma: Array, width: int) -> tuple[Array, Array, Array]:
    """The spectrum with null directions set to 0, which directions take part, and phi (0 where they do not)."""
    if function.vanishes_at_zero:  # continuous there: nothing to cut off
        live = jnp.ones(sigma.shape, bool)
    else:
        tolerance = jnp.finfo(sigma.dtype).eps * max(width, sigma.shape[-1])
        live = sigma > tolerance * jnp.max(sigma, axis=-1, keepdims=True)
    spectrum = jnp.where(live, sigma, 0.0)
    phi = jnp.where(live, _evaluate(function, spectrum, spectrum), 0.0)
    return spectrum, live, phi


def _evaluate(function: SpectralFunction, values: Array, spectrum: Array) -> Array:
    return function(values, jnp.where(jnp.max(spectrum, axis=-1, keepdims=True) > _TINY, spectrum, _TINY))
