"""Events for TensorBoard. They are not the run's work: if they cannot be written, the run warns once and goes on."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from svt_jax.stores import add_folder, in_store, make_folder

log = logging.getLogger(__name__)

_FLUSH_SECONDS = 120


class Events:
    """Writes scalars and histograms to a new event file.

    We do not use tensorboardX's `SummaryWriter`: it writes in a thread, which a full disk kills. Ten events later its
    queue is full, and training would wait for it forever.

    Args:
      folder: folder for the event file; made if it does not exist.
      start_step: the step from which a run resumes; events of later steps in earlier files are hidden.
    """

    def __init__(self, folder: Path, start_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._folder, self._event, self._flushed = folder, event_pb2.Event, time.monotonic()
        self._writer: Any = None
        # tensorboardX writes to a disk only; a store gets the whole file anew each time
        self._local = tempfile.TemporaryDirectory(prefix="svt_jax-") if in_store(folder) else None
        with self._warning():
            make_folder(folder)
            self._writer = EventsWriter(str(Path(self._local.name) / "events" if self._local else folder / "events"))
            if start_step:
                started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._write(start_step + 1, session_log=started)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        from tensorboardX.summary import scalar

        self._write(step, summary=scalar(name, value))

    def add_histogram(self, name: str, values: Any, step: int) -> None:
        import numpy as np
        from tensorboardX.summary import histogram

        self._write(step, summary=histogram(name, np.asarray(values), "auto"))

    def close(self) -> None:
        with self._warning():
            if self._writer is not None:
                self._writer.close()
                self._writer = None
                self._add()
        if self._local is not None:
            self._local.cleanup()

    def _write(self, step: int, **content: Any) -> None:
        with self._warning():
            if self._writer is not None:
                self._writer.write_event(self._event(step=step, wall_time=time.time(), **content))
                if time.monotonic() > self._flushed + _FLUSH_SECONDS:
                    self._writer.flush()
                    self._add()
                    self._flushed = time.monotonic()

    def _add(self) -> None:
        if self._local is not None:
            add_folder(Path(self._local.name), self._folder)

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            broken, self._writer = self._writer, None
            with contextlib.suppress(OSError):
                if broken is not None:
                    broken.close()
            log.warning("no more events for TensorBoard: %s cannot be written (%s)", self._folder, error.strerror)
