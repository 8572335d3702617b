"""report.html: one self-contained page on a run. (placeholder)"""
from pathlib import Path
def render_report(run: Path) -> str:
    return ""
