"""Draws the picture of how-it-works.md: python docs/make_pictures.py"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import svt_jax

FOLDER = Path(__file__).parent / "pictures"
INK, BLUE, ORANGE, GREEN = (
    "#333333",
    "#0072B2",
    "#D55E00",
    "#009E73",
)  # colour-blind readers can tell them apart, also by their dashes


def functions_and_spectrum() -> Figure:
    """Left: what each function does to a singular value. Right: the spectrum of tokens that are alike, before and after."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    largest = 20.0
    values = np.linspace(0.0, largest, 400)
    spectrum = jnp.asarray([largest])
    shown = [
        ("soft_decay, α = −0.2", svt_jax.SoftDecay(alpha=-0.2), BLUE, "-"),
        ("soft_decay, α = −0.6", svt_jax.SoftDecay(alpha=-0.6), ORANGE, "--"),
        ("centered_soft_decay, α = −0.6", svt_jax.SoftDecay(alpha=-0.6, centered=True), GREEN, ":"),
    ]
    left.plot([0, largest], [0, largest], color=INK, linewidth=0.8)
    left.annotate("unchanged", (14.5, 14.0), color=INK, rotation=33, ha="center", va="top", rotation_mode="anchor")
    for name, function, color, dash in shown:
        left.plot(
            values, np.asarray(function(jnp.asarray(values), spectrum)), dash, color=color, label=name, linewidth=2
        )
    left.set(
        xlabel="singular value σ (largest: 20)", ylabel="new singular value φ(σ)", xlim=(0, largest), ylim=(-2, largest)
    )
    left.axhline(0.0, color=INK, linewidth=0.5)
    left.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.09), fontsize=8)

    key = jax.random.key(0)
    tokens = 1.5 + jax.random.normal(key, (32, 64)) * jnp.geomspace(1.5, 0.05, 64)  # a common part and a falling tail
    before = np.linalg.svd(np.asarray(tokens, np.float64), compute_uv=False)
    place = np.arange(1, len(before) + 1)
    right.plot(place, before, "o", color=INK, markersize=4, label="before")
    for name, function, color, _ in shown[:2]:
        after = np.linalg.svd(np.asarray(svt_jax.svt(tokens, function), np.float64), compute_uv=False)
        marker = "s" if color == BLUE else "^"
        right.plot(place, after, marker, color=color, markersize=4, label=name, fillstyle="none")
    right.set(xlabel="number of the singular value, largest first", ylabel="singular value", yscale="log")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    functions_and_spectrum().savefig(FOLDER / "functions.png", dpi=150)
