"""report.html: what it says, and how it behaves in a browser."""

import base64
import csv
import html
import io
import json
import math
import re
import shutil

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import write_run

from svt_jax import cli
from svt_jax.analysis.report import render_report
from svt_jax.analysis.training_plots import training_curves
from svt_jax.evaluation.probe import MEASURES

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


def downloads(page):
    """The tables that the page offers for download, by file name."""
    links = re.findall(r'download="([\w.]+)" href="data:text/csv;charset=utf-8;base64,([\w+/=]+)"', page)
    return {name: list(csv.DictReader(io.StringIO(base64.b64decode(data).decode()))) for name, data in links}


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


@pytest.fixture
def no_pictures(monkeypatch):
    """Disables the plots, which take most of a page's time, for tests that do not look at them."""
    monkeypatch.setattr("svt_jax.analysis.report.page._pictures", lambda run, baseline: [])


def strict(page):
    """The slider's data, parsed as strictly as a browser does."""
    text = re.search(r'<script type="application/json" id="spectra">(.*?)</script>', page, re.DOTALL)

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return None if text is None else json.loads(text[1], parse_constant=refuse)


def damaged(folder, name, change):
    """A run with one file changed: `change` maps its parsed lines, or its one table, to the new ones."""
    run = write_run(folder / "run", layers=2, svt_layers=(1,), steps=100)
    text = (run / name).read_text()
    if name.endswith(".jsonl"):
        lines = change([json.loads(line) for line in text.splitlines()])
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    else:
        loaded = yaml.safe_load(text)
        change(loaded)
        text = (yaml.safe_dump if name.endswith(".yaml") else json.dumps)(loaded)
    (run / name).write_text(text)
    return run


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ('{"step": 15', "Expecting"),
        ("[" * 100_000, "recursion"),
        ("[1]", "not a table"),
        ({"loss": "high"}, "loss is 'high', not a number"),
        ({"loss": True}, "loss is True, not a number"),
        ({"loss": math.nan}, "loss is nan, not a finite number"),
        ({"grad_norm": 1e300}, "grad_norm is 1e.300, not a finite number that float32 holds"),
        ({"epoch": 10**400}, "epoch is 1000.*, not a finite number"),
        ({"step": 2.5}, "step is 2.5, not a whole number"),
        ({"alpha": {"first": -0.2}}, "a name in alpha is 'first', not a layer's number"),
        ({"alpha": [-0.2]}, "alpha is .*, not a table"),
        ({"svt": {"1": {"p": "0.7"}}}, "svt.1.p is '0.7', not a number"),
        ({"loss": None, "epoch": None}, "epoch is None.*; loss is None"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_line_that_no_run_writes_is_left_out_and_the_page_names_it(no_pictures, tmp_path, broken, why):
    """The broken line is the third of metrics.jsonl."""
    run = damaged(
        tmp_path,
        "metrics.jsonl",
        lambda lines: [*lines[:2], broken if isinstance(broken, str) else {**lines[2], **broken}, *lines[3:]],
    )
    page = render_report(run)
    (said,) = re.findall(r"<li>(.*metrics.jsonl, line 3: left out .*)</li>", page)
    assert re.search(why, html.unescape(said)), said
    assert [row["step"] for row in downloads(page)["training.csv"]] == [str(s) for s in range(5, 101, 5) if s != 15]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda reading: reading.pop("examples"), "it lacks examples"),
        (lambda reading: reading["states"][0].pop("skewness"), r"it lacks states\[0\].skewness"),
        (lambda reading: reading["states"][0].update(histogram=["x"] * 100), r"histogram\[0\] is 'x', not a number"),
        (lambda reading: reading["states"][0].update(histogram=[0.0] * 100), "is not 100 shares"),
        (lambda reading: reading["states"][0].update(histogram=[1.0]), "is not 100 shares"),
        (lambda reading: reading["states"][0].update(state="behind"), "is 'behind', none of output, svt_input"),
        (lambda reading: reading["states"].append(reading["states"][0]), "a layer stands twice"),
        (lambda reading: reading["states"].pop(), "of each SVT both input and output"),
        (lambda reading: reading["states"].pop(0), "its layers are not those of the last reading"),
        (lambda reading: reading.update(states={}), "states is {}, not a list"),
    ],
)
def test_a_reading_that_no_run_writes_is_left_out_and_the_slider_has_the_others(no_pictures, tmp_path, change, why):
    def second(lines):
        change(lines[1])
        return lines

    page = render_report(damaged(tmp_path, "spectrum.jsonl", second))
    (said,) = re.findall(r"<li>(.*spectrum.jsonl, line 2: left out .*)</li>", page)
    assert re.search(why, html.unescape(said)), said
    assert [reading["step"] for reading in strict(page)["readings"]] == [0, 100]


@pytest.mark.parametrize("value", [math.nan, None])
def test_a_measure_that_is_no_number_leaves_the_slider_whole_and_is_named(tmp_path, value):
    def spoil(lines):
        lines[-1]["states"][1]["skewness"] = lines[-1]["states"][1]["median_ratio"] = value
        return lines

    page = render_report(damaged(tmp_path, "spectrum.jsonl", spoil))
    assert "spectrum.jsonl, line 3: skewness of layer 0, output, is not a number" in page
    readings = strict(page)["readings"]
    assert [reading["step"] for reading in readings] == [0, 50, 100]
    assert readings[-1]["places"][1]["states"][0]["skewness"] is None


def test_files_without_one_good_line_leave_a_page_of_the_rest(tmp_path):
    run = damaged(tmp_path, "metrics.jsonl", lambda lines: ["{}"] * 50)
    (run / "spectrum.jsonl").write_bytes(b"\xff\xfe\n")
    page = render_report(run)
    assert page.count("metrics.jsonl, line") < 20
    assert "more</li>" in page
    assert strict(page) is None
    assert set(downloads(page)) == {"evaluations.csv"}


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("results.json", lambda r: r.pop("evaluations"), "it lacks evaluations"),
        ("results.json", lambda r: r.update(evaluations=[]), "evaluations is .*, not a list of 1 or more"),
        ("results.json", lambda r: r["best"].update(metrics={"accuracy": None}), "best.metrics.accuracy is None"),
        ("results.json", lambda r: r["metrics"].update(validation={}), "metrics.validation is {}"),
        (
            "results.json",
            lambda r: r["svt"].update(parameters={"1": {"p": 0.5}}),
            "svt.parameters.1.p is 0.5, not a table",
        ),
        ("results.json", lambda r: r["train"].update(wall_time_s=math.inf), "train.wall_time_s is inf"),
        ("manifest.json", lambda m: m.update(versions=[]), "versions is .*, not a table"),
        ("config.yaml", lambda c: c["run"].pop("seed"), "it lacks run.seed"),
        ("config.yaml", lambda c: c.update(optim=3), "optim is 3, not a table"),
    ],
)
def test_a_table_that_no_run_writes_is_an_error_that_names_file_and_key(no_pictures, tmp_path, name, change, why):
    with pytest.raises(ValueError, match=rf"{name} is not as a run writes it \(.*{why}.*\)\. Restore it"):
        render_report(damaged(tmp_path, name, change))


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "＝"])
def test_no_text_of_a_csv_is_a_formula_to_a_spreadsheet(no_pictures, tmp_path, first):
    name = first + "HYPERLINK(1)"

    def rename(results):
        for each in [results["metrics"]["validation"], *(e["metrics"] for e in results["evaluations"])]:
            each[name] = each.pop("accuracy")

    page = render_report(damaged(tmp_path, "results.json", rename))
    metrics = {row["metric"] for row in downloads(page)["evaluations.csv"]}
    assert metrics == {"'" + name.replace("\r", " "), "f1"}
    assert all(float(row["alpha layer 1"]) < 0 for row in downloads(page)["training.csv"])  # a number keeps its sign


def test_a_function_of_several_parameters_has_each_in_the_lead_the_tables_and_the_curves(tmp_path):
    run = write_run(tmp_path / "run", layers=3, svt_layers=(2,), steps=100)

    def of(step):
        return {"alpha": {}, "svt": {"2": {"gamma": 2 + step / 1000, "scale": [0.5, 0.25]}}}

    for name in ("metrics.jsonl", "spectrum.jsonl"):
        lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
        (run / name).write_text("".join(json.dumps({**line, **of(line["step"])}) + "\n" for line in lines))
    results = json.loads((run / "results.json").read_text())
    parameters = {"gamma": {"first": 2.0, "last": 2.1}, "scale": {"first": [0.5, 0.25], "last": [0.5, 0.25]}}
    results["svt"] |= {"alpha": [], "parameters": {"2": parameters}}
    (run / "results.json").write_text(json.dumps(results))
    page = render_report(run)
    assert "soft_decay in layer 2 (gamma 2.1000)" in page
    found = downloads(page)
    assert [float(row["gamma layer 2"]) for row in found["training.csv"]] == [2 + s / 1000 for s in range(5, 101, 5)]
    assert found["training.csv"][0]["scale layer 2"] == "[0.5, 0.25]"
    assert {row["gamma"] for row in found["layers.csv"] if row["state"] == "SVT input"} == {"2.0", "2.05", "2.1"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figure = training_curves({"this run": [{"lines": lines, "evaluations": results["evaluations"]}]})
    (panel,) = [axis for axis in figure.axes if axis.get_title(loc="left") == "gamma"]
    assert panel.lines[0].get_ydata().tolist() == [line["svt"]["2"]["gamma"] for line in lines]


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_the_files_hold_there_is_a_page_that_a_browser_reads_or_an_error_that_names_the_file(
    tmp_path_factory, data
):
    run = write_run(tmp_path_factory.mktemp("fuzz") / "run", layers=2, svt_layers=(1,), steps=100)
    name = data.draw(
        st.sampled_from(["metrics.jsonl", "spectrum.jsonl", "results.json", "manifest.json", "config.yaml"])
    )
    lines = (run / name).read_text().splitlines() if name.endswith(".jsonl") else [(run / name).read_text()]
    which = data.draw(st.sampled_from(range(len(lines))))
    whole = yaml.safe_load(lines[which])
    holder, key = {"it": whole}, "it"
    while holder[key] and isinstance(holder[key], (dict, list)) and data.draw(st.integers(0, 4)):
        holder = holder[key]
        key = data.draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(min(len(holder), 3))))
    if data.draw(st.integers(0, 3)):
        holder[key] = data.draw(ANYTHING)
    elif key != "it":
        del holder[key]
    whole = holder["it"] if key == "it" else whole
    lines[which] = json.dumps(whole)  # JSON is also YAML
    if data.draw(st.booleans()) and name.endswith(".jsonl"):
        lines[which] = lines[which][: data.draw(st.integers(0, len(lines[which])))]
    (run / name).write_text("\n".join(lines))
    try:
        page = render_report(run)
    except ValueError as error:
        assert f"{name} is not as a run writes it" in str(error)  # noqa: PT017
    else:
        strict(page)
        page.encode()


ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.text(max_size=5), st.floats(), st.integers(),
        st.sampled_from(["=1", "\ud800", "$\\foo{$", "</script>", 10**400, 3.3e38, -3.3e38, 1e-320, 2**53]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["1", "=x", "\ud800", "$\\foo{$"]), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, page, tmp_path):
    """Opens the page from its file; returns the tab and the errors in it."""
    file = tmp_path / "report.html"
    contexts = []

    def open_page(width=1280, scheme="light", text=page, **options):
        file.write_text(text, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **options)
        contexts.append(context)
        tab, wrong = context.new_page(), []
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on(
            "request", lambda request: None if request.url.startswith(("file:", "data:")) else wrong.append(request.url)
        )
        tab.goto(file.as_uri())
        return tab, wrong

    yield open_page
    for context in contexts:
        context.close()


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
