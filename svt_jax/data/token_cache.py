"""Token arrays kept on disk, so that a split is tokenised once and not in every run.

A file's name is the hash of all that its content depends on: texts, tokenizer, longest length, versions. The folder is
SVT_JAX_CACHE, else svt_jax under XDG_CACHE_HOME or ~/.cache; it may be deleted at any time. Above a GiB, the files that
have not been used for longest go. Files are plain arrays (npz, never pickled) and written under another name first. Who may
read them is up to the umask, so several users can share a folder. One that cannot be read, or whose arrays do not fit, is
made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
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

log = logging.getLogger(__name__)

MAX_BYTES = 2**30
_ARRAYS = ("ids", "types", "lengths")
_told: set[Path] = set()
"""Folders of which a warning has said that they cannot be written."""


def token_folder() -> Path:
    """Where the files are."""
    named = os.environ.get("SVT_JAX_CACHE")
    return Path(named) if named else cache_folder()


def cached_tokens(examples: Examples, tokenizer: Any, max_length: int, pad_id: int = 0) -> Tokens:
    """As `tokenize`, from the file of an earlier call where there is one."""
    if not getattr(tokenizer, "is_fast", False):  # a slow one cannot say what it is
        return tokenize(examples, tokenizer, max_length, pad_id)
    path = token_folder() / f"tokens-{_key(examples, tokenizer, max_length)}.npz"
    unusable = ""
    try:
        ids, types, lengths = _read(path, len(examples), max_length, largest_id(tokenizer))
    except FileNotFoundError:
        pass
    # what NumPy and zipfile raise for damaged bytes; NotImplementedError for a compression method that there is not
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError) as error:
        unusable = f"{path} cannot be used ({error})"
    else:
        return Tokens.from_flat(ids, types, lengths, examples.labels, padding_id(tokenizer, pad_id))
    tokens = tokenize(examples, tokenizer, max_length, pad_id)
    try:
        _write(path, tokens)
    except OSError as error:  # a full or read-only disk is no reason not to train
        if path.parent not in _told:  # once, not for every split
            _told.add(path.parent)
            log.warning("tokens are not kept: %s", "; ".join(filter(None, [unusable, str(error)])))
    else:
        if unusable:
            log.warning("%s, and was made anew", unusable)
    return tokens


def _key(examples: Examples, tokenizer: Any, max_length: int) -> str:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for passing in ("truncation", "padding"):  # left there by the last call
        backend.pop(passing, None)
    settings = [
        backend, tokenizer.pad_token_id, tokenizer.truncation_side, tokenizer.padding_side, max_length,
        type(tokenizer).__name__, version("tokenizers"), version("transformers"),
    ]  # fmt: skip
    content = json.dumps([settings, examples.first, examples.second])
    return hashlib.sha256(content.encode()).hexdigest()


def _read(path: Path, number: int, max_length: int, largest: int) -> list[np.ndarray]:
    """The file's arrays, as `Tokens.from_flat` takes them."""
    with path.open("rb") as handle:
        file = np.load(handle, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile) or sorted(file.files) != sorted(_ARRAYS):
            raise ValueError("it holds something else")
        ids, types, lengths = arrays = [file[name] for name in _ARRAYS]  # the zip's checksums are verified
    fits = (
        [(a.dtype, a.ndim) for a in arrays] == [(np.int32, 1), (np.uint8, 1), (np.int32, 1)]
        and len(lengths) == number
        and len(ids) == len(types) == lengths.sum(dtype=np.int64)
        and 1 <= lengths.min() <= lengths.max() <= max_length
        and 0 <= ids.min() <= ids.max() <= largest
    )
    if not fits:
        raise ValueError("its arrays do not fit")
    with contextlib.suppress(OSError):  # a folder that can be read only
        os.utime(path)  # used now
    return arrays


def _write(path: Path, tokens: Tokens) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    real = tokens.real
    unfinished = path.with_name(f"unfinished-{uuid.uuid4().hex}")  # mkstemp's would be for this user only
    try:
        with unfinished.open("xb") as file:
            np.savez(file, ids=tokens.ids[real], types=tokens.types[real].astype(np.uint8), lengths=tokens.lengths)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _make_room(path)


def _make_room(newest: Path) -> None:
    """Deletes what was used longest ago until the rest fits; files of other programs stay."""
    files = []
    for path in newest.parent.glob("tokens-*.npz"):
        with contextlib.suppress(FileNotFoundError):  # another process makes room as well
            files.append((path.stat(), path))
    files.sort(key=lambda item: item[0].st_mtime)
    excess = sum(stat.st_size for stat, _ in files) - MAX_BYTES
    for stat, path in files:
        if excess > 0 and path != newest:
            with contextlib.suppress(OSError):  # another user's, in a folder where that cannot be deleted
                path.unlink(missing_ok=True)
                excess -= stat.st_size
