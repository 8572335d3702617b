"""Runs the layers of an encoder one after another, with options for the compiled program and for its results."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from svt_jax.models.encoder_layer import ALL_TOKENS, EncoderLayer, Transformed
from svt_jax.spectral.solvers import DECOMPOSITION

Array = jax.Array


def through_layers(
    layers: Sequence[EncoderLayer],
    x: Array,
    mask: Array,
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
      x: [B, L, D], the embeddings' output.
      mask: bool[B, L].
      keys: dropout keys, one for each layer; None for no dropout.
      remat, scan: `Encoder`'s settings.
      first_token_only: whether the last layer returns only the first token.
      keep: loops keep the outputs of their inner layers too; without it the list of states is not complete.
    """
    states: list[Array] = []
    transformed: dict[int, Transformed] = {}
    call = _call_again if remat else _call
    for start, stop in _loops(layers, scan, first_token_only):
        key = None if keys is None else keys[start:stop]
        if stop - start > 1:
            x, inner = _scan(layers[start:stop], x, mask, key, remat=remat, keep=keep)
            states += inner
        else:
            tokens = slice(1) if first_token_only and stop == len(layers) else ALL_TOKENS
            x, found = call(layers[start], x, mask, None if key is None else nnx.Rngs(dropout=key[0]), tokens)
            states.append(x)
            if found is not None:
                transformed[start] = found
    return x, states, transformed


def _call(
    layer: EncoderLayer, x: Array, mask: Array, rngs: nnx.Rngs | None, tokens: slice = ALL_TOKENS
) -> tuple[Array, Transformed | None]:
    return layer(x, mask, tokens=tokens, rngs=rngs)


# The gradient computes a layer's inner values again, but keeps a decomposition.
_call_again = nnx.remat(_call, policy=jax.checkpoint_policies.save_only_these_names(DECOMPOSITION), static_argnums=4)


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
    layers: Sequence[EncoderLayer], x: Array, mask: Array, keys: Array | None, *, remat: bool, keep: bool
) -> tuple[Array, list[Array]]:
    """Computes each layer's output in one loop, compiled once for all of them.

    Weights are stacked at each call, unless the layers share them.
    """
    call = _call_again if remat else _call
    graphdef, first = nnx.split(layers[0])
    shared = all(layer.attention is layers[0].attention for layer in layers)
    rest = [nnx.state(layer) for layer in layers[1:]]
    stacked = None if shared else jax.tree.map(lambda *leaves: jnp.stack(leaves), first, *rest)

    def body(x: Array, item: tuple[nnx.State | None, Array | None]) -> tuple[Array, Array | None]:
        state, key = item
        layer = nnx.merge(graphdef, first if state is None else state)
        x, _ = call(layer, x, mask, None if key is None else nnx.Rngs(dropout=key))
        return x, x if keep else None

    x, states = jax.lax.scan(body, x, (stacked, keys), length=len(layers))
    return x, [] if states is None else list(states)
