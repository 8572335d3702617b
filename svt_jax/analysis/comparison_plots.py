"""Pictures of several settings side by side: their scores with 95 % intervals, and their spectra by depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from svt_jax.analysis.style import FAINT, INK, RC, Style, styles, wrapped

# isort: split
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from svt_jax.analysis.compare import Comparison
from svt_jax.analysis.plots import depth_ticks, every, states_of
from svt_jax.evaluation.probe import Reading

_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
_COLUMNS = 5


@matplotlib.rc_context(RC)
def scores(comparison: Comparison) -> Figure:
    """Each metric's scores by setting, and their paired differences from the baseline: means, 95 % t intervals, seeds."""
    settings, metrics = comparison.settings, list(comparison.scores)
    looks = styles(settings, comparison.methods)
    names = [wrapped(name) for name in settings]
    lines = sum(max(1.4, 1 + name.count("\n")) for name in names)
    columns = 1 if len(settings) == 1 else 2
    figure = Figure(figsize=(4.0 + 3.4 * columns, (0.95 + 0.19 * lines) * len(metrics) + 0.1), layout="constrained")
    panels = figure.subplots(len(metrics), columns, squeeze=False, sharey=True, width_ratios=[1.2, 1][:columns])
    for row, metric in zip(panels, metrics, strict=True):
        drawn = [
            (comparison.summary(metric, name)[1], comparison.interval(metric, name), list(by_seed.values()))
            for name, by_seed in comparison.scores[metric].items()
        ]
        _means(row[0], dict(enumerate(drawn)), [looks[name] for name in settings])
        row[0].set_title(f"{comparison.task}: {metric}")
        row[0].set_xlabel("validation score × 100")
        row[0].set_yticks(range(len(settings)), names)
        row[0].set_ylim(len(settings) - 0.45, -0.55)
        for panel in row:
            panel.grid(visible=True, axis="x")
            panel.tick_params(axis="y", length=0)
            panel.spines["left"].set_visible(False)
    for row, metric in zip(panels[:, 1:], metrics, strict=True):
        for panel in row:
            _differences(panel, comparison, metric, looks)
    figure.supxlabel(_note(comparison), x=0.01, ha="left", fontsize=8, color=INK)
    return figure


def _differences(panel: Axes, comparison: Comparison, metric: str, looks: Mapping[str, Style]) -> None:
    found = {place: comparison.difference(metric, name) for place, name in enumerate(comparison.settings)}
    drawn = {place: (each.mean, each.interval, each.values) for place, each in found.items() if each is not None}
    if drawn:
        panel.axvline(0.0, color=FAINT, linewidth=1.0)
    _means(panel, drawn, [looks[name] for name in comparison.settings], zero=True)
    panel.set_title(f"difference from {wrapped(comparison.settings[0], 36).strip()}")
    panel.set_xlabel("points (score × 100), paired by seed")
    if not drawn:
        panel.text(0.5, 0.5, "needs two seeds in common", transform=panel.transAxes, ha="center", va="center")
        panel.set_xticks([])


_Mean = tuple[float, tuple[float, float] | None, Sequence[float]]


def _means(panel: Axes, drawn: Mapping[int, _Mean], looks: Sequence[Style], *, zero: bool = False) -> None:
    """By place: the mean, its interval, and the seeds below it, all times 100. An arrow ends an interval that goes on.

    Two seeds have intervals of 18 standard deviations; an axis that held them would show nothing else.
    """
    seen = [100 * value for _, _, by_seed in drawn.values() for value in by_seed] + [0.0] * zero
    low, high = (min(seen), max(seen)) if drawn else (0.0, 1.0)
    room = 0.8 * max(high - low, 0.1)
    low, high = low - room, high + room
    reach = [100 * end for _, ends, _ in drawn.values() for end in ends or ()] + seen
    low, high = max(low, min(reach, default=low)), min(high, max(reach, default=high))
    margin = 0.04 * (high - low) or 0.1
    panel.set_xlim(low - margin, high + margin)
    for place, (mean, ends, by_seed) in drawn.items():
        style = looks[place]
        if ends is not None:
            left, right = 100 * ends[0], 100 * ends[1]
            panel.hlines(place, max(left, low), min(right, high), color=style.colour, linewidth=1.8)
            beyond = [(low, "<")] * (left < low) + [(high, ">")] * (right > high)
            for at, arrow in beyond:
                panel.plot([at], [place], marker=arrow, markersize=5, color=style.colour, linestyle="")
        if len(by_seed) > 1:
            panel.plot(
                [100 * value for value in by_seed], [place + 0.27] * len(by_seed), linestyle="", marker="o", markersize=3,
                markerfacecolor="none", markeredgecolor=style.colour, markeredgewidth=0.8,
            )  # fmt: skip
        panel.plot(
            [100 * mean], [place], marker=style.marker, markersize=6, markerfacecolor=style.face,
            markeredgecolor=style.colour, zorder=3,
        )  # fmt: skip


def _note(comparison: Comparison) -> str:
    counts = [len(by_seed) for by in comparison.scores.values() for by_seed in by.values()]
    if max(counts) == 1:
        return "one seed a setting: no interval"
    seeds = f"{counts[0]}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    return f"mean of {seeds} seeds and its 95 % t interval (an arrow: it goes on); small circles: seeds"


@matplotlib.rc_context(RC)
def spectra_by_depth(settings: Mapping[str, Sequence[Reading]], methods: Mapping[str, str] | None = None) -> Figure:
    """The distribution of sigma / sigma_1 by layer, a panel for each setting: median, and ranges of 50 and 80 %.

    Args:
      settings: readings by the setting's name, one for each seed; the histograms of a setting's seeds are averaged. The
        first is the baseline, whose median the other panels show as a dashed line.
      methods: as for `style.styles`.
    """
    looks = styles(settings, methods)
    columns = min(_COLUMNS, len(settings))
    rows = math.ceil(len(settings) / columns)
    figure = Figure(figsize=(max(2.1 * columns, 3.6) + 0.5, 1.95 * rows + 0.55), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for panel in panels[len(settings) :]:
        panel.remove()
    found = {name: _quantiles(readings) for name, readings in settings.items()}
    first = next(iter(found.values()))
    deepest = max(max(depth) for depth, _ in found.values())
    ticks = depth_ticks(deepest + 1)
    for number, (panel, (name, (depth, values))) in enumerate(zip(panels, found.items(), strict=False)):
        colour = looks[name].colour
        for low, high, alpha in ((0, 4, 0.18), (1, 3, 0.3)):
            panel.fill_between(depth, values[low], values[high], color=colour, alpha=alpha, linewidth=0)
        if number:
            panel.plot(*(first[0], first[1][2]), color=FAINT, linestyle="--", linewidth=1.1)
        panel.plot(
            depth,
            values[2],
            color=colour,
            linewidth=1.6,
            marker=looks[name].marker,
            markersize=3,
            markevery=every(len(depth)),
        )
        panel.set_title(wrapped(name, 24), fontsize=8)
        panel.set_xticks(ticks, ["emb." if n == -1 else str(n) for n in ticks])
        panel.grid(visible=True, axis="y")
        panel.tick_params(labelbottom=number >= len(settings) - columns)
    panels[0].set_ylim(0, min(1.0, 1.08 * max(values.max() for _, values in found.values())))
    figure.supylabel("σ / σ₁ of a layer's output", fontsize=9)
    note = "line: median; shaded: 50 and 80 % of the values"
    if len(settings) > 1:
        note += f"; dashed: median of {next(iter(settings))}"
    figure.supxlabel(f"layer ({note})", fontsize=8.5)
    return figure


def _quantiles(readings: Sequence[Reading]) -> tuple[list[int], np.ndarray]:
    """The layers, and quantiles [5, layers] of sigma / sigma_1 from the histograms' mean over seeds."""
    outputs = [states_of(reading, "output") for reading in readings]
    depth = [-1 if state["layer"] is None else state["layer"] for state in outputs[0]]
    shares = np.mean([[state["histogram"] for state in states] for states in outputs], axis=0)
    edges = np.linspace(0.0, 1.0, shares.shape[1] + 1)
    return depth, np.array([np.interp(_SHARES, np.cumsum([0.0, *row]), edges) for row in shares]).T
