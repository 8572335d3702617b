"""Pictures of the training's course: loss, gradient norm, scores and parameters by step, a band for several seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from svt_jax.analysis.plots import band, few, seeds_note
from svt_jax.analysis.style import RC, Style, depth_colours, key, styles

# isort: split
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from svt_jax.analysis.finished import parameters_of

_POINTS = 200
"""A smoothed curve has at most so many points: more cannot be seen, and a page would carry them."""


@matplotlib.rc_context(RC)
def training_curves(
    settings: Mapping[str, Sequence[Mapping[str, Any]]], methods: Mapping[str, str] | None = None
) -> Figure:
    """Loss, gradient norm, scores and each scalar parameter of the SVTs, by step.

    Args:
      settings: runs by the setting's name, one for each seed; a run is {"lines": metrics.jsonl's,
        "evaluations": results.json's}.
      methods: as for `style.styles`.
    """
    looks = styles(settings, methods)
    runs = [run for several in settings.values() for run in several]
    scores = [name for name in runs[0]["evaluations"][0]["metrics"] if all(_has_score(run, name) for run in runs)]
    parameters = [_numbers(line) for run in runs for line in run["lines"]]
    learned: dict[str, set[int]] = {}
    for by_layer in parameters:
        for layer, named in by_layer.items():
            for name in named:
                learned.setdefault(name, set()).add(layer)
    panels_of = [("line", "loss", f"training loss ({_unit(scores)})"), ("line", "grad_norm", "gradient norm")]
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
            _parameter(figure, panel, settings, sorted(learned[name]), name, looks)
        for label, several in settings.items():
            if kind == "score":
                _scores(panel, several, name, looks[label], label, shaded=few(settings))
            elif kind == "line":
                _noisy(panel, several, name, looks[label], label, shaded=few(settings))
        panel.set_title(title)
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        panel.grid(visible=True, axis="y")
    if len(settings) > 1 or len(runs) > 1:
        handles, labels = panels[len(panels_of) - len(learned) - 1].get_legend_handles_labels()
        key(figure, dict(zip(labels, handles, strict=True)), title=seeds_note(settings))
    return figure


def _unit(scores: Sequence[str]) -> str:
    """The loss's unit: cross-entropy, or the squared error of a number."""
    return "squared error" if "pearson" in scores else "nats"


def _has_score(run: Mapping[str, Any], name: str) -> bool:
    return all(name in evaluation["metrics"] for evaluation in run["evaluations"])


def _common_lines(runs: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[list[Mapping[str, Any]]]]:
    """The steps for which every run has a line, and those lines."""
    by_step = [{line["step"]: line for line in run["lines"]} for run in runs]
    steps = sorted(set.intersection(*(set(lines) for lines in by_step)))
    return steps, [[lines[step] for step in steps] for lines in by_step]


def _scores(
    panel: Axes, runs: Sequence[Mapping[str, Any]], name: str, style: Style, label: str, *, shaded: bool
) -> None:
    """A score at the evaluations that all seeds have."""
    by_step = [{each["step"]: 100 * each["metrics"][name] for each in run["evaluations"]} for run in runs]
    steps = sorted(set.intersection(*(set(each) for each in by_step)))
    values = np.asarray([[each[step] for step in steps] for each in by_step])
    band(panel, steps, values, style, label, shaded=shaded)


def _noisy(
    panel: Axes, runs: Sequence[Mapping[str, Any]], name: str, style: Style, label: str, *, shaded: bool
) -> None:
    """A running mean over a tenth of the steps; for a few single runs also the values of each batch, faintly."""
    steps, lines = _common_lines(runs)
    values = np.asarray([[one[name] for one in of_run] for of_run in lines])
    window = max(1, len(steps) // 10)
    kernel = np.ones(window)
    weight = np.convolve(np.ones(len(steps)), kernel, "same")
    smooth = np.asarray([np.convolve(row, kernel, "same") / weight for row in values])
    if len(runs) == 1 and shaded:
        panel.plot(steps, values[0], color=style.colour, alpha=0.35, linewidth=0.7)
    every = -(-len(steps) // _POINTS)
    band(
        panel,
        steps[::-1][::every][::-1],
        smooth[:, ::-1][:, ::every][:, ::-1],
        style,
        label,
        marked=False,
        shaded=shaded,
    )


def _numbers(line: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """A line's parameters that are scalars."""
    return {
        layer: {name: value for name, value in named.items() if not isinstance(value, list)}
        for layer, named in parameters_of(line).items()
    }


def _parameter(
    figure: Figure,
    panel: Axes,
    settings: Mapping[str, Sequence[Mapping[str, Any]]],
    layers: Sequence[int],
    name: str,
    looks: Mapping[str, Style],
) -> None:
    """A parameter by step: in several layers the colour is the layer's, and the line style still the setting's."""
    colours = depth_colours(len(layers))
    for setting, runs in settings.items():
        steps, lines = _common_lines(runs)
        found = [[_numbers(line) for line in of_run] for of_run in lines]
        for colour, layer in zip(colours, layers, strict=True):
            if all(name in each.get(layer, {}) for of_run in found for each in of_run):
                values = np.asarray([[each[layer][name] for each in of_run] for of_run in found])
                style = dataclasses.replace(looks[setting], colour=colour) if len(layers) > 1 else looks[setting]
                band(panel, steps, values, style, setting, marked=False, shaded=few(settings))
    if len(layers) > 1:
        norm = BoundaryNorm(np.arange(len(layers) + 1) - 0.5, len(layers))
        bar = figure.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=panel, label="layer")
        ticks = range(0, len(layers), max(1, math.ceil(len(layers) / 6)))
        bar.set_ticks(list(ticks), labels=[str(layers[n]) for n in ticks])
        bar.ax.minorticks_off()
