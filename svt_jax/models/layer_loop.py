"""Runs the layers of an encoder one after another, with options for the compiled program and for its results."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svt_jax.mesh import shard_batch
from svt_jax.models.encoder_layer import EncoderLayer, LayerOutput, Transformed
from svt_jax.models.layers import DropoutBits, draw
from svt_jax.models.packed import Layout
from svt_jax.models.positions import Places
from svt_jax.spectral.solvers import DECOMPOSITION

Array = jax.Array


class _Static(NamedTuple):
    """What is the same whenever a compiled layer runs: entries drawn for a row, and what the layer returns."""

    size: int
    first_token_only: bool
    keep_maps: bool


class _Given(NamedTuple):
    """What a compiled layer receives beside its weights and its input.

    Attributes:
      layout, places: as for `through_layers`, the places of this layer.
      bits: uint16[R, size] or a key that its dropouts draw from; in a loop the same with an axis of layers in front.
      first_values: as for `EncoderLayer`.
    """

    layout: Layout
    places: Places
    bits: Array | None
    first_values: Array | None = None


def through_layers(
    layers: Sequence[EncoderLayer],
    x: Array,
    layout: Layout,
    places: tuple[Places, Places],
    bits: Sequence[Array | None] | None,
    sizes: tuple[int, int],
    *,
    remat: bool,
    scan: bool,
    first_token_only: bool,
    keep: bool,
    keep_maps: bool = False,
) -> tuple[Array, list[Array], dict[int, Transformed], list[Array]]:
    """Returns the last layer's output, every layer's, what each remedy did, by layer number, and every layer's attention maps.

    Args:
      layers: all layers of an encoder.
      x: [R, S, D], the embeddings' output.
      layout: where examples lie in the rows.
      places: what attention knows of places, in layers of full and of sliding attention.
      bits: what the dropouts of the layers of full and of sliding attention draw from: uint16[layers, R, size], or keys
        [layers], None where there is no such layer; None for no dropout.
      sizes: number of random entries of a row, in layers of full and of sliding attention.
      remat, scan: `Encoder`'s settings.
      first_token_only: whether the last layer returns only the examples' first tokens.
      keep: loops keep the outputs of their inner layers too; without it the list of states is not complete.
      keep_maps: whether to return attention maps [R, N, S, S]; without it the list is empty.
    """
    states: list[Array] = []
    transformed: dict[int, Transformed] = {}
    attentions: list[Array] = []
    first_values: Array | None = None
    call = _call_again if remat else _call
    parts = [nnx.split(layer) for layer in layers]
    last = len(layers) - 1
    passed = [0, 0]  # layers of full and of sliding attention
    for start, stop in _loops(layers, scan, first_token_only):
        kind = layers[start].window is not None
        where, drawn, n = places[kind], None if bits is None else bits[kind], passed[kind]
        passed[kind] += stop - start
        static = _Static(sizes[kind], first_token_only=False, keep_maps=keep_maps)
        if stop - start > 1:
            shared = all(layer.attention is layers[start].attention for layer in layers[start:stop])
            some = None if drawn is None else drawn[n : n + stop - start]
            with jax.named_scope(f"layers_{start}_to_{stop - 1}"):
                x, inner, maps = _scan(
                    call, parts[start:stop], x, _Given(layout, where, some), static, shared=shared, keep=keep
                )
            states += inner
            attentions += maps
        else:
            some = None if drawn is None else drawn[n]
            of_first = first_values if layers[start].site == "value" else None
            with jax.named_scope(f"layer_{start}"):  # around the call, whose trace all layers share
                here = static._replace(first_token_only=first_token_only and start == last)
                out = call(*parts[start], x, _Given(layout, where, some, of_first), here)
            x, found, maps_of_one = out.x, out.transformed, out.maps
            first_values = out.values if layers[start].hands_on else first_values
            states.append(x)
            attentions += [] if maps_of_one is None else [maps_of_one]
            if found is not None:
                transformed[start] = found
    return x, states, transformed, attentions


def draw_bits(
    key: Array, layers: Sequence[EncoderLayer], rows: int, sizes: tuple[int, int], *, remat: bool
) -> tuple[DropoutBits, tuple[Array | None, Array | None]]:
    """The random bits of the embeddings, and those of the layers as `through_layers` takes them.

    One draw for all layers of a kind: see DropoutBits. A layer's bits do not depend on what the layers below take.
    """
    keys = jax.random.split(key, 1 + len(layers))
    sliding = np.array([False, *(layer.window is not None for layer in layers)])
    of_full, of_sliding = (functools.partial(draw, rows=rows, size=size) for size in sizes)
    if remat:
        return DropoutBits(shard_batch(of_full(keys[0]))), (keys[~sliding][1:], keys[sliding])
    full = jax.vmap(of_full)(keys[~sliding])
    return DropoutBits(shard_batch(full[0])), (full[1:], jax.vmap(of_sliding)(keys[sliding]) if any(sliding) else None)


@functools.partial(jax.jit, static_argnums=(0, 4))  # layers of one shape are traced once
def _call(graphdef: nnx.GraphDef, state: nnx.State, x: Array, given: _Given, static: _Static) -> LayerOutput:
    layer: EncoderLayer = nnx.merge(graphdef, state)
    bits = given.bits
    if bits is not None and bits.ndim == 0:  # a key: the gradient draws again, and keeps no bits
        bits = draw(bits, len(x), static.size)
    drawn = None if bits is None else DropoutBits(shard_batch(bits))
    return layer(
        x,
        given.layout,
        given.first_values,
        places=given.places,
        first_token_only=static.first_token_only,
        keep_maps=static.keep_maps,
        bits=drawn,
    )


# The gradient computes a layer's inner values again, but keeps a decomposition.
_call_again = jax.checkpoint(
    _call, policy=jax.checkpoint_policies.save_only_these_names(DECOMPOSITION), static_argnums=(0, 4)
)


def _loops(layers: Sequence[EncoderLayer], scan: bool, last_by_itself: bool) -> list[tuple[int, int]]:
    """Splits the layers into ranges: each becomes one loop of the compiled program, or is one layer."""
    loops: list[tuple[int, int]] = []
    for n in range(len(layers)):
        by_itself = last_by_itself and n == len(layers) - 1
        pair = layers[max(n - 1, 0) : n + 1]
        alike = all(each.svt is None and not each.hands_on for each in pair)
        alike &= len({(each.window, each.attention_norm is None) for each in pair}) == 1
        if scan and not by_itself and n and alike:
            loops[-1] = (loops[-1][0], n + 1)
        else:
            loops.append((n, n + 1))
    return loops


def _scan(
    call: Callable[..., LayerOutput],
    parts: Sequence[tuple[nnx.GraphDef, nnx.State]],
    x: Array,
    given: _Given,
    static: _Static,
    *,
    shared: bool,
    keep: bool,
) -> tuple[Array, list[Array], list[Array]]:
    """Computes each layer's output and attention maps in one loop, compiled once for all of them.

    Weights are stacked at each call, unless the layers share them.
    """
    graphdef, first = parts[0]
    states = [state for _, state in parts]
    stacked = None if shared else jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def body(x: Array, item: tuple[nnx.State | None, Array | None]) -> tuple[Array, tuple[Array | None, Array | None]]:
        state, drawn = item
        out = call(graphdef, first if state is None else state, x, given._replace(bits=drawn), static)
        return out.x, (out.x if keep else None, out.maps)

    x, kept = jax.lax.scan(body, x, (stacked, given.bits), length=len(parts))
    outputs, maps = ([] if each is None else list(each) for each in kept)
    return x, outputs, maps
