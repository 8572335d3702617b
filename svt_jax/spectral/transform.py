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

It is linear in (dX, dtheta), so JAX transposes it for reverse mode. It is a first derivative only: differentiating it
again in X would differentiate the decomposition, and is an error.

A decomposition that fails for a finite matrix must not cost a run of days. Where the decomposition or the function
makes the result not finite, the matrix passes unchanged, with the derivative of the identity; `svt_and_failures` tells
where.

References:
  Noferini: "A formula for the Frechet derivative of a generalized matrix function", SIAM J. Matrix Anal. Appl. 38(2),
  2017. The transformation: arXiv 2208.11790.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from svt_jax.mesh import divided_like
from svt_jax.spectral.base import (
    Parametric,
    Solver,
    SpectralFunction,
    TokenOperation,
    first_order_only,
    prepare,
    solver_for,
)
from svt_jax.spectral.polynomial import transform_by_products
from svt_jax.spectral.shifted import transform_by_shifts
from svt_jax.spectral.solvers import BY_PLATFORM, decompose, product

Array = jax.Array

_TINY = 1e-18
"""Spectra are treated as if sigma_1 were at least this, so that an all-zero matrix becomes zeros, not 0/0. Derivatives
divide by its square, which float32 can still hold."""


def svt(
    x: Array, function: SpectralFunction | TokenOperation, *, mask: Array | None = None, solver: Solver = "auto"
) -> Array:
    """Transforms the singular values of each token matrix.

    On a CPU the first call holds SciPy's OpenBLAS, which decomposes, to one thread: its threads fight with XLA's. That lasts as
    long as the process; the environment variable SVT_JAX_BLAS_THREADS=keep prevents it.

    Args:
      x: float[..., L, D], finite where `mask` is true.
      function: the spectral function, or a token operation (`remedies`) to apply instead; differentiable in its parameters.
      mask: bool[..., L], true for real tokens. The others do not take part and come back as zeros.
      solver: "svd", "gram", "gram64", "shifted", "poly" or "auto" (see `solvers.choose_solver`). The work is done in float32
        (float64 for float64 input), whatever x's dtype.
    Returns:
      An array of x's shape and dtype. An x without entries is returned as it is. So is a finite matrix whose result
      would not be finite, because the decomposition failed or the function returned no number, as with a parameter
      outside its
      bounds: `svt_and_failures` tells where.
    Raises:
      ValueError: if x is not a floating-point array of at least two dimensions, function is no object of those classes,
        mask does not fit x, or the solver cannot serve the function.
      NotImplementedError: for a second derivative in x through a decomposition. First derivatives, forward and reverse,
        are exact, and so are second ones in the function's parameters.

    Under `jit` an x that a mesh divides over its batch, by Explicit or Auto axes of any name, is transformed without
    exchange between devices.

    Example:
      >>> import jax.numpy as jnp, numpy as np, svt_jax
      >>> x = jnp.array([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [9.0, 9.0, 9.0]])
      >>> mask = jnp.array([True, True, False])
      >>> np.round(np.asarray(svt_jax.svt(x, svt_jax.SoftDecay(alpha=-0.5), mask=mask)), 3)
      array([[3.   , 0.   , 0.   ],
             [0.   , 0.826, 0.   ],
             [0.   , 0.   , 0.   ]], dtype=float32)
    """
    return svt_and_failures(x, function, mask=mask, solver=solver)[0]


def svt_and_failures(
    x: Array, function: SpectralFunction | TokenOperation, *, mask: Array | None = None, solver: Solver = "auto"
) -> tuple[Array, Array]:
    """Does `svt`, and tells where it failed: the result was not finite and the matrix was. That matrix is unchanged.

    Args, Raises: as `svt`.
    Returns:
      An array of x's shape and dtype, and bool[...], true where it failed.
    """
    x, mask = jnp.asarray(x), None if mask is None else jnp.asarray(mask)
    if not isinstance(function, SpectralFunction | TokenOperation):
        advice = "Call it itself" if isinstance(function, Parametric) else "Make one"
        raise ValueError(
            f"svt needs a spectral function or a token operation, got {function!r}; allowed are objects such as "
            f"SoftDecay(alpha=-0.2), or get_function('soft_decay') for a name. {advice}."
        )
    if isinstance(function, SpectralFunction):
        out = transform_or_nan(x, function, mask=mask, solver=solver)
    else:
        out = function(x, mask=mask, solver=solver)
    return _pass_failed(x, out, mask)


@jax.jit
def _pass_failed(x: Array, out: Array, mask: Array | None) -> tuple[Array, Array]:
    if mask is not None:
        x = jnp.where(mask.astype(bool)[..., None], x, 0)
    failed = jnp.all(jnp.isfinite(x), axis=(-2, -1)) & ~jnp.all(jnp.isfinite(out), axis=(-2, -1))
    return jnp.where(failed[..., None, None], x, out), failed


def transform_or_nan(x: Array, function: SpectralFunction, *, mask: Array | None, solver: Solver) -> Array:
    """Does `svt`, but returns NaN, with derivative 0, for a matrix whose decomposition fails."""
    return _transformed(x, function, mask, solver_for(function, solver))


@functools.partial(jax.jit, static_argnames="solver")  # an eager call is one compilation, not fifty
def _transformed(x: Array, function: SpectralFunction, mask: Array | None, solver: str) -> Array:
    work, mask = prepare(x, mask, "svt")
    if x.size == 0:
        return x
    function = jax.tree.map(lambda leaf: jnp.asarray(leaf, work.dtype), function)
    out = _by(solver, work, function) if x.shape[-2] <= x.shape[-1] else _by(solver, work.mT, function).mT
    out = divided_like(out, x)
    if mask is not None:
        out = jnp.where(mask[..., None], out, 0.0)
    return out.astype(x.dtype)


def _by(solver: str, x: Array, function: SpectralFunction) -> Array:
    if solver == "shifted":
        return transform_by_shifts(x, function)
    if solver == "poly":
        return transform_by_products(x, function)
    if solver != "gram_or_shifted":
        return _transform(x, function, solver)  # what depends on the platform is inside
    by_platform = {name: functools.partial(_by, choice) for name, choice in BY_PLATFORM[solver].items()}
    out: Array = jax.lax.platform_dependent(x, function, **by_platform)
    return out


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _transform(x: Array, function: SpectralFunction, solver: str) -> Array:
    """F(x) for float32/float64 x [..., L, D] with L <= D."""
    u, sigma, rows, unit, failed = decompose(x, solver)
    _, _, phi = _new_values(function, sigma, x.shape[-1])
    return _marked(failed, product((_transposed(u) * (phi * unit)[..., None]).mT, rows))


def _marked(failed: Array, out: Array) -> Array:
    return jnp.where(failed[..., None, None], jnp.nan, out)


def _transposed(u: Array) -> Array:
    """Lays U^T out in memory. XLA on CPU is a third faster at A^T X than at A X, and reads U faster by rows."""
    return jax.lax.optimization_barrier(u.mT)


# Where the function alone is differentiated, later versions of JAX would make dx of zeros that are on no mesh.
@functools.partial(_transform.defjvp, symbolic_zeros=True)
def _transform_jvp(solver: str, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, function), (dx, dfunction) = primals, tangents
    x, dx, dfunction = first_order_only(x), _instantiated(dx, x), _instantiated(dfunction, function)
    u, sigma, rows, unit, failed = decompose(x, solver)
    spectrum, live, phi = _new_values(function, sigma, x.shape[-1])
    ut = _transposed(u)
    out = _marked(failed, product((ut * (phi * unit)[..., None]).mT, rows))
    ratio, d_minus, d_plus = _quotients(function, spectrum, live, phi)
    h = product((ut * ratio[..., None]).mT, ut)

    # From here on linear in (dx, dfunction), and the transpose is what costs. It takes the fewest products with a side
    # of D: G rows^T, H G and N rows, the last two as A^T X. B and N = K - diag(ratio) B are held as their transposes,
    # so that memory is read in order. D- and D+ are symmetric.
    bt = product(product(rows, dx.mT), ut.mT) * unit[..., None]
    eye = jnp.eye(sigma.shape[-1], dtype=bool)
    dsigma = jnp.where(live, jnp.sum(jnp.where(eye, bt, 0.0), axis=-1), 0.0)  # diagonal() transposes to a slow scatter
    _, dphi = jax.jvp(lambda f, s: _evaluate(f, s, s), (function, spectrum), (dfunction, dsigma))
    dphi = jnp.where(live, dphi, 0.0)
    nt = (0.5 * (d_minus + d_plus) - ratio[..., None, :]) * bt + (0.5 * (d_minus - d_plus) * bt).mT
    nt = jnp.where(eye, (dphi - ratio * dsigma)[..., None], nt)
    dout = product(h, dx) + product(product(u, nt.mT * unit[..., None, :]), rows)
    return out, dout


def _instantiated(tangents: Any, like: Any) -> Any:
    """Zeros where a tangent is symbolically zero, on the mesh of what they belong to."""
    is_zero = lambda each: isinstance(each, jax.custom_derivatives.SymbolicZero)
    zeros = lambda value: divided_like(jnp.zeros_like(value), value)
    return jax.tree.map(lambda each, value: zeros(value) if is_zero(each) else each, tangents, like, is_leaf=is_zero)


def _quotients(function: SpectralFunction, spectrum: Array, live: Array, phi: Array) -> tuple[Array, Array, Array]:
    """phi_i/sigma_i [..., L], D-_ij and D+_ij [..., L, L], with their limits."""
    one = jnp.ones_like(spectrum)
    slope_at = lambda v: jax.jvp(lambda v: _evaluate(function, v, spectrum), (v,), (one,))[1]
    slope, curvature = jax.jvp(slope_at, (spectrum,), (one,))  # g' and g'', the statistics of the spectrum held fixed
    slope, curvature = jnp.where(live, slope, 0.0), jnp.where(live, curvature, 0.0)
    nonzero = spectrum > _TINY
    ratio = jnp.where(nonzero, phi / jnp.where(nonzero, spectrum, 1.0), slope)

    s_i, s_j = spectrum[..., :, None], spectrum[..., None, :]
    gap, total = s_i - s_j, s_i + s_j
    # D- is the mean of g' between sigma_j and sigma_i: by the trapezoid rule with its end correction (Euler-Maclaurin)
    # where that is exact to the dtype, which is where the quotient loses digits. If c is the correction's share of the
    # whole, the rule errs by about c^2/5.
    trapezoid = 0.5 * (slope[..., :, None] + slope[..., None, :])
    bend = curvature[..., :, None] - curvature[..., None, :]
    correction = jnp.where(gap == 0, 0.0, gap * bend / 12.0)
    near = (jnp.abs(gap) <= 0.1 * total) & (
        jnp.abs(correction) <= float(jnp.finfo(spectrum.dtype).eps) ** 0.5 * jnp.abs(trapezoid)
    )
    mean_slope = trapezoid - correction
    phi_i, phi_j = phi[..., :, None], phi[..., None, :]
    d_minus = jnp.where(near, mean_slope, (phi_i - phi_j) / jnp.where(near, 1.0, gap))
    d_plus = jnp.where(total > _TINY, (phi_i + phi_j) / jnp.where(total > _TINY, total, 1.0), mean_slope)
    return ratio, d_minus, d_plus


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
