"""Measures of attention maps A [..., N, L, L]: rows ask, columns are keys, each row sums to 1 over the real keys.

`mask` is bool[..., L], without the axis of heads. Masked tokens neither ask nor are asked. Results are [..., N], one
number for each head. `encoder(..., output_attentions=True)` returns such maps.

The ranges hold for maps whose rows are probabilities. A remedy of maps may make others: entropy leaves negative entries out.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from svt_jax.spectral.base import work_dtype
from svt_jax.spectral.measures.arrays import number_of
from svt_jax.spectral.measures.spectrum import ratios_to_largest, values_of

Array = jax.Array


def _checked_maps(attention: Array, mask: Array | None) -> tuple[Array, Array]:
    """The maps in float32 or float64 with zeros in masked rows and columns, and which tokens are real: bool[..., 1, L]."""
    maps = jnp.asarray(attention)
    if maps.ndim < 3 or maps.shape[-1] != maps.shape[-2] or not jnp.issubdtype(maps.dtype, jnp.floating):
        raise ValueError(
            f"a measure of attention needs a floating-point array [..., N, L, L], got {maps.dtype}{list(maps.shape)}. "
            "Put one map into an axis of heads."
        )
    tokens = (*maps.shape[:-3], maps.shape[-1])
    real = jnp.ones(tokens, bool) if mask is None else jnp.asarray(mask).astype(bool)
    if real.shape != tokens:
        raise ValueError(f"mask must say which of the L tokens are real, {tokens}; got {real.shape}.")
    real = real[..., None, :]
    both = real[..., :, None] & real[..., None, :]
    return jnp.where(both, maps.astype(work_dtype(maps.dtype)), 0.0), real


def _mean_over_queries(of_query: Array, real: Array) -> Array:
    return jnp.sum(jnp.where(real, of_query, 0.0), axis=-1) / jnp.maximum(number_of(real, of_query.dtype), 1.0)


@jax.jit
def attention_entropy(attention: Array, mask: Array | None = None) -> Array:
    r"""Mean entropy of the rows in nats, 1/n sum_q -sum_k a_qk ln a_qk, in [0, ln n].

    ln n is uniform attention, 0 that each token looks at a single one.

    Example:
      >>> import jax.numpy as jnp
      >>> maps = jnp.array([[[0.5, 0.5], [0.0, 1.0]]])  # one head: ln 2 and 0
      >>> [round(float(head), 4) for head in attention_entropy(maps)]
      [0.3466]

    References:
      Clark et al., "What does BERT look at?", 2019, arXiv 1906.04341, section 3.3; Zhai et al., "Stabilizing transformer
      training by preventing attention entropy collapse", ICML 2023, arXiv 2303.06296.
    """
    maps, real = _checked_maps(attention, mask)
    live = maps > 0
    entropy = -jnp.sum(jnp.where(live, maps * jnp.log(jnp.where(live, maps, 1.0)), 0.0), axis=-1)
    return _mean_over_queries(entropy, real)


@jax.jit
def first_token_attention(attention: Array, mask: Array | None = None) -> Array:
    r"""Mean attention that the first token receives, 1/n sum_q a_q0, in [0, 1]; near 1 it is a sink.

    Example:
      >>> import jax.numpy as jnp
      >>> first_token_attention(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))
      Array([0.375], dtype=float32)

    References:
      Xiao et al., "Efficient streaming language models with attention sinks", ICLR 2024, arXiv 2309.17453.
    """
    maps, real = _checked_maps(attention, mask)
    return _mean_over_queries(jnp.sum(maps[..., :1], axis=-1), real)


@functools.partial(jax.jit, static_argnames="tolerance")
def attention_rank(attention: Array, mask: Array | None = None, *, tolerance: float = 0.01) -> Array:
    r"""Number of singular values of A that are above `tolerance` times the largest, in [1, n]; 0 for a zero map.

    1 means that all tokens receive the same mixture. It is a count, whose derivative is 0.

    Example:
      >>> import jax.numpy as jnp
      >>> uniform, pairs = jnp.full((4, 4), 0.25), jnp.kron(jnp.eye(2), jnp.full((2, 2), 0.5))
      >>> attention_rank(jnp.stack([uniform, pairs, jnp.eye(4)]))
      Array([1., 2., 4.], dtype=float32)

    References:
      Dong, Cordonnier, Loukas, ICML 2021, arXiv 2103.03404; Bhojanapalli et al., "Low-rank bottleneck in multi-head
      attention models", ICML 2020, arXiv 2002.07028.
    """
    maps, real = _checked_maps(attention, mask)
    sigma = values_of(jax.lax.stop_gradient(maps))
    count = jnp.broadcast_to(jnp.sum(real, axis=-1), sigma.shape[:-1])
    ratios, _ = ratios_to_largest(sigma, count)
    return jnp.sum(ratios > tolerance, axis=-1).astype(maps.dtype)
