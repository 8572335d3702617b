"""Tokenizers, a model folder's own or the demo task's; and their conversion of texts to token arrays."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np

from svt_jax.data.demo import vocabulary
from svt_jax.data.glue import Examples

log = logging.getLogger(__name__)

_PART = 10_000
_PROBE = "The people in the house saw a dog and a cat."


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token arrays of one split, padded to its longest example.

    Attributes:
      ids: int32[N, L].
      types: int32[N, L], 1 in the second sentence of a pair.
      lengths: int32[N], number of real tokens of each example.
      labels: as in `Examples`.
      pad_id: the token that fills up shorter rows.
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
        """Builds from the tokens of all examples one after another, [sum of lengths]."""
        padded_ids = np.full((len(lengths), lengths.max()), pad_id, np.int32)
        padded_types = np.zeros_like(padded_ids)
        tokens = cls(padded_ids, padded_types, lengths, labels, pad_id)
        real = tokens.real
        padded_ids[real], padded_types[real] = ids, types
        return tokens

    @property
    def real(self) -> np.ndarray:
        """bool[N, L], true for a real token, false for padding."""
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
    """Loads the tokenizer of a model folder.

    Raises:
      ValueError: if there is none, or it does not fit the model (see `check_vocabulary`).
    """
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
    found = [name for name in files if (folder / name).is_file()]
    # without the files that it looks for, transformers silently makes an almost empty tokenizer
    if not found:
        raise ValueError(
            f"{folder} has no tokenizer; one of {', '.join(files)} is needed. Save it there with save_pretrained."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise ValueError(f"the tokenizer in {folder} cannot be read ({error}). Download it again.") from error
    kind = type(tokenizer).__name__
    check_vocabulary(tokenizer, vocab_size, f"the tokenizer in {folder}, {kind} of {' and '.join(found)},")
    return tokenizer


def check_vocabulary(tokenizer: Any, vocab_size: int, called: str = "the tokenizer") -> None:
    """Raises ValueError unless each token has an embedding, and at least half of the embeddings have a token.

    Some embeddings are spare where a vocabulary was rounded up. Most are spare where transformers did not find the file
    that it looks for: it then makes a tokenizer of only the special tokens.
    """
    numbers, largest = len(set(tokenizer.get_vocab().values())), largest_id(tokenizer)
    if largest >= vocab_size or 2 * numbers < vocab_size:
        raise ValueError(
            f"{called} has {numbers} tokens, the last one number {largest}, and the model's vocab_size is {vocab_size}; "
            "allowed are numbers below that, and tokens for half of them. Use the tokenizer that belongs to the model, or fit "
            "the model to it with transformers' resize_token_embeddings."
        )


def largest_id(tokenizer: Any) -> int:
    """The largest number of a token; `len(tokenizer)` is not that number, since there may be gaps."""
    return max(tokenizer.get_vocab().values(), default=-1)


def demo_tokenizer() -> Any:
    """The demo task's tokenizer: one token for each word."""
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: n for n, word in enumerate(vocabulary())})


def tokenize(examples: Examples, tokenizer: Any, max_length: int, pad_id: int = 0) -> Tokens:
    """Token arrays of the examples, each cut to max_length tokens (the longer sentence of a pair is cut first).

    Args:
      pad_id: the model's pad_token_id, which fills up shorter rows if the tokenizer has no padding token.
    Raises:
      ValueError: if max_length is too small, or the tokenizer knows neither most of the texts nor plain English.
    """
    texts = 1 if examples.second is None else 2
    special = tokenizer.num_special_tokens_to_add(pair=texts == 2)
    if max_length < special + texts:  # the tokenizer would silently not cut
        raise ValueError(
            f"max_length is {max_length}; these texts need at least {special + texts}. Choose a larger one."
        )

    def encode(rows: slice) -> dict[str, list[list[int]]]:
        pairs = () if examples.second is None else (examples.second[rows],)
        return tokenizer(
            examples.first[rows], *pairs, truncation=True, max_length=max_length, return_token_type_ids=True,
            return_attention_mask=False,
        )  # fmt: skip

    # in parts: Python's lists of numbers need ten times the memory of arrays
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    for start in range(0, len(examples), _PART):
        encoded = encode(slice(start, start + _PART))
        lengths.append(np.asarray([len(row) for row in encoded["input_ids"]], np.int32))
        for flat, name in ((ids, "input_ids"), (types, "token_type_ids")):
            flat.append(np.fromiter(itertools.chain.from_iterable(encoded[name]), np.int32))
    all_ids = np.concatenate(ids)
    _check_known(tokenizer, all_ids, len(all_ids) - special * len(examples), examples)
    return Tokens.from_flat(
        all_ids, np.concatenate(types), np.concatenate(lengths), examples.labels, padding_id(tokenizer, pad_id)
    )


def padding_id(tokenizer: Any, pad_id: int) -> int:
    """The number of the tokenizer's padding token; pad_id if it has no such token."""
    return pad_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _check_known(tokenizer: Any, ids: np.ndarray, words: int, examples: Examples) -> None:
    """Rejects, or warns of, a tokenizer that makes unknown tokens, or none, from most of the texts.

    Args:
      ids: int32[all tokens], the tokens of all examples.
      words: number of tokens that are not special.
    """
    known = words - _unknown(tokenizer, ids)
    if 2 * known >= words > 0 or not any(
        text.strip() for text in itertools.chain(examples.first, examples.second or ())
    ):
        return
    probe = np.asarray(tokenizer(_PROBE, add_special_tokens=False)["input_ids"], np.int32)
    probe_known = len(probe) - _unknown(tokenizer, probe)
    if 2 * probe_known >= len(probe) > 0:  # the tokenizer works: the texts are in another language, or one emoji
        log.warning(
            "the tokenizer knows %d of the %d tokens of the texts; the others are all alike to the model", known, words
        )
        return
    raise ValueError(
        f"the tokenizer, a {type(tokenizer).__name__}, knows {known} of the {words} tokens of the texts, and {probe_known} of the "
        f"{len(probe)} of {_PROBE!r}; allowed is one that knows half of either. Use the tokenizer that belongs to the model."
    )


def _unknown(tokenizer: Any, ids: np.ndarray) -> int:
    number = tokenizer.unk_token_id
    # a byte tokenizer knows everything, and may name its start-of-text token as the unknown one
    if number is None or number in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id):
        return 0
    return int(np.count_nonzero(ids == number))
