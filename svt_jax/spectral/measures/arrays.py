"""What the rooms of measures share: checked input, unit and centred rows, pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from svt_jax.spectral.base import prepare
from svt_jax.spectral.solvers import product

Array = jax.Array


def checked(x: Array, mask: Array | None) -> tuple[Array, Array]:
    """Returns x in float32 or float64 with masked rows zero, and the mask, all true if there was none."""
    work, mask = prepare(x, mask, "a measure")
    return work, jnp.ones(work.shape[:-1], bool) if mask is None else mask


def number_of(mask: Array, dtype: jnp.dtype) -> Array:
    """The number of real rows [...] of a mask [..., L], as a floating-point number."""
    return jnp.sum(mask, axis=-1).astype(dtype)


def unit_rows(x: Array) -> Array:
    """x_i / |x_i|; zero rows stay zero."""
    # keeps squares of very large or small entries finite; constant to differentiation, as the result is scale-free
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0.0))
    x = x / jnp.where(scale > 0, scale, 1.0)
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(squares > 0, squares, 1.0))


def scaled(x: Array) -> Array:
    """x over its largest entry, for measures that do not depend on scale; a zero matrix stays zero."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0.0))
    return x / jnp.where(largest > 0, largest, 1.0)


def mean_row(x: Array, mask: Array) -> Array:
    """The mean [..., 1, D] of the real rows of x [..., L, D], whose masked rows are zero; zero where there are none."""
    n = jnp.maximum(number_of(mask, x.dtype), 1.0)[..., None, None]
    return jnp.sum(x, axis=-2, keepdims=True) / n


def centred(x: Array, mask: Array) -> Array:
    """x minus the mean of its real rows; masked rows stay zero."""
    return jnp.where(mask[..., None], x - mean_row(x, mask), 0.0)


def over(numerator: Array, denominator: Array) -> Array:
    """The quotient, 0 where the denominator is not positive; its derivatives are finite there."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1.0), 0.0)


def squared_distances(x: Array) -> Array:
    """|x_i - x_j|^2 [..., L, L] of all pairs of rows, without negative rounding errors."""
    lengths = jnp.sum(jnp.square(x), axis=-1)
    return jnp.maximum(lengths[..., :, None] + lengths[..., None, :] - 2.0 * product(x, x.mT), 0.0)


def pairs_of(mask: Array) -> Array:
    """bool[..., L, L], true for two different real rows."""
    return mask[..., :, None] & mask[..., None, :] & others(mask.shape)


def others(shape: tuple[int, ...]) -> Array:
    """bool[..., L, L] of the shape [..., L] of a mask, true off the diagonal."""
    rows = shape[-1]
    return jnp.broadcast_to(~jnp.eye(rows, dtype=bool), (*shape, rows))
