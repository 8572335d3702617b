"""Embeddings: equal to the encoder's own states for single sentences; each distinct sentence is encoded once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import svt_jax
from svt_jax.data import steady_batches
from svt_jax.data.tokenizer import demo_tokenizer
from svt_jax.embeddings import embed as module
from svt_jax.embeddings.embed import Pooling, encode, tokenize_sentences
from svt_jax.errors import NonFiniteError
from svt_jax.models.config import EncoderConfig
from svt_jax.models.encoder import Encoder
from tests.embeddings.conftest import FIELDS


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return svt_jax.load_encoder(tiny_model)


@pytest.fixture(scope="module")
def states(encoder, sentences):
    """Hidden states [3, n, D] of each sentence, from batches without padding."""
    tokens = tokenize_sentences(sentences, demo_tokenizer(), 32)
    found = {}
    for n in np.unique(tokens.lengths):
        rows = np.flatnonzero(tokens.lengths == n)
        ids = jnp.asarray(tokens.ids[rows, :n])
        hidden = np.stack(encoder(ids, output_hidden_states=True).hidden_states)
        found |= {sentences[row]: hidden[:, i].astype(np.float64) for i, row in enumerate(rows)}
    return found


POOLINGS = {
    "mean": lambda h: h[2].mean(axis=0),
    "cls": lambda h: h[2, 0],
    "first_last": lambda h: (h[0] + h[2]).mean(axis=0) / 2,
    "mean:1": lambda h: h[1].mean(axis=0),
    "cls:0,-2,2": lambda h: h[:, 0].mean(axis=0),
}


def test_every_pooling_from_one_pass_equals_the_states_without_padding(encoder, states, sentences, monkeypatch):
    monkeypatch.setattr(steady_batches, "_ROW_LENGTH", 64)
    monkeypatch.setattr(steady_batches, "_BATCH_TOKENS", 128)
    tokens = tokenize_sentences(sentences, demo_tokenizer(), 32)
    assert len(np.unique(tokens.lengths)) > 3
    poolings = [Pooling.parse(word, 2) for word in POOLINGS]
    done = []
    out = encode(encoder, tokens, poolings, progress=done.append)
    assert sum(done) == 60
    assert len(done) > 3
    # the states of the last layer are up to 2, and both sides round in float32: measured 2.1e-6
    for pooling, expected in zip(poolings, POOLINGS.values(), strict=True):
        np.testing.assert_allclose(out[pooling], [expected(states[s]) for s in sentences], atol=4e-6)
    first_tokens = [poolings[n] for n in (1, 3, 4)]  # from the last layer only these
    for pooling, vectors in encode(encoder, tokens, first_tokens).items():
        np.testing.assert_allclose(vectors, out[pooling], atol=2e-6)


def test_repeated_sentences_are_encoded_once_and_come_back_in_order(tiny_model, states, sentences, monkeypatch):
    seen = []
    tokenize = module.tokenize_sentences
    monkeypatch.setattr(module, "tokenize_sentences", lambda texts, *rest: seen.extend(texts) or tokenize(texts, *rest))
    asked = [sentences[n] for n in (3, 0, 3, 3, 1)]
    out = svt_jax.embed(tiny_model, asked)
    assert seen == [sentences[n] for n in (3, 0, 1)]
    np.testing.assert_array_equal(out[0], out[2])
    np.testing.assert_allclose(out, [states[s][2].mean(axis=0) for s in asked], atol=2e-6)


def test_sentences_that_can_be_read_only_once_are_all_embedded(encoder, sentences):
    expected = svt_jax.embed(encoder, sentences[:5], tokenizer=demo_tokenizer())
    for once in (
        (s for s in sentences[:5]),
        map(str, sentences[:5]),
        dict.fromkeys(sentences[:5]),
        np.array(sentences[:5]),
    ):
        np.testing.assert_array_equal(svt_jax.embed(encoder, once, tokenizer=demo_tokenizer()), expected)


def test_an_encoder_comes_with_its_tokenizer(encoder, tiny_model, sentences):
    expected = svt_jax.embed(tiny_model, sentences[:3], pooling="cls")
    np.testing.assert_array_equal(
        svt_jax.embed(encoder, sentences[:3], pooling="cls", tokenizer=demo_tokenizer()), expected
    )
    with pytest.raises(ValueError, match="an encoder has no tokenizer of its own. Give tokenizer="):
        svt_jax.embed(encoder, sentences[:3])


def test_no_sentences_give_no_rows_and_an_empty_one_its_special_tokens(encoder):
    tokenizer = demo_tokenizer()
    assert svt_jax.embed(encoder, [], tokenizer=tokenizer).shape == (0, 8)
    out = encoder([[tokenizer.cls_token_id, tokenizer.sep_token_id]]).last_hidden_state
    np.testing.assert_allclose(svt_jax.embed(encoder, [""], tokenizer=tokenizer), out.mean(axis=1), atol=2e-6)


def test_long_sentences_are_cut_at_max_length_and_at_the_models_positions(encoder, sentences):
    tokenizer = demo_tokenizer()
    words = sentences[0].split()
    long, cut = " ".join(words * 10), " ".join((words * 10)[:30])
    both = svt_jax.embed(encoder, [long, cut], tokenizer=tokenizer)
    np.testing.assert_allclose(both[0], both[1], atol=2e-6)
    short = svt_jax.embed(encoder, [long, " ".join(words[:4])], tokenizer=tokenizer, max_length=6)
    np.testing.assert_allclose(short[0], short[1], atol=2e-6)


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("max", "pooling is 'max'; allowed are mean, cls, first_last"),
        ("mean:", "pooling is 'mean:'; allowed"),
        ("mean:0,3", "the model has hidden states 0 .embeddings. to 2"),
        ("cls:-4", "the model has hidden states 0 .embeddings. to 2"),
    ],
)
def test_a_pooling_that_does_not_exist_is_refused(encoder, word, words):
    with pytest.raises(ValueError, match=words):
        svt_jax.embed(encoder, ["a"], pooling=word, tokenizer=demo_tokenizer())


@pytest.mark.parametrize("sentences", ["one string", b"bytes", ["a", 3], [None], (x for x in ["a", 3]), 5, None])
def test_sentences_must_be_strings(encoder, sentences):
    with pytest.raises(ValueError, match="sentences must be a list of strings"):
        svt_jax.embed(encoder, sentences, tokenizer=demo_tokenizer())


def test_a_model_without_a_tokenizer_is_refused(encoder, tmp_path):
    svt_jax.export_hf(encoder, tmp_path / "bare")
    with pytest.raises(ValueError, match="bare has no tokenizer; one of tokenizer.json, .* is needed"):
        svt_jax.embed(tmp_path / "bare", ["a"])


def test_vectors_that_are_not_finite_are_an_error(tiny_model):
    broken = svt_jax.load_encoder(tiny_model)
    broken.layers[1].output_norm.scale[...] = jnp.full(8, jnp.nan)
    with pytest.raises(NonFiniteError, match=r"1 of 1 vectors \(mean:2\) are not finite"):
        svt_jax.embed(broken, ["the kite"], tokenizer=demo_tokenizer())


@pytest.mark.parametrize("size", [7, 51, 105])  # the last of the demo's 52 tokens has number 51
def test_a_tokenizer_of_another_vocabulary_is_refused(size):
    other = Encoder(EncoderConfig.from_hf({**FIELDS, "vocab_size": size}), rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=f"the tokenizer has 52 tokens, .* 51, and the model's vocab_size is {size}; allowed"
    ):
        svt_jax.embed(other, ["the kite"], tokenizer=demo_tokenizer())


def test_a_tokenizer_without_padding_takes_the_models(encoder, sentences):
    tokenizer = demo_tokenizer()
    tokenizer.pad_token = None
    assert tokenizer.pad_token_id is None
    expected = svt_jax.embed(encoder, sentences[:9], tokenizer=demo_tokenizer())
    np.testing.assert_array_equal(svt_jax.embed(encoder, sentences[:9], tokenizer=tokenizer), expected)
    assert tokenize_sentences(sentences[:9], tokenizer, 32, pad_id=7).pad_id == 7


def test_workers_have_the_callers_settings(encoder, sentences, monkeypatch):
    seen = set()

    def program(*arguments):
        seen.add((jax.config.jax_default_matmul_precision, jax.config.jax_default_device))
        return original(*arguments)

    original, device = module._pooling_program(), jax.devices()[1]
    monkeypatch.setattr(module, "_pooling_program", lambda: program)
    with jax.default_matmul_precision("highest"), jax.default_device(device):
        svt_jax.embed(encoder, sentences, tokenizer=demo_tokenizer())
    assert seen == {("highest", device)}
