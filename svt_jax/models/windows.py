"""Sliding attention: which keys are near, and the same block by block, at a cost of S W instead of S^2.

A row is cut into blocks of W tokens, W the window to each side. A block's tokens see no farther than the two blocks beside
it, so its queries meet 3 W keys, whatever the length of the row.

Shape letters are those of `packed`, `W` window, `B` blocks of a row, `.` any dimensions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from svt_jax.models.packed import Layout

Array = jax.Array


def blocks_pay(tokens: int, window: int) -> bool:
    """Whether a row is longer than two windows; up to there blocks would save next to nothing."""
    return tokens > 4 * block_size(window)


def block_size(window: int) -> int:
    """W; a token that sees only itself is a block."""
    return max(window, 1)


def near(layout: Layout, window: int, *, first: bool) -> Array:
    """bool[R or 1, S or 1, S]: keys at most `window` tokens away from the asking ones, all tokens or first ones."""
    row = jnp.arange(layout.real.shape[1], dtype=jnp.int32)[None]
    if first:
        place = row if layout.position is None else layout.position
        return (place <= window)[:, None, :]
    return jnp.abs(row[:, None, :] - row[:, :, None]) <= window


def near_in_blocks(layout: Layout, window: int) -> Array:
    """bool[R, B, W, 3 W]: which keys of its own and the next blocks each token attends to."""
    size = block_size(window)
    asks, keys = layout.segments
    asks = in_blocks(jnp.broadcast_to(asks, keys.shape)[..., None], size)  # [R, B, W, 1]
    keys = jnp.swapaxes(with_neighbours(keys[..., None], size), -1, -2)  # [R, B, 1, 3 W], 0 outside of the row
    distance = np.arange(3 * size) - np.arange(size, 2 * size)[:, None]
    return (asks == keys) & (keys > 0) & (np.abs(distance) <= window)[None, None]


def in_blocks(x: Array, size: int) -> Array:
    """[., S, H] -> [., B, W, H], with zeros behind the end.

    Example:
      >>> in_blocks(jnp.arange(3)[:, None], 2)[..., 0].tolist()
      [[0, 1], [2, 0]]
    """
    count = -(-x.shape[-2] // size)
    room = [(0, 0)] * (x.ndim - 2) + [(0, count * size - x.shape[-2]), (0, 0)]
    return jnp.pad(x, room).reshape(*x.shape[:-2], count, size, x.shape[-1])


def with_neighbours(x: Array, size: int) -> Array:
    """[., S, H] -> [., B, 3 W, H]: of each block the one before it, itself, and the one behind it; zeros at the ends.

    Example:
      >>> with_neighbours(jnp.arange(1, 5)[:, None], 2)[..., 0].tolist()
      [[0, 0, 1, 2, 3, 4], [1, 2, 3, 4, 0, 0]]
    """
    own = in_blocks(x, size)
    none = jnp.zeros_like(own[..., :1, :, :])
    before = jnp.concatenate([none, own[..., :-1, :, :]], axis=-3)
    behind = jnp.concatenate([own[..., 1:, :, :], none], axis=-3)
    return jnp.concatenate([before, own, behind], axis=-2)


def in_rows(blocks: Array, tokens: int) -> Array:
    """[., B, W, H] -> [., S, H], the inverse of `in_blocks`."""
    return blocks.reshape(*blocks.shape[:-3], -1, blocks.shape[-1])[..., :tokens, :]
