"""The lock on a run's folder in an object store, where the system releases nothing when a process ends.

The lock is a series of objects `.lock-1`, `.lock-2`, ... A process takes the folder by creating the next one on the
condition that it does not exist, which the store grants to one process only. Nobody else ever writes that object. The
holder writes it again every `BEAT_SECONDS`; a process that finds another's lock waits until it changes (the holder
lives: the folder is in use) or has not changed for `STALE_SECONDS` (the holder's host is lost: the next lock may be
created). No clock is compared with another. A holder that was away for so long sees the higher number before its next
checkpoint counts, and stops.

A process of the same machine that is gone is known at once, without waiting.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from svt_jax.stores import StoreError, StorePath

log = logging.getLogger(__name__)

PREFIX = ".lock-"
BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


class StoreLock:
    """The held lock; as `filelock.FileLock`, it has `release`."""

    def __init__(self, path: StorePath, number: int, content: dict[str, Any]):
        self._path, self._number, self._content = path, number, content
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises StoreError if another process has taken the folder since."""
        if self._lost or max(_numbers(self._path.parent), default=0) > self._number:
            self._lost = True
            raise StoreError(
                self._path.parent,
                f"another process has taken this folder, since this one had not shown for {STALE_SECONDS:.0f} s that it lives",
                "Leave the folder to it, or stop it and start the same command again.",
            )

    def release(self) -> None:
        """Says that the folder is free; the object stays, so that no number is used twice."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # then the next start waits until it is stale
            self._write(released=True)

    def _beat(self) -> None:
        beats = 0
        while not self._ended.wait(BEAT_SECONDS):
            beats += 1
            try:
                self.check()
                self._write(beats=beats)
            except OSError as error:
                if self._lost:
                    return
                log.warning("the lock %s could not be renewed (%s)", self._path, error.strerror or error)

    def _write(self, **changes: Any) -> None:
        self._content |= changes
        self._path.write_bytes(json.dumps(self._content).encode())


def lock_in_store(folder: StorePath) -> StoreLock:
    """Takes the folder.

    Raises:
      ValueError: if another process holds it.
      StoreError: if the store cannot be written.
    """
    ours = {"owner": uuid.uuid4().hex, "released": False, "beats": 0, **_this_process()}
    before = _numbers(folder)
    newest = max(before, default=0)
    if newest:
        _wait_until_free(folder / f"{PREFIX}{newest}")
    path = folder / f"{PREFIX}{newest + 1}"
    try:
        path.create(json.dumps(ours).encode())
    except FileExistsError:
        if _read(path).get("owner") != ours["owner"]:  # or the answer to our first try was lost
            raise _in_use(folder, _read(path)) from None
    for number in before:
        with contextlib.suppress(OSError):
            (folder / f"{PREFIX}{number}").unlink(missing_ok=True)
    return StoreLock(path, newest + 1, ours)


def _wait_until_free(path: StorePath) -> None:
    first = found = _read(path)
    until = time.monotonic() + STALE_SECONDS
    if not (found.get("released") or _is_gone(found)):
        log.warning(
            "%s was locked by process %s on %s: waiting up to %.0f s for a sign that it lives",
            path.parent, found.get("pid"), found.get("host"), STALE_SECONDS,
        )  # fmt: skip
    while not (found.get("released") or _is_gone(found)) and time.monotonic() < until:
        if found != first:
            raise _in_use(path.parent, found)
        time.sleep(min(1.0, BEAT_SECONDS / 4))
        found = _read(path)


def _numbers(folder: StorePath) -> list[int]:
    return [int(name.removeprefix(PREFIX)) for name in folder.objects() if re.fullmatch(rf"{PREFIX}\d+", name)]


def _read(path: StorePath) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:  # its successor has removed it
        return {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _in_use(folder: StorePath, found: dict[str, Any]) -> ValueError:
    return ValueError(
        f"{folder} is in use by another process ({found.get('pid')} on {found.get('host')}); one run at a time may write a "
        "folder. Wait for it to end, or choose another --run.name."
    )


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _machine() -> str | None:
    """What is the same for all processes that see each other's numbers, and for no others: containers share host names."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _is_gone(found: dict[str, Any]) -> bool:
    """Whether the holder ran on this machine, and has ended."""
    if found.get("machine") is None or found["machine"] != _machine():
        return False
    return _started(found["pid"]) != found["started"]


def _started(pid: int) -> str | None:
    """When a process began, in the system's ticks: numbers of processes are used again. None if it has ended."""
    try:
        _, _, fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")
    except OSError:
        return None
    state, started = fields.split()[0], fields.split()[19]
    return None if state in "ZX" else started
