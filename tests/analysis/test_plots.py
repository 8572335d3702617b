"""Plots: nothing overlaps at 12 and 24 layers, axes have names, bands hold the seeds, files are the same each time."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from svt_jax.analysis import comparison_plots, plots
from svt_jax.analysis.training_plots import training_curves
from tests.analysis.synthetic import course, reading


def texts(figure):
    """Every visible piece of text with its box in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    not_drawn = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            inside = low - 1e-9 <= tick.get_loc() <= high + 1e-9
            not_drawn |= {label for label in (tick.label1, tick.label2) if not (inside and label.get_visible())}
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in found if text not in not_drawn]


def assert_no_overlap(figure):
    shown = texts(figure)
    assert len(shown) > 5
    for (first, a), (second, b) in itertools.combinations(shown, 2):
        assert not (a.x0 < b.x1 - 1 and b.x0 < a.x1 - 1 and a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1), (first, second)
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in shown:
        assert -1 <= box.x0 <= box.x1 <= width + 1, f"{text} is cut off"
        assert -1 <= box.y0 <= box.y1 <= height + 1, f"{text} is cut off"


def figures(layers, svt_layers):
    one = reading(layers, svt_layers)
    runs = [course(svt_layers, seed=seed) for seed in range(3)]
    return {
        "histograms": lambda: plots.spectrum_histograms(one),
        "svt_histograms": lambda: plots.svt_histograms(one),
        "cdf": lambda: plots.spectrum_cdf(one),
        "measures": lambda: plots.measures_by_depth({"soft_decay": [one, reading(layers, svt_layers, seed=1)], "plain": [reading(layers)]}),
        "many": lambda: plots.measures_by_depth({f"setting number {n}": [reading(layers, svt_layers, seed=n)] for n in range(15)}),
        "spectra": lambda: comparison_plots.spectra_by_depth({f"setting number {n}": [reading(layers, svt_layers, seed=n)] for n in range(7)}),
        "curves": lambda: training_curves({"soft_decay": runs, "plain": [course(seed=4)]}),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["histograms", "svt_histograms", "cdf", "measures", "many", "spectra", "curves"])
@pytest.mark.parametrize(("layers", "svt_layers"), [(2, (1,)), (12, (11,)), (24, tuple(range(24)))])
def test_no_text_overlaps_another_or_is_cut_off(layers, svt_layers, name):
    assert_no_overlap(figures(layers, svt_layers)[name]())


def test_the_density_is_one():
    shares = np.zeros(100)
    shares[[0, 30, 99]] = 0.2, 0.5, 0.3  # also at both ends
    assert plots.density(shares).mean() == pytest.approx(1.0, abs=1e-6)
    assert plots.density(shares).argmax() in (0, 30, 99)


def test_the_median_line_and_the_bars_are_those_of_the_reading():
    one = reading(2, (1,))
    figure = plots.spectrum_histograms(one)
    for panel, state in zip(figure.axes, plots.states_of(one, "output"), strict=True):
        (values,) = [patch.get_data().values for patch in panel.patches]
        np.testing.assert_allclose(values.sum() / len(values), 1.0, atol=1e-6)
        np.testing.assert_allclose(values[0], 50 * sum(state["histogram"][:2]))
        assert panel.lines[-1].get_xdata()[0] == state["median_ratio"]


def test_a_band_reaches_from_the_smallest_seed_to_the_largest():
    runs = [course(seed=seed) for seed in range(3)]
    figure = training_curves({"plain": runs})
    panel = next(axes for axes in figure.axes if "accuracy" in axes.get_title("left"))
    scores = np.array([[100 * e["metrics"]["accuracy"] for e in run["evaluations"]] for run in runs])
    np.testing.assert_allclose(panel.lines[0].get_ydata(), scores.mean(axis=0))
    vertices = panel.collections[0].get_paths()[0].vertices
    steps = [e["step"] for e in runs[0]["evaluations"]]
    for n, step in enumerate(steps):
        at = vertices[vertices[:, 0] == step, 1]
        assert (at.min(), at.max()) == pytest.approx((scores[:, n].min(), scores[:, n].max()))


def test_a_run_with_one_line_shows_a_point_in_every_panel_at_a_whole_step():
    whole = course((1,))
    run = {"lines": whole["lines"][:1], "evaluations": whole["evaluations"][:1]}
    for panel in training_curves({"soft_decay": [run]}).axes:
        assert any(line.get_marker() not in ("None", None, "") for line in panel.lines), panel.get_title("left")
        assert all(tick == round(tick) for tick in panel.get_xticks())


def test_files_are_svg_and_png_and_the_same_each_time(tmp_path):
    one = reading(2)
    assert plots.svt_histograms(one) is None
    paths = plots.save({"cdf": plots.spectrum_cdf(one), "svt": None}, tmp_path)
    assert [path.name for path in paths] == ["cdf.svg", "cdf.png"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    assert plots.to_svg(plots.spectrum_cdf(one)) == plots.to_svg(plots.spectrum_cdf(one))


def test_names_in_pictures_are_text_and_no_formulas():
    names = (r"$\foo{$", "_hidden", "a_b^c")
    curves = training_curves({name: [course(seed=n)] for n, name in enumerate(names)})
    depth = plots.measures_by_depth({name: [reading(2, seed=n)] for n, name in enumerate(names)})
    for figure in (curves, depth):
        assert plots.to_svg(figure).startswith("<svg")
        shown = [text.strip() for text, _ in texts(figure)]
        assert set(names) <= set(shown)


@pytest.mark.parametrize(
    "backend",
    ["inline", *(pytest.param(name, marks=pytest.mark.slow) for name in ("module://not.installed", "nonsense"))],
)
def test_a_backend_that_is_not_installed_is_not_asked_for(backend, tmp_path):
    code = "from svt_jax.analysis import plots; import os; print(plots.Figure().get_size_inches().tolist(), os.environ['MPLBACKEND'])"
    environment = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == backend
