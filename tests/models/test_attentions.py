"""output_attentions: the maps that each layer computes, padded and packed, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from svt_jax.data.packed_rows import pack
from svt_jax.data.packing import Shape
from svt_jax.data.tokens import Tokens
from svt_jax.models.encoder import Encoder
from svt_jax.models.packed import read_batch
from svt_jax.models.svt_config import SVTConfig

MODEL = tiny.encoder("bert", SVTConfig("soft_decay", layers=[1]))
HEADS = tiny.SIZES["num_attention_heads"]


def maps(model, **flags):
    return model(tiny.IDS, tiny.MASK, output_attentions=True, output_hidden_states=True, **flags)


def test_a_map_is_the_softmax_of_queries_and_keys_over_real_tokens():
    out = maps(MODEL)
    assert len(out.attentions) == 2
    x = np.asarray(out.hidden_states[0], np.float64)
    layer = MODEL.layers[0].attention
    query, key = (
        (x @ np.asarray(dense.kernel[...]) + np.asarray(dense.bias[...])).reshape(2, 5, HEADS, -1)
        for dense in (layer.query, layer.key)
    )
    scores = np.einsum("bqnh,bknh->bnqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores) * tiny.MASK[:, None, None, :]
    np.testing.assert_allclose(out.attentions[0], weights / weights.sum(-1, keepdims=True), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", tiny.families())
def test_the_other_results_keep_their_bits_and_without_asking_there_are_none(family):
    model = tiny.encoder(family)
    plain, out = model(tiny.IDS, tiny.MASK), maps(model)
    assert plain.attentions is None
    np.testing.assert_array_equal(plain.last_hidden_state, out.last_hidden_state)
    assert [each.shape for each in out.attentions] == [(2, HEADS, 5, 5)] * 2


def test_packed_rows_have_the_maps_of_one_example_in_each_row():
    lengths = np.array([5, 3, 4, 2], np.int32)
    ids = np.random.default_rng(0).integers(3, 40, (4, 5)).astype(np.int32)
    tokens = Tokens.of_padded(ids, np.zeros_like(ids), lengths, None, 0)
    shape = Shape(rows=1, row_length=8, examples=3, longest=6, shortest=2, groups=2)
    batch = pack(tokens, np.arange(4), shape)
    arrays = {name: jnp.asarray(values) for name, values in batch.items() if name not in ("index", "labels")}
    ids_of_rows, types, layout = read_batch(arrays, **shape.static)
    packed = MODEL.encode(ids_of_rows, types, layout, output_attentions=True)
    padded = MODEL(ids, np.arange(5) < lengths[:, None], output_attentions=True)
    for ours, theirs in zip(packed.attentions, padded.attentions, strict=True):
        found = layout.to_maps(ours)
        assert found.shape == (6, HEADS, 6, 6)
        for place, n in enumerate(batch["index"]):
            if batch["weights"][place]:
                real = slice(lengths[n])
                np.testing.assert_allclose(found[place, :, real, real], theirs[n, :, real, real], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("setting", ["remat", "scan_layers"])
def test_loops_and_rematerialisation_keep_every_layers_maps(setting):
    graphdef, state = nnx.split(tiny.encoder("bert", num_hidden_layers=3))
    plain = nnx.merge(graphdef, state)
    other = Encoder(plain.config, rngs=nnx.Rngs(0), **{setting: True})
    nnx.update(other, state)
    for ours, theirs in zip(maps(other).attentions, maps(plain).attentions, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_maps_are_without_dropout():
    model = tiny.encoder("bert", attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0, num_hidden_layers=1)
    dropped = maps(model, rngs=nnx.Rngs(dropout=jax.random.key(0)))
    assert not np.allclose(dropped.last_hidden_state, model(tiny.IDS, tiny.MASK).last_hidden_state)
    np.testing.assert_array_equal(dropped.attentions[0], maps(model).attentions[0])


def test_the_first_token_alone_has_no_maps():
    with pytest.raises(ValueError, match="output_attentions and first_token_only; allowed is one"):
        maps(MODEL, first_token_only=True)


@pytest.mark.parity
@pytest.mark.parametrize("family", tiny.families(fast=("bert", "modernbert")))
def test_maps_equal_pytorchs(tmp_path, family):
    import torch
    from transformers import AutoModel

    import svt_jax

    model = tiny.encoder(family)
    svt_jax.export_hf(model, tmp_path)
    theirs = AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        out = theirs(torch.tensor(tiny.IDS), torch.tensor(tiny.MASK), output_attentions=True)
    for ours, expected in zip(maps(model).attentions, out.attentions, strict=True):
        np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-4, atol=1e-5)
