"""Plots of spectra and of a training run, from plain values; readable in colour and in grey.

Each of several settings has its own colour, line style and marker. For several seeds the line is their mean, and the
band reaches from the smallest to the largest value. The plots do not use pyplot, so they leave nothing behind in the
process. They show text as it is, without formulas.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from svt_jax.analysis import no_backend  # noqa: F401

# isort: split
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from svt_jax.analysis.finished import parameters_of
from svt_jax.evaluation.probe import MEASURES, Reading
from svt_jax.stores import writable

INK, GRID = "#1f2328", "#c9ced6"
# Okabe and Ito's colours, in an order that alternates dark and light
_STYLES = (("#0072b2", "-", "o"), ("#e69f00", "--", "s"), ("#009e73", "-.", "^"), ("#cc79a7", ":", "D"))
_FILL, _BEFORE = "#9ecae1", "#bdbdbd"
_RATIO = "σ / σ₁"
_NAMES = {
    "skewness": "skewness of σ",
    "median_ratio": "median of σ / σ₁",
    "token_uniformity": "token uniformity (mean cosine)",
    "cls_uniformity": "CLS uniformity (mean cosine)",
    "explained_variance_1": "explained variance, EV₁",
    "explained_variance_3": "explained variance, EV₃",
    "effective_rank": "effective rank (directions)",
}
# names of runs and metrics are not formulas
PLAIN_TEXT = {"text.parse_math": False, "text.usetex": False}
_RC = {
    **PLAIN_TEXT,
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9, "axes.titlesize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "svt_jax", "svg.fonttype": "path",
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "text.parse_math": False, "axes.titlelocation": "left", "legend.frameon": False, "grid.color": GRID, "grid.linewidth": 0.6,
}  # fmt: skip


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


@matplotlib.rc_context(_RC)
def spectrum_histograms(reading: Reading) -> Figure:
    """The distribution of sigma / sigma_1 after each layer, with its density and the mean of the medians."""
    states = states_of(reading, "output")
    figure, panels = _grid(len(states), 1.95, 1.7, title_lines=2)
    for panel, state in zip(panels, states, strict=True):
        _histogram(panel, state["histogram"], _FILL)
        _density(panel, state["histogram"], _STYLES[0][0], "-")
        _median(panel, state["median_ratio"], INK, "--")
        note = f"median {state['median_ratio']:.2f}, skewness {state['skewness']:.1f}"
        panel.set_title(f"{layer_name(state['layer'])}\n{note}", fontsize=7.5)
    _label(figure, f"{_RATIO} of a layer's output (dashed: median)")
    return figure


@matplotlib.rc_context(_RC)
def svt_histograms(reading: Reading) -> Figure | None:
    """Each SVT's input compared with its output; None for a model without an SVT."""
    pairs = list(zip(states_of(reading, "svt_input"), states_of(reading, "svt_output"), strict=True))
    if not pairs:
        return None
    figure, panels = _grid(len(pairs), *((2.6, 2.3) if len(pairs) < 4 else (1.95, 1.8)), title_lines=3)
    for panel, (before, after) in zip(panels, pairs, strict=True):
        _histogram(panel, before["histogram"], _BEFORE)
        _density(panel, after["histogram"], _STYLES[0][0], "-")
        _median(panel, before["median_ratio"], "#6b6b6b", ":")
        _median(panel, after["median_ratio"], _STYLES[0][0], "--")
        note = f"median {before['median_ratio']:.2f} → {after['median_ratio']:.2f}\n"
        note += f"skewness {before['skewness']:.1f} → {after['skewness']:.1f}"
        panel.set_title(f"{layer_name(before['layer'])}\n{note}", fontsize=7.5)
    _label(figure, f"{_RATIO} (grey, dotted: SVT's input; blue, dashed: output)")
    return figure


@matplotlib.rc_context(_RC)
def spectrum_cdf(reading: Reading) -> Figure:
    """Cumulative distribution of sigma / sigma_1, one line for each layer, from dark (embeddings) to light (last)."""
    states = states_of(reading, "output")
    edges = np.linspace(0, 1, len(states[0]["histogram"]) + 1)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    colours = _depth_colours(len(states))
    for colour, state in zip(colours, states, strict=True):
        axis.plot(edges, np.concatenate([[0.0], np.cumsum(state["histogram"])]), color=colour, linewidth=1.4)
    svts = list(zip(states_of(reading, "svt_input"), states_of(reading, "svt_output"), strict=True))
    if len(svts) == 1:  # `svt_histograms` has a panel for each of several
        for state, style, name in zip(svts[0], (":", "--"), ("input", "output"), strict=True):
            axis.plot(
                edges, np.concatenate([[0.0], np.cumsum(state["histogram"])]), color=INK, linestyle=style,
                linewidth=1.6, label=f"{name} of layer {state['layer']}'s SVT",
            )  # fmt: skip
        axis.legend(loc="lower right")
    axis.set(xlabel=f"{_RATIO} of a layer's output", ylabel="share of singular values up to it", ylim=(0, 1.01))
    axis.set_xlim(0, 1)
    axis.grid(visible=True)
    norm = BoundaryNorm(np.arange(len(states) + 1) - 0.5, len(states))
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=axis)
    ticks = [n + 1 for n in _depth_ticks(len(states) - 1)]
    bar.set_ticks(ticks, labels=[layer_name(states[n]["layer"]) for n in ticks])
    bar.ax.minorticks_off()
    return figure


@matplotlib.rc_context(_RC)
def measures_by_depth(settings: Mapping[str, Sequence[Reading]]) -> Figure:
    """Each measure by layer; triangles show the input and output of each SVT.

    Args:
      settings: readings by the setting's name, one for each seed.
    """
    figure = Figure(figsize=(10.4, 4.9), layout="constrained")
    panels = list(figure.subplots(2, 4).flat)
    key = panels.pop()
    key.axis("off")
    for panel, measure in zip(panels, MEASURES, strict=True):
        for (name, readings), (colour, line, marker) in zip(settings.items(), _cycle(), strict=False):
            outputs = [states_of(reading, "output") for reading in readings]
            depth = [-1 if state["layer"] is None else state["layer"] for state in outputs[0]]
            values = np.asarray([[state[measure] for state in states] for states in outputs])
            _band(panel, depth, values, colour, line, name, marker=marker)
            _svt_arrows(panel, readings, measure, colour)
        panel.set_title(_NAMES[measure])
        ticks = _depth_ticks(len(depth) - 1)
        panel.set_xticks(ticks, ["emb." if n == -1 else str(n) for n in ticks])
        panel.grid(visible=True, axis="y")
    for panel in panels[3:]:
        panel.set_xlabel("layer")
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    key.legend(unique.values(), unique.keys(), loc="center left", fontsize=9)
    return figure


@matplotlib.rc_context(_RC)
def training_curves(settings: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Loss, gradient norm, scores and each scalar parameter of the SVTs, by step.

    Args:
      settings: runs by the setting's name, one for each seed; a run is {"lines": metrics.jsonl's,
        "evaluations": results.json's}.
    """
    runs = [run for several in settings.values() for run in several]
    scores = [name for name in runs[0]["evaluations"][0]["metrics"] if all(_has_score(run, name) for run in runs)]
    parameters = [_numbers(line) for run in runs for line in run["lines"]]
    layers = sorted({layer for by_layer in parameters for layer in by_layer})
    learned = list(dict.fromkeys(name for by_layer in parameters for named in by_layer.values() for name in named))
    panels_of = [("line", "loss", "training loss"), ("line", "grad_norm", "gradient norm")]
    panels_of += [("score", name, f"validation {name.replace('_', ' ')} (× 100)") for name in scores]
    panels_of += [("parameter", name, "α" if name == "alpha" else name) for name in learned]
    columns = min(len(panels_of), 3)
    rows = math.ceil(len(panels_of) / columns)
    figure = Figure(figsize=(3.5 * columns + 0.4, 2.6 * rows + 0.3), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[len(panels_of) :]:
        panel.remove()
    for panel, (kind, name, title) in zip(panels, panels_of, strict=False):
        if kind == "parameter":
            _parameter(figure, panel, settings, layers, name)
        for (label, several), (colour, line, marker) in zip(settings.items(), _cycle(), strict=False):
            if kind == "score":
                steps = [e["step"] for e in several[0]["evaluations"]]
                values = [[100 * e["metrics"][name] for e in run["evaluations"]] for run in several]
                _band(panel, steps, np.asarray(values), colour, line, label, marker=marker)
            elif kind == "line":
                _noisy(panel, several, name, colour, line, label)
        panel.set_title(title)
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        panel.grid(visible=True, axis="y")
    if len(settings) > 1:
        panels[0].legend(fontsize=8)
    return figure


@matplotlib.rc_context(_RC)
def to_svg(figure: Figure) -> str:
    """The SVG element as text; the same figure makes the same text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


@matplotlib.rc_context(_RC)
def save(figures: Mapping[str, Figure | None], folder: Path) -> list[Path]:
    """Writes NAME.svg and NAME.png for each figure that is not None; returns their paths."""
    paths = []
    with writable(folder) as local:
        for name, figure in figures.items():
            if figure is None:
                continue
            FigureCanvasAgg(figure)
            paths += [folder / f"{name}.svg", folder / f"{name}.png"]
            figure.savefig(local / paths[-2].name, metadata={"Date": None})
            figure.savefig(local / paths[-1].name, dpi=150)
    return paths


def _cycle() -> Iterable[tuple[str, str, str]]:
    while True:
        yield from _STYLES


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


def _depth_ticks(layers: int) -> list[int]:
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


def _depth_colours(count: int) -> list[Any]:
    return list(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, count)))


def _band(
    panel: Axes, x: Sequence[float], values: np.ndarray, colour: str, line: str, label: str, marker: str | None = None
) -> None:
    """The mean of values [S, N] over seeds, and a band from the smallest to the largest."""
    label = f" {label}" if label.startswith("_") else label  # the legend leaves out labels with a leading _
    if len(x) == 1:
        marker = marker or "o"  # a line through one point is invisible
    panel.plot(
        x, values.mean(axis=0), color=colour, linestyle=line, marker=marker, markersize=3.5, linewidth=1.4,
        label=label if len(values) == 1 else f"{label}, {len(values)} seeds",
    )  # fmt: skip
    if len(values) > 1:
        panel.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.25, linewidth=0)


def _svt_arrows(panel: Axes, readings: Sequence[Reading], measure: str, colour: str) -> None:
    ends = []
    for kind in ("svt_input", "svt_output"):
        by_seed = [[state[measure] for state in states_of(reading, kind)] for reading in readings]
        ends.append(np.mean(by_seed, axis=0))
    layers = [state["layer"] for state in states_of(readings[0], "svt_input")]
    if layers:
        panel.vlines(layers, *ends, color=colour, linewidth=0.8)
        panel.plot(
            layers, ends[0], linestyle="", marker="^", markersize=6, markerfacecolor="white", markeredgecolor=colour,
            label="input of its SVT",
        )  # fmt: skip
        panel.plot(layers, ends[1], linestyle="", marker="v", markersize=6, color=colour, label="output of its SVT")


def _has_score(run: Mapping[str, Any], name: str) -> bool:
    return all(name in evaluation["metrics"] for evaluation in run["evaluations"])


def _common_lines(runs: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[list[Mapping[str, Any]]]]:
    """The steps for which every run has a line, and those lines."""
    by_step = [{line["step"]: line for line in run["lines"]} for run in runs]
    steps = sorted(set.intersection(*(set(lines) for lines in by_step)))
    return steps, [[lines[step] for step in steps] for lines in by_step]


def _noisy(panel: Axes, runs: Sequence[Mapping[str, Any]], key: str, colour: str, line: str, label: str) -> None:
    """A running mean over a tenth of the steps; for a single run also the values of each batch, faintly."""
    steps, lines = _common_lines(runs)
    values = np.asarray([[one[key] for one in of_run] for of_run in lines])
    window = max(1, len(steps) // 10)
    kernel = np.ones(window)
    weight = np.convolve(np.ones(len(steps)), kernel, "same")
    smooth = np.asarray([np.convolve(row, kernel, "same") / weight for row in values])
    if len(runs) == 1:
        panel.plot(steps, values[0], color=colour, alpha=0.35, linewidth=0.7)
    _band(panel, steps, smooth, colour, line, label)


def _numbers(line: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """A line's parameters that are scalars."""
    return {
        layer: {name: value for name, value in named.items() if not isinstance(value, list)}
        for layer, named in parameters_of(line).items()
    }


def _parameter(
    figure: Figure, panel: Axes, settings: Mapping[str, Sequence[Mapping[str, Any]]], layers: Sequence[int], name: str
) -> None:
    colours = _depth_colours(len(layers)) if len(layers) > 1 else [_STYLES[0][0]]
    for number, (setting, runs) in enumerate(settings.items()):
        steps, lines = _common_lines(runs)
        found = [[_numbers(line) for line in of_run] for of_run in lines]
        for colour, layer in zip(colours, layers, strict=True):
            if all(name in each.get(layer, {}) for of_run in found for each in of_run):
                values = np.asarray([[each[layer][name] for each in of_run] for of_run in found])
                style = _STYLES[number % len(_STYLES)]
                _band(panel, steps, values, colour if len(layers) > 1 else style[0], style[1], setting)
    if len(layers) > 1:
        norm = BoundaryNorm(np.arange(len(layers) + 1) - 0.5, len(layers))
        bar = figure.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=panel, label="layer")
        ticks = range(0, len(layers), max(1, math.ceil(len(layers) / 6)))
        bar.set_ticks(list(ticks), labels=[str(layers[n]) for n in ticks])
        bar.ax.minorticks_off()
