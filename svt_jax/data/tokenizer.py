"""Tokenizers, a model folder's own or the demo task's; and their conversion of texts to token arrays."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from svt_jax.data.demo import vocabulary
from svt_jax.data.glue import Examples
from svt_jax.data.tokens import Tokens

log = logging.getLogger(__name__)

BLOCK = 10_000
"""Examples that are tokenised at a time."""
_PROBE = "The people in the house saw a dog and a cat."


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


Advance = Callable[[int], None]
"""Is told how many more examples are done."""


@dataclasses.dataclass(frozen=True)
class TokenBlock:
    """The tokens of some examples, one after another: `flat_ids`, `flat_types` and `lengths` of `Tokens`."""

    ids: np.ndarray
    types: np.ndarray
    lengths: np.ndarray


def tokenize(
    examples: Examples, tokenizer: Any, max_length: int, pad_id: int = 0, advance: Advance | None = None
) -> Tokens:
    """Token arrays of the examples, each cut to max_length tokens (the longer sentence of a pair is cut first).

    Args:
      pad_id: the model's pad_token_id, which fills up shorter rows if the tokenizer has no padding token.
      advance: is told of each block.
    Raises:
      ValueError: if max_length is too small, or the tokenizer knows neither most of the texts nor plain English.
    """
    blocks = list(token_blocks(examples, tokenizer, max_length, advance))
    ids, types, lengths = (np.concatenate([getattr(block, name) for block in blocks]) for name in _ARRAYS)
    return Tokens(ids, types, lengths, examples.labels, padding_id(tokenizer, pad_id))


_ARRAYS = ("ids", "types", "lengths")


def token_blocks(
    examples: Examples, tokenizer: Any, max_length: int, advance: Advance | None = None
) -> Iterator[TokenBlock]:
    """The same in blocks of `BLOCK` examples, which need a tenth of the memory of Python's lists of numbers."""
    texts = 1 if examples.second is None else 2
    special = tokenizer.num_special_tokens_to_add(pair=texts == 2)
    if max_length < special + texts:  # the tokenizer would silently not cut
        raise ValueError(
            f"max_length is {max_length}; these texts need at least {special + texts}. Choose a larger one."
        )
    dtype = id_dtype(tokenizer)
    words = unknown = 0
    for start in range(0, len(examples), BLOCK):
        rows = slice(start, start + BLOCK)
        pairs = () if examples.second is None else (examples.second[rows],)
        encoded = tokenizer(
            examples.first[rows], *pairs, truncation=True, max_length=max_length, return_token_type_ids=True,
            return_attention_mask=False,
        )  # fmt: skip
        lengths = np.asarray([len(row) for row in encoded["input_ids"]], np.int32)
        ids = np.fromiter(itertools.chain.from_iterable(encoded["input_ids"]), dtype)
        types = np.fromiter(itertools.chain.from_iterable(encoded["token_type_ids"]), np.uint8)
        words, unknown = words + len(ids) - special * len(lengths), unknown + _unknown(tokenizer, ids)
        yield TokenBlock(ids, types, lengths)
        if advance is not None:
            advance(len(lengths))
    _check_known(tokenizer, words, unknown, examples)


def id_dtype(tokenizer: Any) -> np.dtype:
    """The type of token numbers: two bytes where the vocabulary allows it."""
    return np.dtype(np.uint16 if largest_id(tokenizer) < 2**16 else np.int32)


def padding_id(tokenizer: Any, pad_id: int) -> int:
    """The number of the tokenizer's padding token; pad_id if it has no such token."""
    return pad_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _check_known(tokenizer: Any, words: int, unknown: int, examples: Examples) -> None:
    """Rejects, or warns of, a tokenizer that makes unknown tokens, or none, from most of the texts.

    Args:
      words: number of tokens that are not special; `unknown` of them are.
    """
    known = words - unknown
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
