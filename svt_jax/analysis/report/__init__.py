"""report.html: one self-contained page about a run, or about several, made from the files that they wrote; it fetches nothing.

page.html is of a run, comparison.html of several. Both are Jinja2 templates that extend base.html, with everything escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from svt_jax.analysis.report.page import render_report
from svt_jax.run.folder import RunFolder
from svt_jax.stores import make_folder
from svt_jax.writing import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from svt_jax.analysis.compare import Comparison, Search
    from svt_jax.analysis.finished import FinishedRun

__all__ = ["check_no_run", "render_report", "write_comparison_report", "write_report"]

_NO_ROOM = "Make room, and write the report again."


def write_report(folder: RunFolder, baseline: Path | None = None) -> None:
    """Writes report.html into a run's folder; compares with the baseline run if one is given."""
    write_whole(folder.report, render_report(folder.path, baseline), _NO_ROOM)


def write_comparison_report(
    comparison: Comparison,
    runs: Mapping[str, Sequence[FinishedRun]],
    figures: Mapping[str, Figure],
    folder: Path,
    searches: Mapping[str, Search] | None = None,
) -> Path:
    """Writes report.html about several runs into a folder and returns its path; arguments as for `render_comparison`.

    Raises:
      ValueError: if the folder is a run's, whose report.html it would replace.
    """
    from svt_jax.analysis.report.comparison import render_comparison

    check_no_run(folder)
    make_folder(folder)
    write_whole(folder / "report.html", render_comparison(comparison, runs, figures, searches, folder), _NO_ROOM)
    return folder / "report.html"


def check_no_run(folder: Path) -> None:
    """Raises ValueError if the folder holds a run, which has a report.html of its own."""
    if (folder / "results.json").is_file():
        raise ValueError(
            f"{folder} holds a run, and report.html there is the run's; allowed is another folder. Choose another --output."
        )
