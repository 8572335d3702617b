"""One run at a time writes a folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"


class RunLock:
    """A lock on a run's folder, by flock: the system takes it back when the process ends, however it ends.

    Args:
      folder: exists.
    Raises:
      ValueError: if another process holds it.
    """

    def __init__(self, folder: Path):
        self._file: int | None = os.open(folder / LOCK_NAME, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                self.release()
                raise ValueError(
                    f"{folder} is in use by another process; one run at a time may write a folder. Wait for it to end, or "
                    "choose another --run.name."
                ) from error
            log.warning(
                "%s cannot be locked (%s): see to it that no other process trains in it", folder, error.strerror
            )

    def release(self) -> None:
        """Gives it back; again does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:  # of a Trainer that was made and never run
        self.release()
