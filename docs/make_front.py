"""Draws the README's picture, for a light and a dark page, from the readings of spectra.md: python docs/make_front.py

Left and middle: for each depth the distribution of σ/σ₁ over examples and directions, with its median. Right: token
uniformity by depth. The readings are in docs/spectra/; spectra.md says how they were made.
"""

import json
from pathlib import Path

from svt_jax.analysis import plots

# isort: split
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
SETTINGS = {"plain": "fine-tuned", "soft_decay": "fine-tuned with SoftDecay in layer 5"}
THEMES = {  # ink, grid, colours of the settings: a plain model is drawn in ink
    "light": ("#1f2328", "#c9ced6", ("#1f2328", "#305fe3")),
    "dark": ("#e6e8eb", "#454c56", ("#e6e8eb", "#4f80fc")),
}
OVERLAP = 1.5  # height of the tallest distribution in rows


def read(name: str) -> list[dict]:
    reading = json.loads((HERE / "spectra" / f"{name}.json").read_text(encoding="utf-8"))
    return plots.states_of(reading, "output")


def rows(axis: Axes, states: list[dict], colour: str, ink: str, tallest: float) -> None:
    """A distribution for each depth, the embeddings at the top."""
    for row, state in enumerate(states):
        heights = plots.density(state["histogram"]) * OVERLAP / tallest
        at = (np.arange(len(heights)) + 0.5) / len(heights)
        base = -row
        axis.fill_between(at, base, base + heights, color=colour, alpha=0.35, linewidth=0, zorder=2 * row)
        axis.plot(at, base + heights, color=colour, linewidth=1.1, zorder=2 * row + 1)
        median = state["median_ratio"]
        top = base + np.interp(median, at, heights)
        axis.plot([median, median], [base, top], color=ink, linewidth=1.4, zorder=2 * row + 1)
    axis.set_yticks([-row for row in range(len(states))], [plots.layer_name(state["layer"]) for state in states])
    axis.set(xlim=(0, 1), ylim=(-len(states) + 0.9, 1.3), xlabel="σ / σ₁ (line: median)")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def draw(theme: str) -> Figure:
    ink, grid, colours = THEMES[theme]
    style = {
        "text.parse_math": False, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9,
        "axes.titlesize": 9, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
        "text.color": ink, "axes.edgecolor": ink, "axes.labelcolor": ink, "axes.facecolor": "none",
        "xtick.color": ink, "ytick.color": ink, "legend.frameon": False, "grid.color": grid, "grid.linewidth": 0.6,
        "svg.hashsalt": "svt_jax", "svg.fonttype": "path",
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9.6, 3.5), layout="constrained", facecolor="none")
        *panels, curve = figure.subplots(1, 3)
        found = {name: read(name) for name in SETTINGS}
        tallest = max(plots.density(state["histogram"]).max() for states in found.values() for state in states)
        lines = zip(panels, found.items(), SETTINGS.values(), colours, ("o", "s"), strict=True)
        for panel, (name, states), label, colour, marker in lines:
            rows(panel, states, colour, ink, tallest)
            panel.set_title(label)
            uniformity = [state["token_uniformity"] for state in states]
            curve.plot(range(-1, len(states) - 1), uniformity, color=colour, marker=marker, markersize=4)
            curve.annotate(
                {"plain": "without", "soft_decay": "with"}[name], (len(states) - 2, uniformity[-1]),
                xytext=(7, 0), textcoords="offset points", color=colour, va="center",
            )  # fmt: skip
        panels[1].tick_params(axis="y", labelleft=False)
        depths = [state["layer"] for state in states]
        curve.set_xticks(range(-1, len(states) - 1), ["emb." if depth is None else str(depth) for depth in depths])
        curve.set(xlabel="layer", ylim=(0, None), xlim=(-1.3, len(states) - 0.6), title="mean cosine of two tokens")
        curve.grid(visible=True, axis="y")
    return figure


def main() -> None:
    for theme in THEMES:
        draw(theme).savefig(HERE / "pictures" / f"front_{theme}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
