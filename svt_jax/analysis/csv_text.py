"""Tables as CSV that a spreadsheet shows as text and numbers and never executes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""Characters that a spreadsheet takes for the start of a formula; the last four are the wide forms."""


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The table as CSV: numbers at full precision, an apostrophe before text that looks like a formula.

    Example:
      >>> print(csv_text(["setting", "score"], [["=1+1", -0.5], ["plain", 0.25]]), end="")
      setting,score
      '=1+1,-0.5
      plain,0.25
    """
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([_cell(cell) for cell in row] for row in (header, *rows))
    return buffer.getvalue()


def _cell(cell: Any) -> str:
    if isinstance(cell, (int, float)):
        return repr(cell)
    text = str(cell)
    safe = "'" + text if text.startswith(_FORMULA) else text
    return safe.replace("\r", " ")  # the writer does not quote it, but readers end a row there
