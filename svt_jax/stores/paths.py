"""Paths in a store, with the methods of `pathlib.Path` that the project uses."""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from svt_jax.stores.calls import StoreError, patiently, words

_PACKAGES = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}
"""The extra and the package for each kind of path."""
_SIGNS = "[]*?#"
"""Characters that gcsfs or s3fs take for patterns or versions."""


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
        return patiently(getattr(file_system(self.scheme), name), self, "/".join(self.parts[1:]), *arguments, **options)

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
            raise StoreError(self, words(error), "Start the same command again.") from error

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.call("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, *arguments: Any, **options: Any) -> None:
        pass


@functools.cache
def file_system(scheme: str) -> Any:
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
    files, name, below = file_system(path.scheme), path.parts[1], "/".join(path.parts[2:])
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
