"""A lock, so that one run at a time writes a folder."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

from filelock import FileLock, Timeout

from svt_jax.run.store_lock import PREFIX, StoreLock, lock_in_store
from svt_jax.stores import StorePath

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def is_lock(path: Path) -> bool:
    """Whether this is the lock of a run's folder."""
    return path.name == LOCK_NAME or path.name.startswith(PREFIX)


def lock_folder(folder: Path) -> FileLock | StoreLock:
    """Locks a run's folder; the system releases the lock when the process ends, however it ends.

    In an object store nothing does so: see `store_lock`.

    Args:
      folder: the run's folder, which must exist.
    Raises:
      ValueError: if another process holds it.
      OSError: if the folder cannot be written.
    """
    if isinstance(folder, StorePath):
        return lock_in_store(folder)
    # the file stays: it marks the folder as a run's, even if the start failed
    lock = FileLock(folder / LOCK_NAME, preserve_lock_file=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"{folder} is in use by another process; one run at a time may write a folder. Wait for it to end, or choose "
            "another --run.name."
        ) from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise  # the folder cannot be written
        # a file system without locks
        log.warning("%s cannot be locked (%s): see to it that no other process trains in it", folder, error)
    return lock
