"""Reading config.json and choosing layers: what is supported, and what is an error that names itself."""

import pytest

from svt_jax.models.config import EncoderConfig, SVTConfig

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
    ],
)  # fmt: skip
def test_unsupported_values_are_errors_that_name_them(values, words):
    with pytest.raises(ValueError, match=words):
        EncoderConfig.from_hf(values)


def test_the_config_is_hashable_and_lists_are_as_good_as_tuples():
    assert SVTConfig().layers == (-1,)
    listed = SVTConfig("soft_decay", layers=[0, 1], alpha=[-0.1, -0.2])
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
