"""report.html: one self-contained page on a run, made of the files that the run left; nothing is fetched.

page.html (Jinja2, everything escaped), style.css and spectrum.js beside this file are put together by `render_report`.
"""

from svt_jax.analysis.report.page import render_report

__all__ = ["render_report"]
