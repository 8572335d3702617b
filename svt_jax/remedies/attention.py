r"""Remedies inside attention: on the map A = softmax(q k^T / sqrt(H)) of each head, and on what it gathers, A V.

All start as the identity. None decomposes anything.

References:
  AttnScale: Wang, Zheng, Chen, Wang, ICLR 2022, arXiv 2203.05962. GFSA: Choi et al., "Graph Convolutions Enrich the
  Self-Attention in Transformers!", NeurIPS 2024, arXiv 2312.04234. Laplacian heads: arXiv 2602.09297. NeuTRENO: Nguyen,
  Nguyen, Baraniuk, "Mitigating Over-smoothing in Transformers via Regularized Nonlocal Functionals", NeurIPS 2023, arXiv
  2312.00751.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from svt_jax.remedies.base import AttentionMapOperation, ValueOperation
from svt_jax.spectral.base import static_field
from svt_jax.spectral.solvers import product

Array = jax.Array


def _by_head(parameter: Array, attention: Array) -> Array:
    """A number, or one for each head [N], beside maps [..., N, L, L]."""
    return jnp.reshape(parameter, (*(1,) * (attention.ndim - 3), -1, 1, 1))


class AttnScale(AttentionMapOperation):
    r"""Amplifies what a map adds to plain averaging: its high frequencies.

        A' = D + (1 + w)(A - D),     D = 1/n on the n keys of the token's own example

    computed as A + w (A - D), which is A itself at w = 0. The published code computes the first form, which is A only up
    to rounding, and has no mask: its n counts hidden keys. It acts before the dropout of attention, in every layer.

    Args:
      scale: w, a number or one for each head [N]; trained, starts at 0.

    Example:
      >>> import jax.numpy as jnp
      >>> AttnScale(scale=1.0)(jnp.array([[[0.75, 0.25], [0.5, 0.5]]]))
      Array([[[1. , 0. ],
              [0.5, 0.5]]], dtype=float32)

    References:
      arXiv 2203.05962, section 4.1; attnscale.py of VITA-Group/ViT-Anti-Oversmoothing.
    """

    scale: Any = 0.0

    one_per: ClassVar = {"scale": "heads"}

    def operate(self, attention: Array, attends: Array) -> Array:
        keys = jnp.maximum(jnp.sum(attends, axis=-1, keepdims=True), 1).astype(attention.dtype)
        average = jnp.where(attends, 1.0 / keys, 0.0)
        return attention + _by_head(self.scale, attention) * (attention - average)


class GFSA(AttentionMapOperation):
    r"""Makes a map a polynomial graph filter of itself, with a first-order guess of its K-th power.

        A' = w_0 I + A + w_K (A + (K - 1)(A A - A))

    It acts behind the dropout of attention, as published: A A is the product of the map that dropout has thinned out. A'
    is no probability: its rows sum to w_0 + 1 + w_K. The authors train only w_K, with weight decay and the common rate
    (here: without decay, at `optim.svt_learning_rate`). Their ALBERT shares w_K among its layers; here each layer has its
    own. Their w_0 and K on CoLA: BERT -0.01 and 4, RoBERTa -0.05 and 6, ALBERT 0.05 and 10.

    Args:
      w_k: w_K, a number or one for each head [N]; trained, starts at 0.
      k: K, at least 1; not trained. The authors choose it by task.
      w_0: not trained. At 0 (and w_K = 0) this is the identity.

    Raises:
      ValueError: if k is not a whole number of at least 1.

    Example:
      >>> import jax.numpy as jnp
      >>> GFSA(w_k=1.0, k=2)(jnp.array([[[0.0, 1.0], [1.0, 0.0]]]))  # A + A A
      Array([[[1., 1.],
              [1., 1.]]], dtype=float32)

    References:
      arXiv 2312.04234, equations 8 and 9; modeling_bert.py of jeongwhanchoi/GFSA.
    """

    w_k: Any = 0.0
    k: int = static_field(default=3)
    w_0: float = static_field(default=0.0)

    one_per: ClassVar = {"w_k": "heads"}
    bounds: ClassVar = {"k": (0.0, math.inf)}
    behind_dropout = True

    def operate(self, attention: Array, attends: Array) -> Array:
        power = attention + (self.k - 1) * (product(attention, attention) - attention)
        filtered = attention + _by_head(self.w_k, attention) * power
        return filtered + self.w_0 * _identity(attention) if self.w_0 else filtered


class LaplacianHeads(AttentionMapOperation):
    r"""Turns a share of each map into the Laplacian of its graph: the opposite control, which smooths on purpose.

        A' = (1 - g) A + g (I - A)

    computed as A + g (I - 2 A), which is A itself at g = 0. No code was published.

    Args:
      share: g, a number or one for each head [N]; trained, starts at 0. Heads that start at 1 are Laplacian ones.

    Example:
      >>> import jax.numpy as jnp
      >>> LaplacianHeads(share=1.0)(jnp.array([[[0.75, 0.25], [0.5, 0.5]]]))
      Array([[[ 0.25, -0.25],
              [-0.5 ,  0.5 ]]], dtype=float32)

    References:
      arXiv 2602.09297.
    """

    share: Any = 0.0

    one_per: ClassVar = {"share": "heads"}

    def operate(self, attention: Array, attends: Array) -> Array:
        return attention + _by_head(self.share, attention) * (_identity(attention) - 2.0 * attention)


def _identity(attention: Array) -> Array:
    return jnp.broadcast_to(jnp.eye(attention.shape[-1], dtype=attention.dtype), attention.shape)


class NeuTRENO(ValueOperation):
    r"""Pulls what a token gathers back to the values of the first layer.

        A V + a (V_0 - V),     V_0 the values of the encoder's first layer

    In the first layer itself V_0 = V, so it does nothing there. V_0 is not held fixed: gradients of all later layers
    reach the first layer's value matrix, as in the published code. There a is a constant (`svt.learnable: false`).

    Args:
      scale: a; starts at 0, the identity. The authors use 0.6 for DeiT and 0.4 for a language model.

    Example:
      >>> import jax.numpy as jnp
      >>> mixed, values, first = (jnp.full((1, 2, 2), number) for number in (1.0, 2.0, 4.0))
      >>> NeuTRENO(scale=0.5)(mixed, values, first)[0, 0]
      Array([2., 2.], dtype=float32)

    References:
      arXiv 2312.00751, equation 13; DeiT/neutreno.py of tamnguyen9520/NeuTRENO_NeurIPS2024.
    """

    scale: Any = 0.0

    token_wise = True

    def operate(self, mixed: Array, values: Array, first_values: Array, mask: Array) -> Array:
        return mixed + self.scale * (first_values - values)
