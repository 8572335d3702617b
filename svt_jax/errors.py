"""What is raised besides ValueError and OSError, and the exit status of each.

ValueError is for what a user can cause; its message says what came, what is allowed and what to do.
"""

from __future__ import annotations

DONE = 0
BAD_INPUT = 2
NOT_FINITE = 3
PROCESS_LOST = 4
SIGNALLED = 128
"""And the number of the signal: 143 for SIGTERM, 130 for Ctrl-C."""


class NonFiniteError(ArithmeticError):
    """A number that must be finite is not: a loss, a gradient, a parameter or a prediction."""


class StoppedBySignalError(BaseException):
    """SIGTERM or SIGINT came; the state, if training had begun, is saved.

    As KeyboardInterrupt no Exception: it may come anywhere, and whoever handles errors of reading a file must not take
    it for one.

    Attributes:
      number: of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


def exit_status(error: BaseException) -> int:
    """The exit status of a command that ended with this error.

    Example:
      >>> exit_status(NonFiniteError("step 3")), exit_status(StoppedBySignalError("stopped", 15)), exit_status(ValueError())
      (3, 143, 2)
    """
    match error:
        case NonFiniteError():
            return NOT_FINITE
        case StoppedBySignalError():
            return SIGNALLED + error.number
        case _:
            return BAD_INPUT
