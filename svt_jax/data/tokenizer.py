"""Tokenizers: a model folder's own, or the demo task's; and texts to token arrays, once."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from svt_jax.data.demo import vocabulary
from svt_jax.data.glue import Examples

_PART = 10_000


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

    @classmethod
    def from_flat(
        cls, ids: np.ndarray, types: np.ndarray, lengths: np.ndarray, labels: np.ndarray | None, pad_id: int
    ) -> Tokens:
        """From the tokens of all examples one after another, [sum of lengths]."""
        padded_ids = np.full((len(lengths), lengths.max()), pad_id, np.int32)
        padded_types = np.zeros_like(padded_ids)
        tokens = cls(padded_ids, padded_types, lengths, labels, pad_id)
        real = tokens.real
        padded_ids[real], padded_types[real] = ids, types
        return tokens

    @property
    def real(self) -> np.ndarray:
        """bool[N, L], true where there is a token and not padding."""
        return np.arange(self.ids.shape[1]) < self.lengths[:, None]


def hash_tokens(tokens: Tokens) -> str:
    """SHA-256 of every example's tokens and label, in order."""
    digest = hashlib.sha256()
    for array in (tokens.ids, tokens.types, tokens.lengths, tokens.labels):
        if array is not None:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


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
    check_vocabulary(tokenizer, vocab_size, f"the tokenizer in {folder}")
    return tokenizer


def check_vocabulary(tokenizer: Any, vocab_size: int, called: str = "the tokenizer") -> None:
    """Raises ValueError if the tokenizer's tokens are more than the model has embeddings for."""
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"{called} has {len(tokenizer)} tokens and the model's vocab_size is {vocab_size}. "
            "Use the tokenizer that belongs to the model."
        )


def demo_tokenizer() -> Any:
    """The demo task's tokenizer: one token a word."""
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: n for n, word in enumerate(vocabulary())})


def tokenize(examples: Examples, tokenizer: Any, max_length: int) -> Tokens:
    """Token arrays of the examples, each cut to max_length tokens (the longer sentence of a pair first)."""
    texts = 1 if examples.second is None else 2
    least = tokenizer.num_special_tokens_to_add(pair=texts == 2) + texts
    if max_length < least:  # the tokenizer would give up on cutting, and say nothing
        raise ValueError(f"max_length is {max_length}; these texts need at least {least}. Choose a larger one.")

    def encode(rows: slice) -> dict[str, list[list[int]]]:
        pairs = () if examples.second is None else (examples.second[rows],)
        return tokenizer(
            examples.first[rows], *pairs, truncation=True, max_length=max_length, return_token_type_ids=True,
            return_attention_mask=False,
        )  # fmt: skip

    # in parts: Python's lists of numbers take ten times the arrays' memory
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    for start in range(0, len(examples), _PART):
        encoded = encode(slice(start, start + _PART))
        lengths.append(np.asarray([len(row) for row in encoded["input_ids"]], np.int32))
        for flat, name in ((ids, "input_ids"), (types, "token_type_ids")):
            flat.append(np.fromiter(itertools.chain.from_iterable(encoded[name]), np.int32))
    return Tokens.from_flat(
        np.concatenate(ids), np.concatenate(types), np.concatenate(lengths), examples.labels, tokenizer.pad_token_id
    )
