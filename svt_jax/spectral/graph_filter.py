"""`Polynomial`: a spectral function with learnable coefficients, after attentive graph filters.

References:
  Wi et al., "Learning Advanced Self-Attention for Linear Transformers in the Singular Value Domain", 2025, arXiv
  2505.08516.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from svt_jax.spectral.base import SpectralFunction, static_field

Array = jax.Array


class Polynomial(SpectralFunction):
    r"""Multiplies each singular value with a learned polynomial of its ratio to the largest. Vanishes at zero.

        phi_i = sigma_i sum_k theta_k P_k(sigma_i / sigma_1)

    P_k are Jacobi polynomials with parameters a and b, or powers. The same at every scale. theta = (1, 0, 0, ...) is the
    identity, up to the rounding of the decomposition.

    The authors replace softmax attention by factors whose "singular values" come from a dense layer and a sigmoid, and
    differ from token to token; that has no identity, and so no place in a pretrained model. Here the polynomial acts on
    true singular values. There theta_0 is 1 and not trained, and the others are the tanh of what is trained; here all are
    trained as they are. What they call Chebyshev is a = b = -1/2, which is not Chebyshev's T_k but a multiple of it.

    Args:
      theta: coefficients [K + 1], of degrees 0 to K; trained. A longer list makes a higher degree.
      a, b: the Jacobi polynomials' two exponents, a + b > -2; not trained. The default, 0 and 0, are Legendre's.
      powers: whether P_k(x) = x^k instead.

    Raises:
      ValueError: if theta is no list of numbers, or a + b is not above -2.

    Example:
      >>> import jax.numpy as jnp
      >>> sigma = jnp.array([4.0, 2.0])
      >>> Polynomial(theta=[0.5, 0.5])(sigma, sigma)  # sigma (1 + sigma/sigma_1)/2
      Array([4. , 1.5], dtype=float32)

    References:
      arXiv 2505.08516, section 4; polyconv.py of jeongwhanchoi/agf.
    """

    theta: Any = (1.0, 0.0, 0.0, 0.0)
    a: float = static_field(default=0.0)
    b: float = static_field(default=0.0)
    powers: bool = static_field(default=False)

    vanishes_at_zero = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.a + self.b <= -2.0:
            raise ValueError(f"a + b of Polynomial must be above -2, got {self.a} + {self.b}. Start from 0 and 0.")
        if not isinstance(self.theta, jax.Array):
            try:
                theta = np.asarray(self.theta, np.float64)
            except (TypeError, ValueError):
                theta = np.asarray(np.nan)
            if theta.ndim != 1 or not theta.size or not np.all(np.isfinite(theta)):
                raise ValueError(
                    f"theta of Polynomial must be a list of numbers, got {self.theta!r}. Start from [1, 0, 0, 0]."
                )
            object.__setattr__(self, "theta", theta)

    def __call__(self, values: Array, spectrum: Array) -> Array:
        ratio = values / jnp.max(spectrum, axis=-1, keepdims=True)
        terms = self._polynomials(ratio, self.theta.shape[-1] - 1)
        return values * sum(self.theta[k] * term for k, term in enumerate(terms))

    def _polynomials(self, x: Array, degree: int) -> list[Array]:
        """P_0 to P_degree, by their recurrence."""
        a, b = self.a, self.b
        found = [jnp.ones_like(x)]
        if degree:
            found.append(x if self.powers else (a + 1.0) + 0.5 * (a + b + 2.0) * (x - 1.0))
        for n in range(2, degree + 1):
            if self.powers:
                found.append(x * found[-1])
                continue
            m = 2.0 * n + a + b
            slope, shift = (m - 1.0) * m * (m - 2.0), (m - 1.0) * (a * a - b * b)
            before = 2.0 * (n + a - 1.0) * (n + b - 1.0) * m
            found.append(((slope * x + shift) * found[-1] - before * found[-2]) / (2.0 * n * (n + a + b) * (m - 2.0)))
        return found
