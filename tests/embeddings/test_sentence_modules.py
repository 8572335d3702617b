"""Folders of sentence-transformers: we return its vectors, and reject what we do not compute."""

import json
import shutil

import numpy as np
import pytest

import svt_jax
from svt_jax.data.tokenizer import demo_tokenizer

OLD, NEW = "sentence_transformers.models.", "sentence_transformers.sentence_transformer.modules.some_file."


@pytest.fixture
def folder(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def write(folder, *kinds, prefix=OLD, encoder="", pooling=None, **settings):
    """Turns a model folder into a sentence-transformers folder."""
    paths = {kind: encoder if kind == "Transformer" else f"{n}_{kind}" for n, kind in enumerate(kinds)}
    modules = [{"idx": n, "name": str(n), "path": paths[kind], "type": prefix + kind} for n, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    for path in list(paths.values())[1:]:
        (folder / path).mkdir(exist_ok=True)
    if "Pooling" in paths:
        (folder / paths["Pooling"] / "config.json").write_text(json.dumps(pooling or {}))
    (folder / encoder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


POOLINGS = {
    "old mean": {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
    "old cls": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
    "none": {},
    "new cls": {"pooling_mode": "cls"},
}


@pytest.mark.parametrize("prefix", [OLD, NEW])
@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_and_normalization_are_the_folders_own(folder, sentences, name, prefix):
    word = "cls" if "cls" in name else "mean"
    expected = svt_jax.embed(folder, sentences[:4], pooling=word)
    write(folder, "Transformer", "Pooling", prefix=prefix, pooling=POOLINGS[name])
    np.testing.assert_array_equal(svt_jax.embed(folder, sentences[:4]), expected)
    write(folder, "Transformer", "Pooling", "Normalize", prefix=prefix, pooling=POOLINGS[name])
    np.testing.assert_allclose(svt_jax.embed(folder, sentences[:4]), unit(expected), atol=1e-6)


def test_poolings_follow_one_another_and_max_is_over_real_tokens(folder, sentences):
    write(folder, "Transformer", "Pooling", pooling={"pooling_mode": ["cls", "max"]})
    out = svt_jax.embed(folder, sentences[:4])
    assert out.shape == (4, 16)
    assert svt_jax.embed(folder, []).shape == (0, 16)
    np.testing.assert_allclose(out[:, :8], svt_jax.embed(folder, sentences[:4], pooling="cls"), atol=2e-6)
    encoder, tokenizer = svt_jax.load_encoder(folder), demo_tokenizer()
    batch = tokenizer(sentences[:4], padding=True, return_tensors="np")
    states = encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    for row, of_tokens, real in zip(out, states, batch["attention_mask"].astype(bool), strict=True):
        np.testing.assert_allclose(row[8:], of_tokens[real].max(axis=0), atol=2e-6)


def test_a_pooling_that_is_named_stands_above_the_folders(folder, sentences):
    expected = svt_jax.embed(folder, sentences[:4], pooling="first_last")
    write(folder, "Transformer", "Pooling", "Normalize", pooling={"pooling_mode": "cls"})
    np.testing.assert_array_equal(svt_jax.embed(folder, sentences[:4], pooling="first_last"), expected)


def test_length_and_lower_case_are_the_folders_unless_they_are_given(folder, sentences):
    long = " ".join(sentences[:10])
    cut = {n: svt_jax.embed(folder, [long], max_length=n) for n in (6, 9, 32)}
    assert not np.array_equal(cut[6], cut[9])
    write(folder, "Transformer", "Pooling", max_seq_length=6, do_lower_case=True)
    np.testing.assert_array_equal(svt_jax.embed(folder, [long.upper()]), cut[6])
    np.testing.assert_array_equal(svt_jax.embed(folder, [long], max_length=9), cut[9])
    np.testing.assert_array_equal(svt_jax.embed(folder, [long], pooling="mean"), cut[6])
    write(folder, "Transformer", "Pooling")
    np.testing.assert_array_equal(svt_jax.embed(folder, [long]), cut[32])  # the model's positions
    tokenizer = demo_tokenizer()
    tokenizer.model_max_length = 9
    tokenizer.save_pretrained(folder)
    np.testing.assert_array_equal(svt_jax.embed(folder, [long]), cut[9])


def test_a_default_prompt_stands_in_front(folder):
    expected = svt_jax.embed(folder, ["the kite", "the lamp"])
    write(folder, "Transformer", "Pooling")
    settings = {"prompts": {"query": "the ", "document": ""}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    np.testing.assert_array_equal(svt_jax.embed(folder, ["kite", "lamp"]), expected)
    assert not np.allclose(svt_jax.embed(folder, ["kite", "lamp"], pooling="mean"), expected)


def test_the_encoder_may_lie_in_a_folder_of_its_own(folder, tmp_path, sentences):
    expected = svt_jax.embed(folder, sentences[:2], pooling="cls")
    shutil.move(folder, tmp_path / "whole" / "0_Transformer")
    write(tmp_path / "whole", "Transformer", "Pooling", encoder="0_Transformer", pooling={"pooling_mode": "cls"})
    np.testing.assert_array_equal(svt_jax.embed(tmp_path / "whole", sentences[:2]), expected)


@pytest.mark.parametrize(
    ("kinds", "changes", "words"),
    [
        (["Transformer", "Pooling", "Dense"], {}, "has Transformer, Pooling, Dense; read are Transformer, Pooling and"),
        (["Transformer"], {}, "has Transformer; read are"),
        (["Transformer", "Normalize", "Pooling"], {}, "in this order"),
        (["Transformer", "Pooling"], {"pooling": {"pooling_mode": "weightedmean"}}, "pooling is .'weightedmean'.; read are"),
        (["Transformer", "Pooling"], {"pooling": {"pooling_mode_lasttoken": True}}, "pooling is .'lasttoken'.; read are"),
        (["Transformer", "Pooling"], {"pooling": {"pooling_mode": 3}}, "the pooling is 3; read are cls, max, mean"),
        (["Transformer", "Pooling"], {"pooling": ["mean"]}, "read are cls, max, mean"),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused_unless_a_pooling_is_named(folder, kinds, changes, words):
    write(folder, *kinds, **changes)
    with pytest.raises(ValueError, match=f"{words}.*Name a pooling, as in pooling='mean'"):
        svt_jax.embed(folder, ["the kite"])
    assert svt_jax.embed(folder, ["the kite"], pooling="mean").shape == (1, 8)


@pytest.mark.parametrize(
    ("kinds", "changes", "words"),
    [
        (["WordEmbeddings", "Pooling"], {}, "has WordEmbeddings, Pooling; allowed is a Transformer first"),
        ([], {}, "has no modules; allowed is a Transformer first"),
        (["Transformer", "Pooling"], {"max_seq_length": "x"}, "max_seq_length is 'x'"),
        (["Transformer", "Pooling"], {"query_length": 8}, "query_length is 8; read are max_seq_length and do_lower_case"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_understood_is_refused(folder, kinds, changes, words):
    write(folder, *kinds, **changes)
    for pooling in (None, "mean"):
        with pytest.raises(ValueError, match=words):
            svt_jax.embed(folder, ["the kite"], pooling=pooling)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "modules.json is not JSON"),
        ("[" * 100_000, "modules.json is nested too deeply"),
        ("[3]", "is no list of modules"),
        ('{"a": 3}', "is no list of modules"),
        ('[{"type": "x.Transformer", "path": "../other"}]', "names ../other, which is not in it"),
        ('[{"type": "x.Transformer", "path": "/tmp"}]', "names /tmp, which is not in it"),
    ],
)
def test_a_damaged_list_of_modules_is_an_error(folder, text, words):
    (folder / "modules.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        svt_jax.embed(folder, ["the kite"])


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.model
def test_the_real_models_vectors_are_those_of_sentence_transformers(minilm):
    from sentence_transformers import SentenceTransformer

    texts = ["A short one.", "A rather longer sentence, with Capitals.", "word " * 400]
    expected = SentenceTransformer(str(minilm), device="cpu").encode(texts)
    np.testing.assert_allclose(svt_jax.embed(minilm, texts), expected, atol=1e-6)
