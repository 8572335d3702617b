"""The style of pictures: methods keep their colour, colours can be told apart, SVGs follow a page to its dark variant."""

import itertools
import re

import numpy as np
import pytest

from svt_jax.analysis import plots, style
from svt_jax.analysis.training_plots import training_curves
from svt_jax.spectral import registry
from tests.analysis.synthetic import course, reading

# Machado, Oliveira and Fernandes 2009, full severity, on linear RGB
VISIONS = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}  # fmt: skip


def linear(colour):
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    """Ottosson 2020: distances are about perceptual."""
    cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
             [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    axes = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.array(axes) @ np.cbrt(np.array(cones) @ np.clip(rgb, 0, 1))


def contrast(first, second):
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (first, second))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_two_colours_can_be_told_apart_on_their_ground(vision, dark):
    shown = [style.DARK[colour] if dark else colour for colour in (style.INK, *style.HUES)]
    seen = [oklab(np.array(VISIONS[vision]) @ linear(colour)) for colour in shown]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 0.13
    ground = style.DARK[style.GROUND] if dark else style.GROUND
    assert min(contrast(colour, ground) for colour in shown) >= 2.99


def test_each_function_and_remedy_has_a_style_of_its_own():
    built_in = {name for name in registry.function_names() if name in registry._REMEDIES or _is_ours(name)}
    assert {"none", "plain", *built_in} == set(style._STYLES)
    assert len(set(style._STYLES.values())) == len(built_in) + 1


def _is_ours(name):
    """Not one that another test has registered."""
    return registry._REGISTRY[name].__module__.startswith("svt_jax.")


def test_a_method_looks_the_same_in_every_picture_and_settings_of_one_do_not():
    alone = style.styles(["soft_decay"])["soft_decay"]
    methods = {"a": "mine", "b": "soft_decay", "c": "soft_decay", "d": "centered_soft_decay", "e": "none"}
    for names in itertools.permutations(methods):
        found = style.styles(names, methods)
        assert list(found) == list(names)
        assert len(set(found.values())) == 5
        assert len({(look.colour, look.line) for look in found.values()}) == 5  # also without markers
        first, second = sorted("bc", key=names.index)
        assert found[first] == alone
        assert found[second].colour == alone.colour
        assert (found["d"], found["e"]) == (style.style_of("centered_soft_decay"), style.style_of("plain"))
        assert found["a"].colour == style.style_of("mine").colour


def test_a_users_function_keeps_its_colour_between_processes():
    assert style.style_of("my_own") == style.Style("#179de2", ":", "o")


def test_many_settings_of_one_method_take_colours_that_are_free():
    names = [f"rate {n}" for n in range(7)]
    found = style.styles(names, dict.fromkeys(names, "none"))
    assert len(set(found.values())) == 7
    assert [found[name].colour for name in names[:2]] == [style.INK] * 2
    assert len({found[name].colour for name in names}) == 6
    forty = style.styles(map(str, range(40)), {str(n): "soft_decay" for n in range(40)})
    assert len(set(forty.values())) == 40


def test_each_colour_of_a_picture_has_one_for_a_dark_page():
    one, two = reading(3, (2,)), reading(3)
    figures = [
        plots.measures_by_depth({"soft_decay": [one, reading(3, (2,), seed=1)], "plain": [two]}),
        plots.svt_histograms(one),
        plots.spectrum_cdf(one),
        training_curves({"soft_decay": [course((1, 2))], "plain": [course(seed=1)]}),
    ]
    for figure in figures:
        drawn = plots.to_svg(figure)
        used = re.sub(r"<style>.*?</style>", "", drawn, flags=re.DOTALL)
        rules = dict(re.findall(r'\[style\*="((?:fill|stroke): #\w+)"\] \{\w+: (#\w+) !important\}', drawn))
        assert set(rules) == set(re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", used))
        assert all(before.split()[1] != after for before, after in rules.items())
        assert drawn.count("prefers-color-scheme: dark") == 1


def test_a_legend_lies_below_the_panels_and_covers_no_line():
    figure = plots.measures_by_depth({f"setting number {n}": [reading(6, seed=n)] for n in range(15)})
    style._settle(figure)
    (legend,) = figure.legends
    lowest = min(panel.get_tightbbox().y0 for panel in figure.axes)
    assert legend.get_window_extent().y1 <= lowest + 1
    assert legend.get_window_extent().x1 <= figure.bbox.x1
