"""The encoder with and without SVT: off equals plain, placements, padding, dropout, precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

import svt_jax
from svt_jax.models.config import EncoderConfig
from svt_jax.models.encoder import Encoder
from svt_jax.models.layers import dropout_once
from svt_jax.models.slot import SVTConstant, SVTParam
from svt_jax.models.svt_config import POST_NORM_PLACEMENTS, SVTConfig

TINY = EncoderConfig.from_hf(
    {
        "model_type": "bert",
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 20,
        "initializer_range": 0.3,
    }
)
IDS = np.random.default_rng(0).integers(0, 50, (2, 7)).astype(np.int32)
MASK = (np.arange(7) < np.array([[7], [4]])).astype(np.int32)


def encoder(svt=None, seed=0, **kwargs):
    return Encoder(TINY, svt, rngs=nnx.Rngs(seed), **kwargs)


def last_hidden_state(model, ids=IDS, mask=MASK, **kwargs):
    return np.asarray(model(ids, mask, **kwargs).last_hidden_state)


def test_off_is_the_same_program_and_the_same_bits_as_never_having_had_it():
    plain, off = encoder(None), encoder(SVTConfig("none", layers="all"))
    assert np.array_equal(last_hidden_state(plain), last_hidden_state(off))
    program = lambda model: str(jax.make_jaxpr(lambda ids, mask: model(ids, mask).last_hidden_state)(IDS, MASK))
    assert program(plain) == program(off)


def test_a_loop_over_layers_returns_the_same_states():
    model = encoder()
    one_by_one = model(IDS, MASK, output_hidden_states=True).hidden_states
    model.scan_layers = True
    looped = model(IDS, MASK, output_hidden_states=True).hidden_states
    assert len(looped) == TINY.num_layers + 1
    for ours, theirs in zip(looped, one_by_one, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert "scan" in str(jax.make_jaxpr(lambda ids, mask: model(ids, mask).last_hidden_state)(IDS, MASK))


@pytest.mark.parametrize("placement", POST_NORM_PLACEMENTS)
@pytest.mark.parametrize("function", ["soft_decay", "centered_soft_decay"])
def test_placement_is_what_its_formula_says(placement, function):
    model = encoder(SVTConfig(function, layers=[1], placement=placement, alpha=-0.3))
    states = model(IDS, MASK, output_hidden_states=True).hidden_states
    layer = model.layers[1]
    x = layer.attention_norm(
        layer.attention(states[1], states[1], jnp.asarray(MASK, bool)[:, None], bits=None)[0] + states[1]
    )
    h = layer.down(jax.nn.gelu(layer.up(x), approximate=False))
    svt = lambda y: svt_jax.svt(y, svt_jax.get_function(function, alpha=-0.3), mask=jnp.asarray(MASK, bool))
    norm = layer.output_norm
    expected = {
        "before_norm": lambda: norm(svt(h + x) + x),
        "after_norm": lambda: svt(norm(h + x) + x),
        "replace_norm": lambda: svt(h + x),
        "output": lambda: svt(norm(h + x)),
        "norm_input": lambda: norm(svt(h + x)),
        "before_residual": lambda: norm(svt(h) + x),
    }[placement]()
    np.testing.assert_allclose(states[2], expected, atol=1e-5)
    out = model(IDS, MASK, output_svt_states=True)
    ((before, after),) = out.svt_states.values()
    assert (list(out.svt_states), out.hidden_states) == ([1], None)
    np.testing.assert_allclose(after, svt(before), atol=1e-5)
    real = np.asarray(MASK, bool)
    inputs = {"after_norm": norm(h + x) + x, "output": norm(h + x), "before_residual": h}
    np.testing.assert_allclose(before[real], inputs.get(placement, h + x)[real], atol=1e-5)


@pytest.mark.parametrize("placement", POST_NORM_PLACEMENTS)
def test_padding_changes_nothing_for_real_tokens(placement):
    model = encoder(SVTConfig("soft_decay", layers="all", placement=placement))
    short = last_hidden_state(model, IDS[:, :4], MASK[:, :4])[1]
    np.testing.assert_allclose(last_hidden_state(model)[1, :4], short, atol=1e-5)


def test_without_masking_padding_takes_part_as_in_the_published_code():
    masked, unmasked = (encoder(SVTConfig("soft_decay", mask_padding=m)) for m in (True, False))
    difference = np.abs(last_hidden_state(masked) - last_hidden_state(unmasked))
    assert difference[1].max() > 1e-2  # this row has padding
    assert difference[0].max() < 1e-5


def test_alpha_is_trained_inside_its_interval_or_not_at_all():
    model = encoder(SVTConfig("soft_decay", layers=[0, -1], alpha=[-0.1, -0.9]))
    np.testing.assert_allclose([float(a) for a in model.alphas.values()], [-0.1, -0.9], rtol=1e-6)
    stored = nnx.to_flat_state(nnx.state(model, SVTParam))
    assert len(stored) == 2
    for far in (-60.0, 60.0):  # a plain sigmoid is exactly 0 or 1 there
        for _, variable in stored:
            variable.set_value(jnp.full_like(variable.get_value(), far))
        nnx.update(model, nnx.from_flat_state(stored))
        assert all(-1.0 < float(a) < 0.0 for a in model.alphas.values())
        assert np.all(np.isfinite(last_hidden_state(model)))
    fixed = encoder(SVTConfig("soft_decay", learnable=False))
    assert len(nnx.to_flat_state(nnx.state(fixed, SVTParam))) == 0
    assert len(nnx.to_flat_state(nnx.state(fixed, SVTConstant))) == 1


def test_alpha_receives_a_gradient():
    graphdef, params = nnx.split(encoder(SVTConfig("soft_decay")))
    loss = lambda p: jnp.sum(nnx.merge(graphdef, p)(IDS, MASK).last_hidden_state[:, 0] ** 3)
    gradients = {"/".join(map(str, k)): v.get_value() for k, v in nnx.to_flat_state(jax.jit(jax.grad(loss))(params))}
    assert gradients["layers/2/svt/parameters/alpha"] != 0.0
    assert all(np.all(np.isfinite(g)) for g in gradients.values())


SVTS = {"off": SVTConfig(), **{p: SVTConfig("soft_decay", placement=p) for p in POST_NORM_PLACEMENTS}}


@pytest.mark.parametrize(
    ("svt", "scan", "remat"),
    [
        pytest.param(
            svt,
            scan,
            remat,
            id=f"{name}-{'loop' if scan else 'one by one'}-{'remat' if remat else 'kept'}",
            marks=[] if n % 4 == 2 * scan + remat else pytest.mark.slow,  # each transformation and each mode once
        )
        for n, (name, svt) in enumerate(SVTS.items())
        for scan in (False, True)
        for remat in (False, True)
    ],
)
def test_the_first_token_alone_is_the_first_of_all(svt, scan, remat):
    model = encoder(svt)
    model.scan_layers, model.remat = scan, remat
    first, whole = (
        model(IDS, MASK, output_hidden_states=True, first_token_only=choice, output_svt_states=True)
        for choice in (True, False)
    )
    *below, last = first.hidden_states
    *below_all, last_all = whole.hidden_states
    np.testing.assert_allclose(last, last_all[:, :1], atol=2e-6, rtol=0)
    np.testing.assert_allclose(first.pooled, whole.pooled, atol=2e-6, rtol=0)
    assert np.array_equal(first.last_hidden_state, last)
    ours, theirs = (jax.tree.leaves(states) for states in ((below, first.svt_states), (below_all, whole.svt_states)))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6, rtol=0)


@pytest.mark.slow
def test_the_first_token_alone_takes_a_sixth_of_the_products():
    config = dataclasses.replace(TINY, hidden_size=64, intermediate_size=256, num_hidden_layers=1, pooler=False)

    def flops(svt, **options):
        model = Encoder(config, svt, rngs=nnx.Rngs(0))
        run = jax.jit(lambda ids: model(ids, **options).last_hidden_state)
        return run.lower(np.zeros((8, 20), np.int32)).compile().cost_analysis()["flops"]

    products = 2 * 8 * 20 * (4 * 64 * 64 + 2 * 64 * 256)
    spared = flops(None) - flops(None, first_token_only=True)
    # saves all but keys and values, for 19 of 20 tokens
    assert spared == pytest.approx(products * 10 / 12 * 19 / 20, rel=0.1)
    svt = SVTConfig("soft_decay", solver="gram")
    assert flops(svt, first_token_only=True) > 0.95 * flops(svt)  # SVT needs all tokens


def test_dropout_needs_rngs_and_repeats_for_a_key():
    model = encoder(SVTConfig("soft_decay"))
    off = last_hidden_state(model)
    assert np.array_equal(off, last_hidden_state(model))
    first, again, other = (last_hidden_state(model, rngs=nnx.Rngs(dropout=k)) for k in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, off)


@pytest.mark.parametrize("width", [64, 63])
def test_dropout_has_its_rate_and_keeps_the_mean(width):
    x = jnp.ones((400, width))
    out = np.asarray(dropout_once(x, 0.1, jax.random.key(0)))
    assert (out == 0).mean() == pytest.approx(0.1, abs=0.01)
    assert out.mean() == pytest.approx(1.0, abs=0.01)
    assert np.unique(out).size == 2
    # neighbours share a random word, but its halves must be independent
    zeros = out == 0
    assert (zeros[:, 0::2][:, : width // 2] & zeros[:, 1::2]).mean() == pytest.approx(0.01, abs=0.004)


def test_too_long_a_sequence_is_an_error():
    with pytest.raises(ValueError, match="21 tokens and the model 20 positions"):
        encoder()(np.zeros((1, 21), np.int32))


@pytest.mark.slow
def test_fields_that_change_a_number_do():
    """A field that is parsed and ignored would be worse than an error (sizes show in the weights' shapes)."""
    base = encoder()
    changes = {
        "hidden_act": "gelu_new",
        "layer_norm_eps": 0.1,
        "num_attention_heads": 4,
    }
    for name, value in changes.items():
        other = Encoder(dataclasses.replace(TINY, **{name: value}), rngs=nnx.Rngs(0))
        assert not np.array_equal(last_hidden_state(other), last_hidden_state(base)), name
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        only = dataclasses.replace(TINY, **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, name: 0.5})
        model = Encoder(only, rngs=nnx.Rngs(0))
        assert not np.array_equal(last_hidden_state(model, rngs=nnx.Rngs(dropout=0)), last_hidden_state(model)), name


def test_a_protein_of_masked_tokens_alone_has_finite_numbers_and_gradients():
    model = tiny.encoder("esm", token_dropout=True)
    masked = np.full((1, 3), tiny.OWN["esm"]["mask_token_id"], np.int32)

    def total(model):
        return jnp.sum(model(masked).last_hidden_state)

    value, gradients = nnx.value_and_grad(total)(model)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
