"""Sentence embeddings: encodes each distinct sentence once, in batches of static shape, all poolings in one pass.

With h_l the hidden states (h_0 the embeddings' output, h_n the last layer's) and m the mask of n real tokens, the special
ones included, a pooling takes a set of layers and then one row:

  mean   1/n sum_t m_t h_t        cls   h_0        of  h = mean over its layers of h_l

References: "first_last" averages hidden states 0 and -1, as the published command of arXiv 2208.11790 does (there
`last2avg`). The first *layer* and the last, "mean:1,-1", is `first-last-avg` of Su et al., arXiv 2103.15316,
`avg_first_last` of SimCSE, arXiv 2104.08821, and the setting of WhiteBERT, arXiv 2104.01767.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svt_jax.data.glue import Examples
from svt_jax.data.steady_batches import Progress, Static, fill
from svt_jax.data.tokenizer import check_vocabulary, load_tokenizer, tokenize
from svt_jax.data.tokens import Tokens
from svt_jax.embeddings.sentence_modules import SentenceModules, normalized, read_modules
from svt_jax.host import compiler_options
from svt_jax.models.encoder import Encoder
from svt_jax.models.files import local_folder
from svt_jax.models.hf import load_encoder
from svt_jax.models.packed import read_batch

Array = jax.Array
MAX_LENGTH = 128


@dataclasses.dataclass(frozen=True)
class Pooling:
    """Which rows make a sentence's vector; see this file's head.

    Attributes:
      tokens: "mean" or "cls"; "max", the largest of each column, comes only from a sentence-transformers folder.
      layers: numbers of hidden states, ascending; 0 is the embeddings' output.
    """

    tokens: Literal["mean", "cls", "max"]
    layers: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.tokens}:{','.join(map(str, self.layers))}"

    @classmethod
    def parse(cls, text: str, num_layers: int) -> Pooling:
        """Reads "mean", "cls", "first_last" (hidden states 0 and -1), or any layer set such as "mean:1,-1" or "cls:0,6".

        Example:
          >>> [str(Pooling.parse(text, num_layers=12)) for text in ("mean", "cls", "first_last", "mean:-2,-1")]
          ['mean:12', 'cls:12', 'mean:0,12', 'mean:11,12']

        Raises:
          ValueError: for another word, or a layer that the model does not have.
        """
        full = {"mean": "mean:-1", "cls": "cls:-1", "first_last": "mean:0,-1"}.get(text, text)
        found = re.fullmatch(r"(mean|cls):(-?\d+(?:,-?\d+)*)", full)
        if not found:
            raise ValueError(
                f"pooling is {text!r}; allowed are mean, cls, first_last, and mean or cls of chosen layers such as mean:1,-1. "
                "Correct it."
            )
        layers = [int(n) for n in found[2].split(",")]
        if any(not -num_layers - 1 <= n <= num_layers for n in layers):
            raise ValueError(
                f"pooling is {text!r}; the model has hidden states 0 (embeddings) to {num_layers}, negatives count from "
                "the end. Choose others."
            )
        distinct = sorted({n % (num_layers + 1) for n in layers})
        return cls("cls" if found[1] == "cls" else "mean", tuple(distinct))


def embed(
    model: str | Path | Encoder,
    sentences: Iterable[str],
    *,
    pooling: str | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
) -> np.ndarray:
    """Computes vectors of sentences.

    A folder with modules.json, as sentence-transformers writes it, says how its vectors are made: pooling, division by
    the norm, a prompt in front. The vectors are the same here, unless you name a pooling: then they are those of the
    encoder, with nothing after the pooling.

    Args:
      model: a folder or hub id with a tokenizer; or an encoder, for which `tokenizer` is needed.
      sentences: in any order, repeated or not.
      pooling: "mean" (of the last layer's tokens), "cls", "first_last" (the embeddings' output and the last layer's), or
        any layer set such as "mean:1,-1" (the first layer's and the last layer's). None: what modules.json says, or "mean".
      tokenizer: a transformers tokenizer, for an encoder.
      max_length: the most tokens of a sentence, special ones included; what is longer is cut. At most the model's
        positions. None: what a folder with modules.json says (its max_seq_length, or its tokenizer's length), or 128.
    Returns:
      float32[N, D], in the order of the sentences; equal sentences have equal vectors to the bit.
    Raises:
      ValueError: if the model has no tokenizer, or one of another model's vocabulary, the pooling does not exist, a
        sentence is no string, or modules.json has a module other than Transformer, Pooling (mean, cls, max) and Normalize.
      NonFiniteError: if a vector is not finite.
    """
    single = isinstance(sentences, str | bytes) or not isinstance(sentences, Iterable)
    sentences = [] if single else list(sentences)  # a generator can be read once
    if single or not all(isinstance(sentence, str) for sentence in sentences):
        raise ValueError("sentences must be a list of strings. Put a single one into a list.")
    modules: SentenceModules | None = None
    if isinstance(model, Encoder):
        encoder = model
        if tokenizer is None:
            raise ValueError("an encoder has no tokenizer of its own. Give tokenizer=, or a model folder as model.")
    else:
        folder = local_folder(model)
        modules = read_modules(folder)
        folder = modules.encoder if modules else folder
        encoder = load_encoder(folder)
        if tokenizer is None:
            tokenizer = load_tokenizer(folder, encoder.config.vocab_size)
            tokenizer = modules.lower_cased(tokenizer) if modules else tokenizer
    check_vocabulary(tokenizer, encoder.config.vocab_size)
    names, normalizes, prompt = modules.after_encoder() if modules and pooling is None else ([], False, "")
    last = (encoder.config.num_layers,)
    chosen = [Pooling(name, last) for name in names] or [Pooling.parse(pooling or "mean", encoder.config.num_layers)]
    number = {sentence: n for n, sentence in enumerate(dict.fromkeys(sentences))}
    if not number:
        return np.zeros((0, encoder.config.hidden_size * len(chosen)), np.float32)
    if max_length is None:
        max_length = (modules.max_length or tokenizer.model_max_length) if modules else MAX_LENGTH
    texts = [prompt + sentence for sentence in number]
    length = min(max_length, encoder.config.max_tokens)
    tokens = tokenize_sentences(texts, tokenizer, length, encoder.config.pad_token_id)
    encoded = encode(encoder, tokens, chosen)
    vectors = np.concatenate([encoded[each] for each in chosen], axis=1)
    vectors = normalized(vectors) if normalizes else vectors
    return vectors[[number[sentence] for sentence in sentences]]


def tokenize_sentences(sentences: Iterable[str], tokenizer: Any, max_length: int, pad_id: int = 0) -> Tokens:
    """Makes token arrays of single sentences; see `tokenize`."""
    return tokenize(Examples(list(sentences), None, None), tokenizer, max_length, pad_id)


def encode(
    encoder: Encoder, tokens: Tokens, poolings: Iterable[Pooling], *, progress: Progress | None = None
) -> dict[Pooling, np.ndarray]:
    """Returns every pooling of every row of tokens, each float32[N, D], from one pass of the encoder.

    Raises:
      NonFiniteError: if a vector is not finite.
    """
    from svt_jax.errors import NonFiniteError

    graphdef, state = nnx.split(encoder)
    wanted = tuple(dict.fromkeys(poolings))
    out = {pooling: np.zeros((len(tokens), encoder.config.hidden_size), np.float32) for pooling in wanted}

    def compute(batch: dict[str, np.ndarray], static: Static) -> tuple[Array, ...]:
        return _pooling_program()(graphdef, wanted, static, state, batch)

    fill(list(out.values()), tokens, compute, progress)
    for pooling, vectors in out.items():
        if bad := int(np.sum(~np.isfinite(vectors).all(axis=1))):
            raise NonFiniteError(
                f"{bad} of {len(vectors)} vectors ({pooling}) are not finite. Check the model's weights."
            )
    return out


@functools.cache
def _pooling_program() -> Any:
    return jax.jit(_pooled, static_argnums=(0, 1, 2), compiler_options=compiler_options("inference"))


def _pooled(
    graphdef: nnx.GraphDef,
    poolings: tuple[Pooling, ...],
    static: Static,
    state: nnx.State,
    batch: dict[str, Array],
) -> tuple[Array, ...]:
    ids, types, layout = read_batch(batch, **dict(static))
    encoder: Encoder = nnx.merge(graphdef, state)
    last = encoder.config.num_layers
    all_of_last = any(p.tokens != "cls" and last in p.layers for p in poolings)
    hidden = encoder.encode(
        ids, types, layout, first_token_only=not all_of_last, output_hidden_states=True
    ).hidden_states
    assert hidden is not None

    def first(n: int) -> Array:  # [E, D]
        narrow = n == last and not all_of_last
        return (hidden[n] if narrow else layout.first_tokens(hidden[n]))[:, 0].astype(jnp.float32)

    def pool(pooling: Pooling) -> Array:
        if pooling.tokens == "cls":
            return sum((first(n) for n in pooling.layers[1:]), first(pooling.layers[0])) / len(pooling.layers)
        states = [hidden[n].astype(jnp.float32) for n in pooling.layers]
        total = sum(states[1:], states[0]) / len(states)
        if pooling.tokens == "max":
            return jnp.max(layout.to_matrices(total), axis=1, where=layout.mask[..., None], initial=-jnp.inf)
        return layout.means(total)

    return tuple(pool(pooling) for pooling in poolings)
