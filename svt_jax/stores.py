"""Object stores: turns a written path into a path object, and holds what differs where there is no disk.

A path is local, or `gs://bucket/...` or `s3://bucket/...`. A store has no folders, no rename, no append and no file
locks. An object appears whole or not at all, and can be created on the condition that it does not exist. So:

* `write_whole` and `add_folder` put whole objects; a folder needs not be made;
* what other libraries write goes to a local folder first (`writable`), what they read comes to one (`readable`);
* lines of a log become objects of their own until the run ends (`run.line_files`);
* the lock is an object that only one process can create (`run.store_lock`);
* a checkpoint counts once its last object is there (`run.store_checkpoint`).

The extras `gcs` and `s3` install what this needs: fsspec's gcsfs or s3fs. They are imported with the first call
of a store. Credentials are those of the store's own tools.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import io
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar, cast

T = TypeVar("T")

_PACKAGES = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}
"""The extra and the package for each kind of path."""
_CREDENTIALS = {
    "gs": "the bucket's name and Google's credentials (gcloud auth application-default login)",
    "s3": "the bucket's name and the AWS credentials (aws configure, or AWS_ACCESS_KEY_ID and its siblings)",
}
PATIENCE = 120.0
"""Seconds for which a call is repeated while a store cannot be reached, is overloaded or fails by itself."""
_LONGEST_PAUSE = 8.0
_SIGNS = "[]*?#"
"""Characters that gcsfs or s3fs take for patterns or versions."""


class StoreError(OSError):
    """A store cannot be reached, or refuses. The message names the path, and says what to check.

    Attributes:
      strerror: only why, as in other errors of the system.
    """

    def __init__(self, path: Any, why: str, advice: str):
        super().__init__(f"{path}: {why}. {advice}")
        self.strerror = why


def as_path(written: str | Path) -> Path:
    """The path object of a written path: a `Path`, or one with the same methods in an object store.

    Args:
      written: a local path, in which a leading ~ is the home folder, or gs://bucket/... or s3://bucket/...; a path object
        is returned as it is.
    Raises:
      ValueError: if it names another kind of store, no bucket, or a character that stands for others, or the store's
        package is not installed.

    Example:
      >>> as_path("runs/demo"), in_store(as_path("runs/demo"))
      (PosixPath('runs/demo'), False)
      >>> as_path("http://example.org/runs")
      Traceback (most recent call last):
      ValueError: http://example.org/runs begins with http://; allowed are a local path, gs://bucket/... and s3://bucket/.... ...
    """
    if not isinstance(written, str):
        return written if isinstance(written, Path) else cast(Path, written)
    found = re.match(r"([A-Za-z][\w+.-]*)://", written)
    if found is None:
        return Path(os.path.expanduser(written))
    scheme, rest = found[1], written[found.end() :]
    if scheme not in _PACKAGES:
        raise ValueError(
            f"{written} begins with {scheme}://; allowed are a local path, gs://bucket/... and s3://bucket/.... Correct it."
        )
    bucket, *parts = rest.split("/")
    if not bucket or {".", ".."} & {*parts} or any(sign in rest for sign in _SIGNS):
        raise ValueError(
            f"{written} is no path in a store; allowed is {scheme}://bucket/folder without . and .. as parts and without "
            f"{' '.join(_SIGNS)}. Correct it."
        )
    extra, package = _PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"{written} needs the package {package}, which is not installed. Install it: pip install 'svt_jax[{extra}]'."
        )
    return cast(Path, StorePath(written))


def local_path(written: str | Path) -> Path:
    """As `as_path`, for what is read and written on a disk only. Raises ValueError for a path in a store."""
    path = as_path(written)
    if in_store(path):
        raise ValueError(f"{path} lies in an object store; allowed is a local path here. Copy it, or name another.")
    return path


class StorePath(PurePosixPath):
    """A path in a store: pathlib's names and joins, and those of `Path`'s methods that the project uses.

    Each call of fsspec is made safe for a long run:

    * fsspec's `isfile`, `isdir` and `exists` answer false for any fault. Here only an object that is not there is false:
      a run must not start anew because the network failed.
    * No list of objects is kept: other hosts write too.
    * Objects are read and written whole, so that a call can be repeated.
    * `mkdir` does nothing: s3fs would make a bucket.
    """

    def __str__(self) -> str:
        return re.sub(r"^(gs|s3):/(?!/)", r"\1://", super().__str__())

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def __fspath__(self) -> str:
        raise TypeError(f"{self} lies in an object store, and what was called needs a local path")

    @property
    def scheme(self) -> str:
        return self.parts[0].removesuffix(":")

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method of fsspec's file system with this path. Raises as `patiently`."""
        return patiently(
            getattr(_file_system(self.scheme), name), self, "/".join(self.parts[1:]), *arguments, **options
        )

    def resolve(self) -> StorePath:
        return self

    def absolute(self) -> StorePath:
        return self

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def exists(self) -> bool:
        return self._kind() is not None

    def _kind(self) -> str | None:
        try:
            return str(self.call("info")["type"])
        except FileNotFoundError:
            return None

    def objects(self) -> dict[str, dict[str, Any]]:
        """What fsspec knows of each object below this folder, by its name from here; in one call, and literally."""
        start = "/".join(self.parts[1:]) + "/"
        try:
            found = self.call("find", detail=True)
        except FileNotFoundError:
            return {}
        return {name.removeprefix(start): info for name, info in sorted(found.items()) if name.startswith(start)}

    def iterdir(self) -> Iterator[StorePath]:
        return (self / name for name in sorted({name.split("/")[0] for name in self.objects()}))

    def rglob(self, pattern: str) -> Iterator[StorePath]:
        assert pattern == "*", "nothing else is needed"
        return (self / name for name in self.objects())

    def read_bytes(self) -> bytes:
        return bytes(self.call("cat_file"))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "r", encoding: str = "utf-8") -> IO[Any]:
        assert mode in ("r", "rb"), "an object is written whole, by write_bytes"
        content = io.BytesIO(self.read_bytes())
        return content if mode == "rb" else io.TextIOWrapper(content, encoding)

    def write_bytes(self, data: bytes) -> None:
        self._write(data)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        self.write_bytes(text.encode(encoding))

    def create(self, data: bytes) -> None:
        """Writes an object that does not exist yet. Raises FileExistsError, also if this call's first try made it."""
        self._write(data, mode="create")

    def _write(self, data: bytes, **options: Any) -> None:
        try:
            self.call("pipe_file", data, **options)
        except FileNotFoundError as error:  # only a bucket can be missing
            check_reachable(cast(Path, self))
            raise StoreError(self, _words(error), "Start the same command again.") from error

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.call("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, *arguments: Any, **options: Any) -> None:
        pass


@functools.cache
def _file_system(scheme: str) -> Any:
    # gcsfs asks another service for each bucket's kind, which few credentials may use, and warns when it fails
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    # without botocore's own retries, of which s3fs makes five: a call without a connection would take minutes
    options = {"config_kwargs": {"retries": {"max_attempts": 0}}} if scheme == "s3" else {}
    return fsspec.filesystem(scheme, use_listings_cache=False, **options)


def in_store(path: Path) -> bool:
    """Whether a path object lies in an object store."""
    return isinstance(path, StorePath)


def check_name(path: Path) -> None:
    """Raises ValueError if a path in a store holds a character that the stores' packages take for a pattern."""
    if in_store(path) and any(sign in str(path) for sign in _SIGNS):
        raise ValueError(
            f"{path} holds one of {' '.join(_SIGNS)}, which in an object store stand for other things; allowed is any other "
            "name. Choose another --run.name."
        )


def check_reachable(path: Path) -> None:
    """Raises StoreError if the path's bucket does not exist or cannot be read. A local path always passes."""
    if not isinstance(path, StorePath):
        return
    bucket = StorePath(*path.parts[:2])
    files, name, below = _file_system(path.scheme), path.parts[1], "/".join(path.parts[2:])
    try:  # asks for one object, since a bucket may hold millions; below the path, as rights may end there
        if path.scheme == "gs":
            patiently(files.call, path, "GET", "b/{}/o", name, prefix=below, maxResults=1, json_out=True)
        else:
            patiently(files.call_s3, path, "list_objects_v2", Bucket=name, Prefix=below, MaxKeys=1)
    except FileNotFoundError as error:
        raise StoreError(path, f"there is no bucket {bucket}", "Make it, or correct the name.") from error


def make_folder(path: Path) -> None:
    """Makes a local folder and those above it. A store has no folders to make."""
    if not in_store(path):
        path.mkdir(parents=True, exist_ok=True)


def remove(folder: StorePath) -> None:
    """Removes all objects below a folder of a store."""
    for name in folder.objects():
        (folder / name).unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Gives a file or a folder another name in the same place; in a store, object by object."""
    if not isinstance(source, StorePath):
        source.rename(target)
        return
    pairs = [(source, target)] if source.is_file() else [(source / name, target / name) for name in source.objects()]
    for old, new in pairs:
        old.call("cp_file", "/".join(new.parts[1:]))
    for old, _ in pairs:
        old.unlink(missing_ok=True)


def add_folder(local: Path, folder: Path) -> None:
    """Puts all files below a local folder into a folder of a store, each as a whole object."""
    files = (each for each in local.rglob("*") if each.is_file())
    for file in sorted(files, key=lambda file: (file.name == "config.json", file)):  # a model with a config is whole
        (folder / file.relative_to(local).as_posix()).write_bytes(file.read_bytes())


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[Path]:
    """A local folder to write into: the folder itself, or one whose files go to the store if nothing fails."""
    if not in_store(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="svt_jax-") as local:
        yield Path(local)
        add_folder(Path(local), folder)


def readable(folder: Path, cache: Path, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """A local folder with the files of a folder: the folder itself, or a copy in the cache.

    Args:
      folder: the folder.
      cache: a local folder of copies. Each has a name made from names, sizes and versions of its objects, so that a
        changed folder has another copy.
      wanted: which names to copy.
    """
    if not isinstance(folder, StorePath):
        return folder
    versions = {name: version for name, version in _versions(folder).items() if wanted(name)}
    copy = cache / hashlib.sha256(repr((str(folder), sorted(versions.items()))).encode()).hexdigest()[:32]
    if not copy.is_dir():
        unfinished = copy.with_name(f"unfinished-{uuid.uuid4().hex}")
        for name in versions:
            file = unfinished / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes((folder / name).read_bytes())
        try:
            unfinished.rename(copy)
        except OSError:  # another process was faster
            if not copy.is_dir():
                raise
    return copy


def readable_file(path: Path) -> Path:
    """A local file with the bytes of a file: the file itself, or a copy that lasts as long as this process.

    A store reads objects whole; a large file is read in parts, and more than once.
    """
    if not isinstance(path, StorePath):
        return path
    version = repr(sorted((key, str(value)) for key, value in path.call("info").items()))
    copy = Path(_copies().name) / hashlib.sha256((str(path) + version).encode()).hexdigest()[:32]
    if not copy.is_file():
        path.call("get_file", str(copy))
    return copy


@functools.cache
def _copies() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="svt_jax-")


def _versions(folder: StorePath) -> dict[str, str]:
    return {
        name: str([info["size"], info.get("md5Hash") or info.get("ETag") or info.get("generation")])
        for name, info in folder.objects().items()
    }


def patiently(call: Callable[..., T], path: StorePath, *arguments: Any, **options: Any) -> T:
    """Calls fsspec, again and again for `PATIENCE` while the fault may pass.

    fsspec's own retries differ between stores, and last for seconds; a store may be away for a minute.

    Raises:
      FileNotFoundError, FileExistsError: as the call.
      StoreError: for any other fault.
    """
    until, pause = time.monotonic() + PATIENCE, 0.1
    while True:
        try:
            return call(*arguments, **options)
        except (FileNotFoundError, FileExistsError, NotImplementedError, MemoryError):
            raise
        except Exception as error:
            if _status(error) == 412:  # some of S3's relatives do not say which condition failed
                raise FileExistsError(f"{path} exists") from error
            if not _may_pass(error):
                why = f"the store refuses ({_words(error)})"
                raise StoreError(path, why, f"Check {_CREDENTIALS[path.scheme]}.") from error
            if time.monotonic() + pause > until:
                why = f"the store has not answered for {PATIENCE:.0f} s ({_words(error)})"
                raise StoreError(path, why, "Check the network, and start the same command again.") from error
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_PASSING_CODES = {408, 409, 429, 500, 502, 503, 504}


def _status(error: BaseException) -> int | None:
    """The HTTP status that a store answered with: gcsfs keeps it as `code`, s3fs in the error that it translated."""
    response = getattr(error.__cause__, "response", None)
    found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    found = getattr(error, "code", None) if found is None else found
    return int(str(found)) if str(found).isdigit() else None


def _may_pass(error: BaseException) -> bool:
    """Whether a fault of a store may pass by itself: no connection, no answer in time, overload, a fault inside."""
    status = _status(error)
    if status is not None:
        return status in _PASSING_CODES
    return isinstance(error, (ConnectionError, TimeoutError, *_passing_classes()))


@functools.cache
def _passing_classes() -> tuple[type[BaseException], ...]:
    """What the stores' libraries raise without a connection. They are installed, as a path of theirs is in use."""
    found: list[type[BaseException]] = []
    for module, name in (
        ("aiohttp", "ClientConnectionError"),
        ("aiohttp", "ClientPayloadError"),
        ("requests.exceptions", "ConnectionError"),
        ("requests.exceptions", "Timeout"),
        ("google.auth.exceptions", "TransportError"),
        ("botocore.exceptions", "ConnectionError"),  # no class of it is an HTTPClientError
        ("botocore.exceptions", "HTTPClientError"),
        ("botocore.exceptions", "IncompleteReadError"),
        ("fsspec.exceptions", "FSTimeoutError"),
    ):
        with contextlib.suppress(ImportError, AttributeError):
            found.append(getattr(importlib.import_module(module), name))
    return tuple(found)
