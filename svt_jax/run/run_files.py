"""What a run's folder knows of its own files: their digests, and what is put aside.

The manifest holds a digest of what decides a run's numbers: of config.yaml all but where things are and what a resumed run
may change, and of each file in model/ its bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"
_PLACES = ("model.path", "data.source")
"""Keys of a config that say where things are, which a user may move. The manifest has digests of what is there."""


def file_digests(folder: Path, identity: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 by name, of the config's part that decides the numbers and of the files in model/.

    Args:
      folder: of the run.
      identity: flat, from its config.yaml.
    """
    deciding = {key: value for key, value in identity.items() if key not in _PLACES}
    files = [path for path in sorted((folder / "model").rglob("*")) if path.is_file() and path.name[0] != "."]
    return {
        CONFIG: hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest(),
        **{path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }


def check_files(folder: Path, written: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raises ValueError, naming each file that is not the one that the run wrote.

    Args:
      folder: of the run.
      written, found: from `file_digests`, when the run began and now.
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
    """Keeps files of an earlier attempt in a new folder `before-N`, which is returned.

    Args:
      folder: of the run.
      moved, copied: files and folders in it; those that do not exist are left out.
    """
    aside = next(path for n in itertools.count(1) if not (path := folder / f"before-{n}").exists())
    aside.mkdir()
    for path in copied:
        if path.exists():
            shutil.copy2(path, aside)
    for path in moved:
        if path.exists():
            path.rename(aside / path.name)
    return aside
