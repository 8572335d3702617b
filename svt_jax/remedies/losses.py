r"""Remedies that are a term of the training loss on hidden states: weight times one of these, `svt.params.weight`.

x is [..., L, D]; N is the number of all real tokens in it, x^_i = x_i / |x_i|. Each returns the term without its weight,
which starts at 0 and may have either sign. None is part of an evaluation.

References:
  I-STAR and IsoScore*: Rudman, Eickhoff, "Stable Anisotropic Regularization", ICLR 2024, arXiv 2305.19358. CosReg: Gao
  et al., "Representation Degeneration Problem in Training Natural Language Generation Models", ICLR 2019, arXiv
  1907.12009. Global orthogonal regularisation: Zhang et al., "Learning Spread-out Local Feature Descriptors", ICCV 2017,
  arXiv 1708.06320. Spectrum area: arXiv 2306.11986.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from svt_jax.remedies.base import LossTerm
from svt_jax.remedies.tokens import unit_rows
from svt_jax.spectral import measures
from svt_jax.spectral.base import static_field
from svt_jax.spectral.solvers import product

Array = jax.Array


class IStar(LossTerm):
    r"""1 - IsoScore* of all real tokens together: a positive weight makes them isotropic, a negative one anisotropic.

        IsoScore* = (PR - 1) / (D - 1),   PR = tr(C)^2 / |C|_F^2,   C = (1 - zeta) cov(x) + zeta C_0

    PR is the participation ratio of the covariance, and cov divides by N - 1. C_0 is the C of the step before, without
    gradient: zeta weighs the running covariance. The first step has none, and takes cov(x). The authors compute the score
    from singular values; the closed form is the same to 6e-16, and its gradient is a rational function.

    In a run with several layers all their tokens are one set, as in the authors' code. There padding takes part, and C_0
    comes from a sample of tokens; their training program cannot start as published (an import is missing).

    Args:
      zeta: in [0, 1), not trained; the authors train with 0.2. 0 is IsoScore without a running covariance.

    Raises:
      ValueError: if zeta is not in [0, 1).

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(IStar()(jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))), 6)  # isotropic
      0.0
      >>> round(float(IStar()(jnp.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))), 6)  # on a line
      1.0

    References:
      arXiv 2305.19358, algorithms 1 and 2; I-STAR/regularizers.py of bcbi-edu/p_eickhoff_isoscore.
    """

    zeta: float = static_field(default=0.2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.zeta < 1.0:
            raise ValueError(f"zeta of IStar must lie in [0, 1), got {self.zeta}. Start from 0.2.")

    def operate(self, x: Array, mask: Array, state: Array | None) -> Array:
        covariance = self._shrunk(x, mask, state)
        # The score does not depend on the scale: divided by its trace, the squares of C neither overflow nor vanish.
        trace = jnp.trace(covariance)
        squares = jnp.sum(jnp.square(covariance / jnp.where(trace > 0, trace, 1.0)))
        ratio = jnp.where(
            trace > 0, 1.0 / jnp.where(trace > 0, squares, 1.0), 1.0
        )  # equal tokens have none: 1, the least
        return 1.0 - (ratio - 1.0) / max(x.shape[-1] - 1, 1)

    def initial_state(self, size: int) -> Array | None:
        return jnp.zeros((size, size), jnp.float32) if self.zeta else None  # zeros: there is none yet

    def next_state(self, x: Array, mask: Array, state: Array) -> Array:
        return jax.lax.stop_gradient(self._shrunk(x, mask, state))

    def _shrunk(self, x: Array, mask: Array, state: Array | None) -> Array:
        covariance = _covariance(x, mask)
        if state is None or not self.zeta:
            return covariance
        zeta = jnp.where(jnp.trace(state) > 0, self.zeta, 0.0).astype(x.dtype)
        return (1.0 - zeta) * covariance + zeta * jax.lax.stop_gradient(state)


def _covariance(x: Array, mask: Array) -> Array:
    """The covariance [D, D] of all real tokens."""
    axes = tuple(range(x.ndim - 1))
    keep = mask[..., None]
    count = jnp.sum(mask).astype(x.dtype)
    mean = jnp.sum(x, axis=axes, keepdims=True) / jnp.maximum(count, 1.0)
    centered = jnp.where(keep, x - mean, 0.0)
    gram = jnp.tensordot(centered, centered, (axes, axes), precision=jax.lax.Precision.HIGHEST)
    return gram / jnp.maximum(count - 1.0, 1.0)


class CosReg(LossTerm):
    r"""The mean cosine of all pairs of real tokens in the batch.

        (sum_ij cos(x_i, x_j) - N) / N^2 = (|sum_i x^_i|^2 - N) / N^2

    The sum needs no pairs: it costs N D operations. As published it divides by N^2, not by the N (N - 1) pairs, and all
    tokens of the batch (and of all layers) are one set. Zero tokens have cosine 0 with all others; in the published code
    they make the loss NaN, and padding takes part.

    Example:
      >>> import jax.numpy as jnp
      >>> float(CosReg()(jnp.array([[1.0, 0.0], [2.0, 0.0]])))  # (4 - 2) / 4
      0.5

    References:
      arXiv 1907.12009, section 4.1; I-STAR/regularizers.py of bcbi-edu/p_eickhoff_isoscore.
    """

    def operate(self, x: Array, mask: Array, state: Array | None) -> Array:
        unit = unit_rows(x)
        count = jnp.maximum(jnp.sum(mask), 1).astype(x.dtype)
        total = jnp.sum(unit / count, axis=tuple(range(x.ndim - 1)))
        itself = jnp.sum(jax.lax.stop_gradient(jnp.square(unit))) / jnp.square(count)  # the number of tokens not 0
        return jnp.sum(jnp.square(total)) - itself


class GlobalOrthogonalRegularization(LossTerm):
    r"""Spreads the tokens of each input out as random directions are: mean and second moment of their cosines.

        (mean_{i != j} c_ij)^2 + max(mean_{i != j} c_ij^2 - 1/D, 0),     c_ij = cos(x_i, x_j)

    1/D is the second moment for random directions. The published loss takes the rows of one column of a batch of
    embeddings, which belong to different texts; here the rows are the n real tokens of one matrix, and matrices are
    averaged as columns are there. A matrix of one token adds 0, one without tokens does not count.

    Example:
      >>> import jax.numpy as jnp
      >>> float(GlobalOrthogonalRegularization()(jnp.array([[1.0, 0.0], [2.0, 0.0]])))  # 1^2 + (1 - 1/2)
      1.5

    References:
      arXiv 1708.06320, section 3.3; GlobalOrthogonalRegularizationLoss of sentence-transformers 6.2, whose two weights
      are both 1 here.
    """

    def operate(self, x: Array, mask: Array, state: Array | None) -> Array:
        unit = unit_rows(x)
        cosines = jnp.where(jnp.eye(x.shape[-2], dtype=bool), 0.0, product(unit, unit.mT))
        n = jnp.sum(mask, axis=-1).astype(x.dtype)
        pairs = jnp.maximum(n * (n - 1.0), 1.0)
        first = jnp.sum(cosines, axis=(-2, -1)) / pairs
        second = jnp.sum(jnp.square(cosines), axis=(-2, -1)) / pairs
        return _mean_of_matrices(jnp.square(first) + jax.nn.relu(second - 1.0 / x.shape[-1]), mask)


class SpectrumArea(LossTerm):
    r"""The area under the curve of sigma_i / sigma_1: 1 for a flat spectrum, near 0 for one large singular value.

        1/r sum_i sigma_i / sigma_1,     r = min(n, D)

    for the n real tokens of each matrix; matrices are averaged. A negative weight flattens the spectrum, a positive one
    makes it skewed. A matrix whose decomposition fails is left out of the mean. No code was published.

    Example:
      >>> import jax.numpy as jnp
      >>> float(SpectrumArea()(jnp.array([[4.0, 0.0], [0.0, 2.0], [9.0, 9.0]]), jnp.array([True, True, False])))
      0.75

    It takes the measures' own solver, whatever `svt.solver` says. A matrix whose decomposition fails is left out.

    References:
      arXiv 2306.11986, the area under the singular value curve.
    """

    def operate(self, x: Array, mask: Array, state: Array | None) -> Array:
        sigma = measures.singular_values(x, mask)
        works = mask & jnp.all(jnp.isfinite(sigma), axis=-1, keepdims=True)
        sigma = jnp.where(jnp.isfinite(sigma), sigma, 0.0)
        largest = jnp.max(sigma, axis=-1)
        rank = jnp.maximum(jnp.minimum(jnp.sum(mask, axis=-1), x.shape[-1]), 1).astype(x.dtype)
        return _mean_of_matrices(jnp.sum(sigma, axis=-1) / jnp.where(largest > 0, largest, 1.0) / rank, works)


def _mean_of_matrices(values: Array, mask: Array) -> Array:
    """The mean over matrices that have a real token."""
    counted = jnp.any(mask, axis=-1)
    return jnp.sum(jnp.where(counted, values, 0.0)) / jnp.maximum(jnp.sum(counted), 1).astype(values.dtype)
