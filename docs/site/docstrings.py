"""Reads our docstrings for the site: `Example:` holds doctests, which griffe expects under `Examples:`."""

import re
from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Renames the section, so that its lines are shown as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
