"""Imports matplotlib without MPLBACKEND: import this before it.

Our pictures name their canvas as an object and need no backend, but matplotlib refuses to be imported where that variable
names one that is not installed, as a process started from a notebook may inherit.
"""

from __future__ import annotations

import os

_named = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib  # noqa: F401
finally:
    if _named is not None:
        os.environ["MPLBACKEND"] = _named  # for the user's own use of it
