r"""Remedies that centre the tokens of one input and change their spectrum: whitening, all-but-the-top.

They are no functions of the singular values of X itself, so they are `TokenOperation`s and not `SpectralFunction`s. Both
first subtract the mean of the n real tokens, X_c = X - 1 m^T, m = 1/n sum_i x_i.

References:
  Whitening: Su et al., 2021, arXiv 2103.15316. All-but-the-top: Mu, Viswanath, ICLR 2018, arXiv 1702.01417. Both were
  proposed for sets of embeddings; `embeddings/maps.py` has that form of them.
"""

from __future__ import annotations

import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from svt_jax.remedies.tokens import largest_entry
from svt_jax.spectral.base import Solver, SpectralFunction, TokenOperation, first_order_only, static_field
from svt_jax.spectral.solvers import decompose, product
from svt_jax.spectral.transform import transform_or_nan

Array = jax.Array


class _RootMeanSquare(SpectralFunction):
    """phi_i = the root mean square of the positive sigma_j: all equal, and the sum of squares is kept."""

    def __call__(self, values: Array, spectrum: Array) -> Array:
        # a constant to differentiation: the result does not depend on it
        largest = jax.lax.stop_gradient(jnp.max(spectrum, axis=-1, keepdims=True))
        positive = jnp.sum(spectrum > 0, axis=-1, keepdims=True, dtype=spectrum.dtype)
        squares = jnp.sum(jnp.square(spectrum / largest), axis=-1, keepdims=True)
        mean = largest * jnp.sqrt(squares / jnp.maximum(positive, 1))
        return jnp.broadcast_to(mean, jnp.broadcast_shapes(mean.shape, values.shape))


class TokenWhitening(TokenOperation):
    r"""Whitens the tokens of one input: their covariance becomes a multiple of the identity on the space they span.

        Y = s U V^T,     X_c = U diag(sigma) V^T,     s^2 = 1/r sum_{i <= r} sigma_i^2,     r the rank of X_c

    That is zero-phase (ZCA) whitening, X_c C^{-1/2} with C = X_c^T X_c / n the covariance, times s / sqrt(n): the
    whitening that is nearest to X_c. n tokens span at most n - 1 dimensions after centring, so where n <= D all tokens
    come out equally far from each other.

    The scale s keeps the energy |X_c|_F. Unit covariance would be s = sqrt(n), which depends on the length of the text
    and not on the size of its tokens. But in the slot Y is added to a residual of X's size, so it needs that size. Unit
    covariance would also raise the rounding that is left of equal tokens to full size.

    Null directions (sigma_i <= eps max(L, D) sigma_1) stay null, so Y is discontinuous where the rank drops; its
    derivative is finite everywhere. With the "gram" solver, which "auto" is not here, small live directions are noise.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> x = 9.0 + jax.random.normal(jax.random.key(0), (4, 6))
      >>> y = TokenWhitening()(x)
      >>> sigma = np.linalg.svd(y, compute_uv=False)
      >>> bool(np.allclose(sigma[:3], sigma[0], rtol=1e-4)), bool(sigma[3] < 1e-5)
      (True, True)

    References:
      arXiv 2103.15316, algorithm 1 (there for a set of embeddings, with unit covariance). ZCA as the nearest whitening:
      Kessy, Lewin, Strimmer, "Optimal whitening and decorrelation", The American Statistician 72(4), 2018.
    """

    def operate(self, x: Array, mask: Array, solver: Solver) -> Array:
        return transform_or_nan(_centered(x, mask), _RootMeanSquare(), mask=mask, solver=solver)


class TokenAllButTheTop(TokenOperation):
    r"""Removes the tokens' mean and the k directions of largest singular value.

        Y = X_c - sum_{i <= k} u_i u_i^T X_c,     X_c = U diag(sigma) V^T

    The source's algorithm, and most public code, takes the directions from X_c but projects X itself, mean included.
    Its rows all differ from these by one vector, the mean's projection on the removed directions. Our rows' mean is 0.

    The top directions must be set off from the rest to be defined: a direction with sigma_i no larger than sigma_{k+1}
    (to within eps max(L, D) sigma_1) stays. So fewer than k go at ties, and none if all singular values are equal. Y
    depends only on the matrix, never on the basis that the solver returns. Near a tie the derivative grows as 1/gap, up
    to 1/(eps max(L, D)); at a tie it is that of the directions that go.

    n tokens span at most n - 1 dimensions after centring, so Y is zero if k is at least n - 1.

    Args:
      directions: k, at least 1. The authors advise about D/100 for a whole vocabulary; one text has few tokens, so the
        default is 1.

    Raises:
      ValueError: if directions is not a whole number greater than 0.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> x = jnp.array([[9.0, 1.0], [-9.0, 1.0], [9.0, -1.0], [-9.0, -1.0]])
      >>> np.round(np.asarray(TokenAllButTheTop()(x)), 3)[:2] + 0.0
      array([[0., 1.],
             [0., 1.]], dtype=float32)

    References:
      arXiv 1702.01417, algorithm 1.
    """

    directions: int = static_field(default=1)

    bounds: ClassVar = {"directions": (0.0, math.inf)}

    def operate(self, x: Array, mask: Array, solver: Solver) -> Array:
        centered = _centered(x, mask)
        wide = centered if x.shape[-2] <= x.shape[-1] else centered.mT
        largest = largest_entry(wide, axis=(-2, -1))
        scaled = wide / jnp.where(largest > 0, largest, 1.0)
        # small singular values pass unchanged, so their noise is harmless and "gram" safe
        projector, failed = _top_projector(scaled, self.directions, "gram" if solver == "auto" else solver)
        rest = jnp.where(failed[..., None, None], jnp.nan, wide - product(projector, wide))
        return rest if x.shape[-2] <= x.shape[-1] else rest.mT


def _centered(x: Array, mask: Array) -> Array:
    """Real tokens minus their mean; other rows zero."""
    keep = mask[..., None]
    count = jnp.maximum(jnp.sum(keep, axis=-2, keepdims=True), 1).astype(x.dtype)

    def mean(y: Array) -> Array:
        return jnp.sum(jnp.where(keep, y, 0.0), axis=-2, keepdims=True) / count

    # In two steps: beside a large common part the mean's rounding is a direction well above the null tolerance, which
    # whitening would raise to full size. The first step subtracts a constant near the mean, with fewer digits: XLA
    # would fuse a full float into multiply-adds, and its rounding would differ between the two uses of the result.
    info = jnp.finfo(x.dtype)
    x = x - jax.lax.reduce_precision(jax.lax.stop_gradient(mean(x)), info.nexp, info.nmant - 2)
    return jnp.where(keep, x - mean(x), 0.0)


# The spectral function here would be a step, 0 above sigma_{k+1} and the identity below. `svt` takes derivatives of
# near singular values from the function's slope, which a step does not have; so this has a rule of its own.
@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _top_projector(x: Array, k: int, solver: str) -> tuple[Array, Array]:
    """P [..., L, L] = sum_{i <= k} u_i u_i^T of x [..., L, D], L <= D, whose largest entry is 1; and where it failed."""
    u, _, top, failed = _top_directions(x, k, solver)
    return product(jnp.where(top[..., None, :], u, 0.0), u.mT), failed


@_top_projector.defjvp
def _top_projector_jvp(k: int, solver: str, primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    # dP = U [E * (U^T (dX X^T + X dX^T) U)] U^T with E_ij = 1/|sigma_i^2 - sigma_j^2| between a top direction and
    # another, 0 elsewhere: first-order perturbation of the eigenvectors of X X^T.
    (x,), (dx,) = primals, tangents
    x = first_order_only(x)
    u, sigma, top, failed = _top_directions(x, k, solver)
    s_i, s_j = sigma[..., :, None], sigma[..., None, :]
    between = top[..., :, None] != top[..., None, :]
    coefficients = jnp.where(between, 1.0 / jnp.where(between, jnp.abs(s_i - s_j) * (s_i + s_j), 1.0), 0.0)
    half = product(product(u.mT, dx), product(u.mT, x).mT)
    projector = product(jnp.where(top[..., None, :], u, 0.0), u.mT)
    tangent = product(product(u, coefficients * (half + half.mT)), u.mT)
    return (projector, failed), (tangent, np.zeros(failed.shape, jax.dtypes.float0))


def _top_directions(x: Array, k: int, solver: str) -> tuple[Array, Array, Array, Array]:
    """Returns U, sigma, which directions go, and where the decomposition failed."""
    u, sigma, _, _, failed = decompose(x, solver)
    # Sorted again: "gram" returns them descending only up to rounding. (lax.top_k would gather a sharded batch.)
    ascending = jnp.sort(sigma)
    following = ascending[..., -k - 1, None] if k < sigma.shape[-1] else jnp.zeros_like(ascending[..., -1:])
    # x has an entry of 1, so sigma_1 is at least 1; or x is the rounding of equal tokens, and no direction goes
    tolerance = jnp.finfo(sigma.dtype).eps * max(x.shape[-2:]) * jnp.maximum(ascending[..., -1:], 1.0)
    return u, sigma, sigma - following > tolerance, failed
