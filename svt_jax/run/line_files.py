"""Files of JSON lines that grow while a run goes on: appended on a disk, collected from parts in an object store.

In a store, a part is an object below `NAME.parts/`, named by the number of the first line that it holds. A reader puts
the parts over the lines of the whole file; the run makes one file of them at its end, or when it resumes.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any, cast

from svt_jax.stores import StorePath, in_store, remove
from svt_jax.writing import write_whole, writing

_ADVICE = "Make room, and start the same command again to resume."
PART_SECONDS = 30.0
"""At most this long lines stay in memory before they become a part; each checkpoint writes them too."""


def read_all(path: Path) -> bytes:
    """The bytes of a file of lines, with its parts; empty if there is neither."""
    if not in_store(path):
        return path.read_bytes() if path.is_file() else b""
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        whole = b""
    folder = _parts(path)
    for name in folder.objects():
        before = whole.split(b"\n")[:-1][: int(name)]
        whole = b"".join(line + b"\n" for line in before) + (folder / name).read_bytes()
    return whole


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON lines file, without a last line that a killed run left half written."""
    return [json.loads(line) for line in read_all(path).decode("utf-8").split("\n")[:-1]]


def join_parts(path: Path) -> None:
    """Makes one file of a file and its parts."""
    if in_store(path) and _parts(path).objects():
        write_whole(path, read_all(path).decode("utf-8"), _ADVICE)
        remove(_parts(path))


def _parts(path: Path) -> StorePath:
    return cast(StorePath, path.with_name(path.name + ".parts"))


class LineFile:
    """A file of JSON lines, each with its "step", open for more.

    Args:
      path: the file.
      start_step: the step from which the run goes on; later lines are dropped, as they will come again.
    """

    def __init__(self, path: Path, start_step: int):
        # a run may have written a reading before its first step, and will do so again
        kept = [line for line in read_lines(path) if 0 < start_step >= line["step"]]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept), _ADVICE)
        self._path = path
        if in_store(path):
            remove(_parts(path))
            self._number, self._waiting, self._since = len(kept), b"", time.monotonic()
        else:
            self._file = path.open("a", encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        """Writes a line. Raises OSError if there is no room for it."""
        text = json.dumps(line) + "\n"
        if in_store(self._path):
            self._waiting += text.encode()
            if time.monotonic() - self._since > PART_SECONDS:
                self.flush()
            return
        with writing(self._path, _ADVICE):
            self._file.write(text)
            self._file.flush()

    def flush(self) -> None:
        """Puts the lines that are only in memory into the store."""
        if not in_store(self._path) or not self._waiting:
            return
        with writing(self._path, _ADVICE):
            (_parts(self._path) / f"{self._number:08d}").write_bytes(self._waiting)
        self._number += self._waiting.count(b"\n")
        self._waiting, self._since = b"", time.monotonic()

    def join(self) -> None:
        """Makes one file of all lines, at the end of a run."""
        self.flush()
        with writing(self._path, _ADVICE):
            join_parts(self._path)

    def close(self) -> None:
        """Closes; does not raise, since `write` has raised for a line that had no room."""
        with contextlib.suppress(OSError):
            self.flush() if in_store(self._path) else self._file.close()
