"""Runs the layers of an encoder one after another, with options for the compiled program and for its results."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svt_jax.mesh import shard_batch
from svt_jax.models.encoder_layer import EncoderLayer, Sizes, Transformed, draw_halves
from svt_jax.models.layers import DropoutBits
from svt_jax.models.packed import Layout
from svt_jax.spectral.solvers import DECOMPOSITION

Array = jax.Array


def through_layers(
    layers: Sequence[EncoderLayer],
    x: Array,
    layout: Layout,
    keys: Array | None,
    *,
    remat: bool,
    scan: bool,
    first_token_only: bool,
    keep: bool,
) -> tuple[Array, list[Array], dict[int, Transformed]]:
    """Returns every layer's output, and what each SVT did, by layer number.

    Args:
      layers: all layers of an encoder.
      x: [R, S, D], the embeddings' output.
      layout: where examples lie in the rows.
      keys: dropout keys [layers, 2]; None for no dropout.
      remat, scan: `Encoder`'s settings.
      first_token_only: whether the last layer returns only the examples' first tokens.
      keep: loops keep the outputs of their inner layers too; without it the list of states is not complete.
    """
    states: list[Array] = []
    transformed: dict[int, Transformed] = {}
    call = _call_again if remat else _call
    parts = [nnx.split(layer) for layer in layers]
    last = len(layers) - 1
    sizes = [layer.sizes(x, layout, first_token_only and n == last) for n, layer in enumerate(layers)]
    draws = None if keys is None else _draws(keys, sizes, remat)
    for start, stop in _loops(layers, scan, first_token_only):
        if stop - start > 1:
            some = None if draws is None else jax.tree.map(lambda *each: jnp.stack(each), *draws[start:stop])
            shared = layers[start].attention is layers[start + 1].attention
            x, inner = _scan(parts[start:stop], x, layout, some, sizes[start], call, shared=shared, keep=keep)
            states += inner
        else:
            some = None if draws is None else draws[start]
            first = first_token_only and start == last
            x, found = call(parts[start][0], parts[start][1], x, layout, some, sizes[start], first)
            states.append(x)
            if found is not None:
                transformed[start] = found
    return x, states, transformed


def _draws(keys: Array, sizes: Sequence[Sizes], remat: bool) -> list[Any]:
    """Each layer's random bits, or its keys where they are drawn again for the gradient; the bits are the same."""
    if remat:
        return list(keys)
    draws: list[Any] = [None] * len(sizes)
    for size in dict.fromkeys(sizes):  # one draw for all layers of a shape
        numbers = [n for n, each in enumerate(sizes) if each == size]
        together = jax.vmap(lambda key, size=size: draw_halves(key, size))(keys[np.asarray(numbers)])
        for place, n in enumerate(numbers):
            draws[n] = jax.tree.map(lambda halves, place=place: shard_batch(halves[place]), together)
    return draws


@functools.partial(jax.jit, static_argnums=(0, 5, 6))  # layers of one shape are traced once
def _call(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    x: Array,
    layout: Layout,
    drawn: Any,
    sizes: Sizes,
    first_token_only: bool = False,
) -> tuple[Array, Transformed | None]:
    if drawn is None:
        bits = None
    else:
        halves = drawn if isinstance(drawn, tuple) else draw_halves(drawn, sizes)
        bits = DropoutBits(halves[0]), DropoutBits(halves[1])
    layer: EncoderLayer = nnx.merge(graphdef, state)
    return layer(x, layout, first_token_only=first_token_only, bits=bits)


# The gradient computes a layer's inner values again, but keeps a decomposition.
_call_again = jax.checkpoint(
    _call, policy=jax.checkpoint_policies.save_only_these_names(DECOMPOSITION), static_argnums=(0, 5, 6)
)


def _loops(layers: Sequence[EncoderLayer], scan: bool, last_by_itself: bool) -> list[tuple[int, int]]:
    """Splits the layers into ranges: each becomes one loop of the compiled program, or is one layer."""
    loops: list[tuple[int, int]] = []
    for n, layer in enumerate(layers):
        by_itself = last_by_itself and n == len(layers) - 1
        if scan and not by_itself and n and layer.svt is None and layers[n - 1].svt is None:
            loops[-1] = (loops[-1][0], n + 1)
        else:
            loops.append((n, n + 1))
    return loops


def _scan(
    parts: Sequence[tuple[nnx.GraphDef, nnx.State]],
    x: Array,
    layout: Layout,
    draws: Any,
    sizes: Sizes,
    call: Callable[..., tuple[Array, Transformed | None]],
    *,
    shared: bool,
    keep: bool,
) -> tuple[Array, list[Array]]:
    """Computes each layer's output in one loop, compiled once for all of them.

    Weights are stacked at each call, unless the layers share them.
    """
    graphdef, first = parts[0]
    states = [state for _, state in parts]
    stacked = None if shared else jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def body(x: Array, item: tuple[nnx.State | None, Any]) -> tuple[Array, Array | None]:
        state, drawn = item
        x, _ = call(graphdef, first if state is None else state, x, layout, drawn, sizes, False)
        return x, x if keep else None

    x, outputs = jax.lax.scan(body, x, (stacked, draws), length=len(parts))
    return x, [] if outputs is None else list(outputs)
