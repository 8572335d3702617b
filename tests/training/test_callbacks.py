"""Callbacks: which calls they receive and when; a run from Python; evaluation and early stopping by steps."""

import dataclasses
import json
import os
import re
import sys
from pathlib import Path

import jax
import pytest

import svt_jax
from svt_jax.data.demo import TASK
from svt_jax.mesh import make_mesh
from svt_jax.run.folder import RunFolder
from svt_jax.training import progress
from svt_jax.training.progress import PlainConsole, TrainingProgress
from svt_jax.training.results import worse_in_a_row
from svt_jax.training.train import train

DEMO = {"model": {"path": "demo"}, "data": {"task": "demo"}, "svt": {"function": "soft_decay"}}


def config(folder, name="run", **sections):
    run = {"name": name, "output_dir": str(folder)}
    return {**DEMO, "run": run, "log": {"every_steps": 2, **sections.pop("log", {})}, **sections}


class Told(svt_jax.Callback):
    """Records every call that a callback receives, in order."""

    def __init__(self):
        self.events = []

    def on_start(self, run):
        self.run = run
        self.events.append(("start", run.step))

    def on_log(self, step, metrics):
        assert metrics["step"] == step
        self.events.append(("log", step))

    def on_evaluate(self, step, scores):
        assert set(scores["validation"]) == {"accuracy", "f1"}
        self.events.append(("evaluate", step))

    def on_spectrum(self, step, reading):
        self.events.append(("spectrum", step))

    def on_checkpoint(self, step):
        self.events.append(("checkpoint", step))

    def on_end(self, results):
        assert (self.run.folder / "results.json").is_file()
        self.events.append(("end", results["steps"]))

    def close(self):
        self.events.append(("close", None))


class OnlyLosses:
    """A class with one method that is not a subclass of `Callback`."""

    def __init__(self):
        self.losses = []

    def on_log(self, step, metrics):
        self.losses.append(metrics["loss"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    told, losses = Told(), OnlyLosses()
    values = config(tmp_path_factory.mktemp("runs"), optim={"max_steps": 5}, log={"evaluate_every_steps": 2})
    return svt_jax.train(values, callbacks=[told, losses]), told, losses


def test_a_run_from_python_has_folder_results_and_config(finished):
    run, _, _ = finished
    assert isinstance(run.folder, Path)
    assert run.results == json.loads((run.folder / "results.json").read_text())
    assert (run.results["steps"], run.config.optim.max_steps, run.state) == (5, 5, None)
    assert run.results["train"]["time_to_first_step_s"] > run.results["train"]["compile_time_s"] / 2
    assert run.results["platform"] == {"name": "cpu", "kind": "cpu", "devices": 8, "processes": 1}
    assert (run.folder / "report.html").is_file()


def test_callbacks_are_told_everything_in_the_order_in_which_it_happens(finished):
    _, told, losses = finished
    assert told.events == [
        ("start", 0),
        *(("log", 2), ("evaluate", 2), ("checkpoint", 2)),
        *(("log", 4), ("evaluate", 4), ("checkpoint", 4)),
        *(("log", 5), ("evaluate", 5), ("spectrum", 5), ("checkpoint", 5)),
        *(("end", 5), ("close", None)),
    ]
    assert len(losses.losses) == 3


def test_evaluations_come_by_steps_and_after_the_last(finished):
    run, _, _ = finished
    assert [each["step"] for each in run.results["evaluations"]] == [2, 4, 5]


def test_a_complete_run_is_returned_as_it_is(finished):
    run, _, _ = finished
    told = Told()
    again = svt_jax.train(run.config, callbacks=[told])
    assert (again.results, again.folder, again.step) == (run.results, run.folder, 5)
    assert told.events == []


@pytest.mark.slow
def test_a_run_stops_after_evaluations_without_a_better_score_and_a_resumed_one_stops_there_too(tmp_path):
    settings = {
        "optim": {"max_steps": 40, "stop_after_worse": 1, "learning_rate": 1e-7},  # this rate changes no answer
        "log": {"evaluate_every_steps": 2},
    }
    run = svt_jax.train(config(tmp_path, **settings))
    assert run.results["steps"] == 4
    assert [each["step"] for each in run.results["evaluations"]] == [2, 4]
    assert [line["step"] for line in RunFolder(run.folder).read_metrics()] == [2, 4]
    for name in ("results.json", "report.html"):  # as if killed between the last checkpoint and the results
        (run.folder / name).unlink()
    told = Told()
    again = svt_jax.train(config(tmp_path, **settings), callbacks=[told])
    assert [kind for kind, _ in told.events] == ["start", "end", "close"]
    without_times = lambda results: {key: value for key, value in results.items() if key not in ("train", "evaluation")}
    assert without_times(again.results) == without_times(run.results)


def test_evaluations_since_the_best_are_counted():
    count = lambda *scores: worse_in_a_row(
        TASK, [{"step": n, "metrics": {"accuracy": score}} for n, score in enumerate(scores)]
    )
    assert (count(), count(0.5), count(0.5, 0.6), count(0.6, 0.5, 0.6), count(0.4, 0.6, 0.5)) == (0, 0, 0, 2, 1)


def test_where_the_output_is_piped_a_line_tells_loss_rate_and_time_left(finished, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_MINUTE", 0.0)
    run, _, _ = finished
    shown = TrainingProgress(PlainConsole(width=200), enabled=True)
    with jax.set_mesh(make_mesh()):
        shown.on_start(dataclasses.replace(run, num_steps=7, step=3))
    for step, loss in ((4, 0.75), (5, 0.5)):
        shown.on_step(step, {"loss": loss, "examples_per_second": 31.4})
    shown.close()
    out = capsys.readouterr().out
    assert f"resuming {run.folder} after step 3 of 7" in out
    assert "step 4/7  loss 0.7500  31 examples/s  left 0:00:" in out
    assert "step 5/7  loss 0.5000  31 examples/s  left 0:00:" in out


@pytest.mark.slow
def test_a_run_whose_output_is_piped_tells_each_minute_where_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_MINUTE", 0.0)
    train(config(tmp_path, optim={"max_steps": 2}), console=PlainConsole(width=200))
    assert "step 1/2  loss 0." in capsys.readouterr().out


@pytest.mark.slow
def test_weights_and_biases_gets_the_numbers_of_a_run_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged, init = [], wandb.init

    def spy(**settings):
        run = init(**settings)
        log = run.log
        monkeypatch.setattr(run, "log", lambda numbers, step: (logged.append((step, numbers)), log(numbers, step=step)))
        return run

    monkeypatch.setattr(wandb, "init", spy)
    run = svt_jax.train(config(tmp_path, optim={"max_steps": 2}, log={"wandb": True}))
    names = {name for _, numbers in logged for name in numbers}
    assert {"train/loss", "alpha/layer_1", "validation/accuracy", "spectrum_skewness/layer_1_output"} <= names
    assert {step for step, _ in logged} == {2}
    offline = [path for path in (run.folder / "wandb").iterdir() if path.name.startswith("offline-run")]
    assert len(offline) == 1
    assert any(path.suffix == ".wandb" and path.stat().st_size for path in offline[0].iterdir()), os.listdir(offline[0])


@pytest.mark.slow
def test_the_callback_for_mlflow_on_the_page_sends_settings_numbers_and_scores(monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "mlflow" in block]
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "stand_ins"))
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    exec(compile(code, "docs/extending.md", "exec"), {})
    start, (_, params), *numbers, end = sys.modules.pop("mlflow").calls
    assert (start[0], end) == ("start", ("end",))
    assert (params["optim.max_steps"], params["data.task"]) == (4, "demo")
    steps = [(step, sorted(metrics)) for _, step, metrics in numbers]
    assert [step for step, names in steps if "loss" in names] == [2, 4]
    assert (4, ["validation.accuracy", "validation.f1"]) in steps
