"""A picture of any measures by depth: a panel for each, with the spread over the texts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from svt_jax.analysis.plots import depth_ticks, states_of
from svt_jax.analysis.style import BLUE, GROUND, INK, OCHRE, RC

# isort: split
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from svt_jax.evaluation.probe import Reading

TITLES = {
    "skewness": "skewness of σ",
    "kurtosis": "excess kurtosis of σ",
    "median_ratio": "median of σ / σ₁",
    "token_uniformity": "token uniformity",
    "cls_uniformity": "CLS uniformity",
    "explained_variance_1": "explained variance, EV₁",
    "explained_variance_3": "explained variance, EV₃",
    "rank_me": "RankMe",
    "matrix_entropy": "matrix entropy (nats)",
    "alpha_req": "α-ReQ",
    "dirichlet_energy": "Dirichlet energy",
    "iso_score": "IsoScore",
    "two_nn": "TwoNN dimension",
    "lidar": "LiDAR",
    "linear_cka": "CKA with the layer before",
    "intra_sentence_similarity": "similarity within a text",
    "random_pair_similarity": "similarity of random pairs",
    "attention_entropy": "attention entropy (nats)",
}
"""Titles of measures whose name with spaces does not say it."""
_COLUMNS = (4, 5)
"""Columns of up to twelve panels, and of more."""


@matplotlib.rc_context(RC)
def by_depth(reading: Reading, names: Sequence[str]) -> Figure:
    """A panel for each measure: the mean of each layer's output, and a band of one standard deviation to each side.

    Triangles show the input and output of each SVT.
    """
    columns = min(_COLUMNS[len(names) > 12], len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(2.75 * columns + 0.3, 2.0 * rows + 0.5), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[len(names) :]:
        panel.remove()
    outputs = states_of(reading, "output")
    ticks = depth_ticks(len(outputs) - 1)
    colour, marker, arrow = BLUE, "o", OCHRE
    for number, (panel, name) in enumerate(zip(panels, names, strict=False)):
        there = [state for state in outputs if name in state]
        depth = [-1 if state["layer"] is None else state["layer"] for state in there]
        mean = np.array([state[name] for state in there])
        spread = np.array([state["std"][name] for state in there])
        panel.fill_between(depth, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
        panel.plot(depth, mean, color=colour, marker=marker, markersize=3.5, linewidth=1.4)
        for kind, shape, face in (("svt_input", "^", GROUND), ("svt_output", "v", arrow)):
            found = [state for state in states_of(reading, kind) if name in state]
            panel.plot(
                [state["layer"] for state in found], [state[name] for state in found], linestyle="", marker=shape,
                markersize=6, markerfacecolor=face, markeredgecolor=arrow,
            )  # fmt: skip
        panel.set_title(TITLES.get(name, name.replace("_", " ")), fontsize=9)
        panel.set_xticks(ticks, ["emb." if n == -1 else str(n) for n in ticks])
        panel.set_xlim(-1.4, len(outputs) - 1.6)
        panel.yaxis.set_major_locator(MaxNLocator(4))
        panel.tick_params(labelsize=8)
        panel.grid(visible=True, axis="y")
        if number >= len(names) - columns:
            panel.set_xlabel("layer", fontsize=8.5)
    note = f"mean over {reading['examples']} texts; band: one standard deviation to each side"
    if reading["svt"]:
        note += "; triangles: input (white) and output (filled) of an SVT"
    figure.suptitle(note, x=0.01, ha="left", fontsize=8.5, color=INK)
    return figure
