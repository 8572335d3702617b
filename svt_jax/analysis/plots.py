"""Pictures of spectra and measures from plain values. They show text as it is, without formulas, and do not use pyplot.

For several seeds the line is their mean, and the band reaches from the smallest to the largest value. `style` has colours, line
styles and markers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from svt_jax.analysis.style import (
    BEFORE,
    BLUE,
    FAINT,
    FILL,
    GROUND,
    INK,
    RC,
    Style,
    depth_colours,
    key,
    save,
    styles,
    to_svg,
    wrapped,
)

# isort: split
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from svt_jax.evaluation.probe import MEASURES, Reading

__all__ = ["measures_by_depth", "save", "spectrum_cdf", "spectrum_histograms", "svt_histograms", "to_svg"]

_RATIO = "σ / σ₁"
_NAMES = {
    "skewness": "skewness of σ",
    "median_ratio": "median of σ / σ₁",
    "token_uniformity": "token uniformity (mean cosine)",
    "cls_uniformity": "CLS uniformity (mean cosine)",
    "explained_variance_1": "explained variance, EV₁ (share)",
    "explained_variance_3": "explained variance, EV₃ (share)",
    "effective_rank": "effective rank (directions)",
}
_FEW = 6
"""Up to so many settings have bands; those of more would cover each other."""


def states_of(reading: Reading, kind: str) -> list[dict[str, Any]]:
    """The states of a kind ("output", "svt_input", "svt_output") by depth, the embeddings first."""
    return [state for state in reading["states"] if state["state"] == kind]


def layer_name(layer: int | None) -> str:
    return "embeddings" if layer is None else f"layer {layer}"


def density(histogram: Sequence[float]) -> np.ndarray:
    """A smooth density over the bins: a Gaussian kernel of width 0.02, mirrored at 0 and 1 so that its integral is 1."""
    from scipy.ndimage import gaussian_filter1d

    bins = len(histogram)
    return gaussian_filter1d(np.asarray(histogram) * bins, sigma=0.02 * bins, mode="reflect")


@matplotlib.rc_context(RC)
def spectrum_histograms(reading: Reading) -> Figure:
    """The distribution of sigma / sigma_1 after each layer, with its density and the mean of the medians."""
    states = states_of(reading, "output")
    figure, panels = _grid(len(states), 1.95, 1.7, title_lines=2)
    for panel, state in zip(panels, states, strict=True):
        _histogram(panel, state["histogram"], FILL)
        _density(panel, state["histogram"], BLUE, "-")
        _median(panel, state["median_ratio"], INK, "--")
        note = f"median {state['median_ratio']:.2f}, skewness {state['skewness']:.1f}"
        panel.set_title(f"{layer_name(state['layer'])}\n{note}", fontsize=7.5)
    _label(figure, f"{_RATIO} of a layer's output (dashed: median)")
    return figure


@matplotlib.rc_context(RC)
def svt_histograms(reading: Reading) -> Figure | None:
    """Each SVT's input compared with its output; None for a model without an SVT."""
    pairs = list(zip(states_of(reading, "svt_input"), states_of(reading, "svt_output"), strict=True))
    if not pairs:
        return None
    figure, panels = _grid(len(pairs), *((2.6, 2.3) if len(pairs) < 4 else (1.95, 1.8)), title_lines=3)
    for panel, (before, after) in zip(panels, pairs, strict=True):
        _histogram(panel, before["histogram"], BEFORE)
        _density(panel, after["histogram"], BLUE, "-")
        _median(panel, before["median_ratio"], FAINT, ":")
        _median(panel, after["median_ratio"], BLUE, "--")
        note = f"median {before['median_ratio']:.2f} → {after['median_ratio']:.2f}\n"
        note += f"skewness {before['skewness']:.1f} → {after['skewness']:.1f}"
        panel.set_title(f"{layer_name(before['layer'])}\n{note}", fontsize=7.5)
    _label(figure, f"{_RATIO} (grey, dotted: SVT's input; blue, dashed: output)")
    return figure


@matplotlib.rc_context(RC)
def spectrum_cdf(reading: Reading) -> Figure:
    """Cumulative distribution of sigma / sigma_1, one line for each layer, from dark (embeddings) to light (last)."""
    states = states_of(reading, "output")
    edges = np.linspace(0, 1, len(states[0]["histogram"]) + 1)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    colours = depth_colours(len(states))
    for colour, state in zip(colours, states, strict=True):
        axis.plot(edges, np.concatenate([[0.0], np.cumsum(state["histogram"])]), color=colour, linewidth=1.4)
    svts = list(zip(states_of(reading, "svt_input"), states_of(reading, "svt_output"), strict=True))
    if len(svts) == 1:  # `svt_histograms` has a panel for each of several
        for state, style, name in zip(svts[0], (":", "--"), ("input", "output"), strict=True):
            axis.plot(
                edges, np.concatenate([[0.0], np.cumsum(state["histogram"])]), color=INK, linestyle=style,
                linewidth=1.6, label=f"{name} of layer {state['layer']}'s SVT",
            )  # fmt: skip
        key(figure, {str(line.get_label()): line for line in axis.get_lines()[-2:]})
    axis.set(xlabel=f"{_RATIO} of a layer's output", ylabel="share of singular values up to it", ylim=(0, 1.01))
    axis.set_xlim(0, 1)
    axis.grid(visible=True)
    norm = BoundaryNorm(np.arange(len(states) + 1) - 0.5, len(states))
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=axis)
    ticks = [n + 1 for n in depth_ticks(len(states) - 1)]
    bar.set_ticks(ticks, labels=[layer_name(states[n]["layer"]) for n in ticks])
    bar.ax.minorticks_off()
    return figure


@matplotlib.rc_context(RC)
def measures_by_depth(settings: Mapping[str, Sequence[Reading]], methods: Mapping[str, str] | None = None) -> Figure:
    """Each measure by layer. Up to six settings have bands, and triangles for the input and output of each SVT.

    Args:
      settings: readings by the setting's name, one for each seed.
      methods: as for `style.styles`.
    """
    looks = styles(settings, methods)
    shown = few(settings)
    figure = Figure(figsize=(10.4, 5.4) if shown else (12.4, 7.2), layout="constrained")
    panels = list(figure.subplots(2, 4).flat)
    panels.pop().remove()
    with_svt = shown and any(states_of(readings[0], "svt_input") for readings in settings.values())
    for panel, measure in zip(panels, MEASURES, strict=True):
        deepest = 0
        for name, readings in settings.items():
            outputs = [states_of(reading, "output") for reading in readings]
            depth = [-1 if state["layer"] is None else state["layer"] for state in outputs[0]]
            values = np.asarray([[state[measure] for state in states] for states in outputs])
            band(panel, depth, values, looks[name], name, shaded=shown)
            deepest = max(deepest, *depth)
            if with_svt:
                _svt_arrows(panel, readings, measure, looks[name].colour)
        panel.set_title(_NAMES[measure])
        ticks = depth_ticks(deepest + 1)
        panel.set_xticks(ticks, ["emb." if n == -1 else str(n) for n in ticks])
        panel.grid(visible=True, axis="y")
    for panel in panels[3:]:
        panel.set_xlabel("layer")
    handles, labels = panels[0].get_legend_handles_labels()
    if with_svt:
        handles += [Line2D([], [], **_arrow(FAINT, end)) for end in (0, 1)]
        labels += ["input of an SVT", "output of an SVT"]
    key(figure, dict(zip(labels, handles, strict=True)), title=seeds_note(settings))
    return figure


def _grid(count: int, width: float, height: float, *, title_lines: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, 5)
    rows = math.ceil(count / columns)
    # by hand: the automatic layout of 25 panels takes seconds
    wide, high, title = max(width * columns, 3.6) + 0.3, height * rows + 0.6, 0.13 * title_lines + 0.08
    figure = Figure(figsize=(wide, high))
    figure.subplots_adjust(
        left=0.6 / wide, right=1 - 0.15 / wide, bottom=0.55 / high, top=1 - title / high,
        wspace=0.12, hspace=(title + 0.25) / (height - title - 0.25),
    )  # fmt: skip
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for panel in panels[count:]:
        panel.remove()
    for panel in panels[max(0, count - columns) : count]:  # including those above a gap in the last row
        panel.tick_params(labelbottom=True)
    panels[0].set_xlim(0, 1)
    panels[0].set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    return figure, panels[:count]


def depth_ticks(layers: int) -> list[int]:
    """The embeddings, -1, and about six layers, with the last one if the spacing allows."""
    every = math.ceil(layers / 6)
    return [-1, *range(every - 1, layers, every)]


def _label(figure: Figure, x: str) -> None:
    figure.supxlabel(x, y=0.08 / figure.get_figheight(), va="bottom", fontsize=9)
    figure.supylabel(f"density (per unit of {_RATIO})", x=0.08 / figure.get_figwidth(), ha="left", fontsize=9)


def _histogram(panel: Axes, shares: Sequence[float], colour: str) -> None:
    """The histogram with pairs of bins merged: the density shows the finer structure."""
    coarse = np.asarray(shares).reshape(-1, 2).sum(axis=1)
    panel.stairs(coarse * len(coarse), np.linspace(0, 1, len(coarse) + 1), fill=True, color=colour)


def _density(panel: Axes, shares: Sequence[float], colour: str, line: str) -> None:
    middles = (np.arange(len(shares)) + 0.5) / len(shares)
    panel.plot(middles, density(shares), color=colour, linestyle=line, linewidth=1.4)


def _median(panel: Axes, value: float, colour: str, line: str) -> None:
    panel.axvline(value, color=colour, linestyle=line, linewidth=1.2)


def band(
    panel: Axes,
    x: Sequence[float],
    values: np.ndarray,
    style: Style,
    label: str,
    *,
    marked: bool = True,
    shaded: bool = True,
) -> None:
    """The mean of values [S, N] over seeds, and if `shaded` a band from the smallest to the largest."""
    look = style.curve()
    if not marked and len(x) > 1:  # a line through one point is invisible
        look["marker"] = None
    panel.plot(x, values.mean(axis=0), label=wrapped(label), markevery=every(len(x)), **look)
    if len(values) > 1 and shaded:
        panel.fill_between(x, values.min(axis=0), values.max(axis=0), color=style.colour, alpha=0.2, linewidth=0)


def every(points: int) -> int:
    """Which points of a line have a marker, so that there are at most thirteen."""
    return math.ceil(points / 13)


def seeds_note(settings: Mapping[str, Sequence[Any]]) -> str:
    """What the lines and bands of `band` are; nothing for single runs."""
    counts = {len(several) for several in settings.values()}
    if counts == {1}:
        return ""
    seeds = f"{counts.pop()} seeds" if len(counts) == 1 else f"{min(counts)} to {max(counts)} seeds"
    return f"mean of {seeds}" + ("; band: smallest to largest" if few(settings) else "")


def few(settings: Mapping[str, Any]) -> bool:
    """Whether so few settings share a panel that their bands can be told apart."""
    return len(settings) <= _FEW


def _svt_arrows(panel: Axes, readings: Sequence[Reading], measure: str, colour: str) -> None:
    """From each SVT's input to its output."""
    ends = []
    for kind in ("svt_input", "svt_output"):
        by_seed = [[state[measure] for state in states_of(reading, kind)] for reading in readings]
        ends.append(np.mean(by_seed, axis=0))
    layers = [state["layer"] for state in states_of(readings[0], "svt_input")]
    if layers:
        panel.vlines(layers, *ends, color=colour, linewidth=0.8)
        for end in (0, 1):
            panel.plot(layers, ends[end], **_arrow(colour, end, size=6 if len(layers) < 13 else 3.5))


def _arrow(colour: str, end: int, size: float = 6) -> dict[str, Any]:
    """The triangle at an SVT's input, hollow, or at its output."""
    face = (GROUND, colour)[end]
    return {
        "linestyle": "",
        "marker": "^v"[end],
        "markersize": size,
        "markerfacecolor": face,
        "markeredgecolor": colour,
    }
