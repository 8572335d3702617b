"""Writes files so that an error names the file, says what to do, and leaves no half file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from svt_jax.stores import in_store


class WriteError(OSError):
    """A file could not be written. The message names it, and ends with what to do."""


@contextlib.contextmanager
def writing(path: Path, advice: str) -> Iterator[None]:
    """Goes around code that writes a file or a folder; an OSError that is no WriteError becomes one."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(f"{path} could not be written ({error.strerror or error}). {advice}") from error


def write_whole(path: Path, text: str, advice: str = "Make room, and start the same command again.") -> None:
    """Writes a whole file or nothing.

    Raises:
      WriteError: with the advice.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path, advice):
        if in_store(path):
            path.write_text(text, encoding="utf-8")
            return
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
