"""Every hidden state, pooled output, logit and gradient equals that of transformers' PyTorch models."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny
from flax import nnx
from safetensors.numpy import save_file

import svt_jax
from svt_jax.data.packed_rows import pack
from svt_jax.data.packing import Shape
from svt_jax.data.tokens import Tokens
from svt_jax.models.checkpoint_names import encoder_names, head_names, in_parts, prefix
from svt_jax.models.families import FAMILIES
from svt_jax.models.layer_loop import _call, _Given, _Static
from svt_jax.models.packed import OneInEachRow, read_batch
from svt_jax.models.positions import Carried, Places


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
        kind = layer.window is not None
        places = encoder.positions(layout)[kind] if encoder.positions else Places()
        sizes = encoder._halves(layout, states[n].shape[1], False)
        static = _Static(
            sizes[kind], first_token_only=False, keep_maps=False
        )  # as in the encoder, for the same program
        out = _call(*nnx.split(layer), jnp.asarray(states[n]), _Given(layout, places, None), static).x
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


@pytest.mark.parametrize("family", tiny.families(FAMILIES))
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
    layers = int(rng.integers(1, 4))
    choices = {
        "hidden_act": ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "relu", "silu", "swish"],
        "num_attention_heads": [1, 2, 3, 4, 6],
        "num_hidden_layers": [layers],
        "layer_norm_eps": [1e-12, 1e-5, 1e-3],
        "num_hidden_groups": [1],
        "inner_group_num": [1, 2],
        "type_vocab_size": [1, 2],
        "embedding_size": [4, 8, 12],
        "sinusoidal_pos_embds": [False, True],
        "rope_theta": [100.0, 1000.0, 10_000.0],
        "local_rope_theta": [50.0, 10_000.0],
        "relative_buckets": [32, 36],
        "local_attention": [1, 2, 6, 9, 40],
        "pooling": ["cls", "mean"],
        "positions": ["absolute", "rotary"],
        **{name: [False, True] for name in ("norm_bias", "attention_bias", "up_bias", "head_bias")},
        **{name: [False, True] for name in ("token_dropout", "embedding_norm")},
    }
    if FAMILIES[family].fixed.get("positions") == "rotary" or family == "esm":
        choices["num_attention_heads"] = [1, 2, 3, 6]  # heads of even sizes
    kinds = {"layer_types": rng.choice(["full_attention", "sliding_attention"], layers).tolist()}
    names = FAMILIES[family].fields
    drawn = {name: rng.choice(options).item() for name, options in choices.items() if name in names}
    return {**drawn, **(kinds if family == "modernbert" else {})}


NUMBER = 15
"""Configs of each family: the odd ones, and random ones."""


def configs(family):
    tried, seeds = list(ODD[family]), itertools.count()
    while len(tried) < NUMBER:
        changes = random_changes(family, next(seeds))
        tried += [] if changes in tried else [changes]
    return tried


def other_inputs(values, number):
    """Every fifth config has sequences of one token, and every fifth padding on the left: padded tokens come first there,
    the classifier reads one of them, and in a narrow window its keys may all be masked."""
    given = reference.inputs(values, number)
    if number % 5 == 3:
        alone = given["ids"] == values.get("mask_token_id")  # transformers divides by 0 where all tokens are masked
        given["ids"] = np.where(alone, given["ids"] + 1, given["ids"])
        return {name: array[:, :1] for name, array in given.items()}
    return {name: array[:, ::-1].copy() for name, array in given.items()} if number % 5 == 4 else given


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_odd_and_random_configs_equal_pytorch(tmp_path, family):
    """States, pooled output, logits and gradients. Comparisons with stored numbers need no PyTorch and always run."""
    for number, changes in enumerate(configs(family)):
        values = reference.fields(family, **changes)
        given = other_inputs(values, number)
        assert (given["mask"][1, 0] == 0) == (number % 5 == 4)
        (tmp_path / str(number)).mkdir()
        arrays = reference.compute(values, num_labels=1 + number % 3, seed=number, given=given)
        try:
            assert_equal_to_pytorch(tmp_path / str(number), arrays)
        except AssertionError as error:
            error.add_note(f"config {number}: {changes}")
            raise


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(("family", "changes"), [("modernbert", {"local_attention": 4}), ("gte", {}), ("esm", {})])
def test_examples_that_share_a_row_equal_pytorch(tmp_path, family, changes):
    """Rotary positions begin anew in each, and windows end with it."""
    values = reference.fields(family, **changes)
    arrays = reference.compute(values, num_labels=2, seed=11)
    encoder, classifier = load(tmp_path, arrays)
    lengths = arrays["mask"].sum(axis=1)
    tokens = Tokens.of_padded(arrays["ids"], arrays["types"], lengths.astype(np.int32), np.zeros(4, np.int32), 0)
    shape = Shape(rows=2, row_length=24, examples=4, longest=16)
    batch = pack(tokens, np.arange(4), shape)
    order = np.argsort(batch["index"])
    ids, types, layout = read_batch({n: jnp.asarray(v) for n, v in batch.items() if n != "index"}, **shape.static)
    out = encoder.encode(ids, types, layout, output_hidden_states=True)
    assert int(layout.segment.max(axis=1).max()) > 1
    for n, state in enumerate(out.hidden_states):
        ours = np.asarray(layout.to_matrices(state))[order]
        for example, length in enumerate(lengths):
            assert_close(
                ours[example, :length], arrays[f"state/{n}"][example, :length], 1e-4, f"state {n} of {example}"
            )
    assert_close(classifier.classify(ids, types, layout)[0][order], arrays["logits"], 1e-4, "logits")


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
