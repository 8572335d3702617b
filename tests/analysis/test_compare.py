"""Comparison of runs over seeds: statistics against hand and reference, rejected input, written files, the grid."""

import csv
import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

import svt_jax
from svt_jax import cli
from svt_jax.analysis.compare import Comparison
from svt_jax.analysis.comparison_files import markdown, table, write_comparison
from svt_jax.analysis.statistics import paired_difference, seeds_needed
from svt_jax.training.grid import setting_names

PLAIN = {0: 0.50, 1: 0.60, 2: 0.55}
SOFT = {0: 0.53, 1: 0.61, 2: 0.60}


def write_runs(folder, setting, scores, *, task="rte", function="none", metric="accuracy", device="cpu", **others):
    """Folders of finished runs with only the files that a comparison reads."""
    runs = []
    for seed, score in scores.items():
        run = folder / f"{setting}-seed{seed}"
        run.mkdir(parents=True)
        config = {"run": {"seed": seed}, "model": {"path": "m"}, "svt": {"function": function}, "data": {"task": task}}
        (run / "config.yaml").write_text(yaml.safe_dump({**config, "optim": {"epochs": 3}}))
        metrics = {"validation": {metric: score}, **others}
        # the best score is another one: a comparison must take the last
        results = {"task": task, "metrics": metrics, "best": {"step": 1, "metrics": {metric: 0.99}}}
        (run / "results.json").write_text(json.dumps(results))
        manifest = {"weights_sha256": "w", "git_commit": "g", "device": device, "versions": {"jax": "1"}}
        (run / "manifest.json").write_text(json.dumps(manifest))
        runs.append(str(run))
    return runs


@pytest.fixture
def runs(tmp_path):
    return write_runs(tmp_path, "plain", PLAIN) + write_runs(tmp_path, "soft", SOFT, function="soft_decay")


def test_mean_deviation_and_paired_test_are_those_worked_by_hand(runs):
    comparison = svt_jax.compare(runs)
    assert (comparison.task, comparison.settings, comparison.warnings) == ("rte", ["plain", "soft"], [])
    n, mean, std = comparison.summary("accuracy", "plain")
    assert (n, mean, std) == (3, pytest.approx(0.55), pytest.approx(0.05))
    found = comparison.difference("accuracy", "soft")
    assert found.seeds == [0, 1, 2]
    assert found.values == pytest.approx([0.03, 0.01, 0.05])
    assert (found.mean, found.std) == (pytest.approx(0.03), pytest.approx(0.02))
    t = 0.03 / (0.02 / math.sqrt(3))
    assert found.p_t == pytest.approx(1 - t / math.sqrt(2 + t * t))  # Student's distribution with 2 degrees of freedom
    assert found.interval == pytest.approx(
        (0.03 - 4.302653 * 0.02 / math.sqrt(3), 0.03 + 4.302653 * 0.02 / math.sqrt(3))
    )
    assert found.p_wilcoxon is None


def test_one_folder_is_no_list_of_letters():
    with pytest.raises(
        ValueError, match="runs is 'runs/a'; allowed is a list of folders. Put a single one into a list"
    ):
        svt_jax.compare("runs/a")


def test_runs_are_paired_by_seed_whatever_their_order(runs):
    shuffled = [runs[0], runs[5], runs[4], runs[2], runs[3], runs[1]]
    assert svt_jax.compare(shuffled).difference("accuracy", "soft") == svt_jax.compare(runs).difference(
        "accuracy", "soft"
    )


def test_one_seed_states_nothing(tmp_path, capsys):
    runs = write_runs(tmp_path, "plain", {0: 0.5}) + write_runs(tmp_path, "soft", {0: 0.9, 1: 0.9}, function="linear")
    comparison = svt_jax.compare(runs)
    assert comparison.difference("accuracy", "soft") is None
    assert comparison.summary("accuracy", "plain") == (1, 0.5, None)
    assert "needs two seeds in common" in markdown(comparison)
    assert cli.evaluate(["compare", "--runs", *runs, "--output", str(tmp_path / "out")]) == 0
    stored = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert stored["metrics"]["accuracy"]["soft"]["difference"] is None


def test_a_constant_difference_has_no_p():
    found = paired_difference({0: 0.3, 1: 0.5}, {0: 0.2, 1: 0.4})
    assert (found.mean, found.p_t, found.interval) == (pytest.approx(0.1), None, None)
    assert paired_difference({0: 0.3, 1: 0.5}, {0: 0.3, 1: 0.5}).p_t is None


def test_wilcoxon_is_given_from_six_seeds_on():
    differences = [0.01, 0.02, 0.03, -0.015, 0.05, 0.06]
    for n in (5, 6):
        found = paired_difference(dict(enumerate(differences[:n])), dict.fromkeys(range(n), 0.0))
        assert (found.p_wilcoxon is None) == (n < 6)
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert found.p_wilcoxon == pytest.approx(2 * 3 / 2**6)  # rank sums of 2 or less: {}, {1}, {2}


def test_the_bootstrap_is_given_from_five_seeds_on_and_agrees_with_the_t_interval_where_both_hold():
    values = np.random.default_rng(0).normal(0.02, 0.01, size=40)
    for n in (4, 5, 40):
        found = paired_difference(dict(enumerate(values[:n])), dict.fromkeys(range(n), 0.0))
        assert (found.interval_bca is None) == (n < 5)
    assert found.interval_bca == pytest.approx(found.interval, abs=4e-4)


def test_p_is_corrected_for_all_rows_of_the_table(tmp_path):
    spread = {"a": [0.01, 0.02, 0.03, 0.04], "b": [0.01, -0.02, 0.03, 0.04], "c": [0.1, 0.11, 0.12, 0.1]}
    runs = write_runs(tmp_path, "plain", dict.fromkeys(range(4), 0.5))
    for n, (name, values) in enumerate(spread.items()):
        runs += write_runs(tmp_path, name, {s: 0.5 + v for s, v in enumerate(values)}, function=f"f{n}")
    comparison = svt_jax.compare(runs)
    found = {name: comparison.difference("accuracy", name) for name in spread}
    assert found["c"].p_t < found["a"].p_t < found["b"].p_t
    assert found["c"].p_holm == pytest.approx(3 * found["c"].p_t)
    assert found["a"].p_holm == pytest.approx(2 * found["a"].p_t)
    assert found["b"].p_holm == pytest.approx(found["b"].p_t)


def test_the_change_in_token_uniformity_stands_beside_the_change_in_score():
    comparison = Comparison(
        "rte",
        {"accuracy": {"plain": {0: 0.5, 1: 0.6}, "soft": {0: 0.6, 1: 0.6}}},
        [],
        {},
        {"plain": {0: 0.5, 1: 0.7}, "soft": {0: 0.25, 2: 0.35}},
    )
    assert comparison.mean_uniformity("soft") == (
        pytest.approx(0.3),
        pytest.approx(-0.25),
    )  # by seed 0, which both have
    header, plain, soft = table(comparison)
    assert (header[-1], plain[-1], soft[-1]) == ("token uniformity", "0.600", "0.300 (-0.250)")
    none = dataclasses.replace(comparison, uniformity={})
    assert "token uniformity" not in table(none)[0]


def test_so_many_seeds_find_the_difference_in_four_of_five_tries():
    seeds = seeds_needed(0.8)
    rng = np.random.default_rng(0)
    for n, enough in ((seeds, True), (seeds - 1, False)):
        p = stats.ttest_1samp(rng.normal(0.8, 1.0, size=(n, 100_000)), 0.0).pvalue
        assert ((p < 0.05).mean() >= 0.8) == enough


def test_both_validation_sets_are_compared(tmp_path):
    other = {"validation_mismatched": {"accuracy": 0.4}}
    runs = write_runs(tmp_path, "a", PLAIN, **other) + write_runs(tmp_path, "b", SOFT, function="linear", **other)
    comparison = svt_jax.compare(runs)
    assert set(comparison.scores) == {"accuracy", "accuracy_mismatched"}
    assert comparison.summary("accuracy_mismatched", "b")[1] == pytest.approx(0.4)


def test_two_tasks_of_a_user_are_two_tasks(tmp_path):
    """Both have one name; columns or classes differ, and the second here also lacks a metric."""
    runs = [*write_runs(tmp_path, "a", {0: 0.5}, task="custom"), *write_runs(tmp_path, "b", {0: 0.6}, task="custom")]
    for run, label, classes in zip(runs, ("verdict", "score"), (["no", "yes"], None), strict=True):
        config = yaml.safe_load((Path(run) / "config.yaml").read_text())
        config["data"] |= {"text_columns": ["question"], "label_column": label}
        (Path(run) / "config.yaml").write_text(yaml.safe_dump(config))
        manifest = json.loads((Path(run) / "manifest.json").read_text())
        (Path(run) / "manifest.json").write_text(json.dumps({**manifest, "classes": classes}))
    with pytest.raises(
        ValueError, match=r"custom \(question to score: a number\), custom \(question to verdict: no or yes\)"
    ):
        svt_jax.compare(runs)


def test_settings_are_told_apart_by_config_not_by_folder(tmp_path):
    runs = write_runs(tmp_path / "x", "run", PLAIN) + write_runs(tmp_path / "y", "run", SOFT, function="soft_decay")
    assert svt_jax.compare(runs).settings == ["svt.function none", "svt.function soft_decay"]


def test_keys_that_change_time_and_memory_alone_make_no_setting(tmp_path):
    runs = write_runs(tmp_path, "plain", PLAIN)
    for run, keys in zip(runs, ({"remat": True}, {"remat": False, "scan_layers": True}), strict=False):
        path = Path(run) / "config.yaml"
        values = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(values | {"model": values["model"] | keys}))
    assert svt_jax.compare(runs).settings == ["plain"]


def test_what_makes_runs_less_comparable_is_said(tmp_path):
    runs = write_runs(tmp_path, "a", PLAIN) + write_runs(tmp_path, "b", SOFT, function="linear", device="gpu")
    comparison = svt_jax.compare(runs)
    assert comparison.warnings == ["the runs differ in device (see their manifest.json)"]
    assert "Note: the runs differ in device" in markdown(comparison)


def test_the_files_hold_the_same_numbers(runs, tmp_path):
    paths = write_comparison(svt_jax.compare(runs), tmp_path / "out")
    text = paths[0].read_text()
    assert "| accuracy | soft | 3 | 58.00 ± 4.36 | +3.00 ± 2.00 | -1.97 to +7.97 | 0.122 | 0.122 | 34 |" in text
    stored = json.loads(paths[1].read_text())
    assert stored["baseline"] == "plain"
    assert stored["metrics"]["accuracy"]["soft"]["difference"]["p_t"] == pytest.approx(1 - math.sqrt(6.75 / 8.75))
    rows = list(csv.DictReader(paths[2].read_text().splitlines()))
    assert [(r["setting"], int(r["seed"]), float(r["value"])) for r in rows[3:]] == [
        ("soft", s, v) for s, v in SOFT.items()
    ]
    assert paths[3].read_bytes()[:4] == b"\x89PNG"


def test_names_are_shown_as_they_are_everywhere(tmp_path, capsys):
    names = [r"$\foo{$", "[b]x|y"]
    runs = [
        run for n, name in enumerate(names) for run in write_runs(tmp_path, name, {0: 0.5, 1: n / 2}, function=f"f{n}")
    ]
    assert cli.evaluate(["compare", "--runs", *runs, "--output", str(tmp_path / "[out]")]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names)
    text = (tmp_path / "[out]" / "compare.md").read_text()
    assert "| accuracy | [b]x\\|y | 2 |" in text
    assert (tmp_path / "[out]" / "compare.png").read_bytes()[:4] == b"\x89PNG"


def test_a_picture_or_a_table_that_fails_is_a_warning(runs, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr("svt_jax.analysis.comparison_files.picture", fail)
    monkeypatch.setattr("svt_jax.cli.commands.compare.show", fail)
    assert cli.evaluate(["compare", "--runs", *runs, "--output", str(tmp_path / "out")]) == 0
    assert [message.partition(" (")[0] for message in caplog.messages] == [
        "the picture of the scores could not be made", "the table of results could not be made",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.csv", "compare.json", "compare.md"]


@pytest.mark.parametrize("name", ["results.json", "manifest.json", "config.yaml"])
@pytest.mark.parametrize("content", ["{}", "{", "[1]", "\x00"])
def test_a_damaged_file_of_a_run_is_named_in_one_line(runs, tmp_path, capsys, name, content):
    (Path(runs[0]) / name).write_text(content)
    assert cli.evaluate(["compare", "--runs", *runs, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(rf"{name} is not as a run writes it \(.*\). Restore it", error), error


def test_an_output_that_is_a_file_is_refused_before_any_work(runs, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert cli.evaluate(["compare", "--runs", *runs, "--output", str(tmp_path / "out")]) == 2
    assert "is a file; allowed is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f, runs: [*runs, str(f / "nowhere")], "no finished run .results.json. in .*nowhere"),
        (
            lambda f, runs: [*runs, *write_runs(f, "other", {0: 0.1}, task="cola")],
            "the runs are of the tasks cola, rte",
        ),
        (lambda f, runs: [*runs, *write_runs(f / "z", "plain", {1: 0.2})], "another run of plain with seed 1"),
        (lambda f, runs: [*runs, "--seeds", "0,1"], "--seeds goes with --config"),
        (lambda f, runs: [*runs, "--optim.epochs", "1"], "--optim.epochs goes with --config"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_status_2(runs, tmp_path, capsys, change, words):
    assert cli.evaluate(["compare", "--output", str(tmp_path / "out"), "--runs", *change(tmp_path, runs)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(words, error), error
    assert not (tmp_path / "out").exists()


DEMO = str(Path(__file__).parents[2] / "configs" / "demo.yaml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--seeds is None; --config needs numbers as in 0,1,2"),
        (["--seeds", "0;1"], "--seeds is '0;1'"),
        (["--seeds", "0,1", "--run.name", "x"], "--run.name cannot be given to a grid"),
        (["--seeds", "0,1", "--optim.epoch", "3"], "unknown key 'optim.epoch'"),
        (["--seeds", "0,1", "--config", DEMO], "would be called demo, demo; allowed are different names"),
        (["--seeds", "0,1", "--config", "bench/no*"], "no config fits 'bench/no*'; allowed is a pattern of files"),
        (["--seeds", "0,1", "--side_by_side", "0"], "--side_by_side is '0'; allowed are auto and whole numbers from 1"),
        (["--seeds", "0,1", "--config", "no.yaml"], "no.yaml' does not exist; allowed is a YAML file"),
    ],
)
def test_a_wrong_grid_starts_nothing(tmp_path, capsys, arguments, words):
    assert cli.evaluate(["compare", "--config", DEMO, "--output", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error, error
    assert not (tmp_path / "out").exists()


def test_settings_are_named_after_what_they_do_not_share():
    assert setting_names(["a/cola.yaml+b/plain.yaml", "a/cola.yaml+b/soft.yaml+c/fast.yaml"]) == ["plain", "soft-fast"]
    assert setting_names(["a/cola.yaml", "a/cola.yaml+b/soft.yaml"]) == ["cola", "soft"]
    assert setting_names(["a/cola.yaml"]) == ["cola"]


@pytest.mark.slow
def test_a_grid_resumes_where_it_stopped_and_ends_as_if_it_had_not(tmp_path, capsys, monkeypatch):
    from svt_jax.data import demo
    from svt_jax.errors import StoppedBySignalError
    from svt_jax.run import task_model
    from svt_jax.training.step_metrics import StepMetrics

    # one layer and few stories, since there are eight runs
    monkeypatch.setattr(task_model, "DEMO_ENCODER", dataclasses.replace(task_model.DEMO_ENCODER, num_hidden_layers=1))
    monkeypatch.setattr(demo, "SIZES", {"train": 256, "validation": 64, "test": 1})
    (tmp_path / "plain.yaml").write_text("svt: {function: none}\n")
    (tmp_path / "soft.yaml").write_text("svt: {function: soft_decay}\n")
    settings = [f"--config={DEMO}+{tmp_path / name}.yaml" for name in ("plain", "soft")]
    short = ["--optim.max_steps", "4", "--checkpoint.every_steps", "2", "--log.every_steps", "1"]
    command = ["compare", *settings, "--seeds", "0,1", "--side_by_side", "1", *short, "--output"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert cli.evaluate([*command, str(whole)]) == 0
    read, third_steps = StepMetrics._read, []

    def stop_in_the_third_run(self, step, *rest):
        if step == 3:
            third_steps.append(step)
            if len(third_steps) == 3:
                raise StoppedBySignalError("stopped", 15)
        return read(self, step, *rest)

    monkeypatch.setattr(StepMetrics, "_read", stop_in_the_third_run)
    assert cli.evaluate([*command, str(stopped)]) == 143
    done = [p.parent.name for p in sorted((stopped / "runs").glob("*/results.json"))]
    assert done == ["plain-seed0", "soft-seed0"]
    times = {name: (stopped / "runs" / name / "results.json").stat().st_mtime_ns for name in done}
    assert cli.evaluate([*command, str(stopped)]) == 0
    out = capsys.readouterr().out
    assert out.count("is complete already") == 2
    assert "resuming" in out
    assert times == {name: (stopped / "runs" / name / "results.json").stat().st_mtime_ns for name in done}
    results = [json.loads((folder / "compare.json").read_text()) for folder in (whole, stopped)]
    assert results[0] == results[1]
    assert results[0]["metrics"]["accuracy"]["soft"]["n"] == 2
    assert {f"{name}.{kind}" for name in ("curves", "depth") for kind in ("svg", "png")} < {
        p.name for p in whole.iterdir()
    }
    assert results[0]["metrics"]["accuracy"]["soft"]["difference"]["seeds"] == [0, 1]
    runs = [str(whole / "runs" / f"{name}-seed{seed}") for name in ("plain", "soft") for seed in (0, 1)]
    assert cli.evaluate(["compare", "--runs", *runs, "--output", str(tmp_path / "read")]) == 0
    assert json.loads((tmp_path / "read" / "compare.json").read_text()) == results[0]
