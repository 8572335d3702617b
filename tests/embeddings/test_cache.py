"""Embeddings kept in a file: reused only for the same model, tokens and sentences."""

import os
import stat

import numpy as np
import pytest
from safetensors.numpy import load_file

import svt_jax
from svt_jax.embeddings import cache
from svt_jax.embeddings.cache import encode_cached


def forbid_encoding(monkeypatch):
    def refuse(*_):
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(cache, "load_encoder", refuse)


def test_kept_vectors_are_those_that_were_encoded(tiny_model, sentences, tmp_path, monkeypatch):
    file = tmp_path / "e.safetensors"
    texts = sentences[:10]
    (plain,), lengths = encode_cached(tiny_model, iter(texts), iter(["mean"]), 32, None)
    (first,), _ = encode_cached(tiny_model, texts, ["mean"], 32, file)
    both, _ = encode_cached(tiny_model, texts, ["cls", "mean"], 32, file)  # adds cls
    assert sorted(load_file(file)) == ["cls:2", "mean:2"]
    assert [p.name for p in tmp_path.iterdir()] == ["e.safetensors"]
    forbid_encoding(monkeypatch)
    (again, cls), again_lengths = encode_cached(tiny_model, texts, ["mean:-1", "cls"], 32, file)
    for rows in (first, both[1], again):
        np.testing.assert_array_equal(rows, plain)
    np.testing.assert_array_equal(cls, both[0])
    np.testing.assert_array_equal(again_lengths, lengths)


def test_a_file_of_anything_else_is_refused_and_left_as_it_is(tiny_model, make_model, sentences, tmp_path, monkeypatch):
    file = tmp_path / "e.safetensors"
    encode_cached(tiny_model, sentences[:10], ["mean"], 32, file)
    content = file.read_bytes()
    forbid_encoding(monkeypatch)
    other = make_model(tmp_path / "other", seed=1)
    for arguments, words in (
        ((other, sentences[:10], ["mean"], 32), "holds embeddings of another model; allowed"),
        ((tiny_model, sentences[:10], ["mean"], 6), "holds embeddings of another tokenizer or max_length; allowed"),
        (
            (tiny_model, sentences[1:10] + sentences[:1], ["mean"], 32),
            "another tokenizer or max_length and other sentences",
        ),
        # other text with the same tokens
        (
            (tiny_model, [sentences[0] + " ", *sentences[1:10]], ["mean"], 32),
            "holds embeddings of other sentences; allowed",
        ),
        ((tiny_model, sentences[:9], ["cls"], 32), "another tokenizer or max_length and other sentences"),
    ):
        with pytest.raises(ValueError, match=words):
            encode_cached(*arguments, file)
    assert file.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"no safetensors", "cut"])
def test_a_damaged_file_is_refused(tiny_model, sentences, tmp_path, content):
    file = tmp_path / "e.safetensors"
    if content == "cut":
        encode_cached(tiny_model, sentences[:10], ["mean"], 32, file)
        content = file.read_bytes()[:-5]
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is not a file of embeddings, or damaged"):
        encode_cached(tiny_model, sentences[:10], ["mean"], 32, file)
    assert file.read_bytes() == content


def test_a_file_that_cannot_be_written_is_said_before_encoding(tiny_model, sentences, tmp_path, monkeypatch):
    forbid_encoding(monkeypatch)
    with pytest.raises(ValueError, match="no is not a folder. Make it, or correct the path"):
        encode_cached(tiny_model, sentences[:10], ["mean"], 32, tmp_path / "no" / "e.safetensors")


@pytest.mark.parametrize("mask", [0o002, 0o077])
def test_the_umask_says_who_may_read_a_file_of_tensors(make_model, sentences, tmp_path, mask):
    before = os.umask(mask)
    try:
        model = make_model(tmp_path / "model")
        encode_cached(model, sentences[:10], ["mean"], 32, tmp_path / "e.safetensors")
        svt_jax.Whitening(2).fit(np.eye(4)).export_sentence_transformers(tmp_path / "dense")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"e.safetensors", "model.safetensors", "config.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}
    assert not any(path.name.startswith(".") for path in files)


def test_max_length_must_fit_the_model(tiny_model, sentences):
    with pytest.raises(ValueError, match="max_length is 33 and the model has 32 positions"):
        encode_cached(tiny_model, sentences[:10], ["mean"], 33, None)
