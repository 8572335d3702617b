"""Calls of a store's library, repeated while a fault may pass, with errors in one line."""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from svt_jax.stores.paths import StorePath

T = TypeVar("T")

_CREDENTIALS = {
    "gs": "the bucket's name and Google's credentials (gcloud auth application-default login)",
    "s3": "the bucket's name and the AWS credentials (aws configure, or AWS_ACCESS_KEY_ID and its siblings)",
}
PATIENCE = 120.0
"""Seconds for which a call is repeated while a store cannot be reached, is overloaded or fails by itself."""
_LONGEST_PAUSE = 8.0


class StoreError(OSError):
    """A store cannot be reached, or refuses. The message names the path, and says what to check.

    Attributes:
      strerror: only why, as in other errors of the system.
    """

    def __init__(self, path: Any, why: str, advice: str):
        super().__init__(f"{path}: {why}. {advice}")
        self.strerror = why


def patiently(call: Callable[..., T], path: StorePath, *arguments: Any, **options: Any) -> T:
    """Calls fsspec, again and again for `PATIENCE` while the fault may pass.

    fsspec's own retries differ between stores, and last for seconds; a store may be away for a minute.

    Raises:
      FileNotFoundError, FileExistsError: as the call.
      StoreError: for any other fault.
    """
    until, pause = time.monotonic() + PATIENCE, 0.1
    while True:
        try:
            return call(*arguments, **options)
        except (FileNotFoundError, FileExistsError, NotImplementedError, MemoryError):
            raise
        except Exception as error:
            if _status(error) == 412:  # some of S3's relatives do not say which condition failed
                raise FileExistsError(f"{path} exists") from error
            if not _may_pass(error):
                why = f"the store refuses ({words(error)})"
                raise StoreError(path, why, f"Check {_CREDENTIALS[path.scheme]}.") from error
            if time.monotonic() + pause > until:
                why = f"the store has not answered for {PATIENCE:.0f} s ({words(error)})"
                raise StoreError(path, why, "Check the network, and start the same command again.") from error
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_PASSING_CODES = {408, 409, 429, 500, 502, 503, 504}


def _status(error: BaseException) -> int | None:
    """The HTTP status that a store answered with: gcsfs keeps it as `code`, s3fs in the error that it translated."""
    response = getattr(error.__cause__, "response", None)
    found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    found = getattr(error, "code", None) if found is None else found
    return int(str(found)) if str(found).isdigit() else None


def _may_pass(error: BaseException) -> bool:
    """Whether a fault of a store may pass by itself: no connection, no answer in time, overload, a fault inside."""
    status = _status(error)
    if status is not None:
        return status in _PASSING_CODES
    return isinstance(error, (ConnectionError, TimeoutError, *_passing_classes()))


@functools.cache
def _passing_classes() -> tuple[type[BaseException], ...]:
    """What the stores' libraries raise without a connection. They are installed, as a path of theirs is in use."""
    found: list[type[BaseException]] = []
    for module, name in (
        ("aiohttp", "ClientConnectionError"),
        ("aiohttp", "ClientPayloadError"),
        ("requests.exceptions", "ConnectionError"),
        ("requests.exceptions", "Timeout"),
        ("google.auth.exceptions", "TransportError"),
        ("botocore.exceptions", "ConnectionError"),  # no class of it is an HTTPClientError
        ("botocore.exceptions", "HTTPClientError"),
        ("botocore.exceptions", "IncompleteReadError"),
        ("fsspec.exceptions", "FSTimeoutError"),
    ):
        with contextlib.suppress(ImportError, AttributeError):
            found.append(getattr(importlib.import_module(module), name))
    return tuple(found)
