"""Checks and changes of values that several sections of a config share."""

from __future__ import annotations

import math
import os
from typing import Any


def positive(section: str, config: Any, *names: str) -> None:
    """Raises ValueError unless these numbers of a section are greater than 0 and finite, or None."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:  # with not, since NaN compares false with everything
            raise ValueError(f"{section}.{name} is {value}; it must be greater than 0 and finite. Correct the config.")


def expand_home(config: Any, *names: str) -> None:
    """Expands a leading ~ of a path: no shell expands it in --run.output_dir=~/runs or in a file."""
    for name in names:
        object.__setattr__(config, name, os.path.expanduser(getattr(config, name)))
