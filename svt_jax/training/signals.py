"""Stopping a run from outside: by SIGTERM, which a cloud sends before it takes a machine away, or by Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

from svt_jax.errors import StoppedBySignalError


@contextlib.contextmanager
def stop_at_once() -> Iterator[None]:
    """Where no steps run, SIGTERM ends the run at once, with the exit status of a stopped run."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals only there
        yield
        return

    def stop(number: int, _: Any) -> None:
        raise StoppedBySignalError("stopped by SIGTERM outside of the training loop; nothing is lost.", number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopSignals:
    """Notes SIGTERM and the first SIGINT inside its context; a second SIGINT ends the process at once.

    With many processes the signal may reach only one, and all must stop after the same step. JAX's preemption service
    ensures that: it handles SIGTERM once the processes have joined, and chooses the step; SIGINT is passed on to it.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._before: dict[int, Any] = {}
        self._together = jax.distributed.is_initialized()

    def __enter__(self) -> StopSignals:
        numbers = [signal.SIGINT] if self._together else [signal.SIGTERM, signal.SIGINT]
        if threading.current_thread() is threading.main_thread():  # Python handles signals only there
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def stops_after(self, step: int) -> int | None:
        """The signal that ends the run after this step, or None. Every process must ask after every step."""
        if not self._together:
            return self._number
        if multihost_utils.reached_preemption_sync_point(step):
            return self._number or signal.SIGTERM
        return None

    def _note(self, number: int, _: Any) -> None:
        self._number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
