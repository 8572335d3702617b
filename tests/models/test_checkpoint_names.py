"""Names in checkpoints: prefixes, wrappers, old spellings, heads for other purposes, tied weights."""

import numpy as np
import pytest
import tiny
from tiny import rewrite

import svt_jax
from svt_jax.models.families import FAMILIES
from svt_jax.models.hf import has_head
from svt_jax.models.weight_names import NAMES

IDS = np.random.default_rng(1).integers(0, 40, (2, 5)).astype(np.int32)


def test_a_base_models_names_and_a_heads_prefix_give_the_same_encoder(checkpoint):
    plain = svt_jax.load_encoder(checkpoint)(IDS)

    def prefixed(tensors):
        values = {f"bert.{name}": tensors.pop(name) for name in list(tensors)}
        values |= {
            "cls.predictions.bias": np.zeros(40, np.float32),
            "bert.embeddings.position_ids": np.arange(16)[None],
        }
        tensors.update(values)

    rewrite(checkpoint, prefixed)
    again = svt_jax.load_encoder(checkpoint)(IDS)
    assert np.array_equal(plain.last_hidden_state, again.last_hidden_state)
    assert np.array_equal(plain.pooled, again.pooled)


@pytest.mark.parametrize(
    "wrapper",
    [
        "_orig_mod.",
        "module.",
        "model.",
        "0.auto_model.",
        "0.model.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "_fsdp_wrapped_module.bert.",
        "0.auto_model.bert.",
    ],
)
def test_what_wrappers_put_in_front_of_names_is_taken_away(checkpoint, caplog, wrapper):
    plain = svt_jax.load_classifier(checkpoint, num_labels=3)
    caplog.clear()

    def prefixed(tensors):
        tensors |= {"classifier.weight": np.ones((3, 12), np.float32), "classifier.bias": np.zeros(3, np.float32)}
        for name in list(tensors):
            tensors[wrapper + name] = tensors.pop(name)

    rewrite(checkpoint, prefixed)
    assert has_head(checkpoint, 3)
    again = svt_jax.load_classifier(checkpoint, num_labels=3)
    assert caplog.text == ""
    np.testing.assert_array_equal(again.classifier.kernel[...], np.ones((12, 3)))
    for one, other in zip(plain.encoder.layers, again.encoder.layers, strict=True):
        np.testing.assert_array_equal(one.up.kernel[...], other.up.kernel[...])


def test_a_wrapper_around_a_part_of_the_model_is_taken_away(checkpoint):
    def compiled(tensors):
        for name in [n for n in tensors if "layer.1." in n]:
            tensors[name.replace("layer.1.", "layer.1._orig_mod._checkpoint_wrapped_module.")] = tensors.pop(name)

    plain = svt_jax.load_encoder(checkpoint)
    rewrite(checkpoint, compiled)
    again = svt_jax.load_encoder(checkpoint)
    np.testing.assert_array_equal(plain.layers[1].up.kernel[...], again.layers[1].up.kernel[...])


def test_layer_norms_of_tensorflow_days_are_read(checkpoint):
    plain = svt_jax.load_encoder(checkpoint)(IDS)

    def old_names(tensors):
        for name in [n for n in tensors if "LayerNorm" in n]:
            tensors[name.replace("weight", "gamma").replace("bias", "beta")] = tensors.pop(name)

    rewrite(checkpoint, old_names)
    assert np.array_equal(plain.last_hidden_state, svt_jax.load_encoder(checkpoint)(IDS).last_hidden_state)


# Tensors of a pretraining checkpoint that a base model has no place for, and the output embeddings among them.
PRETRAINING = {
    "bert": (["cls.predictions.bias", "cls.seq_relationship.weight"], "cls.predictions.decoder.weight"),
    "roberta": (["lm_head.bias", "lm_head.dense.weight"], "lm_head.decoder.weight"),
    "distilbert": (["vocab_transform.weight", "vocab_layer_norm.bias"], "vocab_projector.weight"),
    "albert": (["predictions.bias", "sop_classifier.classifier.weight"], "predictions.decoder.weight"),
    "xlm-roberta": (["lm_head.bias", "lm_head.dense.weight"], "lm_head.decoder.weight"),
    "camembert": (["lm_head.bias", "lm_head.dense.weight"], "lm_head.decoder.weight"),
    "electra": (
        ["discriminator_predictions.dense.bias", "generator_predictions.dense.bias"],
        "generator_lm_head.weight",
    ),
    "modernbert": (["decoder.bias", "head.dense.weight"], "decoder.weight"),
    "nomic_bert": (["cls.predictions.bias"], "cls.predictions.decoder.weight"),
    "gte": (["lm_head.dense.bias"], "lm_head.decoder.weight"),
    "esm": (["lm_head.dense.bias"], "lm_head.decoder.weight"),
    "mpnet": (["lm_head.dense.bias"], "lm_head.decoder.weight"),
}


@pytest.mark.parametrize("family", tiny.families(FAMILIES))
def test_heads_left_out_of_an_encoder_are_named_to_those_who_ask(tmp_path, caplog, family):
    svt_jax.export_hf(tiny.encoder(family), tmp_path)
    names, _ = PRETRAINING[family]
    rewrite(tmp_path, lambda t: t.update({name: np.zeros((2, 2), np.float32) for name in [*names, "classifier.bias"]}))
    svt_jax.load_encoder(tmp_path)
    assert caplog.text == ""
    with caplog.at_level("INFO", logger="svt_jax"):
        svt_jax.load_encoder(tmp_path)
    assert f"left out, as this model has no such part: {', '.join(sorted([*names, 'classifier.bias']))}" in caplog.text


@pytest.mark.parametrize("family", tiny.families(FAMILIES))
def test_word_embeddings_may_be_kept_as_the_output_they_are_tied_to(tmp_path, family):
    model = tiny.encoder(family)
    svt_jax.export_hf(model, tmp_path)
    _, output = PRETRAINING[family]
    rewrite(tmp_path, lambda t: t.update({output: t.pop(NAMES[family].word)}))
    again = svt_jax.load_encoder(tmp_path)
    np.testing.assert_array_equal(again.embeddings.word.embedding[...], model.embeddings.word.embedding[...])
