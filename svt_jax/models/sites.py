"""Applies a layer's remedy at the sites inside attention, and a loss term to the outputs of layers.

Shape letters are those of `packed`, `N` heads and `H` head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from svt_jax.mesh import shard_batch
from svt_jax.models.packed import Layout
from svt_jax.models.slot import SVTLayer

Array = jax.Array


class InsideAttention:
    """What a layer's remedy does inside its attention: nothing, unless its site is `attention_map` or `value`.

    Args:
      slot: the layer's remedy; None for none.
      layout: where examples lie in the rows; a remedy needs it.
      first_values: [R, N, S, H], the values of the encoder's first layer; None in that layer itself.
      attends: bool[R, S or 1, S], which keys each token attends to in this layer; None is as the layout says.

    Attributes:
      values: [R, N, S, H], the layer's own values.
      failed: bool[E], the examples that the remedy left as they were, because its result was not finite; None where it
        did nothing.
    """

    def __init__(
        self,
        slot: SVTLayer | None,
        layout: Layout | None = None,
        first_values: Array | None = None,
        attends: Array | None = None,
    ):
        self._slot, self._layout, self._first_values, self._attends = slot, layout, first_values, attends
        self.values: Array | None = None
        self.failed: Array | None = None

    def on_map(self, attention: Array, *, behind_dropout: bool) -> Array:
        """The map [R, N, S, S] after the remedy; called before and behind the map's dropout."""
        if self._slot is None or self._slot.site != "attention_map":
            return attention
        remedy, layout = self._slot.function, self._layout
        assert layout is not None
        if remedy.behind_dropout != behind_dropout:
            return attention
        attends = layout.attends if self._attends is None else self._attends
        return self._unless_failed(attention, remedy.on_attended(attention, attends[:, None]), layout)

    def on_values(self, mixed: Array, values: Array) -> Array:
        """What the tokens gathered, A V [R, N, S, H], after the remedy."""
        self.values = values
        if self._slot is None or self._slot.site != "value":
            return mixed
        remedy, layout = self._slot.function, self._layout
        assert layout is not None
        first = values if self._first_values is None else self._first_values
        if remedy.token_wise:
            out = remedy(mixed, values, first, layout.real)
        else:
            heads, size = mixed.shape[1], mixed.shape[3]
            of_examples = (_by_heads(layout.to_matrices(_joined(x)), heads, size) for x in (mixed, values, first))
            out = _by_heads(layout.to_rows(_joined(remedy(*of_examples, layout.mask))), heads, size)
        return self._unless_failed(mixed, out, layout)

    def _unless_failed(self, before: Array, after: Array, layout: Layout) -> Array:
        finite = lambda x: jnp.all(jnp.isfinite(x), axis=(1, 3))
        bad = finite(before) & ~finite(after)  # [R, S]
        self.failed = _any_token(bad, layout)
        unchanged = bad | _of_tokens(self.failed, layout)
        return jnp.where(unchanged[:, None, :, None], before, after)


def _joined(x: Array) -> Array:
    """[., N, L, H] -> [., L, N H]."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _by_heads(x: Array, heads: int, size: int) -> Array:
    """[., L, N H] -> [., N, L, H]."""
    return x.reshape(*x.shape[:2], heads, size).swapaxes(1, 2)


def _any_token(flags: Array, layout: Layout) -> Array:
    """bool[R, S] -> bool[E], whether any of an example's tokens has the flag."""
    matrices = layout.to_matrices(flags[..., None].astype(jnp.float32))[..., 0]
    return jnp.any((matrices > 0) & layout.mask, axis=1)


def _of_tokens(flags: Array, layout: Layout) -> Array:
    """bool[E] -> bool[R, S]."""
    matrices = jnp.broadcast_to(flags[:, None, None].astype(jnp.float32), (*layout.mask.shape, 1))
    return layout.to_rows(matrices)[..., 0] > 0


def loss_term(slot: SVTLayer, states: Sequence[Array], layout: Layout, counted: Array) -> tuple[Array, Array | None]:
    """The weighted term of the training loss, and its state after this step; None for a term without state.

    Args:
      slot: the remedy.
      states: [R, S, D], the outputs of the layers that it is for.
      layout: where examples lie in the rows.
      counted: bool[E], false for examples that only fill up the batch.
    """
    remedy, state = slot.function, None if slot.state is None else slot.state[...]
    matrices = [shard_batch(layout.to_matrices(x)) for x in states]
    x = jnp.stack([each.astype(jnp.float32) for each in matrices], axis=1)  # [E, K, L, D]
    mask = jnp.broadcast_to((layout.mask & counted[:, None])[:, None], x.shape[:-1])
    x = jnp.where(mask[..., None], x, 0.0)
    return slot.weight * remedy(x, mask, state), None if state is None else remedy.next_state(x, mask, state)
