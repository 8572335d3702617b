"""Token arrays kept on disk, so that a split is tokenised once and not in every run.

A file's name is the hash of all that decides its content: texts, tokenizer, maximum length, versions. The folder is
SVT_JAX_CACHE, else svt_jax under XDG_CACHE_HOME or ~/.cache; a user may delete it at any time. Above one GiB, the least
recently used files are deleted. Files are plain arrays (npz, not compressed, never pickled) and are first written under
another name. The umask decides who may read them, so several users can share a folder. A file that cannot be read, or
whose arrays do not fit, is written again.

A large split never lies in memory: its tokens are written in blocks, and then mapped from the file.

SVT_JAX_CACHE may lie in an object store (gs://bucket/cache). Then all hosts of a run share it: only the first process
tokenises, each host keeps a copy in its local cache, and nothing is deleted from the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np

from svt_jax.data.glue import Examples
from svt_jax.data.tokenizer import (
    BLOCK,
    Advance,
    TokenBlock,
    id_dtype,
    largest_id,
    padding_id,
    token_blocks,
    tokenize,
)
from svt_jax.data.tokens import Tokens
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


def cached_tokens(
    examples: Examples, tokenizer: Any, max_length: int, pad_id: int = 0, advance: Advance | None = None
) -> Tokens:
    """As `tokenize`, but reads the file of an earlier call if there is one."""
    if not getattr(tokenizer, "is_fast", False):  # a slow tokenizer has no text form to hash
        return tokenize(examples, tokenizer, max_length, pad_id, advance)
    path = token_folder() / f"tokens-{_key(examples, tokenizer, max_length)}.npz"
    if not in_store(path):
        return _cached_in(path, examples, tokenizer, max_length, pad_id, advance)
    copy = cache_folder() / path.name
    if not copy.is_file():
        with _warning(path), contextlib.suppress(FileNotFoundError), _new(copy) as file:
            file.write(path.read_bytes())
    before = _number(copy)
    tokens = _cached_in(copy, examples, tokenizer, max_length, pad_id, advance)
    made_here = _number(copy)
    with _warning(path):
        if made_here is not None and (made_here != before or not path.is_file()):
            path.write_bytes(copy.read_bytes())
    return tokens


def _number(path: Path) -> int | None:
    """The file system's number of a file: another one, if it has been replaced; None if there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


@contextlib.contextmanager
def _warning(path: Path) -> Iterator[None]:
    """Warns, once for a folder, where it cannot be used."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if path.parent not in _told:
            _told.add(path.parent)
            log.warning("tokens are not shared: %s", error)


def _cached_in(
    path: Path, examples: Examples, tokenizer: Any, max_length: int, pad_id: int, advance: Advance | None
) -> Tokens:
    """As `cached_tokens`, with a local file."""

    def read() -> Tokens:
        arrays = _read(path, len(examples), max_length, tokenizer)
        return Tokens(*arrays, examples.labels, padding_id(tokenizer, pad_id))

    unusable = ""
    try:
        return read()
    except FileNotFoundError:
        pass
    except _DAMAGED as error:
        unusable = f"{path} cannot be used ({error})"
    tokens = None
    try:
        if len(examples) > LARGE:
            _write_blocks(path, token_blocks(examples, tokenizer, max_length, advance), id_dtype(tokenizer))
            tokens = read()
        else:
            tokens = tokenize(examples, tokenizer, max_length, pad_id, advance)
            _write(path, tokens)
    except OSError as error:  # training goes on with a full or read-only disk
        if path.parent not in _told:  # once, not for every split
            _told.add(path.parent)
            log.warning("tokens are not kept: %s", "; ".join(filter(None, [unusable, str(error)])))
    else:
        if unusable:
            log.warning("%s, and was made anew", unusable)
    return tokenize(examples, tokenizer, max_length, pad_id, advance) if tokens is None else tokens


LARGE = 200_000
"""A split with more examples is written in blocks."""
_MAPPED = 2**24
"""Bytes from which an array of a file is mapped. Smaller ones are read."""
# what NumPy and zipfile raise for damaged bytes; NotImplementedError for an unknown compression method
_DAMAGED = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError)


def _key(examples: Examples, tokenizer: Any, max_length: int) -> str:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for passing in ("truncation", "padding"):  # the last call may have left these
        backend.pop(passing, None)
    settings = [
        backend, tokenizer.pad_token_id, tokenizer.truncation_side, tokenizer.padding_side, max_length,
        type(tokenizer).__name__, version("tokenizers"), version("transformers"),
    ]  # fmt: skip
    content = [settings, len(examples), *map(_digest, (examples.first, examples.second))]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _digest(texts: Sequence[str] | None) -> str | None:
    """A hash of the texts; those of a large file bring their own."""
    if texts is None or hasattr(texts, "digest"):
        return getattr(texts, "digest", None)
    digest = hashlib.sha256()
    for start in range(0, len(texts), BLOCK):
        digest.update(json.dumps(texts[start : start + BLOCK]).encode())
    return digest.hexdigest()


def _read(path: Path, number: int, max_length: int, tokenizer: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The file's arrays: ids, types, lengths."""
    with path.open("rb") as handle, zipfile.ZipFile(handle) as file:
        if sorted(file.namelist()) != sorted(f"{name}.npy" for name in _ARRAYS):
            raise ValueError("it holds something else")
        # all of each array is read, which verifies the zip's checksum
        found = [_read_array(path, file, f"{name}.npy") for name in _ARRAYS]
    (ids, low, high), (types, _, _), (lengths, shortest, longest) = found
    fits = (
        [(a.dtype, a.ndim) for a in (ids, types, lengths)] == [(id_dtype(tokenizer), 1), (np.uint8, 1), (np.int32, 1)]
        and len(lengths) == number
        and len(ids) == len(types) == lengths.sum(dtype=np.int64)
        and 1 <= shortest <= longest <= max_length
        and 0 <= low <= high <= largest_id(tokenizer)
    )
    if not fits:
        raise ValueError("its arrays do not fit")
    with contextlib.suppress(OSError):  # a read-only folder
        os.utime(path)  # marks it as used now
    return ids, types, lengths


def _read_array(path: Path, file: zipfile.ZipFile, name: str) -> tuple[np.ndarray, int, int]:
    """An array, and its smallest and largest number. A large one is mapped, and does not lie in memory."""
    with file.open(name) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError("it is of another format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        if dtype.hasobject or len(shape) != 1:
            raise ValueError("it holds something else")
        header = member.tell()
        blocks, low, high = [], np.iinfo(np.int64).max, 0
        mapped = shape[0] * dtype.itemsize > _MAPPED
        while content := member.read(_READ_BYTES):
            block = np.frombuffer(content, dtype)
            low, high = min(low, int(block.min())), max(high, int(block.max()))
            if not mapped:
                blocks.append(block)
    if not mapped:
        return np.concatenate(blocks), low, high
    info = file.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("it is compressed")
    with path.open("rb") as handle:  # the member's bytes come after a header of 30 bytes, its name and a field
        handle.seek(info.header_offset + 26)
        names, extra = np.frombuffer(handle.read(4), "<u2").tolist()
    offset = info.header_offset + 30 + names + extra + header
    return np.memmap(path, dtype, "r", offset, shape), low, high


_READ_BYTES = 2**22


def _write(path: Path, tokens: Tokens) -> None:
    with _new(path) as file:
        np.savez(file, ids=tokens.flat_ids, types=tokens.flat_types, lengths=tokens.lengths)


def _write_blocks(path: Path, blocks: Iterable[TokenBlock], dtype: np.dtype) -> None:
    """Writes what `_write` writes. The blocks gather in a file for each array, since a zip holds one after another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    types: dict[str, np.dtype[Any]] = {"ids": dtype, "types": np.dtype(np.uint8), "lengths": np.dtype(np.int32)}
    with contextlib.ExitStack() as stack:
        parts = {name: stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for name in _ARRAYS}
        for block in blocks:
            for name, part in parts.items():
                part.write(np.ascontiguousarray(getattr(block, name), types[name]).data)
        archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(_new(path)), "w"))
        for name, part in parts.items():
            shape = (part.tell() // types[name].itemsize,)
            part.seek(0)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(
                    member, {"descr": types[name].str, "fortran_order": False, "shape": shape}
                )
                shutil.copyfileobj(part, member, _READ_BYTES)


@contextlib.contextmanager
def _new(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{uuid.uuid4().hex}")  # only this user could read a file of mkstemp
    try:
        with unfinished.open("xb") as file:
            yield file
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
