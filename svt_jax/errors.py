"""The package's own exceptions, and the exit status of each error.

ValueError is for what a user can cause; its message says what came, what is allowed and what to do.
"""

from __future__ import annotations

DONE = 0
BAD_INPUT = 2
NOT_FINITE = 3
PROCESS_LOST = 4
SIGNALLED = 128
"""Plus the number of the signal: 143 for SIGTERM, 130 for Ctrl-C."""


class NonFiniteError(ArithmeticError):
    """A number that must be finite is not: a loss, a gradient, a parameter or a prediction."""


class StoppedBySignalError(BaseException):
    """SIGTERM or SIGINT came. If training had begun, its state is saved.

    Like KeyboardInterrupt it is no Exception: it comes anywhere, and code that handles read errors must not catch it.

    Attributes:
      number: the signal's number.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


def exit_status(error: BaseException) -> int:
    """Returns the exit status of a command that ended with this error.

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
