"""Tokenizers: one that does not belong to the model is rejected, whatever its files are called."""

import json
import logging

import numpy as np
import pytest
from transformers import BertTokenizer

from svt_jax import cli
from svt_jax.data.demo import vocabulary
from svt_jax.data.glue import Examples
from svt_jax.data.token_cache import cached_tokens
from svt_jax.data.tokenizer import check_vocabulary, demo_tokenizer, load_tokenizer, tokenize

SPECIAL = vocabulary()[:5]
WORDS = [*SPECIAL, *(f"word{n}" for n in range(200)), "the", "dog", "runs", "in", "park", "."]
OURS = {"bert": ("vocab.txt", "tokenizer.json"), "distilbert": ("vocab.txt", "tokenizer.json")}


def write(folder, family, file):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": family, "vocab_size": len(WORDS)}))
    match file:
        case "vocab.txt":
            (folder / file).write_text("\n".join(WORDS))
        case "vocab.json":
            (folder / file).write_text(json.dumps({word: n for n, word in enumerate(WORDS)}))
        case "tokenizer.json":
            BertTokenizer(vocab={word: n for n, word in enumerate(WORDS)}).backend_tokenizer.save(str(folder / file))
        case "spiece.model":
            (folder / file).write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    return folder


@pytest.mark.parametrize("file", ["vocab.txt", "vocab.json", "tokenizer.json", "spiece.model"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "albert"])
def test_a_file_of_another_family_gives_no_tokenizer(tmp_path, family, file):
    """If it does not find its file, transformers silently makes a tokenizer of five tokens."""
    folder = write(tmp_path / "model", family, file)
    if file in OURS.get(family, ()):
        assert len(load_tokenizer(folder, len(WORDS))) == len(WORDS)
        return
    with pytest.raises(
        ValueError, match=r"(has \d+ tokens, .*Use the tokenizer that belongs|cannot be read .*Download it)"
    ):
        load_tokenizer(folder, len(WORDS))


def test_a_vocabulary_may_be_rounded_up_but_not_doubled():
    tokenizer = demo_tokenizer()
    for size in (52, 64, 104):
        check_vocabulary(tokenizer, size)
    for size in (51, 105, 30_522):
        with pytest.raises(
            ValueError, match=f"has 52 tokens, the last one number 51, and the model's vocab_size is {size}"
        ):
            check_vocabulary(tokenizer, size)


def test_numbers_count_and_not_how_many_they_are():
    gap = BertTokenizer(vocab={**{word: n for n, word in enumerate(vocabulary())}, "late": 90})
    assert len(gap) == 53
    check_vocabulary(gap, 91)
    with pytest.raises(ValueError, match="has 53 tokens, the last one number 90, and the model's vocab_size is 90"):
        check_vocabulary(gap, 90)


def of(*words):
    return BertTokenizer(vocab={word: n for n, word in enumerate([*SPECIAL, *words])})


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["the dog", "a cat"], "knows 0 of the 4 tokens of the texts, and 0 of the 12 of 'The people"),
        (["the dog", "zzy ..."], "knows 2 of the 7 tokens of the texts, and 0 of"),
        (["☃"], "knows 0 of the 1 tokens"),
    ],
)
def test_a_tokenizer_that_knows_no_text_is_refused(texts, words):
    for second in (None, texts):
        with pytest.raises(
            ValueError,
            match=words if second is None else "knows [04] of the .* allowed is one that knows half of either",
        ):
            tokenize(Examples(texts, second, None), of("zz", "##y"), 16)


def test_text_that_vanishes_is_as_unknown(tmp_path):
    from transformers import RobertaTokenizer

    empty = RobertaTokenizer(vocab={"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}, merges=[])
    with pytest.raises(ValueError, match="knows 0 of the 0 tokens of the texts, and 0 of the 0 of"):
        tokenize(Examples(["a dog", "a cat"], None, None), empty, 16)


def test_a_tokenizer_of_another_language_is_right_for_its_texts(caplog):
    tokens = tokenize(Examples(["gtca acgt", "acgt tttt"], None, None), of("gtca", "acgt", "tttt"), 16)
    assert tokens.lengths.tolist() == [4, 4]
    assert caplog.text == ""


def test_texts_that_a_good_tokenizer_does_not_know_are_told(caplog):
    english = of("the", "people", "in", "house", "saw", "a", "dog", "and", "cat", ".")
    with caplog.at_level(logging.WARNING):
        for texts in (["☃"], ["", "the dog"], ["", " "]):
            assert len(tokenize(Examples(texts, None, None), english, 16)) == len(texts)
    assert caplog.text.count("knows 0 of the 1 tokens of the texts") == 1
    assert caplog.text.count("\n") == 1


def test_a_tokenizer_without_padding_takes_the_models_number(tmp_path, monkeypatch):
    monkeypatch.setenv("SVT_JAX_CACHE", str(tmp_path))
    tokenizer, examples = demo_tokenizer(), Examples(["the kite", "the baker hid a red kite"], None, np.array([0, 1]))
    tokenizer.pad_token = None
    for _ in range(2):  # first made, then read
        tokens = cached_tokens(examples, tokenizer, 16, pad_id=9)
        assert tokens.pad_id == 9
        assert np.array_equal(tokens.ids == 9, ~tokens.real)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_wrong_tokenizer_ends_a_training_in_one_line(tmp_path, capsys):
    folder = write(tmp_path / "model", "albert", "vocab.txt")
    assert cli.train(["--model.path", str(folder), "--data.task", "rte", "--data.source", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "AlbertTokenizer of vocab.txt, has 5 tokens" in error
    assert error.count("\n") == 1
