"""Every hidden state, pooled output, logit and gradient equals that of transformers' PyTorch models."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from safetensors.numpy import save_file

import svt_jax
from svt_jax.models.families import FAMILIES
from svt_jax.models.packed import OneInEachRow
from svt_jax.models.positions import Carried
from svt_jax.models.weight_names import encoder_names, head_names, in_parts, prefix


def assert_close(ours, theirs, tolerance, what):
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=tolerance, rtol=0, err_msg=str(what))


def load(folder, arrays):
    """Our encoder and classifier, loaded from weights under PyTorch's names."""
    (folder / "config.json").write_text(str(arrays["config_json"]))
    save_file({k.removeprefix("w/"): v for k, v in arrays.items() if k.startswith("w/")}, folder / "model.safetensors")
    return svt_jax.load_encoder(folder), svt_jax.load_classifier(folder, num_labels=arrays["logits"].shape[1])


def assert_equal_to_pytorch(folder, arrays):
    encoder, classifier = load(folder, arrays)
    given = [jnp.asarray(arrays[name]) for name in ("ids", "mask", "types")]
    ours = encoder(*given, output_hidden_states=True)
    states = [arrays[f"state/{n}"] for n in range(len(ours.hidden_states))]
    assert f"state/{len(states)}" not in arrays
    for n, (mine, theirs) in enumerate(zip(ours.hidden_states, states, strict=True)):
        assert_close(mine, theirs, 1e-4, f"state {n}")
    for n, layer in enumerate(encoder.layers):  # each block separately, from PyTorch's state
        layout = OneInEachRow(jnp.asarray(given[1]).astype(bool))
        places = encoder.positions(layout)[layer.window is not None] if encoder.positions else None
        out = layer(jnp.asarray(states[n]), layout, places=places, bits=None).x
        if encoder.final_norm is not None and n == len(encoder.layers) - 1:
            out = encoder.final_norm(out)
        assert_close(out, states[n + 1], 1e-5, f"block {n}")
    assert (ours.pooled is None) == ("pooled" not in arrays)
    if ours.pooled is not None:
        assert_close(ours.pooled, arrays["pooled"], 1e-4, "pooled")
    assert_gradients_equal(classifier, given, arrays)


def assert_gradients_equal(classifier, given, arrays):
    graphdef, params = nnx.split(classifier)

    def loss(params):
        logits = nnx.merge(graphdef, params)(*given)
        return jnp.sum(logits * arrays["cotangent"]), logits

    grads, logits = jax.grad(loss, has_aux=True)(params)
    assert_close(logits, arrays["logits"], 1e-4, "logits")
    ours = {
        "/".join(map(str, k)): np.asarray(v.get_value()) for k, v in nnx.to_flat_state(grads) if v.type is not Carried
    }
    config = classifier.encoder.config
    names = {prefix(config) + theirs: (f"encoder/{path}", c) for theirs, (path, c) in encoder_names(config).items()}
    names |= head_names(config)
    theirs = {k.removeprefix("grad/"): v for k, v in arrays.items() if k.startswith("grad/")}
    theirs = in_parts(names, theirs)
    # the key's bias has zero gradient, since softmax ignores it: rounding is measured against the others
    largest = max(np.abs(g).max() for g in theirs.values())
    for name, grad in theirs.items():
        path, change = names[name]
        assert_close(change(ours.pop(path)), grad, max(1e-3 * np.abs(grad).max(), 1e-6 * largest), name)
    assert not ours, f"parameters that PyTorch does not have: {ours.keys()}"


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_stored_numbers(tmp_path, family):
    with np.load(reference.GOLDEN / f"{family}.npz") as stored:
        assert_equal_to_pytorch(tmp_path, dict(stored))


ODD = {
    "bert": [
        {"num_hidden_layers": 1},
        {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
        {"type_vocab_size": 1, "num_attention_heads": 1},
        {"pad_token_id": 2, "hidden_act": "gelu_python"},
    ],
    "roberta": [
        {"num_hidden_layers": 1, "type_vocab_size": 1},
        {"layer_norm_eps": 1e-5, "hidden_act": "gelu_fast"},
        {"pad_token_id": 0, "max_position_embeddings": 17},
        {"hidden_act": "relu", "num_attention_heads": 12},
    ],
    "distilbert": [
        {"num_hidden_layers": 1},
        {"hidden_act": "relu"},
        {"sinusoidal_pos_embds": True, "num_attention_heads": 2},
        {"hidden_act": "silu", "num_attention_heads": 1},
    ],
    "albert": [
        {"num_hidden_layers": 1},
        {"num_hidden_groups": 2},
        {"inner_group_num": 2},
        {"num_hidden_layers": 3, "num_hidden_groups": 2, "inner_group_num": 2},
        {"embedding_size": 12, "hidden_act": "gelu", "type_vocab_size": 1},
        {"layer_norm_eps": 1e-5, "hidden_act": "gelu_accurate"},
    ],
    "xlm-roberta": [{"num_hidden_layers": 1}, {"pad_token_id": 0, "max_position_embeddings": 17}],
    "camembert": [{"hidden_act": "relu"}],
    "electra": [{"embedding_size": 12}, {"embedding_size": 4, "num_hidden_layers": 1}, {"hidden_act": "gelu_new"}],
    "modernbert": [
        {"layer_types": ["full_attention"], "num_hidden_layers": 1},
        {"layer_types": ["sliding_attention"], "num_hidden_layers": 1, "local_attention": 2},
        {"layer_types": ["full_attention", "full_attention"]},
        {"layer_types": ["sliding_attention", "full_attention"], "local_attention": 5},
        {"local_attention": 64},
        {"local_attention": 1},
        {"norm_bias": True},
        {"attention_bias": True, "up_bias": True, "head_bias": True},
        {"pooling": "mean", "head_act": "relu"},
        {"rope_theta": 500.0, "local_rope_theta": 100.0, "num_hidden_layers": 4},
        {"hidden_act": "silu", "num_attention_heads": 1},
    ],
    "nomic_bert": [{"num_hidden_layers": 1}, {"rope_theta": 10_000.0}, {"hidden_act": "gelu"}, {"type_vocab_size": 1}],
    "gte": [{"num_hidden_layers": 1}, {"type_vocab_size": 0}, {"rope_theta": 100.0}, {"hidden_act": "relu"}],
    "esm": [
        {"num_hidden_layers": 1},
        {"positions": "absolute"},
        {"positions": "absolute", "token_dropout": True, "embedding_norm": True},
        {"token_dropout": True},
        {"embedding_norm": True, "layer_norm_eps": 1e-5},
        {"rope_theta": 100.0, "num_attention_heads": 1},
    ],
    "mpnet": [
        {"num_hidden_layers": 1},
        {"relative_buckets": 40},
        {"hidden_act": "relu", "num_attention_heads": 12},
        {"layer_norm_eps": 1e-5},
    ],
}


def random_changes(family, seed):
    """Randomly drawn fields; sizes stay, so that the models share compiled programs."""
    rng = np.random.default_rng([seed, list(FAMILIES).index(family)])
    choices = {
        "hidden_act": ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "relu", "silu", "swish"],
        "num_attention_heads": [1, 2, 3, 4, 6],
        "num_hidden_layers": [1, 2, 3],
        "layer_norm_eps": [1e-12, 1e-5, 1e-3],
        "num_hidden_groups": [1],
        "inner_group_num": [1, 2],
    }
    if FAMILIES[family].fixed.get("positions") == "rotary" or family == "esm":
        choices["num_attention_heads"] = [1, 2, 3, 6]  # heads of even sizes
    if family == "modernbert":
        choices |= {name: [False, True] for name in ("norm_bias", "attention_bias", "up_bias", "head_bias")}
        choices |= {"local_attention": [1, 2, 6, 9, 40], "pooling": ["cls", "mean"], "rope_theta": [100.0, 10_000.0]}
    if family == "esm":
        choices |= {
            "positions": ["absolute", "rotary"],
            "token_dropout": [False, True],
            "embedding_norm": [False, True],
        }
    names = FAMILIES[family].fields
    return {name: rng.choice(options).item() for name, options in choices.items() if name in names}


CASES = [(family, changes) for family in ODD for changes in ODD[family]]
CASES += [(family, random_changes(family, seed)) for family in FAMILIES for seed in range(4)]


# The comparison with stored numbers needs no PyTorch and always runs; of the live ones, these run by default.


def test_there_are_at_least_thirty_configs():
    assert len({json.dumps(case, sort_keys=True) for case in CASES}) >= 30


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    "number",
    [pytest.param(n, id=f"{n}-{family}") for n, (family, _) in enumerate(CASES)],
)
def test_equals_pytorch(tmp_path, number):
    family, changes = CASES[number]
    arrays = reference.compute(reference.fields(family, **changes), num_labels=1 + number % 3, seed=number)
    assert_equal_to_pytorch(tmp_path, arrays)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sequence_of_one_token_equals_pytorch(tmp_path, family, monkeypatch):
    one = lambda values, seed: {name: array[:, :1] for name, array in whole(values, seed).items()}
    whole = reference.inputs
    monkeypatch.setattr(reference, "inputs", one)
    arrays = reference.compute(reference.fields(family), num_labels=2, seed=7)
    assert arrays["ids"].shape == (4, 1)
    assert_equal_to_pytorch(tmp_path, arrays)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("family", "changes"),
    [("modernbert", {"local_attention": 4}), ("modernbert", {"pooling": "mean"}), ("esm", {}), ("nomic_bert", {})],
)
def test_padding_on_the_left_equals_pytorch(tmp_path, family, changes, monkeypatch):
    """The classifier reads the first place, padding too; its keys may all be masked in a narrow window."""
    flipped = lambda values, seed: {name: array[:, ::-1].copy() for name, array in whole(values, seed).items()}
    whole = reference.inputs
    monkeypatch.setattr(reference, "inputs", flipped)
    arrays = reference.compute(reference.fields(family, **changes), num_labels=2, seed=3)
    assert arrays["mask"][1, 0] == 0
    assert_equal_to_pytorch(tmp_path, arrays)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("family", ["modernbert", "nomic_bert", "gte", "esm"])
def test_a_sequence_of_more_than_2048_tokens_equals_pytorch(tmp_path, family, monkeypatch):
    """Frequencies of rotation are rounded: far from the start their last digits count."""
    rng = np.random.default_rng(0)
    length = 2304
    mask = (np.arange(length) < np.array([[length], [length - 200]])).astype(np.int64)
    given = {"ids": rng.integers(3, 40, mask.shape), "mask": mask, "types": np.zeros_like(mask)}
    monkeypatch.setattr(reference, "inputs", lambda values, seed: given)
    values = reference.fields(family, max_position_embeddings=length, hidden_size=24)
    arrays = reference.compute(values, num_labels=2, seed=5)
    encoder, _ = load(tmp_path, arrays)
    ours = encoder(*(jnp.asarray(given[name].astype(np.int32)) for name in given), output_hidden_states=True)
    for n, state in enumerate(ours.hidden_states):
        assert_close(state, arrays[f"state/{n}"], 1e-4, f"state {n}")


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_acts_where_it_does_in_pytorch(family, monkeypatch):
    """Counts how often each rate is drawn in one forward pass; the three rates differ."""
    from collections import Counter

    import tiny
    import torch
    import transformers

    from svt_jax.models import attention as attention_module
    from svt_jax.models import embeddings as embeddings_module
    from svt_jax.models import encoder as encoder_module
    from svt_jax.models import encoder_layer as layer_module
    from svt_jax.models import heads as heads_module
    from svt_jax.models import layer_loop as loop_module

    rates = {"hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.5, "classifier_dropout": 0.125}
    if family == "modernbert":
        rates["inner_dropout_prob"] = 0.0625
    rates = {name: rate for name, rate in rates.items() if name in FAMILIES[family].fields}
    values = tiny.fields(family, **rates)
    config = transformers.AutoConfig.for_model(**values, attn_implementation="eager")
    theirs = transformers.AutoModelForSequenceClassification.from_config(config).train()
    counted = {"torch": Counter(), "jax": Counter()}
    real = torch.nn.functional.dropout

    def torch_dropout(x, p=0.5, training=True, inplace=False):
        counted["torch"][p, tuple(x.shape)] += training
        return real(x, p, training, inplace)

    monkeypatch.setattr(torch.nn.functional, "dropout", torch_dropout)
    theirs(torch.tensor(tiny.IDS).long(), torch.ones(tiny.IDS.shape))

    def jax_dropout(x, rate, bits):
        counted["jax"][rate, tuple(x.shape)] += bits is not None and rate > 0
        return x

    modules = (attention_module, layer_module, embeddings_module)
    for module, name in (*((each, "dropout") for each in modules), (heads_module, "dropout_once")):
        monkeypatch.setattr(module, name, jax_dropout)
    monkeypatch.setattr(loop_module, "_call", loop_module._call.__wrapped__)  # counts each layer, traced before or not
    whole = encoder_module.Encoder.__call__  # transformers computes the last layer for all tokens
    monkeypatch.setattr(
        encoder_module.Encoder, "__call__", lambda self, *args, first_token_only, **rest: whole(self, *args, **rest)
    )
    tiny.classifier(family, **rates)(tiny.IDS, rngs=nnx.Rngs(dropout=0))
    assert +counted["jax"] == +counted["torch"]
    assert {rate for rate, _ in +counted["jax"]} == set(rates.values())


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_full_size_models_equal_pytorch(tmp_path, family):
    """bert-base and roberta-base with weights drawn as for pretraining, 128 tokens, some of them padding."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(family)
    if family == "roberta":
        config.max_position_embeddings, config.layer_norm_eps = 514, 1e-5
    torch.manual_seed(0)
    theirs = transformers.AutoModel.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    mask = (np.arange(128) < np.array([[128], [37]])).astype(np.int64)
    ids = np.where(mask, rng.integers(3, config.vocab_size, mask.shape), config.pad_token_id)
    with torch.no_grad():
        out = theirs(torch.tensor(ids), torch.tensor(mask), output_hidden_states=True)
    ours = svt_jax.load_encoder(tmp_path)(ids.astype(np.int32), mask, output_hidden_states=True)
    assert len(ours.hidden_states) == 13
    for n, (mine, other) in enumerate(zip(ours.hidden_states, out.hidden_states, strict=True)):
        assert_close(mine, other.numpy(), 1e-4, f"state {n}")
    assert_close(ours.pooled, out.pooler_output.numpy(), 1e-4, "pooled")
