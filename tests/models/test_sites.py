"""Remedies at every site of an encoder: the published layers, the plain model at the start, padding, neighbours, failures."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from test_packed import IDS, LENGTHS, SHAPES, TOKENS, assert_same, case, inputs, padded_inputs

import svt_jax
from svt_jax.models.config import EncoderConfig
from svt_jax.models.encoder import Encoder
from svt_jax.models.packed import OneInEachRow
from svt_jax.models.slot import SVTParam
from svt_jax.models.svt_config import SVTConfig
from svt_jax.spectral import registry

STARTS = {
    "de_escalation": {"site": "feed_forward", "placement": "norm_input"},
    "de_escalation, attention": {"site": "attention", "placement": "norm_input"},
    "feat_scale": {"site": "attention", "placement": "before_residual"},
    "attn_scale": {"site": "attention_map"},
    "gfsa": {"site": "attention_map"},
    "laplacian": {"site": "attention_map"},
    "neutreno": {"site": "value"},
}
"""Remedies that start as the identity in the encoder."""
MOVED = {
    "contra_norm": {"site": "attention", "placement": "norm_input", "params": {"scale": 0.2}},
    "polynomial": {"site": "attention", "placement": "norm_input", "params": {"theta": [0.9, 0.2, -0.1]}},
    **{
        name: {**STARTS[name], "params": params}
        for name, params in {
            "de_escalation": {"tau": 0.3},
            "feat_scale": {"mean": 0.3, "rest": -0.2},
            "attn_scale": {"scale": [0.5, -0.3, 0.8]},
            "gfsa": {"w_k": [0.3, 0.2, -0.1], "k": 4, "w_0": 0.05},
            "laplacian": {"share": 0.3},
            "neutreno": {"scale": 0.6},
        }.items()
    },
}


def config(name, settings, **changes):
    return SVTConfig(name.split(",")[0], **{"layers": "all", "dropout": 0.0, **settings, **changes})


@functools.cache
def states(family, name=None, dtype="float32"):
    """Real tokens' states and all logits, of the plain model or with a remedy that starts as the identity."""
    svt = None if name is None else config(name, STARTS[name])
    graphdef, state = nnx.split(tiny.classifier(family, svt, dtype=jnp.dtype(dtype)))

    @jax.jit
    def run(state):
        model = nnx.merge(graphdef, state)
        out = model.encoder(tiny.IDS, tiny.MASK)
        return out.last_hidden_state, model._logits(out, OneInEachRow(jnp.asarray(tiny.MASK, bool)), None)

    hidden, logits = run(state)
    return np.asarray(hidden, np.float32)[tiny.MASK.astype(bool)], np.asarray(logits)


@pytest.mark.parametrize(
    ("family", "name", "dtype"),
    [
        *(case("bert", name, "float32", fast=True) for name in STARTS),
        *(
            case(family, name, "float32")
            for family in tiny.DIFFERENT
            for name in ("de_escalation, attention", "gfsa", "neutreno")  # one for each site
            if family != "bert"
        ),
        *(case("bert", name, "bfloat16") for name in STARTS),
    ],
)
def test_a_remedy_that_starts_as_the_identity_is_the_plain_model_to_the_bit(family, name, dtype):
    """Where all tokens are computed: a plain classifier's last layer computes only first tokens, with other products.

    A program that XLA optimises further may add up a layer norm in another order behind a token remedy: up to 1e-6 here.
    """
    for ours, plain in zip(states(family, name, dtype), states(family, None, dtype), strict=True):
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny.DIFFERENT)
def test_a_polynomial_starts_as_the_identity_up_to_the_rounding_of_the_decomposition(family):
    """U U^T is the identity only to rounding, so U diag(sigma) V^T is not X to the bit."""
    svt = SVTConfig("polynomial", layers="all", placement="norm_input", dropout=0.0)
    hidden = jax.jit(lambda model: model(tiny.IDS, tiny.MASK).last_hidden_state)(tiny.classifier(family, svt).encoder)
    difference = np.asarray(hidden)[tiny.MASK.astype(bool)] - states(family)[0]
    assert 0 < np.abs(difference).max() < 2e-5


@pytest.mark.parametrize("name", [case(name, fast=name in ("gfsa", "neutreno")) for name in MOVED])
def test_packed_rows_give_the_numbers_of_padded_ones(name):
    assert_same(tiny.classifier("bert", config(name, MOVED[name])), "bert", SHAPES["one group"])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["albert", "modernbert", "nomic_bert", "mpnet"])
@pytest.mark.parametrize("name", ["contra_norm", "gfsa", "neutreno"])
def test_packed_rows_give_the_same_in_every_family_and_group(name, family):
    assert_same(tiny.classifier(family, config(name, MOVED[name])), family, SHAPES["two groups"])


@pytest.mark.parametrize("name", [case(name, fast=name == "attn_scale") for name in MOVED])
def test_neighbours_padding_and_places_in_a_row_have_no_influence(name):
    """Other examples change beside one: not a bit of it does. Alone in its row it has the same numbers."""
    graphdef, state = nnx.split(tiny.encoder("bert", config(name, MOVED[name])))
    run = jax.jit(lambda ids, types, layout: layout.to_matrices(
        nnx.merge(graphdef, state).encode(ids, types, layout).last_hidden_state
    ))  # fmt: skip
    (ids, types, layout), order = inputs(SHAPES["one group"])
    first = layout.segment == 1
    changed = jnp.where(first, ids, (ids + 7) % 37 + 3)
    ours, theirs = run(ids, types, layout)[order[0]], run(changed, types, layout)[order[0]]
    length = LENGTHS[0]
    assert order[0] == 0
    np.testing.assert_array_equal(ours[:length], theirs[:length])
    alone = jax.jit(lambda ids, types, layout: nnx.merge(graphdef, state).encode(ids, types, layout).last_hidden_state)(
        IDS[:1, :length], TOKENS.types[:1, :length], OneInEachRow(jnp.ones((1, length), bool))
    )
    np.testing.assert_allclose(ours[:length], alone[0], atol=1e-5)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(case("bert", name, fast=name in ("gfsa", "contra_norm")) for name in MOVED),
        case("modernbert", "feat_scale", fast=True),
        *(case("modernbert", name) for name in ("contra_norm", "gfsa", "neutreno", "de_escalation")),
        *(case("nomic_bert", name) for name in ("contra_norm", "gfsa", "neutreno")),
    ],
)
def test_only_the_first_tokens_are_asked_for_and_the_numbers_stay(family, name):
    graphdef, state = nnx.split(tiny.encoder(family, config(name, MOVED[name])))

    @functools.partial(jax.jit, static_argnums=0)
    def run(first):
        out = nnx.merge(graphdef, state)(tiny.IDS, tiny.MASK, first_token_only=first)
        return out.last_hidden_state[:, :1]

    np.testing.assert_allclose(run(True), run(False), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["modernbert", "nomic_bert"])
@pytest.mark.parametrize("name", ["i_star", "cos_reg", "spectrum_area"])
def test_a_loss_term_reads_the_outputs_of_the_newer_families_in_packed_rows_too(name, family):
    svt = SVTConfig(name, site="loss", layers="all", params={"weight": 1.0})
    model = tiny.classifier(family, svt)
    tokens = dataclasses.replace(TOKENS, pad_id=tiny.PADDING.get(family, 0))
    terms = []
    for shape in (SHAPES["one group"], SHAPES["two groups"]):
        (ids, types, layout), order = inputs(shape, tokens=tokens)
        counted = jnp.zeros(len(layout.mask), bool).at[order].set(True)
        logits, term, _ = model.classify_with_term(ids, types, layout, counted)
        terms.append((logits[order], term))
    ids, types, layout = padded_inputs(family)
    terms.append(model.classify_with_term(ids, types, layout, jnp.ones(len(ids), bool))[:2])
    for logits, term in terms[:2]:
        np.testing.assert_allclose(logits, terms[2][0], atol=1e-5)
        np.testing.assert_allclose(term, terms[2][1], rtol=1e-5)


def test_neutreno_has_the_first_layers_values_wherever_it_acts():
    """Equal to a hand-made loop over the layers, also where layers in between are one loop of the program."""
    settings = {"num_hidden_layers": 4}
    model = tiny.encoder("bert", config("neutreno", MOVED["neutreno"], layers=[3]), **settings)
    ids, mask = jnp.asarray(tiny.IDS), jnp.asarray(tiny.MASK, bool)
    x = model.embeddings(ids, jnp.zeros_like(ids), OneInEachRow(mask), bits=None)
    layers = model.layers
    first = layers[0].attention.value(x).reshape(*ids.shape, 3, 4).swapaxes(1, 2)
    for layer in layers:
        x = layer(x, OneInEachRow(mask), first, bits=None).x
    model.scan_layers = True
    out = jax.jit(lambda model: model(ids, mask).last_hidden_state)(model)
    np.testing.assert_allclose(out, x, atol=1e-5)
    plain = tiny.encoder("bert", **settings)(ids, mask).last_hidden_state
    assert np.abs(out - plain).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"remat": True}, {"scan_layers": True}], ids=["remat", "scan"])
@pytest.mark.parametrize(
    ("family", "name"),
    [*(("bert", name) for name in MOVED), *(("albert", name) for name in ("contra_norm", "gfsa", "neutreno"))],
)
def test_recomputation_and_loops_change_no_gradient(name, family, settings):
    svt = config(name, MOVED[name], layers=[2, 3])
    model = tiny.encoder(family, svt, num_hidden_layers=4)
    graphdef, params = nnx.split(model)
    for key, value in settings.items():
        setattr(model, key, value)
    other, _ = nnx.split(model)

    def slopes(graphdef):
        loss = lambda p: jnp.sum(jnp.sin(nnx.merge(graphdef, p)(tiny.IDS, tiny.MASK).last_hidden_state[:, 0]))
        return jax.jit(jax.grad(loss))(params)

    for ours, theirs in zip(jax.tree.leaves(slopes(other)), jax.tree.leaves(slopes(graphdef)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1.0, float(np.abs(theirs).max())))


@pytest.mark.parametrize(("name", "parameter"), [("attn_scale", "scale"), ("neutreno", "scale")])
def test_a_result_that_is_not_finite_is_left_out_and_counted(name, parameter):
    model = tiny.encoder("bert", config(name, STARTS[name], layers=[1]))
    ids = jnp.asarray(tiny.IDS)
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state: nnx.merge(graphdef, state)(ids, tiny.MASK))
    plain = run(state)
    assert plain.svt_failures.tolist() == [0, 0]
    variable = model.layers[1].svt.parameters[parameter]
    variable.set_value(jnp.full_like(variable.get_value(), 3e38) * 10)
    out = run(nnx.split(model)[1])
    assert out.svt_failures.tolist() == [1, 1]
    real = tiny.MASK.astype(bool)
    np.testing.assert_allclose(out.last_hidden_state[real], plain.last_hidden_state[real], atol=1e-6)


def test_parameters_have_one_number_for_each_head_or_dimension():
    model = tiny.encoder("albert", config("gfsa", STARTS["gfsa"]))
    assert {n: named["w_k"].shape for n, named in model.svt_parameters.items()} == {0: (3,), 1: (3,)}
    assert len(nnx.to_flat_state(nnx.state(model, SVTParam))) == 2  # each layer has its own, though weights are shared
    model = tiny.encoder("bert", config("feat_scale", STARTS["feat_scale"], layers=[-1], learnable=False))
    assert {name: value.shape for name, value in model.svt_parameters[1].items()} == {"mean": (12,), "rest": (12,)}
    with pytest.raises(
        ValueError, match=r"svt.params.scale has the shape \[2\] and the model has 3 heads; allowed is one"
    ):
        tiny.encoder("bert", config("attn_scale", {**STARTS["attn_scale"], "params": {"scale": [1.0, 2.0]}}))


@pytest.mark.parametrize("name", ["gfsa", "neutreno", case("feat_scale"), case("polynomial"), case("i_star")])
def test_an_export_keeps_the_parameters_of_every_site(name, tmp_path):
    settings = {**STARTS, **MOVED, "i_star": {"site": "loss", "params": {"weight": 1.0}}}[name]
    model = tiny.encoder("albert", config(name, settings, layers=[-1]))
    svt_jax.export_hf(model, tmp_path / "kept", svt="keep")
    again = svt_jax.load_encoder(tmp_path / "kept")
    assert again.svt_config == model.svt_config
    for ours, theirs in zip(jax.tree.leaves(again.svt_parameters), jax.tree.leaves(model.svt_parameters), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"function": "gfsa"}, "svt.site is feed_forward and svt.function is gfsa, which has the site attention_map. Set"),
        ({"function": "soft_decay", "site": "value"}, "soft_decay, which has the site feed_forward or attention. Set"),
        ({"function": "feat_scale"}, "feat_scale, which has the site attention. Set svt.site to it"),
        ({"function": "gfsa", "site": "attention_map", "placement": "output"}, "svt.placement is output and the site attention_map has none"),
        ({"function": "i_star", "placement": "output"}, "has the site loss.*svt.placement is output and the site loss has none"),
        ({"function": "contra_norm", "site": "attention", "placement": "behind"}, "allowed are before_norm.*norm_input"),
        ({"function": "gor", "site": "losses"}, "svt.site is 'losses'; allowed are feed_forward, attention, attention_map, value, loss"),
        ({"function": "gor", "site": "loss", "params": {"weight": "much"}}, "svt.params.weight is 'much'; it must be a number"),
        ({"function": "i_star", "site": "loss", "params": {"zeta": 1.0}}, r"zeta of IStar must lie in \[0, 1\)"),
        ({"function": "gfsa", "site": "attention_map", "params": {"weight": 1.0}}, "remedy 'gfsa'.*its parameters are w_k, k, w_0"),
    ],
)  # fmt: skip
def test_a_wrong_pair_of_remedy_site_and_placement_is_one_error(settings, message):
    with pytest.raises(ValueError, match=message):
        SVTConfig(**settings)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("example", "settings"),
    [
        ("v1.pos7.s0.1", {"function": "contra_norm", "site": "attention", "params": {"scale": 0.1}}),
        ("v1.pos8.s0.1", {"function": "contra_norm", "site": "feed_forward", "params": {"scale": 0.1}}),
        ("gfsa.K3", {"function": "gfsa", "site": "attention_map", "params": {"k": 3}}),
    ],
)
def test_a_layer_is_that_of_the_authors_code(golden, example, settings):
    """ContraNorm's positions 7 and 8, and GFSA; each sequence by itself, as a mask must give it."""
    found = golden("remedies/bertlayer.npz")
    params = dict(settings["params"])
    if "gfsa" in example:
        params |= {"w_k": found[f"A/{example}/w_K"].tolist(), "w_0": float(found[f"A/{example}/w_0"])}
    placement = {} if "gfsa" in example else {"placement": "norm_input"}
    svt = SVTConfig(**{**settings, "params": params}, **placement, dropout=0.0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 9,
    }
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder = Encoder(EncoderConfig.from_hf({"model_type": "bert", **sizes, **dropouts}), svt, rngs=nnx.Rngs(0))
    layer = encoder.layers[0]
    parts = {
        "attention.self.query": layer.attention.query,
        "attention.self.key": layer.attention.key,
        "attention.self.value": layer.attention.value,
        "attention.output.dense": layer.attention.out,
        "attention.output.LayerNorm": layer.attention_norm,
        "intermediate.dense": layer.up,
        "output.dense": layer.down,
        "output.LayerNorm": layer.output_norm,
    }
    for name, part in parts.items():
        weight, bias = (jnp.asarray(found[f"w/{name}.{kind}"], jnp.float32) for kind in ("weight", "bias"))
        (part.scale if "LayerNorm" in name else part.kernel).set_value(weight if "LayerNorm" in name else weight.T)
        part.bias.set_value(bias)
    graphdef, state = nnx.split(layer)
    mask = jnp.asarray(found["A/mask"], bool)
    x, cot = (jnp.where(mask[..., None], jnp.asarray(found[f"A/{name}"], jnp.float32), 0.0) for name in ("x", "cot"))

    @jax.jit
    def run(x, state, mask, cot):
        run = lambda x, state: nnx.merge(graphdef, state)(x, OneInEachRow(mask), bits=None)[0]
        out, vjp = jax.vjp(run, x, state)
        return out, vjp(cot)

    out, (gx, _) = run(x, state, mask, cot)
    real = np.asarray(mask)
    np.testing.assert_allclose(out[real], found[f"A/{example}/alone_out"][real], atol=1e-5)
    np.testing.assert_allclose(gx[real], found[f"A/{example}/alone_gx"][real], atol=1e-5 * np.abs(gx).max())
    if "gfsa" in example:  # the parameter's gradient is known of the batch without pads
        set_params = {"w_k": found["B/gfsa.K4/w_K"].tolist(), "w_0": float(found["B/gfsa.K4/w_0"]), "k": 4}
        svt = dataclasses.replace(svt, params=set_params)
        other = Encoder(
            EncoderConfig.from_hf({"model_type": "bert", **sizes, **dropouts}), svt, rngs=nnx.Rngs(0)
        ).layers[0]
        graphdef = nnx.graphdef(other)
        weights = nnx.state(layer)
        weights["svt"] = nnx.state(other)["svt"]
        x, cot = (jnp.asarray(found[f"B/{name}"], jnp.float32) for name in ("x", "cot"))
        out, (_, slopes) = run(x, weights, jnp.ones(x.shape[:2], bool), cot)
        np.testing.assert_allclose(out, found["B/gfsa.K4/out"], atol=1e-5)
        slope = slopes["svt"]["parameters"]["w_k"].get_value()
        np.testing.assert_allclose(slope, found["B/gfsa.K4/gw_K"], atol=1e-5 * np.abs(slope).max())


def test_a_users_remedy_says_which_of_its_parameters_are_by_head_or_dimension(monkeypatch):
    class Scale(svt_jax.AttentionMapOperation):
        share: float = 0.0
        one_per = {"share": "head"}  # noqa: RUF012

        def operate(self, attention, attends):
            return attention * (1.0 + self.share)

    monkeypatch.setitem(registry._REGISTRY, "misspelt", Scale)
    with pytest.raises(
        ValueError, match=r"Scale.one_per says 'head' for share; allowed are heads and hidden. Correct it"
    ):
        tiny.encoder("bert", SVTConfig("misspelt", site="attention_map"))


def test_a_users_loss_sees_examples_before_layers(monkeypatch):
    seen = []

    class Look(svt_jax.LossTerm):
        def operate(self, x, mask, state):
            seen.append(x.shape)
            return jnp.sum(x) * 0.0

    monkeypatch.setitem(registry._REGISTRY, "look", Look)
    svt = SVTConfig("look", site="loss", layers="all", params={"weight": 1.0})
    model = tiny.classifier("bert", svt, num_hidden_layers=3)
    layout = OneInEachRow(jnp.asarray(tiny.MASK, bool))
    types = jnp.zeros_like(tiny.IDS)
    model.classify_with_term(jnp.asarray(tiny.IDS), types, layout, jnp.ones(len(tiny.IDS), bool))
    assert {shape[:2] for shape in seen} == {(len(tiny.IDS), 3)}
