"""report.html: what it says, and how it behaves in a browser."""

import csv
import json
import math
import re

import pytest

from svt_jax import cli
from svt_jax.analysis.report import render_report
from svt_jax.evaluation.probe import MEASURES
from tests.analysis.synthetic import damaged, downloads, write_run

NAME = "soft <b>bold & 'co'"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with an awkward name, and its baseline."""
    folder = tmp_path_factory.mktemp("runs")
    run = write_run(folder / NAME, layers=3, svt_layers=(1, 2))
    return run, write_run(folder / "plain", layers=3, svt_layers=(), seed=1, better=-0.05)


@pytest.fixture(scope="module")
def page(runs):
    return render_report(*runs)


def test_the_page_names_the_run_and_its_score_against_the_baseline(runs, page):
    assert "<b>bold" not in page
    assert "rte: soft &lt;b&gt;bold &amp; &#39;co&#39;" in page
    ours, theirs = (json.loads((run / "results.json").read_text())["metrics"]["validation"]["accuracy"] for run in runs)
    assert re.search(
        rf"<td>{100 * ours:.2f}</td><td>{100 * theirs:.2f}</td><td>\+{100 * (ours - theirs):.2f}</td>", page
    )
    assert "<td>svt.function</td><td>soft_decay</td><td>none</td>" in page


def test_nothing_is_fetched(page):
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert not re.search(r"@import|url\(", page)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_tables_hold_everything_at_full_precision(runs, page):
    found = downloads(page)
    readings = [json.loads(line) for line in (runs[0] / "spectrum.jsonl").read_text().splitlines()]
    assert len(found["layers.csv"]) == sum(len(reading["states"]) for reading in readings) == 3 * 8
    state = next(s for s in readings[2]["states"] if (s["layer"], s["state"]) == (2, "svt_output"))
    (row,) = [r for r in found["layers.csv"] if (r["layer"], r["state"], r["step"]) == ("layer 2", "SVT output", "300")]
    assert {name: float(row[name]) for name in MEASURES} == {name: state[name] for name in MEASURES}
    assert float(row["alpha"]) == readings[2]["alpha"]["2"]
    lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    assert [float(row["loss"]) for row in found["training.csv"]] == [line["loss"] for line in lines]
    assert len(found["evaluations.csv"]) == 6 * 2


def test_a_run_without_spectra_has_a_report_all_the_same(tmp_path):
    page = render_report(write_run(tmp_path / "old", spectra=False))
    assert 'id="spectra"' not in page
    assert "Course of the training" in page


def test_a_baseline_of_another_task_or_no_run_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="the run is of task rte and the baseline of mrpc; allowed is the same task"):
        render_report(runs[0], write_run(tmp_path / "other", task="mrpc"))
    with pytest.raises(ValueError, match=r"has no results.json: the run is not complete"):
        render_report(runs[0], tmp_path)


def test_the_command_refuses_what_is_no_run(tmp_path, capsys):
    assert cli.evaluate(["report", "--run", str(tmp_path / "none")]) == 2
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.browser
def test_the_slider_changes_the_picture_by_keyboard_alone(opened):
    tab, wrong = opened()
    curve = lambda: tab.locator("#chart .curve").get_attribute("points")
    median = lambda: float(tab.locator("#chart .median").get_attribute("x1"))
    assert tab.locator("#layer-name").inner_text() == "layer 2"
    drawn = {"layer 2": curve()}
    for _ in range(40):  # reach the slider by keyboard
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.id") == "layer":
            break
    for _ in range(5):
        tab.keyboard.press("ArrowLeft")
        drawn[tab.locator("#layer-name").inner_text()] = curve()
    assert list(drawn) == ["layer 2", "layer 2, SVT", "layer 1", "layer 1, SVT", "layer 0", "embeddings"]
    assert len(set(drawn.values())) == 6
    embeddings = median()
    tab.keyboard.press("End")
    assert median() < embeddings
    tab.keyboard.press("ArrowLeft")
    assert "median of σ/σ₁" in tab.locator("#reading").inner_text()
    assert " → " in tab.locator("#reading").inner_text()
    assert tab.locator("#layer").get_attribute("aria-valuetext") == "layer 2, SVT"
    assert tab.locator("#chart .before").count() == 50
    tab.keyboard.press("Tab")
    tab.keyboard.press("Home")
    assert tab.locator("#step-name").inner_text() == "0"
    assert wrong == []


@pytest.mark.slow
@pytest.mark.browser
def test_the_slider_draws_a_state_whose_measures_are_no_numbers(opened, no_pictures, tmp_path):
    def spoil(lines):
        lines[-1]["states"][1]["skewness"] = lines[-1]["states"][1]["median_ratio"] = math.nan
        return lines

    tab, wrong = opened(text=render_report(damaged(tmp_path, "spectrum.jsonl", spoil)))
    tab.locator("#layer").press("Home")
    tab.locator("#layer").press("ArrowRight")
    assert tab.locator("#layer-name").inner_text() == "layer 0"
    assert "median of σ/σ₁ not a number, skewness not a number" in tab.locator("#reading").inner_text()
    assert tab.locator("#chart .curve").count() == 1
    assert tab.locator("#chart .median").count() == 0
    assert wrong == []


@pytest.mark.slow
@pytest.mark.browser
def test_the_download_has_the_right_rows(opened, runs):
    tab, wrong = opened(accept_downloads=True)
    with tab.expect_download() as waiting:
        tab.get_by_role("link", name="Download training.csv").click()
    assert waiting.value.suggested_filename == "training.csv"
    with open(waiting.value.path(), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    assert [(int(row["step"]), float(row["loss"])) for row in rows] == [(line["step"], line["loss"]) for line in lines]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_and_the_page_is_not_wider_than_the_screen(opened, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    tab, wrong = opened(width, scheme, reduced_motion="reduce")
    tab.locator("details summary").click()
    found = Axe().run(tab)
    assert found.violations_count == 0, found.generate_report()
    checked = {each["id"] for each in found.response["passes"]}
    assert {"color-contrast", "landmark-one-main", "region", "image-alt", "label"} <= checked
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    dark = sum(map(int, re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor"))[:3])) < 380
    assert dark == (scheme == "dark")
    assert wrong == []
