r"""Remedies that map the token matrix of one input to another of its shape, without a decomposition.

They are no functions of the singular values, so they are `TokenOperation`s and not `SpectralFunction`s.
`svt(x, operation, mask=mask)` and `svt.function` in a config take either. `whitening.py` has those that decompose.

References:
  ContraNorm: Guo, Wang, Du, Wang, "ContraNorm: A Contrastive Learning Perspective on Oversmoothing and Beyond", ICLR
  2023, arXiv 2303.06562. De-escalation: arXiv 2312.06182. FeatScale: Wang, Zheng, Chen, Wang, "Anti-Oversmoothing in Deep
  Vision Transformers via the Fourier Domain Analysis", ICLR 2022, arXiv 2203.05962.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from svt_jax.spectral.base import Solver, TokenOperation, static_field
from svt_jax.spectral.solvers import product

Array = jax.Array


class ContraNorm(TokenOperation):
    r"""Moves every token away from those like it.

        Y = (1 + c) X - c softmax(X^ X^^T / tau) X,     rows of X^: x_i / |x_i|

    The softmax is over the real tokens of each row. This is a gradient step on the uniformity of contrastive learning.
    A token whose largest entry is below 1e-12 of the largest of all counts as zero: its cosines are a constant 0.

    The authors act in every layer, by default between the residual sum and the layer norm of BERT's attention (their
    position 7): `svt.site: attention`, `svt.placement: norm_input`, `svt.layers: all`. Their position 8 is the same
    place behind the feed-forward part. c is a constant (`svt.learnable: false`). Their code has no mask, so padding takes
    part in the softmax. Their ALBERT class lacks the factor 1 + c, which makes it another operation; all families here
    use the operation of their BERT class.

    Args:
      scale: c, greater than 0. The authors choose it by task from 0.005, 0.01, 0.05, 0.1 and 0.2; the default is the
        middle one.
      temperature: tau, greater than 0; not trained. The authors' code has 1; for BERT it is fixed.

    Raises:
      ValueError: if a number is not greater than 0.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> x = jnp.array([[1.0, 0.1], [1.0, -0.1]])  # cosine 0.98
      >>> np.round(np.asarray(ContraNorm(scale=0.2)(x)), 3)
      array([[ 1.  ,  0.12],
             [ 1.  , -0.12]], dtype=float32)

    References:
      arXiv 2303.06562, equation 6 and the code published with it (temperature; unit rows).
    """

    scale: Any = 0.05
    temperature: float = static_field(default=1.0)

    bounds: ClassVar = {"scale": (0.0, math.inf), "temperature": (0.0, math.inf)}
    decomposes = False

    def operate(self, x: Array, mask: Array, solver: Solver) -> Array:
        unit = unit_rows(x)
        cosines = product(unit, unit.mT)  # [..., L, L]
        # The most negative number, not -inf: a matrix of only padding keeps finite weights.
        logits = jnp.where(mask[..., None, :], cosines / self.temperature, jnp.finfo(x.dtype).min)
        return (1.0 + self.scale) * x - self.scale * product(jax.nn.softmax(logits, axis=-1), x)


class DeEscalation(TokenOperation):
    r"""Takes a share of the tokens' mean away, or adds to it.

        Y = (I - tau Pi) X,     Pi = 1 1^T / n over the n real tokens

    tau = 0 is the identity, tau = 1 removes the mean, a negative tau strengthens it.

    Args:
      tau: trained, of either sign; starts at 0.

    Example:
      >>> import jax.numpy as jnp
      >>> DeEscalation(tau=0.5)(jnp.array([[4.0, 1.0], [2.0, 3.0]]))  # the mean is (3, 2)
      Array([[2.5, 0. ],
             [0.5, 2. ]], dtype=float32)

    References:
      arXiv 2312.06182, the equation; no code was published.
    """

    tau: Any = 0.0

    decomposes = False

    def operate(self, x: Array, mask: Array, solver: Solver) -> Array:
        return x - self.tau * token_mean(x, mask)


class FeatScale(TokenOperation):
    r"""Reweighs the tokens' mean and what is left of each token, feature by feature.

        Y = X + t_1 * (Pi X) + t_2 * (X - Pi X),     Pi = 1 1^T / n over the n real tokens

    In the authors' code X is the output of attention, before the residual is added: `svt.site: attention`,
    `svt.placement: before_residual`, `svt.layers: all`. Their file for DeiT adds both terms twice, so that its t is half
    of ours; that for CaiT adds them once, as here. Their code has no mask.

    Args:
      mean: t_1, a number or one for each feature [D]; starts at 0.
      rest: t_2, likewise. With both at 0 this is the identity.

    Example:
      >>> import jax.numpy as jnp
      >>> FeatScale(rest=0.5)(jnp.array([[4.0, 1.0], [2.0, 3.0]]))  # the mean is (3, 2)
      Array([[4.5, 0.5],
             [1.5, 3.5]], dtype=float32)

    References:
      arXiv 2203.05962, section 4.2; featscale.py and featscale_cait.py of VITA-Group/ViT-Anti-Oversmoothing.
    """

    mean: Any = 0.0
    rest: Any = 0.0

    sites = ("attention",)
    one_per: ClassVar = {"mean": "hidden", "rest": "hidden"}
    decomposes = False

    def operate(self, x: Array, mask: Array, solver: Solver) -> Array:
        mean = token_mean(x, mask)
        of_mean, of_rest = (jnp.broadcast_to(t, x.shape) for t in (self.mean, self.rest))
        return x + of_mean * mean + of_rest * (x - mean)


def token_mean(x: Array, mask: Array) -> Array:
    """The mean of the real tokens [..., 1, D]; rows of padding must be 0."""
    count = jnp.maximum(jnp.sum(mask, axis=-1), 1)[..., None, None]
    return jnp.sum(x, axis=-2, keepdims=True) / count.astype(x.dtype)


def unit_rows(x: Array) -> Array:
    """Rows x_i / |x_i|; a row whose largest entry is below 1e-12 of the largest of all becomes 0."""
    longest = largest_entry(x, axis=-1)  # one for each token: squares stay near 1
    counted = longest > 1e-12 * jnp.max(longest, axis=-2, keepdims=True)
    x = jnp.where(counted, x / jnp.where(counted, longest, 1.0), 0.0)
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return jnp.where(counted, x / jnp.sqrt(jnp.where(counted, squares, 1.0)), 0.0)


def largest_entry(x: Array, axis: int | tuple[int, int]) -> Array:
    """The largest entry along `axis`, constant to differentiation; 0 where its reciprocal is near overflow."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    info = jnp.finfo(x.dtype)
    return jnp.where(largest > info.tiny / info.eps, largest, 0.0)
