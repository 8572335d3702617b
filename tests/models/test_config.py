"""Reading config.json and choosing layers: what is supported, and errors that name what is not."""

import dataclasses
import functools
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny

from svt_jax.models.config import EncoderConfig
from svt_jax.models.families import FAMILIES, UNSUPPORTED
from svt_jax.models.svt_config import SVTConfig

BERT = {"model_type": "bert"}


def test_fields_left_out_have_the_familys_defaults():
    config = EncoderConfig.from_hf({**BERT, "hidden_size": 384, "num_attention_heads": 6, "layer_norm_eps": 1e-5})
    assert (config.hidden_size, config.head_size, config.layer_norm_eps) == (384, 64, 1e-5)
    assert (config.num_hidden_layers, config.intermediate_size, config.hidden_act) == (12, 3072, "gelu")
    assert EncoderConfig.from_hf(config.to_hf()) == config


def test_classifier_dropout_falls_back_to_hidden_dropout():
    assert EncoderConfig.from_hf({**BERT, "hidden_dropout_prob": 0.3}).classifier_dropout == 0.3
    assert (
        EncoderConfig.from_hf({**BERT, "classifier_dropout": None, "hidden_dropout_prob": 0.2}).classifier_dropout
        == 0.2
    )
    assert EncoderConfig.from_hf({**BERT, "classifier_dropout": 0.0}).classifier_dropout == 0.0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'; supported are bert"),
        ({**BERT, "position_embedding_type": "relative_key", "is_decoder": True}, "position_embedding_type is 'relative_key'.*is_decoder is True"),
        ({**BERT, "hidden_act": "mish"}, "hidden_act 'mish' is not one of gelu, gelu_new"),
        ({**BERT, "num_attention_heads": 0}, "num_attention_heads is 0, less than 1"),
        ({**BERT, "hidden_size": "768"}, "hidden_size is '768', not a whole number"),
        ([], "holds no table"),
        ({**BERT, "num_attention_heads": 7}, "hidden_size 768 does not divide by num_attention_heads 7"),
        ({**BERT, "hidden_dropout_prob": 1.5}, r"hidden_dropout_prob 1.5 is not in \[0, 1\)"),
        ({"model_type": ["bert"]}, "model_type .'bert'.; supported are bert"),
        ({**BERT, "hidden_act": "gelu\x1b[2J"}, r"hidden_act 'gelu\\x1b\[2J' is not one of"),
        ({**BERT, "hidden_act": "x" * 10**6}, "hidden_act 'x{99} [.]{3} x{49}' is not one of"),
        ({**BERT, "pad_token_id": 30522}, "pad_token_id 30522 is not below vocab_size 30522"),
    ],
)  # fmt: skip
def test_unsupported_values_are_errors_that_name_them(values, words):
    with pytest.raises(ValueError, match=words):
        EncoderConfig.from_hf(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "distilbert", "n_heads": 0, "activation": "mish"}, "n_heads is 0.*activation 'mish' is not one"),
        ({"model_type": "distilbert", "sinusoidal_pos_embds": 1}, "sinusoidal_pos_embds is 1, not true or false"),
        ({"model_type": "albert", "num_hidden_groups": 13}, "num_hidden_groups 13 is more than num_hidden_layers 12"),
        ({"model_type": "albert", "classifier_dropout_prob": 1.0}, r"classifier_dropout_prob 1.0 is not in \[0, 1\)"),
        ({"model_type": "albert", "embedding_size": 0}, "embedding_size is 0, less than 1"),
        ({"model_type": "roberta", "max_position_embeddings": 2}, "2 leaves no position after pad_token_id 1"),
        ({"model_type": "roberta", "layer_norm_eps": "1e-5"}, "layer_norm_eps is '1e-5', not a number"),
        ({"model_type": "bert", "pruned_heads": {"0": [1]}}, "pruned_heads is {'0': .1.} and only {} is supported"),
    ],
)  # fmt: skip
def test_errors_name_fields_as_the_familys_file_does(values, words):
    with pytest.raises(ValueError, match=words):
        EncoderConfig.from_hf(values)


MODERN = {"model_type": "modernbert", "num_hidden_layers": 2}
ESM = {"model_type": "esm", "vocab_size": 33, "pad_token_id": 1}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({**MODERN, "rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_parameters.full_attention.rope_type is 'yarn' and only 'default'"),
        ({**MODERN, "rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.type is 'linear'"),
        ({"model_type": "nomic_bert", "rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters.rope_type is 'dynamic'"),
        ({"model_type": "nomic_bert", "head_dim": 32}, "head_dim is 32 and only 64"),
        ({**MODERN, "layer_types": ["full_attention"]}, "layer_types names 1 layers of num_hidden_layers 2"),
        ({**MODERN, "layer_types": ["full_attention", "chunked"]}, "'chunked' is not one of full_attention, sliding_attention"),
        ({**MODERN, "layer_types": "full_attention"}, "layer_types is 'full_attention', not a list"),
        ({**MODERN, "global_attn_every_n_layers": 0}, "global_attn_every_n_layers is 0"),
        ({**MODERN, "classifier_pooling": "max"}, "classifier_pooling 'max' is not one of cls, mean"),
        ({**MODERN, "classifier_activation": "mish"}, "classifier_activation 'mish' is not one of gelu"),
        ({**MODERN, "hidden_size": 36, "vocab_size": 50368}, "heads of 3 dimensions cannot be rotated"),
        ({"model_type": "mpnet", "relative_attention_num_buckets": 16}, "relative_attention_num_buckets 16 is less than 32"),
        ({**ESM, "token_dropout": True}, "token_dropout is true and mask_token_id is missing"),
        ({**ESM, "mask_token_id": 33}, "mask_token_id 33 is not below vocab_size 33"),
        ({**ESM, "position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not one of absolute, rotary"),
        ({**ESM, "is_folding_model": True}, "is_folding_model is True and only False"),
        ({"model_type": "esm"}, "vocab_size is None, not a whole number"),
    ],
)  # fmt: skip
def test_what_the_newer_families_do_not_have_is_an_error(values, words):
    with pytest.raises(ValueError, match=words):
        EncoderConfig.from_hf(values)


def test_both_spellings_of_modernberts_layers_and_rotations_are_read():
    old = {"global_attn_every_n_layers": 2, "global_rope_theta": 5e4, "local_rope_theta": 5e3}
    types = ["full_attention", "sliding_attention"]
    new = {
        "layer_types": types,
        "rope_parameters": {
            name: {"rope_type": "default", "rope_theta": t} for name, t in zip(types, (5e4, 5e3), strict=True)
        },
    }
    assert EncoderConfig.from_hf({**MODERN, **old}) == EncoderConfig.from_hf({**MODERN, **new})
    assert EncoderConfig.from_hf({**MODERN, **old}).window(1) == 64


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("bert", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, more than 16777216"),
        ("bert", {"num_hidden_layers": 10**6}, "num_hidden_layers 1000000 is more than 1000"),
        ("distilbert", {"n_layers": 1001}, "n_layers 1001 is more than 1000"),
        ("albert", {"inner_group_num": 500}, "num_hidden_layers 12 times inner_group_num 500 is more than 1000"),
        ("albert", {"num_hidden_layers": 10**6, "num_hidden_groups": 10**6}, "num_hidden_layers 1000000 is more"),
        ("bert", {"vocab_size": 10**12}, "vocab_size is 1000000000000, more than"),
        ("bert", {"hidden_size": 10**400}, "hidden_size is 1000000.*000, more than"),
        ("bert", {"max_position_embeddings": 2**40, "type_vocab_size": 2**40}, "max_position_emb.*type_vocab_size is"),
        (
            "distilbert",
            {"sinusoidal_pos_embds": True, "max_position_embeddings": 10**7},
            "max_position_embeddings 10000000 times 768 is more than 67108864",
        ),
    ],
)
def test_a_config_that_asks_for_too_much_is_an_error_before_anything_is_made(family, changes, words):
    with pytest.raises(ValueError, match=words) as raised:
        EncoderConfig.from_hf({"model_type": family, **changes})
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family):
    import transformers

    needed = {"vocab_size": 33, "pad_token_id": 1} if family == "esm" else {}  # transformers has no default for these
    theirs = getattr(transformers, f"{FAMILIES[family].class_name}Config")(**needed)
    assert EncoderConfig.from_hf({"model_type": family, **needed}) == EncoderConfig.from_hf(theirs.to_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_back_every_field(family):
    import transformers

    rates = {"hidden_dropout_prob": 0.25, "classifier_dropout": 0.125}
    rates = {name: rate for name, rate in rates.items() if name in FAMILIES[family].fields}
    config = EncoderConfig.from_hf(tiny.fields(family, **rates))
    assert EncoderConfig.from_hf(config.to_hf()) == config
    theirs = getattr(transformers, f"{FAMILIES[family].class_name}Config")(**config.to_hf())
    for ours, (name, default) in FAMILIES[family].fields.items():
        first, *tables = name.split(".")
        value = functools.reduce(lambda table, key: table[key], tables, getattr(theirs, first))
        assert (tuple(value) if ours == "layer_types" else value) == getattr(config, ours), name
        if ours in {**tiny.SIZES, **rates}:
            assert value != default, f"{name} tests nothing"


def test_a_second_name_of_a_field_counts_as_in_transformers():
    import transformers

    values = {"model_type": "distilbert", "hidden_size": 24, "n_heads": 2}
    assert EncoderConfig.from_hf(values).hidden_size == transformers.DistilBertConfig(**values).dim == 24


# Fields that transformers' code of a family reads but that change none of our numbers: sizes and losses of heads that
# we take from the weights or leave out, alternative ways to compute the same, other tasks.
HARMLESS = {"num_labels", "problem_type", "use_cache", "chunk_size_feed_forward", "qa_dropout", "_attn_implementation"}
HARMLESS |= {"output_attentions", "output_hidden_states", "return_dict", "deterministic_flash_attn"}
HARMLESS |= {"summary_first_dropout", "summary_last_dropout", "summary_proj_to_labels", "summary_use_proj"}
HARMLESS |= {"decoder_bias", "sparse_pred_ignore_index", "sparse_prediction", "initializer_cutoff_factor"}
HARMLESS |= {"sliding_window"}  # half of local_attention


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_that_transformers_reads_is_known(family):
    """A new version that computes with a new field shows here; other fields of a config.json also do nothing there."""
    root = Path(importlib.util.find_spec("transformers").origin).parent
    module = family.replace("-", "_")
    code = (root / "models" / module / f"modeling_{module}.py").read_text(encoding="utf-8")
    read = set(re.findall(r"\bconfig\.(\w+)", code))
    names = {name.split(".")[0] for name, _ in FAMILIES[family].fields.values()}
    assert len(read) > 15
    assert read <= names | HARMLESS | UNSUPPORTED.keys() | FAMILIES[family].synonyms.keys()


@pytest.mark.parametrize(
    ("family", "tokens"),
    [("bert", 512), ("roberta", 510), ("distilbert", 512), ("albert", 512), ("modernbert", 8192), ("mpnet", 510)],
)
def test_the_longest_sequence_leaves_out_positions_that_no_token_has(family, tokens):
    assert EncoderConfig.from_hf({"model_type": family}).max_tokens == tokens


@pytest.mark.parametrize(("layers", "groups", "inner"), [(12, 1, 1), (3, 2, 1), (4, 2, 2), (5, 3, 1), (6, 6, 1)])
def test_albert_layers_share_weights_by_group(layers, groups, inner):
    values = {
        "model_type": "albert",
        "num_hidden_layers": layers,
        "num_hidden_groups": groups,
        "inner_group_num": inner,
    }
    config = EncoderConfig.from_hf(values)
    expected = [(int(n / (layers / groups)), i) for n in range(layers) for i in range(inner)]  # modeling_albert.py
    assert config.weight_groups == expected
    assert config.num_layers == layers * inner
    assert {group for group, _ in expected} == set(range(groups))


@pytest.mark.parametrize("family", tiny.families(fast=("bert", "distilbert", "modernbert")))
def test_each_field_changes_a_number_of_its_family(family):
    """Shapes show the sizes; the other fields must change the output, or they were parsed and ignored."""
    base = tiny.encoder(family)
    out = base(tiny.IDS).last_hidden_state
    changes = {"hidden_act": "relu", "num_attention_heads": 4, "layer_norm_eps": 0.1, "pad_token_id": 5}
    shows = {
        "bert": {
            "hidden_act",
            "num_attention_heads",
            "layer_norm_eps",
        },  # pad_token_id decides the row that PyTorch freezes
        "roberta": {"hidden_act", "num_attention_heads", "layer_norm_eps", "pad_token_id"},
        "distilbert": {"hidden_act", "num_attention_heads"},
        "albert": {"hidden_act", "num_attention_heads", "layer_norm_eps"},
        **{each: set(changes) - {"pad_token_id"} for each in ("electra", "modernbert", "nomic_bert", "gte", "mpnet")},
        "xlm-roberta": set(changes),
        "camembert": set(changes),
        "esm": {"num_attention_heads", "layer_norm_eps"},
    }[family]
    if base.config.positions == "rotary":
        changes["num_attention_heads"] = 2
    for name, value in changes.items():
        if name in FAMILIES[family].fields:
            other = tiny.encoder(family, **{name: value})
            assert (name in shows) != np.array_equal(other(tiny.IDS).last_hidden_state, out), name


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("modernbert", {"layer_types": ["full_attention", "full_attention"]}),
        ("modernbert", {"layer_types": ["sliding_attention", "full_attention"]}),
        ("modernbert", {"local_attention": 2}),
        ("modernbert", {"rope_theta": 100.0}),
        ("modernbert", {"local_rope_theta": 100.0}),
        ("nomic_bert", {"rope_theta": 100.0}),
        ("esm", {"rope_theta": 100.0}),
        ("esm", {"token_dropout": True}),
    ],
)
def test_each_field_of_the_newer_families_changes_a_number(family, changes):
    out = [tiny.encoder(family, **each)(tiny.IDS).last_hidden_state for each in ({}, changes)]
    assert not np.allclose(*out, atol=1e-4)


@pytest.mark.parametrize(("name", "value"), [("pooling", "mean"), ("head_act", "relu"), ("head_bias", True)])
def test_each_field_of_modernberts_head_changes_a_logit(name, value):
    logits = [tiny.classifier("modernbert", **each)(tiny.IDS, tiny.MASK) for each in ({}, {name: value})]
    assert not np.allclose(*logits, atol=1e-4)


def test_sinusoidal_positions_are_where_a_new_distilbert_starts():
    from flax import nnx

    from svt_jax.models.encoder import Encoder

    config = EncoderConfig.from_hf(tiny.fields("distilbert", sinusoidal_pos_embds=True))
    table = np.asarray(Encoder(config, rngs=nnx.Rngs(0)).embeddings.position.embedding[...])
    angles = [[p / np.power(10000, 2 * (j // 2) / 12) for j in range(12)] for p in range(16)]
    np.testing.assert_allclose(table[:, 0::2], np.sin(angles)[:, 0::2], atol=1e-7)
    np.testing.assert_allclose(table[:, 1::2], np.cos(angles)[:, 1::2], atol=1e-7)


def test_the_config_is_hashable_and_lists_are_as_good_as_tuples():
    assert SVTConfig().layers == (-1,)
    listed = SVTConfig("soft_decay", layers=[0, 1], alpha=[-0.1, -0.2])
    for layers, alpha in (
        (iter([0, 1]), iter([-0.1, -0.2])),
        (range(2), (a for a in (-0.1, -0.2))),
        (np.arange(2), np.array([-0.1, -0.2])),
    ):
        other = SVTConfig("soft_decay", layers=layers, alpha=alpha)
        assert other == listed
        assert json.dumps(dataclasses.asdict(other)) == json.dumps(dataclasses.asdict(listed))
    assert hash(listed) == hash(SVTConfig("soft_decay", layers=(0, 1), alpha=(-0.1, -0.2)))


def test_params_are_compared_and_copied_and_leave_the_config_hashable():
    given = {"gamma": 5.0}
    config = SVTConfig("log_shift", params=given)
    assert hash(config) == hash(SVTConfig("log_shift", params={"gamma": 5.0}))
    assert config == SVTConfig("log_shift", params={"gamma": 5.0})
    assert config != SVTConfig("log_shift", params={"gamma": 6.0})
    given["gamma"] = 6.0
    assert config.params == {"gamma": 5.0}


def test_alphas_bounds_are_the_functions_own():
    assert SVTConfig("soft_exponential", alpha=0.5).make_function(0.5).alpha == 0.5
    with pytest.raises(ValueError, match=r"svt.alpha is 1.5; it must lie in \(-1, 1\). Start from 0.0"):
        SVTConfig("soft_exponential", alpha=1.5)


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        ((-1,), [5]),
        ([-1], [5]),
        ((0, -1), [0, 5]),
        ("all", [0, 1, 2, 3, 4, 5]),
        ("every:2", [1, 3, 5]),
        ("every:4", [3]),
    ],
)
def test_layers_are_chosen_by_number_or_by_word(layers, chosen):
    assert list(SVTConfig("soft_decay", layers=layers).alpha_by_layer(6)) == chosen


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layers": [6]}, "layers 0 to 5"),
        ({"layers": [5, -1]}, "names a layer twice"),
        ({"layers": "every:0"}, "every:K"),
        ({"layers": "none"}, "'all' and 'every:K'"),
        ({"alpha": [-0.1, -0.2]}, "2 numbers for 1 layers"),
        ({"alpha": 0.1}, r"must lie in \(-1, 0\)"),
        ({"placement": "inside"}, "allowed are before_norm"),
        ({"function": "softdecay"}, "allowed are none, soft_decay"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
        ({"solver": "qr"}, "allowed are auto, svd, gram"),
        ({"params": 3}, r"svt.params is 3; allowed is a table"),
        ({"params": {1: 2}}, r"svt.params is {1: 2}; allowed is a table"),
        ({"params": {"gamma": 1.0}}, "svt.params: spectral function 'soft_decay'.*'gamma'; its parameters are alpha, centered, eps"),
        ({"params": {"eps": "x", "centered": 1}}, "centered of SoftDecay must be true or false, got 1.*eps of SoftDecay must be a number, got 'x'"),
        ({"params": {"eps": float("nan")}}, "svt.params: eps of SoftDecay must lie in .* got nan"),
        ({"params": {"alpha": -0.1}}, "svt.params holds alpha, which is not set there. Set svt.alpha instead"),
        ({"function": "contra_norm", "params": {"alpha": -0.1}}, "svt.params holds alpha.*contra_norm has none"),
        ({"function": "centered_soft_decay", "params": {"centered": False}}, "its parameters are alpha, eps"),
        ({"function": "log_shift", "params": {"gamma": -1}}, r"gamma of LogShift must lie in \(0.0, inf\), got -1. Start from 1.0"),
    ],
)  # fmt: skip
def test_impossible_choices_are_errors(fields, words):
    with pytest.raises(ValueError, match=words):
        SVTConfig(**{"function": "soft_decay", **fields}).alpha_by_layer(6)
