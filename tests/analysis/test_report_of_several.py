"""report.html about several runs: what it says of settings and seeds, and that it replaces no run's page."""

import json
import re
from pathlib import Path

import pytest
import yaml

from svt_jax import cli
from svt_jax.analysis.compare import compare
from svt_jax.analysis.comparison_files import figures, runs_of, table
from svt_jax.analysis.report.comparison import render_comparison
from svt_jax.evaluation.probe import MEASURES
from tests.analysis.synthetic import downloads, write_run

AWKWARD = "soft <b>'$"


def write(folder, setting, function, *, seeds=(0, 1), better=0.0, alpha=None, **others):
    runs = []
    for seed in seeds:
        layers = () if function == "none" else (1,)
        run = write_run(
            folder / f"{setting}-seed{seed}", layers=2, svt_layers=layers, steps=100, readings=2, seed=seed,
            better=better + 0.01 * seed * (function != "none"), **others,
        )  # fmt: skip
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["svt"]["function"] = function
        if alpha is not None:
            config["svt"]["alpha"] = alpha
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        runs.append(str(run))
    return runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    return write(folder, "plain", "none") + write(folder, AWKWARD, "soft_decay", better=0.05, alpha=-0.3)


@pytest.fixture(scope="module")
def comparison(runs):
    return compare(runs)


@pytest.fixture(scope="module")
def page(comparison):
    """Without pictures, which take most of the time."""
    return render_comparison(comparison, runs_of(comparison), {})


def test_scores_stand_by_setting_and_seed_with_mean_deviation_and_interval(comparison, page):
    by_seed = comparison.scores["accuracy"]["plain"]
    _, mean, std = comparison.summary("accuracy", "plain")
    low, high = comparison.interval("accuracy", "plain")
    assert low < mean < high
    cells = [by_seed[0], by_seed[1], mean, std]
    shown = "".join(f"<td>{100 * cell:.2f}</td>" for cell in cells)
    assert f"<td>plain</td><td>accuracy</td>{shown}<td>{100 * low:.2f} to {100 * high:.2f}</td>" in page
    assert [float(row["value"]) for row in downloads(page)["scores.csv"][:2]] == [by_seed[0], by_seed[1]]
    for row in table(comparison)[1:]:
        assert f"<td>{row[3]}</td>" in page


def test_the_lead_has_both_scores_and_how_many_differences_hold(comparison, page):
    held = comparison.difference("accuracy", AWKWARD).p_holm < 0.05
    (lead,) = re.findall(r'<p class="lead">(.*?)</p>', page)
    for setting in ("plain", AWKWARD):
        _, mean, std = comparison.summary("accuracy", setting)
        assert f"{100 * mean:.2f} ± {100 * std:.2f} over 2 seeds" in lead
    assert f"{int(held)} of 1 differences from plain have p &lt; 0.05 by Holm&#39;s correction." in page
    (one,) = {run for run in comparison.folders["plain"].values() if run.name == "plain-seed0"}
    alone = compare([str(one)])
    assert " ± " not in re.search(r'<p class="lead">(.*?)</p>', render_comparison(alone, runs_of(alone), {}))[1]


def test_settings_that_differ_stand_in_a_table_and_what_they_share_does_not(page):
    part = page[page.index("Settings that differ</h3>") : page.index("What was run")]
    assert re.findall(r'<th scope="col">(.*?)</th>', part) == ["setting", "svt.function", "svt.layers", "svt.alpha"]
    assert "<td>plain</td><td>none</td><td>[]</td><td></td>" in part
    assert "<td>soft_decay</td><td>[1]</td><td>-0.3</td>" in part


def test_names_are_escaped_and_nothing_is_fetched(page):
    assert "<b>'" not in page
    assert "soft &lt;b&gt;&#39;$" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "default-src 'none'" in page


def test_each_layer_of_each_run_is_in_the_csv_at_full_precision(runs, page):
    rows = downloads(page)["layers.csv"]
    assert len(rows) == 2 * 3 + 2 * 5
    last = json.loads((Path(runs[0]) / "spectrum.jsonl").read_text().splitlines()[-1])
    found = next(r for r in rows if (r["setting"], r["seed"], r["layer"]) == ("plain", "0", "layer 1"))
    state = next(s for s in last["states"] if s["layer"] == 1)
    assert {name: float(found[name]) for name in MEASURES} == {name: state[name] for name in MEASURES}
    assert len(downloads(page)["evaluations.csv"]) == 4 * 2 * 2


def test_the_command_writes_one_page_with_all_pictures(runs, tmp_path, capsys):
    assert cli.evaluate(["report", "--runs", *runs, "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"see {tmp_path / 'out' / 'report.html'}\n"
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count("data:image/svg+xml;base64") == 4
    assert f"svt-jax eval report --output {tmp_path / 'out'} --runs" in text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]


def test_runs_without_spectra_have_a_page_all_the_same(tmp_path):
    comparison = compare(write(tmp_path, "plain", "none", spectra=False))
    page = render_comparison(comparison, runs_of(comparison), {})
    assert set(downloads(page)) == {"scores.csv", "evaluations.csv"}
    assert set(figures(comparison, runs_of(comparison))) == {"compare", "curves"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "{out}"], "report needs --run DIR, or --runs DIR"),
        (["--runs", "{run}"], "--output is missing; --runs needs --output DIR"),
        (["--run", "{run}", "--output", "{out}"], "--output goes with --runs"),
        (["--runs", "{run}", "--output", "{out}", "--baseline", "{run}"], "--baseline goes with --run"),
        (["--runs", "{run}", "--output", "{run}"], "holds a run, and report.html there is the run's"),
        (["--runs", "{out}", "--output", "{out}"], "no finished run"),
    ],
)
def test_what_cannot_be_a_page_is_one_line_and_status_2(runs, tmp_path, capsys, arguments, words):
    before = sorted(path.name for path in Path(runs[0]).iterdir())
    named = [each.format(run=runs[0], out=tmp_path / "out") for each in arguments]
    assert cli.evaluate(["report", *named]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert sorted(path.name for path in Path(runs[0]).iterdir()) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_axe_finds_nothing_and_pictures_follow_the_scheme(opened, comparison, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    found = runs_of(comparison)
    drawn = {"compare": figures(comparison, found)["compare"]}
    tab, wrong = opened(width, scheme, text=render_comparison(comparison, found, drawn), reduced_motion="reduce")
    result = Axe().run(tab)
    assert result.violations_count == 0, result.generate_report()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    # the ink of the picture's first axis label, drawn on a canvas, is light on a dark page
    ink = tab.evaluate(
        """async () => {
            const shown = document.querySelector("figure img");
            await shown.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [shown.width, shown.height];
            const context = canvas.getContext("2d");
            context.drawImage(shown, 0, 0);
            const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
            let [sum, count] = [0, 0];
            for (let at = 0; at < data.length; at += 4) {
                if (data[at + 3] > 250 && Math.abs(data[at] - data[at + 2]) < 16) { sum += data[at + 1]; count += 1; }
            }
            return sum / count;
        }"""
    )
    assert (ink > 128) == (scheme == "dark")
    assert wrong == []
