"""Token arrays kept on disk, so that a split is tokenised once and not in every run.

A file's name is the hash of all that decides its content: texts, tokenizer, maximum length, versions. The folder is
SVT_JAX_CACHE, else svt_jax under XDG_CACHE_HOME or ~/.cache; a user may delete it at any time. Above one GiB, the least
recently used files are deleted. Files are plain arrays (npz, never pickled) and are first written under another name.
The umask decides who may read them, so several users can share a folder. A file that cannot be read, or whose arrays do
not fit, is written again.

SVT_JAX_CACHE may lie in an object store (gs://bucket/cache). Then all hosts of a run share it, only the first process
tokenises, and nothing is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import uuid
import zipfile
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from svt_jax.data.glue import Examples
from svt_jax.data.tokenizer import Tokens, largest_id, padding_id, tokenize
from svt_jax.host import cache_folder
from svt_jax.stores import as_path, in_store

log = logging.getLogger(__name__)

MAX_BYTES = 2**30
_ARRAYS = ("ids", "types", "lengths")
_told: set[Path] = set()
"""Unwritable folders that a warning has already named."""


def token_folder() -> Path:
    """The folder of the cache files."""
    named = os.environ.get("SVT_JAX_CACHE")
    return as_path(named) if named else cache_folder()


def cached_tokens(examples: Examples, tokenizer: Any, max_length: int, pad_id: int = 0) -> Tokens:
    """As `tokenize`, but reads the file of an earlier call if there is one."""
    if not getattr(tokenizer, "is_fast", False):  # a slow tokenizer has no text form to hash
        return tokenize(examples, tokenizer, max_length, pad_id)
    path = token_folder() / f"tokens-{_key(examples, tokenizer, max_length)}.npz"
    unusable = ""
    try:
        ids, types, lengths = _read(path, len(examples), max_length, largest_id(tokenizer))
    except FileNotFoundError:
        pass
    # what NumPy and zipfile raise for damaged bytes; NotImplementedError for an unknown compression method
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError) as error:
        unusable = f"{path} cannot be used ({error})"
    else:
        return Tokens.from_flat(ids, types, lengths, examples.labels, padding_id(tokenizer, pad_id))
    tokens = tokenize(examples, tokenizer, max_length, pad_id)
    try:
        _write(path, tokens)
    except OSError as error:  # training goes on with a full or read-only disk
        if path.parent not in _told:  # once, not for every split
            _told.add(path.parent)
            log.warning("tokens are not kept: %s", "; ".join(filter(None, [unusable, str(error)])))
    else:
        if unusable:
            log.warning("%s, and was made anew", unusable)
    return tokens


def _key(examples: Examples, tokenizer: Any, max_length: int) -> str:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for passing in ("truncation", "padding"):  # the last call may have left these
        backend.pop(passing, None)
    settings = [
        backend, tokenizer.pad_token_id, tokenizer.truncation_side, tokenizer.padding_side, max_length,
        type(tokenizer).__name__, version("tokenizers"), version("transformers"),
    ]  # fmt: skip
    content = json.dumps([settings, examples.first, examples.second])
    return hashlib.sha256(content.encode()).hexdigest()


def _read(path: Path, number: int, max_length: int, largest: int) -> list[np.ndarray]:
    """The file's arrays in the form that `Tokens.from_flat` takes."""
    with path.open("rb") as handle:
        file = np.load(handle, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile) or sorted(file.files) != sorted(_ARRAYS):
            raise ValueError("it holds something else")
        ids, types, lengths = arrays = [file[name] for name in _ARRAYS]  # this verifies the zip's checksums
    fits = (
        [(a.dtype, a.ndim) for a in arrays] == [(np.int32, 1), (np.uint8, 1), (np.int32, 1)]
        and len(lengths) == number
        and len(ids) == len(types) == lengths.sum(dtype=np.int64)
        and 1 <= lengths.min() <= lengths.max() <= max_length
        and 0 <= ids.min() <= ids.max() <= largest
    )
    if not fits:
        raise ValueError("its arrays do not fit")
    with contextlib.suppress(OSError, TypeError):  # a read-only folder; a store
        os.utime(path)  # marks it as used now
    return arrays


def _write(path: Path, tokens: Tokens) -> None:
    real = tokens.real
    arrays = {"ids": tokens.ids[real], "types": tokens.types[real].astype(np.uint8), "lengths": tokens.lengths}
    if in_store(path):
        content = io.BytesIO()
        np.savez(content, **arrays)
        path.write_bytes(content.getvalue())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{uuid.uuid4().hex}")  # only this user could read a file of mkstemp
    try:
        with unfinished.open("xb") as file:
            np.savez(file, **arrays)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _make_room(path)


def _make_room(newest: Path) -> None:
    """Deletes the least recently used files until the rest fits; leaves files of other programs."""
    files = []
    for path in newest.parent.glob("tokens-*.npz"):
        with contextlib.suppress(FileNotFoundError):  # another process also makes room
            files.append((path.stat(), path))
    files.sort(key=lambda item: item[0].st_mtime)
    excess = sum(stat.st_size for stat, _ in files) - MAX_BYTES
    for stat, path in files:
        if excess > 0 and path != newest:
            with contextlib.suppress(OSError):  # another user's file, which this user may not delete
                path.unlink(missing_ok=True)
                excess -= stat.st_size
