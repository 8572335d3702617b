"""Stopping a run from outside: SIGTERM and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any


class StoppedBySignalError(Exception):
    """SIGTERM or SIGINT came; the state is saved.

    Attributes:
      number: of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class StopSignals:
    """Notes SIGTERM and the first SIGINT while it is entered; a second SIGINT ends the process at once.

    Attributes:
      number: of the signal that came; None before.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # signals can be handled there alone
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, _: Any) -> None:
        self.number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
