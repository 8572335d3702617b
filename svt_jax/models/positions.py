"""What attention knows of places beside the embeddings: rotated queries and keys, and biases by distance.

Shape letters are those of `packed`, `N` heads and `H` head size. Places count from 0 in each example.

References: Su et al., "RoFormer", 2021, arXiv 2104.09864 (rotary positions); Raffel et al., "T5", 2020, arXiv 1910.10683
(buckets of distances), as transformers' code of MPNet has them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svt_jax.models.config import EncoderConfig
from svt_jax.models.config_checks import RELATIVE_BUCKETS
from svt_jax.models.packed import Layout

Array = jax.Array

_FARTHEST = 128  # all distances from this one share a bucket


class Carried(nnx.Variable):
    """A tensor of the checkpoint that is not trained: it is kept, and exported again."""


class Places(NamedTuple):
    """What one layer's attention needs.

    Attributes:
      angles: [R or 1, S, H/2] of rotation, or None.
      bias: [1, N, S, S], added to scores, or None.
      first_bias: [R or 1, N, 1, S], the same for first tokens that ask.
    """

    angles: Array | None = None
    bias: Array | None = None
    first_bias: Array | None = None


class Positions(nnx.Module):
    """Makes each layer's `Places`.

    Attributes:
      frequencies: float32[H/2], of rotation, where the checkpoint keeps them (ESM): early ones are rounded to float16.
      bias: [buckets, N], or None.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        rotary = config.positions == "rotary"
        self._thetas = (config.rope_theta, config.local_rope_theta or config.rope_theta) if rotary else None
        self._head_size = config.head_size
        stored = rotary and config.protein
        self.frequencies = (
            Carried(jnp.asarray(_frequencies(config.rope_theta, config.head_size)), logical_axes=("parameter",))
            if stored
            else None
        )
        shape = (config.relative_buckets, config.num_attention_heads)
        normal = nnx.initializers.normal(config.initializer_range)
        self.bias = (
            nnx.Param(normal(rngs.params(), shape, jnp.float32), logical_axes=("rows", "parameter"))
            if config.relative_buckets
            else None
        )

    def __call__(self, layout: Layout) -> tuple[Places, Places]:
        """For layers of full and of sliding attention."""
        tokens = layout.real.shape[1]
        row = jnp.arange(tokens, dtype=jnp.int32)[None]
        place = row if layout.position is None else layout.position  # [R or 1, S]
        bias = first_bias = None
        if self.bias is not None:
            bias = self._biases(row[:, None, :] - row[:, :, None])  # of one example: as in its own places
            first_bias = self._biases(place[:, None, :])
        if self._thetas is None:
            return (Places(None, bias, first_bias),) * 2
        angles = [self._angles(place, theta) for theta in dict.fromkeys(self._thetas)]
        return Places(angles[0], bias, first_bias), Places(angles[-1], bias, first_bias)

    def _angles(self, place: Array, theta: float) -> Array:
        stored = self.frequencies
        frequencies = jnp.asarray(_frequencies(theta, self._head_size)) if stored is None else stored[...]
        return place[..., None].astype(jnp.float32) * frequencies[None, None]

    def _biases(self, distance: Array) -> Array:
        """[., Q, S] of key minus asking -> [., N, Q, S]."""
        assert self.bias is not None
        table = self.bias[...]
        # a product with ones and zeros: the transpose of a lookup in so small a table adds row by row
        chosen = jax.nn.one_hot(_bucket(distance), len(table), dtype=table.dtype)
        return jnp.moveaxis(jnp.matmul(chosen, table, precision=jax.lax.Precision.HIGHEST), -1, 1)


def rotated(x: Array, angles: Array) -> Array:
    """Rotates x [R, N, S, H]: entries n and n + H/2 are a point in the plane, turned by angles [R or 1, S, H/2].

    Example:
      >>> x = jnp.asarray([1.0, 0.0]).reshape(1, 1, 1, 2)
      >>> rotated(x, jnp.full((1, 1, 1), jnp.pi / 2)).round(3).tolist()
      [[[[-0.0, 1.0]]]]
    """
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    one, other = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1).astype(x.dtype)


def _frequencies(theta: float, size: int) -> np.ndarray:
    """theta^(-2n/H) in float32, as transformers does: at place 8192 the last digit of a frequency counts."""
    powers = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return np.float32(1.0) / np.float32(theta) ** powers


def _bucket(distance: Array) -> Array:
    """T5's buckets: half for keys behind; of each half, half for one distance each, and half in steps that grow."""
    half = RELATIVE_BUCKETS // 2
    exact, away = half // 2, jnp.abs(distance)
    growth = jnp.log(jnp.maximum(away, 1).astype(jnp.float32) / exact) / math.log(_FARTHEST / exact)
    far = jnp.minimum(exact + (growth * (half - exact)).astype(jnp.int32), half - 1)
    return jnp.where(distance > 0, half, 0) + jnp.where(away < exact, away, far)
