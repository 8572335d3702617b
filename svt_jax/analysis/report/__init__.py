"""report.html: one self-contained page about a run, made from the files that the run wrote; it fetches nothing.

`render_report` combines page.html (Jinja2, everything escaped), style.css and spectrum.js, which lie beside this file.
"""

from __future__ import annotations

from pathlib import Path

from svt_jax.analysis.report.page import render_report
from svt_jax.run.folder import RunFolder
from svt_jax.writing import write_whole

__all__ = ["render_report", "write_report"]


def write_report(folder: RunFolder, baseline: Path | None = None) -> None:
    """Writes report.html into a run's folder; compares with the baseline run if one is given."""
    write_whole(folder.report, render_report(folder.path, baseline), "Make room, and write the report again.")
