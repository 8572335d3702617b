"""Tokenizers: a model folder's own, or the demo task's; and texts to token arrays, once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from svt_jax.data.demo import vocabulary
from svt_jax.data.glue import Examples


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token arrays of one split, padded to its longest example.

    Attributes:
      ids: int32[N, L].
      types: int32[N, L], 1 in the second sentence of a pair.
      lengths: int32[N], real tokens of each example.
      labels: as in `Examples`.
      pad_id: what fills up shorter rows.
    """

    ids: np.ndarray
    types: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray | None
    pad_id: int

    def __len__(self) -> int:
        return len(self.ids)


def load_tokenizer(folder: Path, vocab_size: int) -> Any:
    """The tokenizer of a model folder.

    Raises:
      ValueError: if there is none, or its tokens are more than the model has embeddings for.
    """
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
    # transformers makes an almost empty tokenizer of a folder that has a config.json alone, without a word
    if not any((folder / name).is_file() for name in files):
        raise ValueError(
            f"{folder} has no tokenizer; one of {', '.join(files)} is needed. Save it there with save_pretrained."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise ValueError(f"the tokenizer in {folder} cannot be read ({error}). Download it again.") from error
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens and the model's vocab_size is {vocab_size}. "
            "Use the tokenizer that belongs to the model."
        )
    return tokenizer


def demo_tokenizer() -> Any:
    """The demo task's tokenizer: one token a word."""
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: n for n, word in enumerate(vocabulary())})


def tokenize(examples: Examples, tokenizer: Any, max_length: int) -> Tokens:
    """Token arrays of the examples, each cut to max_length tokens (the longer sentence of a pair first)."""
    texts = 1 if examples.second is None else 2
    least = tokenizer.num_special_tokens_to_add(pair=texts == 2) + texts
    if max_length < least:  # the tokenizer would give up on cutting, and say nothing
        raise ValueError(f"data.max_length is {max_length}; this task needs at least {least}. Choose a larger one.")
    pairs = () if examples.second is None else (examples.second,)
    encoded = tokenizer(examples.first, *pairs, truncation=True, max_length=max_length, return_token_type_ids=True)
    lengths = np.asarray([len(ids) for ids in encoded["input_ids"]], np.int32)
    shape = (len(examples), int(lengths.max()))
    ids = np.full(shape, tokenizer.pad_token_id, np.int32)
    types = np.zeros(shape, np.int32)
    for row, (row_ids, row_types) in enumerate(zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)):
        ids[row, : len(row_ids)] = row_ids
        types[row, : len(row_types)] = row_types
    return Tokens(ids, types, lengths, examples.labels, tokenizer.pad_token_id)
