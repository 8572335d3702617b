"""Tokens kept on disk: made once, always checked, never a reason to fail."""

import errno
import logging
import os
import stat

import numpy as np
import pytest
from transformers import BertTokenizer

from svt_jax.data import token_cache
from svt_jax.data.demo import load_demo, vocabulary
from svt_jax.data.glue import Examples
from svt_jax.data.token_cache import cached_tokens
from svt_jax.data.tokenizer import demo_tokenizer, tokenize

DEMO = load_demo("validation")
EXAMPLES = Examples(DEMO.first[:50], DEMO.second[:50], DEMO.labels[:50])
TOKENIZER = demo_tokenizer()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SVT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def calls(monkeypatch):
    """A list that grows by one with each tokenisation."""
    made = []
    monkeypatch.setattr(token_cache, "tokenize", lambda *given: made.append(given) or tokenize(*given))
    return made


def assert_same(first, second):
    for name in ("ids", "types", "lengths", "labels"):
        ours, theirs = getattr(first, name), getattr(second, name)
        assert np.array_equal(ours, theirs), name
        assert ours.dtype == theirs.dtype, name
    assert first.pad_id == second.pad_id


def test_the_second_call_reads_what_the_first_one_made(folder, calls):
    expected = tokenize(EXAMPLES, TOKENIZER, 16)
    for _ in range(2):
        assert_same(cached_tokens(EXAMPLES, TOKENIZER, 16), expected)
    assert_same(cached_tokens(EXAMPLES, demo_tokenizer(), 16), expected)  # independent of the tokenizer's earlier use
    assert len(calls) == 1
    assert len(list(folder.iterdir())) == 1


def test_a_folder_that_can_be_read_only_is_read(folder, calls, monkeypatch, caplog):
    cached_tokens(EXAMPLES, TOKENIZER, 16)

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(token_cache.os, "utime", refuse)
    cached_tokens(EXAMPLES, TOKENIZER, 16)
    assert (len(calls), caplog.text) == (1, "")


def test_labels_are_not_part_of_it(folder, calls):
    cached_tokens(EXAMPLES, TOKENIZER, 16)
    other = cached_tokens(Examples(EXAMPLES.first, EXAMPLES.second, None), TOKENIZER, 16)
    assert (len(calls), other.labels) == (1, None)


@pytest.mark.parametrize(
    "changed",
    [
        (EXAMPLES, TOKENIZER, 15),
        (Examples(EXAMPLES.first, None, None), TOKENIZER, 16),
        (Examples([*EXAMPLES.first[:-1], "other"], EXAMPLES.second, None), TOKENIZER, 16),
        (Examples(EXAMPLES.second, EXAMPLES.first, None), TOKENIZER, 16),
        (EXAMPLES, BertTokenizer(vocab={word: n for n, word in enumerate([*vocabulary(), "new"])}), 16),
    ],
    ids=["length", "no pair", "a text", "order", "vocabulary"],
)
def test_anything_else_is_another_file(folder, calls, changed):
    cached_tokens(EXAMPLES, TOKENIZER, 16)
    assert_same(cached_tokens(*changed), tokenize(*changed)) if changed[0].labels is not None else cached_tokens(
        *changed
    )
    assert len(calls) == 2
    assert len(list(folder.iterdir())) == 2


def damaged(kind, path):
    content = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    match kind:
        case "cut short":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "a bit":
            path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
        case "text":
            path.write_text("not an archive")
        case "one array":
            with path.open("wb") as file:
                np.save(file, arrays["ids"])
        case "pickled":
            with path.open("wb") as file:
                np.savez(file, **{**arrays, "ids": np.array([{}], object)})
        case "other arrays":
            np.savez(path, a=arrays["ids"])
        case "too few":
            np.savez(path, **{**arrays, "lengths": arrays["lengths"][:-1]})
        case "beyond the vocabulary":
            np.savez(path, **{**arrays, "ids": arrays["ids"] + len(TOKENIZER)})
        case "beyond the length":
            np.savez(path, **{**arrays, "lengths": np.array([*[0] * 49, arrays["lengths"].sum()], np.int32)})


@pytest.mark.parametrize(
    "kind",
    [
        "cut short", "empty", "a bit", "text", "one array", "pickled", "other arrays", "too few", "beyond the vocabulary",
        "beyond the length",
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_made_anew(folder, calls, caplog, kind):
    expected = cached_tokens(EXAMPLES, TOKENIZER, 16)
    damaged(kind, next(folder.iterdir()))
    with caplog.at_level(logging.WARNING):
        assert_same(cached_tokens(EXAMPLES, TOKENIZER, 16), expected)
    assert "made anew" in caplog.text
    assert_same(cached_tokens(EXAMPLES, TOKENIZER, 16), expected)
    assert len(calls) == 2
    assert len(list(folder.iterdir())) == 1


@pytest.fixture
def umask():
    """A function that sets the umask of this process; the old one is restored afterwards."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


def modes(folder):
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.mark.parametrize(("mask", "file", "parent"), [(0o002, 0o664, 0o775), (0o077, 0o600, 0o700)])
def test_the_umask_says_who_may_read_a_file(folder, calls, umask, mask, file, parent):
    umask(mask)
    cached_tokens(EXAMPLES, TOKENIZER, 16)
    assert (modes(folder), stat.S_IMODE(folder.stat().st_mode)) == ({file}, parent)


def test_a_file_of_another_user_is_made_anew_with_one_warning(folder, calls, monkeypatch, caplog):
    """Root can read everything, so the test raises the system's error itself."""
    expected = cached_tokens(EXAMPLES, TOKENIZER, 16)
    (path,) = folder.iterdir()
    closed = {path: path.stat().st_ino}
    opened = type(path).open

    def refuse(self, mode="r", *rest, **more):
        if closed.get(self) == (self.exists() and self.stat().st_ino):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, mode, *rest, **more)

    monkeypatch.setattr(type(path), "open", refuse)
    for _ in range(3):
        assert_same(cached_tokens(EXAMPLES, TOKENIZER, 16), expected)
    assert len(calls) == 2
    assert caplog.text.count("\n") == caplog.text.count("Permission denied") == 1
    assert "and was made anew" in caplog.text


def test_a_cache_that_can_be_neither_read_nor_written_is_told_once(folder, calls, monkeypatch, caplog):
    expected = cached_tokens(EXAMPLES, TOKENIZER, 16)
    opens = type(folder).open

    def refuse(self, *arguments, **named):
        if folder not in self.parents:  # versions of packages are files too
            return opens(self, *arguments, **named)
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(type(folder), "open", refuse)
    for length in (16, 16, 15):
        tokens = cached_tokens(EXAMPLES, TOKENIZER, length)
    assert_same(cached_tokens(EXAMPLES, TOKENIZER, 16), expected)
    assert tokens.lengths.max() == 15
    assert caplog.text.count("\n") == caplog.text.count("tokens are not kept") == 1


def test_a_file_that_another_user_does_not_let_go_stays(folder, calls, monkeypatch, caplog):
    cached_tokens(EXAMPLES, TOKENIZER, 16)
    monkeypatch.setattr(token_cache, "MAX_BYTES", 1)

    def refuse(self, **_):
        raise PermissionError(errno.EPERM, "Operation not permitted", str(self))

    monkeypatch.setattr(type(folder), "unlink", refuse)
    cached_tokens(EXAMPLES, TOKENIZER, 15)
    assert (len(list(folder.iterdir())), caplog.text) == (2, "")


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path, monkeypatch, calls, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SVT_JAX_CACHE", str(tmp_path / "file" / "cache"))
    assert_same(cached_tokens(EXAMPLES, TOKENIZER, 16), tokenize(EXAMPLES, TOKENIZER, 16))
    assert "not kept" in caplog.text


def test_what_was_used_longest_ago_makes_room(folder, calls, monkeypatch):
    for length in (14, 15, 16):
        cached_tokens(EXAMPLES, TOKENIZER, length)
    (folder / "notes.txt").write_text("another program's")
    files = sorted(folder.glob("tokens-*"), key=lambda path: path.stat().st_mtime_ns)
    for age, path in enumerate(reversed(files)):
        os.utime(path, (0, 1000 - age))
    cached_tokens(EXAMPLES, TOKENIZER, 14)  # uses the oldest again
    monkeypatch.setattr(token_cache, "MAX_BYTES", sum(path.stat().st_size for path in files))
    cached_tokens(EXAMPLES, TOKENIZER, 13)
    left = set(folder.iterdir())
    assert files[0] in left
    assert files[1] not in left
    assert folder / "notes.txt" in left
    assert len(left) == 4
