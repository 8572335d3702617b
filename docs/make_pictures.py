"""Draws the pictures of how-it-works.md, in the style of all pictures: python docs/make_pictures.py

They follow their page to light or dark.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import svt_jax
from svt_jax.analysis.style import BLUE, GRID, GROUND, INK, OCHRE, RC, save, style_of, styles
from svt_jax.data.packing import choose_shape, place, random_batches

# isort: split
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

FOLDER = Path(__file__).parent / "pictures"
PADDING = GRID
GAP = 0.5  # between groups, in rows


@matplotlib.rc_context(RC)
def functions_and_spectrum() -> Figure:
    """Left: what each function does to a singular value. Right: the spectrum of tokens that are alike, before and after."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    largest = 20.0
    values = np.linspace(0.0, largest, 400)
    spectrum = jnp.asarray([largest])
    shown = {
        "soft_decay, α = −0.2": svt_jax.SoftDecay(alpha=-0.2),
        "soft_decay, α = −0.6": svt_jax.SoftDecay(alpha=-0.6),
        "centered_soft_decay, α = −0.6": svt_jax.SoftDecay(alpha=-0.6, centered=True),
    }
    looks = styles(shown, {name: name.split(",")[0] for name in shown})
    left.plot([0, largest], [0, largest], color=INK, linewidth=0.8)
    left.annotate("unchanged", (14.5, 14.0), color=INK, rotation=33, ha="center", va="top", rotation_mode="anchor")
    for name, function in shown.items():
        after = np.asarray(function(jnp.asarray(values), spectrum))
        left.plot(values, after, color=looks[name].colour, linestyle=looks[name].line, label=name, linewidth=2)
    left.set(
        xlabel="singular value σ (largest: 20)", ylabel="new singular value φ(σ)", xlim=(0, largest), ylim=(-2, largest)
    )
    left.axhline(0.0, color=INK, linewidth=0.5)
    left.legend(loc="lower right", bbox_to_anchor=(1.0, 0.09), fontsize=8)

    key = jax.random.key(0)
    tokens = 1.5 + jax.random.normal(key, (32, 64)) * jnp.geomspace(1.5, 0.05, 64)  # a common part and a falling tail
    before = np.linalg.svd(np.asarray(tokens, np.float64), compute_uv=False)
    place = np.arange(1, len(before) + 1)
    plain = style_of("plain")
    right.plot(place, before, linestyle="", marker=plain.marker, color=plain.colour, markersize=4, label="before")
    for name, function in list(shown.items())[:2]:
        after = np.linalg.svd(np.asarray(svt_jax.svt(tokens, function), np.float64), compute_uv=False)
        right.plot(place, after, label=name, **{**looks[name].curve(), "linestyle": "", "markerfacecolor": "none"})
    right.set(xlabel="number of the singular value, largest first", ylabel="singular value", yscale="log")
    right.yaxis.set_major_formatter("{x:g}")  # the style shows formulas as text
    right.legend(fontsize=8)
    return figure


@matplotlib.rc_context(RC)
def packed_rows() -> Figure:
    """Left: a random batch with one example in each row. Right: the batch that `packing` makes of it, in two groups."""
    size, groups, seed = 16, 2, 4
    lengths = np.random.default_rng(0).lognormal(np.log(18), 0.5, 800).round().clip(6, 64).astype(int)  # made up
    shape = choose_shape(lengths, size, groups=groups)
    batch = random_batches(lengths, shape, seed, epoch=0)[0]
    order = np.random.default_rng((seed, 0)).permutation(len(lengths))  # the one that `random_batches` starts from
    number = {example: n for n, example in enumerate(order.tolist())}
    drawn = order[:size]
    gone, come = sorted(set(drawn.tolist()) - set(batch)), sorted(set(batch.tolist()) - set(drawn))
    places = place(lengths[batch], shape)
    assert places is not None, "a batch of `random_batches` fits"
    row = places.part * (shape.rows + GAP) + places.row

    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    longest = int(lengths[drawn].max())
    left, right = figure.subplots(1, 2, width_ratios=[longest, shape.row_length + 10], sharey=True)
    left.barh(np.arange(size), longest, height=0.86, color=PADDING)
    for n, example in enumerate(drawn.tolist()):
        _draw_example(left, n, 0, lengths[example], n, moved=example in gone)
    left.set(ylim=(size - 0.4, -0.6), xlim=(0, longest), xticks=range(0, longest, 20), yticks=[], xlabel="tokens")
    share = 1.0 - lengths[drawn].sum() / (size * longest)
    left.set_title(f"padded: {size} rows of {longest}\ntokens, {share:.0%} padding", fontsize=10, loc="left")

    for group in range(groups):
        rows = group * (shape.rows + GAP) + np.arange(shape.rows)
        right.barh(rows, shape.row_length, height=0.86, color=PADDING)
        right.text(shape.row_length + 1.5, rows.mean(), f"group {group}", va="center", color=INK, fontsize=9)
    for example, r, start in zip(batch.tolist(), row, places.start, strict=True):
        _draw_example(right, r, start, lengths[example], number[example], moved=example in come)
    right.set(xlim=(0, shape.row_length + 10), xticks=range(0, shape.row_length, 20), xlabel="tokens")
    share = 1.0 - lengths[batch].sum() / shape.slots
    title = f"packed: {groups * shape.rows} rows of {shape.row_length} tokens, {share:.0%} padding"
    right.set_title(title, fontsize=10, loc="left")
    exchanged = (", ".join(str(number[example]) for example in examples) for examples in (gone, come))
    shown = [
        Patch(color=BLUE, label="an example, with its number in the epoch's order"),
        Patch(color=OCHRE, label="exchanged: {} for {}".format(*exchanged)),
        Patch(color=PADDING, label="padding"),
    ]
    right.legend(handles=shown, loc="lower left", fontsize=9)
    for axes in (left, right):
        axes.spines[:].set_visible(False)
    return figure


def _draw_example(axes: Axes, row: float, start: int, length: int, number: int, *, moved: bool) -> None:
    color = OCHRE if moved else BLUE
    axes.barh(row, length, left=start, height=0.86, color=color, edgecolor=GROUND, linewidth=1.5)
    axes.text(start + length / 2, row + 0.05, str(number), color=GROUND, fontsize=8.5, ha="center", va="center")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path in save({"functions": functions_and_spectrum(), "packed_rows": packed_rows()}, FOLDER):
        if path.suffix == ".png":
            path.unlink()  # pages show the SVG
