"""Traces that TensorBoard and Perfetto open, with the model's parts by name; the memory in use; neither changes a bit."""

import gzip
import json
import logging
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.profiler import ProfileData

from svt_jax import cli
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.command_line import make_config
from svt_jax.run.config import LogConfig
from svt_jax.run.folder import RunFolder
from svt_jax.training import profiling
from svt_jax.training.profiling import memory_in_use
from tests.models import tiny

ROOT = Path(__file__).parents[2]
SCOPES = ("embeddings", "layer_0", "layer_1", "svt", "head", "optimizer")


def train(folder, name, *options):
    short = ["--config", str(ROOT / "configs" / "demo.yaml"), "--optim.max_steps", "4", "--log.every_steps", "1"]
    assert cli.train([*short, "--run.output_dir", str(folder), "--run.name", name, *options]) == 0
    return RunFolder(folder / name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that is traced, and the same without."""
    folder = tmp_path_factory.mktemp("runs")
    return train(folder, "traced", "--log.profile_steps", "2:3", "--log.memory", "true"), train(folder, "plain")


def files(run):
    (folder,) = (run.profile / "plugins" / "profile").iterdir()
    return {path.name.partition(".")[2]: path for path in folder.iterdir()}


@pytest.mark.slow
def test_tensorboard_finds_the_steps_and_the_names_of_the_models_parts(runs):
    content = files(runs[0])["xplane.pb"].read_bytes()
    planes = list(ProfileData.from_serialized_xspace(content).planes)
    steps = [
        dict(event.stats)["step_num"]
        for plane in planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    assert sorted(map(int, steps)) == [2, 3]
    assert all(scope.encode() in content for scope in SCOPES)


@pytest.mark.slow
def test_perfetto_finds_each_operation_under_the_names_of_the_models_parts(runs):
    trace = json.loads(gzip.decompress(files(runs[0])["json.gz"].read_bytes()))
    assert "metadata" not in trace  # Perfetto refuses it
    names = [event["args"].get("op_name", "") for event in trace["traceEvents"] if "hlo_op" in event.get("args", {})]
    for scope in SCOPES:
        assert any(re.search(rf"\b{scope}\b", name) for name in names), scope
    assert sum(event.get("name") == "train" for event in trace["traceEvents"]) == 2


@pytest.mark.slow
def test_a_trace_changes_no_bit(runs):
    changing = ("examples_per_second", "tokens_per_second", "resident_set_bytes", "resident_set_peak_bytes")
    ours, theirs = (
        [{k: v for k, v in line.items() if k not in changing} for line in run.read_metrics()] for run in runs
    )
    assert ours == theirs
    assert not runs[1].profile.exists()


@pytest.mark.slow
def test_the_memory_is_in_each_line_of_the_metrics(runs):
    lines = runs[0].read_metrics()
    assert len(lines) == 4
    for line in lines:
        assert 10**8 < line["resident_set_bytes"] <= line["resident_set_peak_bytes"]
    assert not any("resident_set_bytes" in line for line in runs[1].read_metrics())


def test_the_memory_of_accelerators_is_that_of_the_fullest_one(monkeypatch):
    class Device:
        def __init__(self, used):
            self.memory_stats = lambda: {"bytes_in_use": used, "peak_bytes_in_use": 2 * used}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(5), Device(7)])
    assert memory_in_use() == {"device_memory_bytes": 7, "device_memory_peak_bytes": 14}


class Broken:
    """A profiler that fails where it is told to."""

    ProfileOptions, StepTraceAnnotation = jax.profiler.ProfileOptions, jax.profiler.StepTraceAnnotation

    def __init__(self, fails):
        self._fails, self.calls = fails, []

    def start_trace(self, *_, **__):
        self._call("start")

    def stop_trace(self):
        self._call("stop")

    def _call(self, what):
        self.calls.append(what)
        if what == self._fails:
            raise RuntimeError(f"cannot {what}\nfor a reason")


@pytest.mark.parametrize(("fails", "calls"), [("start", ["start"]), ("stop", ["start", "stop"])])
def test_a_profiler_that_fails_is_a_warning(tmp_path, monkeypatch, caplog, fails, calls):
    broken = Broken(fails)
    monkeypatch.setattr(profiling.jax, "profiler", broken)
    profiler = profiling.Profiler(RunFolder(tmp_path), (2, 3), list)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 6):
            profiler.before(step)
            if profiler.ends_after(step):
                profiler.finish()
        profiler.close()
    assert broken.calls == calls
    assert caplog.text.count("\n") == caplog.text.count(f"cannot {fails} for a reason") == 1


@pytest.mark.parametrize(("first", "steps", "traced"), [(1, (2, 3), [2, 3]), (3, (2, 9), [3, 4, 5]), (4, (2, 3), [])])
def test_a_resumed_run_traces_what_is_left_and_the_end_of_a_run_ends_a_trace(
    tmp_path, monkeypatch, first, steps, traced
):
    recording = Broken(None)
    monkeypatch.setattr(profiling.jax, "profiler", recording)
    profiler, seen = profiling.Profiler(RunFolder(tmp_path), steps, list), []
    for step in range(first, 6):
        profiler.before(step)
        seen += [step] if recording.calls == ["start"] else []
        if profiler.ends_after(step):
            profiler.finish()
    profiler.close()
    assert (seen, recording.calls) == (traced, ["start", "stop"] if traced else [])


@pytest.mark.parametrize("text", ["10", "0:3", "5:4", "a:b", "1:2:3", ""])
def test_steps_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=r"log.profile_steps is .*; allowed are two steps from 1, first:last"):
        LogConfig(profile_steps=text)


def test_steps_of_a_yaml_file_are_no_number_to_the_base_of_sixty(tmp_path):
    (tmp_path / "config.yaml").write_text("log:\n  profile_steps: 10:15\n")
    assert make_config(tmp_path / "config.yaml").log.traced_steps == (10, 15)
    assert make_config({"log": {"profile_steps": "1:1"}}).log.traced_steps == (1, 1)


def test_layers_that_are_one_loop_share_a_scope():
    model = tiny.encoder("bert", SVTConfig("soft_decay", layers=(-2,)), num_hidden_layers=4)
    model.scan_layers = True
    graphdef, state = nnx.split(model)
    ids = np.ones((1, 6), np.int32)
    text = jax.jit(lambda state: nnx.merge(graphdef, state)(ids).pooled).lower(state).as_text(debug_info=True)
    for scope in ("layers_0_to_1", "layer_2", "layer_3", "svt"):
        assert re.search(rf"\b{scope}\b", text), scope
    assert not re.search(r"\blayer_[01]\b", text)
