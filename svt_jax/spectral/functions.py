"""Spectral functions: what happens to the singular values. `registry.py` finds them by name.

Every function keeps the order of the singular values, except SoftDecay as published where the largest is small (see
there). "Vanishes at zero" means that the formula itself keeps zero singular values at zero, so that the transformation
is continuous where the rank drops.

References:
  Yan, Gui, Li, He: "Addressing Token Uniformity in Transformers via Singular Value Transformation", UAI 2022,
  arXiv 2208.11790. Godfrey, Gashler: "A continuum among logarithmic, linear, and exponential functions", 2015,
  arXiv 1602.01321.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from svt_jax.spectral.base import SpectralFunction, static_field

Array = jax.Array


def _largest(spectrum: Array) -> Array:
    return jnp.max(spectrum, axis=-1, keepdims=True)


@jax.custom_jvp
def _soft_log(s: Array, alpha: Array) -> Array:
    """-ln(1 - alpha s)/alpha, which is s at alpha = 0; with derivatives that lose no digits at small alpha s."""
    zero = alpha == 0
    return jnp.where(zero, s, -jnp.log1p(-alpha * s) / jnp.where(zero, 1.0, alpha))


@_soft_log.defjvp
def _soft_log_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (s, alpha), (ds, dalpha) = primals, tangents
    u = alpha * s
    slope = 1.0 / (1.0 - u)
    # d/dalpha = s^2 k(u), k(u) = (ln(1 - u) + u/(1 - u))/u^2 = 1/2 + 2/3 u + 3/4 u^2 + ..., a difference of equals at small u
    small = jnp.abs(u) < 0.05
    v, far_alpha = jnp.where(small, -1.0, u), jnp.where(small, -1.0, alpha)
    near = jnp.where(small, s, 0.0)
    series = functools.reduce(lambda total, n: total * u + (1.0 - 1.0 / n), range(12, 1, -1), jnp.zeros_like(u))
    far = (jnp.log1p(-v) + v / (1.0 - v)) / far_alpha / far_alpha  # not s^2 k(u), which leaves float32's range
    return _soft_log(s, alpha), slope * ds + jnp.where(small, near * near * series, far) * dalpha


def _exp_ratio(u: Array) -> Array:
    """(exp(u) - 1)/u, which is 1 at u = 0; exact to rounding, with its derivatives, on both sides of it."""
    small = jnp.abs(u) < 0.05
    v = jnp.where(small, 1.0, u)
    series = 1.0 + u / 2 * (1.0 + u / 3 * (1.0 + u / 4 * (1.0 + u / 5 * (1.0 + u / 6 * (1.0 + u / 7)))))
    return jnp.where(small, series, jnp.expm1(v) / v)


def _quotient(a: Array, b: Array) -> Array:
    """a / b, with derivatives right where both are small or large: the square of b leaves float32 at 1e-19 and 1e19."""
    unit = jax.lax.stop_gradient(jnp.where(b == 0, 1.0, jnp.abs(b)))
    return (a / unit) / (b / unit)


def _rescaled(new: Array, new_largest: Array, largest: Array) -> Array:
    """new * largest / new_largest, so that the largest singular value is kept."""
    # SoftDecay's f crosses zero at sigma = |alpha|, so a matrix with just that largest value has no finite rescaling.
    # The bound acts only there, below 1: at large sigma f may also be a millionth of it, and right.
    smallest_divisor = 1e-6 * jnp.minimum(largest, 1.0)
    sign = jnp.where(new_largest < 0, -1.0, 1.0)
    divisor = jnp.where(jnp.abs(new_largest) < smallest_divisor, sign * smallest_divisor, new_largest)
    return _quotient(new, divisor) * largest


class SoftDecay(SpectralFunction):
    r"""The paper's function: lifts small singular values, keeps the largest.

    With the soft exponential at negative alpha,

        f(sigma) = -ln(1 - alpha (sigma + alpha) + eps) / alpha,        phi_i = f(sigma_i) sigma_1 / f(sigma_1)

    f(0) = ln(1 - alpha^2)/|alpha| is not 0, so singular values below |alpha| change sign, and the transformation is
    discontinuous where the rank drops (null directions are kept null). The centred form f(sigma) - f(0) vanishes at
    zero and avoids both:

        phi_i = sigma_1 ln(1 + beta sigma_i) / ln(1 + beta sigma_1),    beta = |alpha| / (1 - alpha^2)

    Both tend to the identity as alpha -> 0. Neither is scale invariant: the result depends on alpha * sigma. Where the
    largest is so small that f(sigma_1) < |f(0)| (sigma_1 below 0.41 at alpha = -0.2, 1.54 at -0.6, 5.6 at -0.9), small
    singular values come out larger than it, and in another order. Scale such input up, or use the centred form.

    Args:
      alpha: in (-1, 0); the further from 0, the flatter the new spectrum. The authors start from -0.2 in fine-tuning
        and use -0.6 on sentence embeddings.
      centered: whether to use f(sigma) - f(0).
      eps: added inside the logarithm; the authors' code has 1e-7.

    Raises:
      ValueError: if alpha is a number outside (-1, 0).

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> sigma = jnp.array([20.0, 1.0])
      >>> np.round(np.asarray(SoftDecay(alpha=-0.2)(sigma, sigma)), 3)
      array([20.   ,  1.854], dtype=float32)
      >>> np.round(np.asarray(SoftDecay(alpha=-0.2, centered=True)(sigma, sigma)), 3)
      array([20.   ,  2.305], dtype=float32)

    References:
      arXiv 2208.11790, section 4 (soft decay); arXiv 1602.01321, equation 1 (soft exponential, alpha < 0).
    """

    alpha: Any = -0.2
    centered: bool = static_field(default=False)
    eps: float = static_field(default=0.0)

    needs_largest_only = True
    bounds: ClassVar = {"alpha": (-1.0, 0.0)}

    # The centred form also vanishes at zero with eps: the f(0) that is subtracted contains it.
    @property
    def vanishes_at_zero(self) -> bool:  # type: ignore[override]
        return self.centered

    def __call__(self, values: Array, spectrum: Array) -> Array:
        largest = _largest(spectrum)
        return _rescaled(self._decay(values), self._decay(largest), largest)

    def _decay(self, sigma: Array) -> Array:
        alpha = self.alpha
        if self.centered:
            return _soft_log(sigma / (1.0 - alpha * alpha + self.eps), alpha)
        if self.eps:
            return -jnp.log1p(-alpha * (sigma + alpha) + self.eps) / alpha
        return _soft_log(sigma + alpha, alpha)


class SoftExponential(SpectralFunction):
    r"""The full soft exponential, alpha of either sign, rescaled to keep the largest singular value.

        f(sigma) = -ln(1 - alpha (sigma + alpha)) / alpha       alpha < 0: lifts small values, equal to `SoftDecay`
        f(sigma) = sigma                                        alpha = 0: the identity
        f(sigma) = (exp(alpha sigma) - 1)/alpha + alpha         alpha > 0: sinks small values
        phi_i = f(sigma_i) sigma_1 / f(sigma_1)

    Smooth in alpha through 0. f(0) is not 0, so null directions are kept null.

    Args:
      alpha: in (-1, 1).

    Raises:
      ValueError: if alpha is a number outside (-1, 1).

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> sigma = jnp.array([4.0, 1.0])
      >>> [round(float(SoftExponential(alpha=a)(sigma, sigma)[1]), 3) for a in (-0.5, 0.0, 0.5)]
      [0.882, 1.0, 0.541]

    References:
      arXiv 1602.01321, equation 1.
    """

    alpha: Any = 0.0

    bounds: ClassVar = {"alpha": (-1.0, 1.0)}

    def __call__(self, values: Array, spectrum: Array) -> Array:
        largest = _largest(spectrum)
        # Each branch receives an alpha of its own sign, so that neither leaves its domain where the other is chosen.
        down, up = jnp.minimum(self.alpha, 0.0), jnp.maximum(self.alpha, 0.0)
        decay = lambda s: _soft_log(s + down, down)

        def growth(s: Array) -> Array:  # f(s) exp(-up sigma_1), because f itself would overflow
            small = up * s < 1.0
            from_series = s * _exp_ratio(jnp.where(small, up * s, 0.0)) * jnp.exp(-up * largest)
            safe_up = jnp.where(small, 1.0, up)
            from_exponentials = (jnp.exp(jnp.where(small, 0.0, up * (s - largest))) - jnp.exp(-up * largest)) / safe_up
            return jnp.where(small, from_series, from_exponentials) + up * jnp.exp(-up * largest)

        falling = _rescaled(decay(values), decay(largest), largest)
        rising = _quotient(growth(values), growth(largest)) * largest
        return jnp.where(self.alpha < 0, falling, rising)


class LogShift(SpectralFunction):
    r"""A logarithm of the ratio to the largest: lifts small values, the same at every scale. Vanishes at zero.

        phi_i = sigma_1 ln(1 + gamma sigma_i / sigma_1) / ln(1 + gamma)

    Args:
      gamma: greater than 0; the larger, the flatter the new spectrum. The authors' code has 1.

    Raises:
      ValueError: if gamma is a number not greater than 0.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> sigma = jnp.array([20.0, 1.0])
      >>> np.round(np.asarray(LogShift(gamma=10.0)(sigma, sigma)), 3)
      array([20.   ,  3.382], dtype=float32)

    References:
      "shift" in the code published with arXiv 2208.11790.
    """

    gamma: Any = 1.0

    vanishes_at_zero = True
    needs_largest_only = True
    bounds: ClassVar = {"gamma": (0.0, math.inf)}

    def __call__(self, values: Array, spectrum: Array) -> Array:
        largest = _largest(spectrum)
        return jnp.log1p(self.gamma * _quotient(values, largest)) / jnp.log1p(self.gamma) * largest


class Linear(SpectralFunction):
    r"""Moves every singular value towards the largest.

        phi_i = sigma_1 - (sigma_1 - sigma_i) / k

    phi does not vanish at zero, so null directions are kept null.

    Args:
      k: greater than 0; above 1 lifts small values, 1 is the identity. The authors' code has 1.1.

    Raises:
      ValueError: if k is a number not greater than 0.

    Example:
      >>> import jax.numpy as jnp
      >>> Linear(k=2.0)(jnp.array([4.0, 1.0]), jnp.array([4.0, 1.0]))
      Array([4. , 2.5], dtype=float32)

    References:
      "linear" in the code published with arXiv 2208.11790.
    """

    k: Any = 1.1

    bounds: ClassVar = {"k": (0.0, math.inf)}

    def __call__(self, values: Array, spectrum: Array) -> Array:
        largest = _largest(spectrum)
        return largest - (largest - values) / self.k


class Average(SpectralFunction):
    r"""Makes all singular values equal to their mean: the flattest spectrum there is. Null directions are kept null.

        phi_i = mean of the positive sigma_j

    Example:
      >>> import jax.numpy as jnp
      >>> Average()(jnp.array([4.0, 2.0, 0.0]), jnp.array([4.0, 2.0, 0.0]))
      Array([3., 3., 3.], dtype=float32)

    References:
      "average" in the code published with arXiv 2208.11790.
    """

    def __call__(self, values: Array, spectrum: Array) -> Array:
        positive = jnp.sum(spectrum > 0, axis=-1, keepdims=True, dtype=spectrum.dtype)
        mean = jnp.sum(spectrum, axis=-1, keepdims=True) / jnp.maximum(positive, 1)
        return jnp.broadcast_to(mean, jnp.broadcast_shapes(mean.shape, values.shape))


class Identity(SpectralFunction):
    """phi_i = sigma_i: the transformation that changes nothing, for controls and tests. Vanishes at zero.

    Example:
      >>> import jax.numpy as jnp
      >>> Identity()(jnp.array([2.0, 1.0]), jnp.array([2.0, 1.0]))
      Array([2., 1.], dtype=float32)
    """

    vanishes_at_zero = True
    needs_largest_only = True

    def __call__(self, values: Array, spectrum: Array) -> Array:
        return values
