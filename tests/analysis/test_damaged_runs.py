"""report.html of runs whose files hold what no run writes: a page of the rest, or an error that names the file."""

import html
import json
import math
import re

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svt_jax.analysis.report import render_report
from svt_jax.analysis.training_plots import training_curves
from tests.analysis.synthetic import damaged, downloads, strict, write_run


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
