"""The demo task: balanced, closed vocabulary, no single sentence reveals the label."""

import collections

import numpy as np
import pytest

from svt_jax.data.demo import SIZES, load_demo, vocabulary
from svt_jax.data.tokenizer import demo_tokenizer, load_tokenizer, tokenize


def test_splits_share_no_story_and_are_balanced():
    splits = {name: load_demo(name) for name in SIZES}
    stories = [set(s.first) for s in splits.values()]
    assert len(set.union(*stories)) == sum(SIZES.values())
    assert {name: len(s) for name, s in splits.items()} == SIZES
    assert all(s.labels.mean() == 0.5 for s in splits.values())


def test_the_label_is_whether_the_claims_words_are_the_storys():
    examples = load_demo("validation")
    fillers = {"the", "was", ".", "it", "who", "what", "did", "with", ":", "look", "for", "in"}
    for story, claim, label in zip(examples.first, examples.second, examples.labels, strict=True):
        assert (set(claim.split()) - fillers <= set(story.split())) == bool(label)


def test_claim_alone_does_not_tell_the_label():
    train, held_out = load_demo("train"), load_demo("validation")
    votes = collections.defaultdict(list)
    for claim, label in zip(train.second, train.labels, strict=True):
        votes[claim].append(label)
    guesses = np.array([round(np.mean(votes[c])) if votes[c] else 0 for c in held_out.second])
    assert (guesses == held_out.labels).mean() < 0.6


def test_too_short_a_length_is_an_error():
    with pytest.raises(ValueError, match="max_length is 4; these texts need at least 5"):
        tokenize(load_demo("validation"), demo_tokenizer(), 4)
    assert tokenize(load_demo("validation"), demo_tokenizer(), 5).lengths.max() == 5


def test_the_tokenizer_knows_every_word_and_survives_saving(tmp_path):
    tokenizer = demo_tokenizer()
    tokens = tokenize(load_demo("validation"), tokenizer, 64)
    assert not np.any(tokens.ids == tokenizer.unk_token_id)
    assert len(tokenizer) == len(vocabulary())
    tokenizer.save_pretrained(tmp_path)
    again = tokenize(load_demo("validation"), load_tokenizer(tmp_path, len(tokenizer)), 64)
    assert np.array_equal(tokens.ids, again.ids)
    assert np.array_equal(tokens.types, again.types)
