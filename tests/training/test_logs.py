"""metrics.jsonl, spectrum.jsonl and TensorBoard events: what is written, what a resumed run drops, what is an error."""

import errno
import importlib.util
import os
import struct
import sys
from types import SimpleNamespace

import pytest

from svt_jax import cli
from svt_jax.run.folder import RunFolder, read_lines, write_results
from svt_jax.training.logs import JsonLines, TensorBoard


def reading(value):
    measures = ("skewness", "median_ratio", "token_uniformity", "cls_uniformity", "explained_variance_1",
                "explained_variance_3", "effective_rank")  # fmt: skip
    states = [{"layer": layer, "state": "output", **dict.fromkeys(measures, value)} for layer in (None, 0)]
    return {"examples": 2, "alpha": {"0": -0.2}, "states": states}


def line(step):
    parameters = {"0": {"alpha": -0.2, "gamma": 1.5, "direction": [0.0, 1.0]}}
    return {"step": step, "loss": 0.5, "alpha": {"0": -0.2 - step / 100}, "svt": parameters}


def started(log, step):
    log.on_start(SimpleNamespace(step=step))
    return log


def events(folder):
    """(step, name, value) of the scalars in the event files, whose records are length, checksum, bytes, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def test_a_resumed_run_drops_what_is_of_steps_that_come_again(tmp_path):
    folder = RunFolder(tmp_path)
    lines = started(JsonLines(folder), 0)
    for step in range(5):
        lines.on_spectrum(step, reading(0.5))
        lines.on_log(step, line(step))
    lines.close()
    lines = started(JsonLines(folder), 3)
    lines.on_spectrum(4, reading(0.25))
    lines.close()
    assert [each["step"] for each in read_lines(folder.spectrum)] == [0, 1, 2, 3, 4]
    assert read_lines(folder.spectrum)[-1] == {"step": 4, **reading(0.25)}
    assert [each["step"] for each in folder.read_metrics()] == [0, 1, 2, 3]
    started(JsonLines(folder), 0).close()  # died before its first checkpoint: starts again
    assert folder.spectrum.read_text() == ""


def test_tensorboard_gets_scalars_of_training_evaluation_and_spectrum(tmp_path):
    pytest.importorskip("tensorboardX")
    folder = RunFolder(tmp_path)
    log = started(TensorBoard(folder), 0)
    log.on_log(10, line(10))
    log.on_evaluate(20, {"validation": {"accuracy": 0.75}})
    log.on_spectrum(20, reading(0.5))
    log.close()
    found = events(folder.tensorboard)
    assert (10, "train/loss", 0.5) in found
    assert (10, "alpha/layer_0", pytest.approx(-0.3)) in found
    assert (10, "svt/layer_0/gamma", 1.5) in found
    assert any(name == "svt/layer_0/direction" for _, name, _ in found)  # a histogram
    assert (20, "validation/accuracy", 0.75) in found
    assert (20, "spectrum_skewness/embeddings", 0.5) in found
    assert (20, "spectrum_effective_rank/layer_0_output", 0.5) in found
    assert {name for _, name, _ in found if name.startswith("train/")} == {"train/loss"}


def test_a_full_disk_under_the_events_warns_once_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    pytest.importorskip("tensorboardX")
    from tensorboardX.event_file_writer import EventsWriter

    def full(self, event):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = started(TensorBoard(RunFolder(tmp_path)), 0)
    monkeypatch.setattr(EventsWriter, "write_event", full)
    for step in range(1, 30):
        log.on_log(step, line(step))
    log.close()
    assert caplog.text.count("no more events for TensorBoard") == 1
    assert "tensorboard cannot be written (No space left on device)" in caplog.text


def test_tensorboard_that_does_not_import_is_one_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    log = started(TensorBoard(RunFolder(tmp_path)), 0)
    log.on_log(1, line(1))
    log.close()
    assert len(caplog.messages) == 1
    assert "TensorBoard's folder of events could not be made" in caplog.messages[0]


def test_a_resumed_run_hides_the_events_of_steps_that_come_again(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    folder = RunFolder(tmp_path)
    started(TensorBoard(folder), 3).close()
    (file,) = folder.tensorboard.iterdir()
    data, found = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    assert [each.step for each in found if each.session_log.status == SessionLog.START] == [4]


@pytest.mark.parametrize("before", [None, "whole"])
def test_a_file_for_which_there_is_no_room_is_named_and_the_old_one_stays(tmp_path, monkeypatch, before):
    path = tmp_path / "results.json"
    if before:
        path.write_text(before)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="could not be written") as caught:
        write_results(RunFolder(tmp_path), {"task": "demo"})
    assert str(caught.value) == (
        f"{path} could not be written (No space left on device). Make room, and start the same command again: nothing is "
        "trained twice."
    )
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == ([(path.name, before)] if before else [])


@pytest.mark.parametrize(("key", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_log_without_its_package_is_refused_before_training(tmp_path, capsys, monkeypatch, key, package):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))
    assert cli.train(["--run.output_dir", str(tmp_path), "--model.path", "demo", f"--log.{key}", "true"]) == 2
    error = capsys.readouterr().err
    assert f"log.{key} is true and the package {package} is not installed" in error
    assert f"pip install 'svt_jax[{key}]'" in error
    assert list(tmp_path.iterdir()) == []


def test_the_interval_is_checked(capsys):
    assert cli.train(["--model.path", "demo", "--log.spectrum_every_steps", "0"]) == 2
    assert "log.spectrum_every_steps is 0; it must be greater than 0" in capsys.readouterr().err
