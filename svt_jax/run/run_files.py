"""Digests of a run's own files, and the folder for files put aside.

The manifest holds digests of what decides a run's numbers: the bytes of each file in model/, and config.yaml without
paths and without the keys that a resumed run may change.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svt_jax.stores import StorePath, make_folder, move

CONFIG = "config.yaml"
_PLACES = ("model.path", "data.source")
"""Config keys that hold paths, which a user may move. The manifest has digests of what lies there."""


def file_digests(folder: Path, identity: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 by name, for the part of the config that decides the numbers and for each file in model/.

    Args:
      folder: the run's folder.
      identity: that part of its config.yaml, flat.
    """
    deciding = {key: value for key, value in identity.items() if key not in _PLACES}
    files = [path for path in sorted((folder / "model").rglob("*")) if path.is_file() and path.name[0] != "."]
    return {
        CONFIG: hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest(),
        **{path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }


def check_files(folder: Path, written: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raises ValueError naming each file that differs from what the run wrote.

    Args:
      folder: the run's folder.
      written, found: digests from `file_digests`, at the run's start and now.
    """
    problems = [
        f"{name} {'is missing' if name not in found else 'was added' if name not in written else 'has changed'}"
        for name in sorted(written.keys() | found.keys())
        if written.get(name) != found.get(name)
    ]
    if problems:
        raise ValueError(
            f"{folder}: {', '.join(problems)} since the run wrote its folder, and with that its numbers; allowed are the "
            "files as they were. Put them back from a copy, or train again under another --run.name."
        )


def put_aside(folder: Path, moved: list[Path], copied: list[Path]) -> Path:
    """Keeps files of an earlier attempt in a new folder `before-N`; returns that folder.

    Args:
      folder: the run's folder.
      moved, copied: files and folders in it; those that do not exist are skipped.
    """
    aside = next(path for n in itertools.count(1) if not (path := folder / f"before-{n}").exists())
    make_folder(aside)
    for path in copied:
        if path.exists():
            (aside / path.name).write_bytes(path.read_bytes())
    for path in moved:
        if path.exists():
            move(path, aside / path.name)
    return aside


RECORD = "record.json"
"""The last object of a checkpoint in a store: a checkpoint without it is unfinished, and does not count."""


def saved_steps(checkpoints: Path) -> list[int]:
    """The steps of the finished checkpoints in their folder, in order. Orbax gives a folder its name when it is whole."""
    if isinstance(checkpoints, StorePath):
        names = [name.split("/") for name in checkpoints.objects()]
        return sorted(int(parts[0]) for parts in names if parts[1:] == [RECORD] and parts[0].isdigit())
    if not checkpoints.is_dir():
        return []
    return sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit() and path.is_dir())
