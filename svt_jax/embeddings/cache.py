"""Keeps embeddings in a file between runs, and never mistakes them for those of another model, tokenizer or texts.

The file is safetensors: a matrix float32[N, D] for each pooling by its full name ("mean:0,12"). Its metadata are three
digests, which must all agree:

  model    config.json and the weights
  tokens   the token ids, which depend on tokenizer and max_length
  texts    the sentences in their order

A digest that differs is an error, and the file stays as it is. A pooling that the file lacks is encoded and added.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from svt_jax.data.steady_batches import Progress
from svt_jax.data.tokenizer import load_tokenizer
from svt_jax.data.tokens import Tokens
from svt_jax.embeddings.embed import Pooling, encode, tokenize_sentences
from svt_jax.host import open_to_umask
from svt_jax.models.config import read_config
from svt_jax.models.files import hash_weights, local_folder
from svt_jax.models.hf import load_encoder
from svt_jax.stores import local_path

_MEANING = {
    "model": "another model",
    "tokens": "another tokenizer or max_length",
    "texts": "other sentences",
}


def encode_cached(
    model: str | Path,
    sentences: Iterable[str],
    poolings: Iterable[str],
    max_length: int,
    file: str | Path | None,
    progress: Callable[[int], Progress] | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns the vectors of distinct sentences: reads them from the file, or encodes them and writes it.

    Args:
      model: a folder or hub id, with a tokenizer.
      sentences: distinct sentences.
      poolings: words as `Pooling.parse` reads them.
      max_length: the most tokens of a sentence.
      file: the file that keeps vectors; None keeps none.
      progress: called with the number of sentences to encode; returns a function that is called with the number done.
    Returns:
      float32[N, D] for each pooling, and int32[N], the real tokens of each sentence.
    Raises:
      ValueError: if the model has no tokenizer, or the file is damaged or holds other embeddings.
    """
    sentences, folder = list(sentences), local_folder(model)
    config = read_config(folder)
    chosen = [Pooling.parse(pooling, config.num_layers) for pooling in poolings]
    tokenizer = load_tokenizer(folder, config.vocab_size)
    if max_length > config.max_tokens:
        raise ValueError(
            f"max_length is {max_length} and the model has {config.max_tokens} positions. Choose a smaller one."
        )
    tokens = tokenize_sentences(sentences, tokenizer, max_length, config.pad_token_id)
    path = None if file is None else local_path(file)
    digests = {} if path is None else _digests(folder, tokens, sentences)
    kept = {} if path is None else _read(path, digests)
    missing = [pooling for pooling in dict.fromkeys(chosen) if str(pooling) not in kept]
    if missing:
        encoder = load_encoder(folder)
        report = None if progress is None else progress(len(sentences))
        kept |= {str(pooling): rows for pooling, rows in encode(encoder, tokens, missing, progress=report).items()}
        if path is not None:
            _write(path, kept, digests)
    return [kept[str(pooling)] for pooling in chosen], tokens.lengths


def _digests(folder: Path, tokens: Tokens, sentences: list[str]) -> dict[str, str]:
    config = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    ids = hashlib.sha256(tokens.lengths.tobytes())
    ids.update(np.asarray(tokens.ids.shape, np.int64).tobytes() + tokens.ids.tobytes())
    texts = hashlib.sha256()
    for sentence in sentences:
        data = sentence.encode()
        texts.update(len(data).to_bytes(8, "little") + data)
    return {"model": f"{config} {hash_weights(folder)}", "tokens": ids.hexdigest(), "texts": texts.hexdigest()}


def _read(path: Path, digests: dict[str, str]) -> dict[str, np.ndarray]:
    if not path.exists():
        if not path.parent.is_dir():
            raise ValueError(f"{path} cannot be written: {path.parent} is not a folder. Make it, or correct the path.")
        return {}
    try:
        with safe_open(path, "numpy") as reader:
            found = reader.metadata() or {}
            arrays = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a file of embeddings, or damaged ({error}). Name another file.") from error
    others = [meaning for name, meaning in _MEANING.items() if found.get(name) != digests[name]]
    if others:
        raise ValueError(
            f"{path} holds embeddings of {' and '.join(others)}; allowed is a file written for the same ones. "
            "Name another file, or delete it."
        )
    return arrays


def _write(path: Path, arrays: dict[str, np.ndarray], digests: dict[str, str]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")  # an interrupted write leaves no half file
    try:
        save_file(arrays, beside, metadata=digests)
        open_to_umask(beside)
        beside.replace(path)
    except (SafetensorError, OSError) as error:
        beside.unlink(missing_ok=True)
        raise ValueError(f"{path} cannot be written ({error}). Name another file.") from error
