"""The small parts that encoder, head and SVT slot share: dense layer, layer norm, dropout."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from svt_jax.mesh import shard_batch
from svt_jax.models.cpu_layers import kept, repeated
from svt_jax.models.packed import Layout

Array = jax.Array


class Linear(nnx.Linear):
    """x W + b over the last dimension with BERT's initialisation; parameters float32, computation in `dtype`.

    Rows are flattened, because XLA on CPU lays a kernel's gradient over [B, L] out with a copy.

    Args:
      axes: logical axes of the kernel [in_size, out_size].
      use_bias: whether there is a b.
      metadata: other metadata of both parameters.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        axes: tuple[str, str],
        *,
        initializer_range: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        use_bias: bool = True,
        **metadata: Any,
    ):
        # Where the product sums over devices, each device has the whole result, and so the whole bias.
        bias_axis = "hidden" if axes[1] == "embed" else axes[1]
        super().__init__(
            in_size,
            out_size,
            use_bias=use_bias,
            kernel_init=nnx.initializers.normal(initializer_range),
            dtype=dtype,
            rngs=rngs,
            kernel_metadata={"logical_axes": axes, **metadata},
            bias_metadata={"logical_axes": (bias_axis,), **metadata},
        )

    def __call__(self, x: Array, *, bias_gradient: bool = True) -> Array:  # type: ignore[override]
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        if self.bias is None:
            rows, kernel = self.promote_dtype((rows, self.kernel[...]), dtype=self.dtype)
            return (rows @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])
        rows, kernel, bias = self.promote_dtype((rows, self.kernel[...], self.bias[...]), dtype=self.dtype)
        bias = repeated(bias, len(rows)) if bias_gradient else jax.lax.stop_gradient(bias)[None]
        return (rows @ kernel + bias).reshape(*x.shape[:-1], bias.shape[-1])


class LayerNorm(nnx.LayerNorm):
    """(x - mean) / sqrt(variance + epsilon) scale + bias over the last dimension, in float32; `use_bias` as in Linear."""

    def __init__(self, size: int, *, epsilon: float, rngs: nnx.Rngs, use_bias: bool = True):
        vector = {"logical_axes": ("hidden",)}
        super().__init__(
            size, epsilon=epsilon, rngs=rngs, use_bias=use_bias, scale_metadata=vector, bias_metadata=vector
        )

    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        assert self.scale is not None
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).astype(jnp.float32)
        scale = repeated(self.scale[...], len(rows))
        bias = None if self.bias is None else repeated(self.bias[...], len(rows))
        number = self.scale[0]
        rows = kept(rows, number)
        centered = rows - jnp.mean(rows, axis=1, keepdims=True)
        # not flax's default E[x^2] - E[x]^2, which loses digits
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=1, keepdims=True) + self.epsilon)
        out = centered * inverse * scale
        return kept(out if bias is None else out + bias, number).reshape(x.shape)


class DropoutBits:
    """Random bits of one draw, 16 for each entry, that the dropouts of a layer take one after another.

    Each draw is a large program, which XLA on CPU copies into the operations that read it. So all dropouts of all
    layers share one draw: the step of 6 x 384 then has 299 kernels to compile, and had 373 with a draw for each shape.

    Args:
      halves: uint16[rows, N]; row n serves row n of the arrays.
    """

    def __init__(self, halves: Array):
        self._halves, self._taken = halves, 0

    def take(self, shape: tuple[int, ...]) -> Array:
        """The next bits, uint16 of this shape."""
        size = math.prod(shape[1:])
        bits = self._halves[:, self._taken : self._taken + size]
        self._taken += size
        return shard_batch(bits).reshape(shape)  # else the partitioner divides the slice over `tensor`: an exchange

    def of_first(self, x: Array, layout: Layout) -> DropoutBits:
        """The bits of the examples' first tokens, out of the last ones of the rows x [R, S, D]."""
        tokens, width = x.shape[1:]
        each = (self._halves.shape[1] - self._taken) // (tokens * width)
        of_tokens = self._halves[:, self._halves.shape[1] - each * tokens * width :].reshape(*x.shape[:2], each * width)
        return DropoutBits(layout.first_tokens(of_tokens)[:, 0])


def draw(key: Array, rows: int, size: int) -> Array:
    """Random uint16[rows, size]."""
    words = jax.random.bits(key, (rows, (size + 1) // 2), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(rows, 2 * words.shape[1])


def dropout(x: Array, rate: float, bits: DropoutBits | None) -> Array:
    """Sets entries to zero with probability `rate` and scales the others up; without bits there is no dropout.

    Each entry takes 16 random bits: on CPU 32 bits each cost about as much as a dense layer. The probability is exact
    to 2^-17.
    """
    if bits is None or rate == 0.0:
        return x
    threshold = round(rate * 2**16)
    keep_probability = 1.0 - threshold / 2**16
    return jnp.where(bits.take(x.shape) >= threshold, x / keep_probability, 0.0).astype(x.dtype)


def dropout_once(x: Array, rate: float, key: Array | None) -> Array:
    """`dropout` with a draw of its own."""
    if key is None or rate == 0.0:
        return x
    return dropout(x, rate, DropoutBits(draw(key, x.shape[0], math.prod(x.shape[1:]))))


def first_token(x: Array) -> Array:
    """Returns x[:, 0] of x [B, L, D], NaN where there are no tokens."""
    return x[:, 0] if x.shape[1] else jnp.full((x.shape[0], x.shape[2]), jnp.nan, x.dtype)
