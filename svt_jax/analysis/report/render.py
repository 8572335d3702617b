"""Fills the templates beside this file; what both pages need for it."""

from __future__ import annotations

import base64
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HERE = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """The page as HTML text: every value is escaped but Markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # a browser's JSON parser rejects NaN
    page = environment.get_template(template).render(
        style=source("style.css"), version=importlib.metadata.version("svt_jax"), **values
    )
    return page.encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair, UTF-8 cannot


def source(file: str) -> Markup:
    """A style sheet or script, which the page holds as it is."""
    return Markup((_HERE / file).read_text(encoding="utf-8"))


def picture(
    name: str, figure: Figure, caption: str, numbers: str = "The numbers stand in the tables below."
) -> dict[str, Any]:
    """A figure as the templates take it: SVG that follows the page to light or dark.

    Args:
      numbers: says to those who cannot see it where its numbers are.
    """
    from svt_jax.analysis.style import to_svg

    return {
        "name": name,
        "width": round(96 * figure.get_figwidth()),
        "alt": f"{name}. {caption} {numbers}",
        "caption": caption,
        "data": base64.b64encode(to_svg(figure).encode()).decode(),
    }
