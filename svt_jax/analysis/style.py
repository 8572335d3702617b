"""How every picture looks: the colour, line and marker of each method, light and dark, and how figures become files.

A method (`svt.function` of a config) has one colour everywhere, and a line style and marker that tell it apart in grey. No
two colours are closer than 0.13 in OKLab for full colour vision, protanopia or deuteranopia (Machado et al. 2009), on the
light and on the dark ground; each has a contrast of at least 3 to its ground.

Figures are drawn in light colours. An SVG holds the dark ones as a media query, so that a browser shows what its page has.
Other programs ignore it.
"""

from __future__ import annotations

import dataclasses
import io
import re
import textwrap
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from svt_jax.analysis import no_backend  # noqa: F401

# isort: split
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from svt_jax.stores import writable

INK, GROUND, GRID, FILL, BEFORE, FAINT = "#1f2328", "#ffffff", "#c9ced6", "#9ecae1", "#bdbdbd", "#6b6b6b"
BLUE, SKY, GREEN, OCHRE, BROWN, PLUM, VIOLET = (
    "#305fe3", "#179de2", "#5ea187", "#a06200", "#743b20", "#954981", "#680382",
)  # fmt: skip
HUES = (BLUE, SKY, GREEN, OCHRE, BROWN, PLUM, VIOLET)
DARK = {
    INK: "#e6e8eb", GROUND: "#15181d", GRID: "#454c56", FILL: "#2f6690", BEFORE: "#6a7079", FAINT: "#a0a7b0",
    BLUE: "#4f80fc", SKY: "#62c1ff", GREEN: "#007f2e", OCHRE: "#ffd765", BROWN: "#dda486", PLUM: "#ae7ba0", VIOLET: "#8a49a0",
}  # fmt: skip
"""Each colour on a dark ground."""
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">", "*")
_METHODS = {
    INK: ("none",),
    BLUE: ("soft_decay", "centered_soft_decay", "soft_exponential", "log_shift"),
    SKY: ("polynomial", "linear", "average", "identity"),
    GREEN: ("contra_norm", "de_escalation", "feat_scale"),
    OCHRE: ("attn_scale", "gfsa"),
    BROWN: ("laplacian", "neutreno"),
    VIOLET: ("i_star", "cos_reg"),
    PLUM: ("gor", "spectrum_area", "token_whitening", "token_all_but_the_top"),
}
"""What acts alike shares a hue. No hue has more than three methods of configs/bench."""
_SAME_HUE = 2
"""So many settings of one method share its hue; others take hues that the picture does not use."""

# names of runs and metrics are not formulas
PLAIN_TEXT = {"text.parse_math": False, "text.usetex": False}
RC = {
    **PLAIN_TEXT,
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9, "axes.titlesize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "svt_jax", "svg.fonttype": "path",
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.titlelocation": "left", "axes.formatter.useoffset": False, "legend.frameon": False, "legend.handlelength": 3.2, "grid.color": GRID, "grid.linewidth": 0.6,
    "figure.facecolor": GROUND, "axes.facecolor": GROUND,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Style:
    """The colour, line style and marker of a setting.

    Attributes:
      colour, line, marker: as matplotlib names them.
    """

    colour: str
    line: str
    marker: str

    @property
    def face(self) -> str:
        """A solid line has filled markers, another one hollow ones."""
        return self.colour if self.line == "-" else GROUND

    def curve(self) -> dict[str, Any]:
        """Arguments of `Axes.plot` for a line with markers."""
        return {
            "color": self.colour, "linestyle": self.line, "marker": self.marker, "markerfacecolor": self.face,
            "markersize": 4, "markeredgewidth": 0.9, "linewidth": 1.4,
        }  # fmt: skip


def _built_in() -> dict[str, Style]:
    return {
        method: Style(colour, LINES[place], MARKERS[(group + 3 * place) % len(MARKERS)])
        for group, (colour, methods) in enumerate(_METHODS.items())
        for place, method in enumerate(methods)
    }


_STYLES = _built_in()
PLAIN = _STYLES["plain"] = _STYLES["none"]


def style_of(method: str) -> Style:
    """The style of a spectral function or remedy by its name; "none" and "plain" are a model without one.

    A name that is not built in has the style that its letters decide, the same in every picture.

    Example:
      >>> style_of("soft_decay"), style_of("plain") == style_of("none")
      (Style(colour='#305fe3', line='-', marker='s'), True)
    """
    if method in _STYLES:
        return _STYLES[method]
    number = zlib.crc32(method.encode("utf-8", "replace"))
    return Style(HUES[number % len(HUES)], LINES[number // 7 % len(LINES)], MARKERS[number // 28 % len(MARKERS)])


def styles(settings: Iterable[str], methods: Mapping[str, str] | None = None) -> dict[str, Style]:
    """A style for each setting of one picture, no two alike (up to 308).

    The first setting of a method has the method's style. The second has its colour with another line style and marker. Further
    ones have colours that the picture does not use, as long as there are any.

    Args:
      settings: names as the picture shows them.
      methods: the method of each setting; a setting without one is taken by its name.
    """
    names = list(dict.fromkeys(settings))
    method = {name: (methods or {}).get(name, name) for name in names}
    seen: dict[str, int] = {}
    repeats = {}
    for name in names:
        repeats[name] = seen.get(method[name], 0)
        seen[method[name]] = repeats[name] + 1
    found: dict[str, Style] = {}
    # methods' own styles first: a variant of another must not take one
    for name in sorted(names, key=lambda name: (min(repeats[name], 1), method[name] not in _STYLES)):
        own = style_of(method[name])
        if repeats[name] >= _SAME_HUE:
            used = {style.colour for style in found.values()}
            free = next((hue for hue in HUES if hue not in used), own.colour)
            own = dataclasses.replace(own, colour=free)
        found[name] = _free(own, set(found.values()))
    return {name: found[name] for name in names}


def _free(own: Style, taken: set[Style]) -> Style:
    """The first variant that no setting has: with a line of its own if there is one, since not all curves have markers."""
    lines = {(style.colour, style.line) for style in taken}
    variants = [style for style in _variants(own) if style not in taken]
    return next((style for style in variants if (style.colour, style.line) not in lines), next(iter(variants), own))


def _variants(style: Style) -> Iterator[Style]:
    """Itself, then all other lines and markers of its colour: 4 and 11 have no common factor."""
    line, marker = LINES.index(style.line), MARKERS.index(style.marker)
    for n in range(len(LINES) * len(MARKERS)):
        yield Style(style.colour, LINES[(line + n) % len(LINES)], MARKERS[(marker + n) % len(MARKERS)])


_DEPTH_END = 192
"""Of viridis' 256 colours; the rest are too light for lines on white."""


def depth_colours(count: int) -> list[str]:
    """A colour for each layer, from dark (first) to light (last)."""
    return [_viridis(round(at)) for at in np.linspace(0, _DEPTH_END, count)]


def _viridis(number: int) -> str:
    return matplotlib.colors.to_hex(matplotlib.colormaps["viridis"](number))


def _dark(colour: str) -> str | None:
    """The colour on a dark ground, where viridis begins at a lighter place; None if it stays."""
    if not _DARK_DEPTH:
        _DARK_DEPTH.update({_viridis(n): _viridis(77 + round(178 * n / _DEPTH_END)) for n in range(_DEPTH_END + 1)})
    return DARK.get(colour, _DARK_DEPTH.get(colour))


_DARK_DEPTH: dict[str, str] = {}


def wrapped(name: str, width: int = 30) -> str:
    """A setting's name in lines that fit a legend; a leading _, which hides a label, stands behind a space."""
    lines = "\n".join(textwrap.wrap(name, width)) or name
    return f" {lines}" if lines.startswith("_") else lines


def key(figure: Figure, handles: Mapping[str, Any], *, title: str = "") -> None:
    """A legend below all panels of a figure with constrained layout: it covers nothing.

    Args:
      handles: what stands for each label.
    """
    longest = max(len(line) for label in handles for line in label.splitlines())
    columns = int(figure.get_figwidth() / (0.75 + 0.068 * longest))  # inches of the handle and of a letter
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower left", ncols=max(1, min(columns, len(handles))), fontsize=8,
        title=title or None, title_fontsize=8, alignment="left", columnspacing=1.4,
    )  # fmt: skip


@matplotlib.rc_context(RC)
def to_svg(figure: Figure) -> str:
    """The SVG element as text, without a ground; the same figure makes the same text."""
    return _svg(figure, transparent=True)


@matplotlib.rc_context(RC)
def save(figures: Mapping[str, Figure | None], folder: Path) -> list[Path]:
    """Writes NAME.svg and NAME.png for each figure that is not None; returns their paths."""
    paths = []
    with writable(folder) as local:
        for name, figure in figures.items():
            if figure is None:
                continue
            _settle(figure)
            paths += [folder / f"{name}.svg", folder / f"{name}.png"]
            (local / paths[-2].name).write_text(_svg(figure), encoding="utf-8")
            figure.savefig(local / paths[-1].name, dpi=150)
    return paths


def _settle(figure: Figure) -> None:
    """Lays the figure out once: each drawing would do so again, which takes most of its time."""
    FigureCanvasAgg(figure)
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def _svg(figure: Figure, *, transparent: bool = False) -> str:
    _settle(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=transparent)
    text = buffer.getvalue()
    head, tag, rest = text.partition("<svg")
    opening, end, content = rest.partition(">")
    return f"{'' if transparent else head}{tag}{opening}{end}{_dark_style(content)}{content}"


def _dark_style(content: str) -> str:
    """The style element that shows each colour of an SVG as the one for a dark ground, where a page asks for it."""
    rules = [
        f'[style*="{what}: {colour}"] {{{what}: {dark} !important}}'
        for what, colour in sorted(set(re.findall(r"(fill|stroke): (#[0-9a-f]{6})", content)))
        if (dark := _dark(colour))
    ]
    return f"\n <style>@media (prefers-color-scheme: dark) {{\n{chr(10).join(rules)}\n}}</style>"
