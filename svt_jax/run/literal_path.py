"""Paths that mean what they say: a user's folder may be called `lr-[1e-5]`.

Orbax finds files by patterns that begin with the folder's own path. Brackets, stars and question marks in it would
match nothing, and a checkpoint would be committed without its arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from svt_jax.stores import check_name, in_store

_CLOUDS = ("gs", "s3", "az", "hf")


class LiteralPath(type(epath.Path("/"))):  # type: ignore[misc]
    """A local path for Orbax: `glob` treats only its argument as a pattern."""

    def glob(self, pattern: str) -> Iterator[Any]:
        return map(self._new, Path(self).glob(pattern))


def check_storable(folder: Path) -> None:
    """Raises ValueError if the checkpoint library would write to another place than this folder, or to none.

    Example:
      >>> check_storable(Path("runs/lr-[1e-5]"))
      >>> check_storable(Path("runs/a\\\\b"))
      Traceback (most recent call last):
      ValueError: ... holds a backslash, which the checkpoint library takes for a slash; ...
    """
    if in_store(folder):
        check_name(folder)
        return
    path = str(folder.absolute())
    shown = path.encode(errors="backslashreplace").decode()
    root, *_ = folder.absolute().parts[1:] or [""]
    reasons = {
        "holds a backslash, which the checkpoint library takes for a slash": "\\" in path,
        "has a part 'gs:', which the checkpoint library takes for the cloud (a bucket is gs://bucket)": "gs:"
        in folder.absolute().parts,
        f"begins with /{root}, which the checkpoint library takes for the cloud": root in _CLOUDS,
        "is not UTF-8, and the checkpoint library takes no other": shown != path,
    }
    if problems := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(
            f"{shown} {', and '.join(problems)}; allowed is any other folder. Choose another --run.name or --run.output_dir."
        )
