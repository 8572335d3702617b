"""Files and folders that go between a disk and a store, for libraries that know only disks."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from svt_jax.stores.paths import StorePath, in_store


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
