"""Sliding attention block by block: the numbers of whole rows with a mask, at a cost that grows with the length."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from test_packed import SHAPES, inputs

from svt_jax.models.layers import DropoutBits, draw
from svt_jax.models.packed import OneInEachRow
from svt_jax.models.svt_config import SVTConfig
from svt_jax.models.windows import blocks_pay, in_blocks, in_rows, near, near_in_blocks

RNG = np.random.default_rng(0)
LAYER = tiny.encoder("modernbert", num_hidden_layers=2).layers[1].attention
GRAPHDEF, STATE = nnx.split(LAYER)


def masks(tokens):
    """All real, padding behind, in front, and in between; a window in front sees no key at all."""
    place = np.arange(tokens)
    return jnp.asarray(np.stack([place >= 0, place < tokens // 3, place > tokens // 2, (place < 2) | (place > 8)]))


@functools.partial(jax.jit, static_argnums=(2, 3))
def attended(state, x, window, blocks, layout, bits=None):
    layer = nnx.merge(GRAPHDEF, state)
    attends = near_in_blocks(layout, window) if blocks else layout.attends & near(layout, window, first=False)
    bits = None if bits is None else DropoutBits(bits)
    return layer(x, x, attends, window=window if blocks else None, bits=bits)[0]


@pytest.mark.parametrize(("tokens", "window"), [(16, 2), (23, 5), (13, 1), (13, 0), (12, 11)])
def test_blocks_have_the_values_and_gradients_of_whole_rows(tokens, window):
    """Of padding that attends to no key only the values: autodiff of whole rows ignores that its scores were rounded away."""
    layout = OneInEachRow(masks(tokens))
    x = jnp.asarray(RNG.normal(size=(4, tokens, 12)), jnp.float32)
    attends = jnp.any(layout.attends & near(layout, window, first=False), axis=-1)
    weight = jnp.where(attends[..., None], jnp.cos(jnp.arange(x.size)).reshape(x.shape), 0.0)

    def loss(state, x, blocks):
        out = attended(state, x, window, blocks, layout)
        return jnp.sum(out * weight), out

    run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    (ours, out), (theirs, expected) = run(STATE, x, True), run(STATE, x, False)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, float(jnp.abs(b).max())))


def long_model(**changes):
    types = ["full_attention", "sliding_attention", "sliding_attention"]
    return tiny.encoder("modernbert", num_hidden_layers=3, layer_types=types, **changes)


def test_maps_are_of_whole_rows_and_the_states_beside_them_are_the_same():
    model, ids = long_model(), RNG.integers(3, 40, (2, 16)).astype(np.int32)
    mask = np.array([[1] * 16, [0] * 6 + [1] * 10])
    whole = model(ids, mask, output_hidden_states=True, output_attentions=True)
    assert [each.shape for each in whole.attentions] == [(2, 3, 16, 16)] * 3
    for ours, theirs in zip(
        model(ids, mask, output_hidden_states=True).hidden_states, whole.hidden_states, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_token_sees_no_neighbour_in_its_row_and_nothing_beyond_its_window():
    (ids, _, layout), _ = inputs(SHAPES["one group"])
    assert blocks_pay(ids.shape[1], 2)
    seen = np.zeros((*ids.shape, ids.shape[1]), bool)
    blocks = np.asarray(near_in_blocks(layout, 2))
    for row, block, asking, key in np.argwhere(blocks):
        seen[row, 2 * block + asking, 2 * (block - 1) + key] = True
    np.testing.assert_array_equal(seen, layout.attends & near(layout, 2, first=False))


def test_blocks_and_back_is_the_identity():
    x = jnp.asarray(RNG.normal(size=(2, 3, 11, 4)), jnp.float32)
    assert in_blocks(x, 4).shape == (2, 3, 3, 4, 4)
    np.testing.assert_array_equal(in_rows(in_blocks(x, 4), 11), x)


def test_dropout_follows_the_law_of_whole_rows():
    """Means and standard deviations over 4000 draws: what a token gathers has the same moments, and the mean is unchanged."""
    tokens, window, rate, number = 13, 2, 0.3, 4000
    LAYER._dropout = rate
    try:
        graphdef, state = nnx.split(LAYER)
        layout = OneInEachRow(masks(tokens)[:1])
        x = jnp.asarray(RNG.normal(size=(1, tokens, 12)), jnp.float32)

        @functools.partial(jax.jit, static_argnums=0)
        def draws(blocks):
            attends = near_in_blocks(layout, window) if blocks else layout.attends & near(layout, window, first=False)
            size = LAYER.halves(tokens, window if blocks else None)
            assert size == 3 * (14 * 6 if blocks else tokens**2)

            def one(key):
                layer, bits = nnx.merge(graphdef, state), DropoutBits(draw(key, 1, size))
                return layer(x, x, attends, window=window if blocks else None, bits=bits)[0][0]

            return jax.vmap(one)(jax.random.split(jax.random.key(0), number))

        ours, theirs = np.asarray(draws(True)), np.asarray(draws(False))
    finally:
        LAYER._dropout = 0.0
    error = theirs.std(0) / number**0.5
    plain = np.asarray(attended(STATE, x, window, True, layout))[0]
    assert np.all(np.abs(ours.mean(0) - plain) < 5 * error)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.1)
    assert np.abs(ours - plain).max() > 0.1


@pytest.mark.parametrize("remat", [False, True])
def test_sliding_layers_draw_their_own_number_of_bits(remat):
    """With dropout everywhere and more first tokens in a row than a window has keys, and under remat, all shapes fit."""
    model = long_model(attention_probs_dropout_prob=0.2, local_attention=2)
    model.remat = remat
    (ids, types, layout), _ = inputs(SHAPES["one group"])
    full, sliding = model._halves(layout, ids.shape[1], False)
    assert sliding < full
    for flags in ({}, {"first_token_only": True}, {"output_attentions": True}):
        run = lambda ids, flags=flags: model.encode(ids, types, layout, rngs=nnx.Rngs(dropout=0), **flags)
        assert jax.eval_shape(run, ids).last_hidden_state.shape[-1] == 12


@pytest.mark.parametrize("site", ["value", "attention_map"])
def test_a_remedy_inside_attention_has_the_same_numbers_with_blocks_or_without(site):
    name, params = ("neutreno", {"scale": 0.6}) if site == "value" else ("gfsa", {"w_k": [0.3, 0.2, -0.1], "k": 3})
    svt = SVTConfig(name, site=site, layers="all", dropout=0.0, params=params)
    ids, types = RNG.integers(3, 40, (2, 16)).astype(np.int32), ["full_attention", "sliding_attention"]
    model = tiny.encoder("modernbert", svt, layer_types=types)
    whole = model(ids, output_attentions=True)
    np.testing.assert_allclose(model(ids).last_hidden_state, whole.last_hidden_state, atol=1e-5)
    assert (model.layers[1]._blocks_of(16, False) is None) == (site == "attention_map")


def test_the_operations_of_a_sliding_layer_grow_with_the_length_and_those_of_a_full_one_with_its_square():
    model = tiny.encoder("modernbert", max_position_embeddings=4096, local_attention=128)

    def operations(number, tokens):
        graphdef, state = nnx.split(model.layers[number])
        layout = OneInEachRow(jnp.ones((1, tokens), bool))
        apply = lambda state, x: nnx.merge(graphdef, state)(x, layout, bits=None).x
        x = jax.ShapeDtypeStruct((1, tokens, 12), jnp.float32)
        return jax.jit(apply).lower(state, x).compile().cost_analysis()["flops"]

    full, sliding = ([operations(n, tokens) for tokens in (2048, 4096)] for n in (0, 1))
    assert 1.9 < sliding[1] / sliding[0] < 2.1
    assert full[1] / full[0] > 3.5
    assert sliding[1] < full[1] / 10
