"""Small parts that encoder, head and SVT slot share: dense layer, layer norm, dropout, activations, batch sharding.

Every parameter carries `logical_axes`, what each of its dimensions is:

  embed      the side of a matrix that reads or writes hidden states
  heads      queries, keys or values of all attention heads (such a parameter carries `num_heads` too)
  mlp        the feed-forward's inner size
  pooled     the features that a head classifies
  lookup     the columns of an embedding table
  factor     of ALBERT's projection, the side of the embedding size
  rows, labels, hidden, parameter   rows of a table, classes, vectors over hidden states, an SVT's parameters

`training.sharding` says which of them the devices of a mesh divide. (Flax's own `out_sharding` metadata acts when a
module is built: without a mesh it raises.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from svt_jax.spectral.base import work_dtype
from svt_jax.spectral.partition import BATCH_AXES

Array = jax.Array


def _exact_gelu(x: Array) -> Array:
    """x Phi(x) with Phi(x) = 1/2 + 1/2 erf(x / sqrt 2), at least in float32 (Hendrycks and Gimpel, arXiv 1606.08415).

    As PyTorch does. jax.nn.gelu takes erfc, which keeps relative digits far to the left too, where the value is next to
    nothing, and costs a branch an entry.
    """
    wide = x.astype(work_dtype(x.dtype))
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


_tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)

ACTIVATION_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _exact_gelu,
    "gelu_python": _exact_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_accurate": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "gelu_python_tanh": _tanh_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


class Linear(nnx.Linear):
    """x W + b over the last dimension with BERT's initialisation; parameters float32, computation in `dtype`.

    In an order that XLA is fast at on CPU. Rows are flattened: a kernel's gradient over [B, L] is laid out with a copy,
    over [B L] it is not. A bias's gradient, the sums of columns, is a product with ones, which takes a tenth of the time.

    Args:
      axes: logical axes of the kernel [in_size, out_size].
      metadata: more that both parameters carry.
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
        **metadata: Any,
    ):
        # What a bias is added to is whole on each device where the product sums over devices.
        bias_axis = "hidden" if axes[1] == "embed" else axes[1]
        super().__init__(
            in_size,
            out_size,
            kernel_init=nnx.initializers.normal(initializer_range),
            dtype=dtype,
            rngs=rngs,
            kernel_metadata={"logical_axes": axes, **metadata},
            bias_metadata={"logical_axes": (bias_axis,), **metadata},
        )

    def __call__(self, x: Array, *, bias_gradient: bool = True) -> Array:  # type: ignore[override]
        assert self.bias is not None, "every dense layer of these models has one"
        rows, kernel, bias = self.promote_dtype(
            (x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), self.kernel[...], self.bias[...]), dtype=self.dtype
        )
        bias = _repeat(bias, len(rows)) if bias_gradient else jax.lax.stop_gradient(bias)[None]
        return (rows @ kernel + bias).reshape(*x.shape[:-1], bias.shape[-1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _repeat(row: Array, times: int) -> Array:
    """[F] -> [times, F], whose transpose is a product with ones."""
    return jnp.broadcast_to(row, (times, *row.shape))


@_repeat.defjvp
def _repeat_jvp(times: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    ones = jnp.ones((times, 1), tangents[0].dtype)
    return _repeat(primals[0], times), jnp.matmul(ones, tangents[0][None], precision=jax.lax.Precision.HIGHEST)


class LayerNorm(nnx.LayerNorm):
    """(x - mean) / sqrt(variance + epsilon) scale + bias over the last dimension, in float32.

    In an order that XLA is fast at on CPU: gradients of scale and bias, sums of columns, are products with ones, as a
    dense layer's bias has it, and what goes in and out is kept for the backward pass. (The fast variance
    E[x^2] - E[x]^2 that flax defaults to would lose digits.)
    """

    def __init__(self, size: int, *, epsilon: float, rngs: nnx.Rngs):
        vector = {"logical_axes": ("hidden",)}
        super().__init__(size, epsilon=epsilon, rngs=rngs, scale_metadata=vector, bias_metadata=vector)

    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        assert self.scale is not None
        assert self.bias is not None
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).astype(jnp.float32)
        scale, bias = _repeat(self.scale[...], len(rows)), _repeat(self.bias[...], len(rows))
        number = self.scale[0]
        out = _kept(_standardize(_kept(rows, number), self.epsilon) * scale + bias, number)
        return out.reshape(x.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _standardize(rows: Array, epsilon: float) -> Array:
    return _standardized(rows, epsilon)[0]


def _standardized(rows: Array, epsilon: float) -> tuple[Array, Array]:
    centered = rows - jnp.mean(rows, axis=1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=1, keepdims=True) + epsilon)
    return centered * inverse, inverse


@_standardize.defjvp
def _standardize_jvp(epsilon: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    standardized, inverse = _standardized(primals[0], epsilon)
    centered = tangents[0] - jnp.mean(tangents[0], axis=1, keepdims=True)
    along = jnp.mean(centered * standardized, axis=1, keepdims=True)
    return standardized, (centered - standardized * along) * inverse


@jax.custom_jvp
def _kept(x: Array, number: Array) -> Array:
    """x, as an array of its own where there will be a derivative.

    XLA on CPU would compute it anew in each place that uses it, and so, in the backward pass, all residuals and norms of
    all layers below it. It sees through optimization_barrier, not through a
    condition whose truth the numbers decide: whether `number`, a parameter that x is multiplied with, is one.
    """
    return x


@_kept.defjvp
def _kept_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    def on_cpu(x: Array, number: Array) -> Array:
        out: Array = jax.lax.cond(jnp.isnan(number), lambda x: x * number, lambda x: x, x)
        return out

    kept: Array = jax.lax.platform_dependent(*primals, cpu=on_cpu, default=lambda x, number: x)
    return kept, tangents[0]


def dropout(x: Array, rate: float, rngs: nnx.Rngs | None) -> Array:
    """Sets entries to zero with probability `rate` and scales the others up; no rngs, no dropout.

    Draws 16 random bits an entry, two entries a word: 32 bits each cost about as much as a dense layer on CPU.
    The probability is exact to 2^-17.
    """
    if rngs is None or rate == 0.0:
        return x
    *leading, last = x.shape
    words = jax.random.bits(rngs.dropout(), (*leading, (last + 1) // 2), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*leading, -1)[..., :last]
    threshold = round(rate * 2**16)
    keep_probability = 1.0 - threshold / 2**16
    return jnp.where(halves >= threshold, x / keep_probability, 0.0).astype(x.dtype)


def first_token(x: Array) -> Array:
    """x[:, 0] of [B, L, D], NaN where there are no tokens."""
    return x[:, 0] if x.shape[1] else jnp.full((x.shape[0], x.shape[2]), jnp.nan, x.dtype)


def shard_batch(x: Array) -> Array:
    """Keeps x sharded over its batch dimension and gathered over the others; does nothing without a mesh.

    Without this the partitioner follows the parameters' shardings, gathers the batch, and every device decomposes
    all of it. The numbers would be right, so only the compiled program shows it.
    """
    return _constrain(x, BATCH_AXES)


def shard_columns(x: Array) -> Array:
    """Leaves x [B, L, E], looked up in a table whose columns `tensor` and `fsdp` divide, divided as the table is."""
    return _constrain(x, BATCH_AXES[:1], (), ("tensor", "fsdp"))


def gather_columns(x: Array) -> Array:
    """`shard_batch` after `shard_columns`, in steps that are a single exchange each.

    In one go the partitioner gathers the whole batch from all devices.
    """
    return shard_batch(_constrain(x, BATCH_AXES, (), ("tensor",)))


def _constrain(x: Array, *spec: tuple[str, ...]) -> Array:
    """Divides each dimension over those of its mesh axes that there are."""
    names = jax.sharding.get_abstract_mesh().auto_axes
    present = [tuple(axis for axis in axes if axis in names) for axes in spec]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*present)) if any(present) else x
