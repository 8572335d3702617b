"""Imports matplotlib without MPLBACKEND: import this module before matplotlib.

Our plots name their canvas as an object and need no backend. But matplotlib fails to import where that variable names
a backend that is not installed; a process that a notebook starts may inherit such a value.
"""

from __future__ import annotations

import os

_named = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib  # noqa: F401
finally:
    if _named is not None:
        os.environ["MPLBACKEND"] = _named  # for the user's own use of it
