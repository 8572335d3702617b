"""spectrum.jsonl and TensorBoard events: what is written, what a resumed run drops, what is refused."""

import importlib.util
import struct

import pytest

from svt_jax import cli
from svt_jax.training.records import Records
from svt_jax.training.run_folder import RunFolder, read_lines


def reading(value):
    measures = ("skewness", "median_ratio", "token_uniformity", "cls_uniformity", "explained_variance_1",
                "explained_variance_3", "effective_rank")  # fmt: skip
    states = [{"layer": layer, "state": "output", **dict.fromkeys(measures, value)} for layer in (None, 0)]
    return {"examples": 2, "alpha": {"0": -0.2}, "states": states}


def line(step):
    return {"step": step, "loss": 0.5, "alpha": {"0": -0.2 - step / 100}}


def events(folder):
    """(step, name, value) of the scalars in the event files: records of length, checksum, bytes, checksum."""
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
    records = Records(folder, 0, tensorboard=False)
    for step in range(5):
        records.spectrum(step, reading(0.5))
        records.metrics(line(step))
    records.close()
    records = Records(folder, 3, tensorboard=False)
    records.spectrum(4, reading(0.25))
    records.close()
    assert [each["step"] for each in read_lines(folder.spectrum)] == [0, 1, 2, 3, 4]
    assert read_lines(folder.spectrum)[-1] == {"step": 4, **reading(0.25)}
    assert [each["step"] for each in folder.read_metrics()] == [0, 1, 2, 3]
    Records(folder, 0, tensorboard=False).close()  # died before its first checkpoint: begins anew
    assert folder.spectrum.read_text() == ""
    assert not folder.tensorboard.exists()


def test_tensorboard_gets_scalars_of_training_evaluation_and_spectrum(tmp_path):
    pytest.importorskip("tensorboardX")
    folder = RunFolder(tmp_path)
    records = Records(folder, 0, tensorboard=True)
    records.metrics({**line(10), "svt": {"0": {"alpha": -0.3, "gamma": 2.0, "scale": [0.25, 0.5]}}})
    records.evaluation(20, {"validation": {"accuracy": 0.75}})
    records.spectrum(20, reading(0.5))
    records.close()
    found = events(folder.tensorboard)
    assert (10, "train/loss", 0.5) in found
    assert (10, "alpha/layer_0", pytest.approx(-0.3)) in found
    assert (10, "svt/layer_0/gamma", 2.0) in found
    assert {name for _, name, _ in found if name.startswith("svt/")} == {"svt/layer_0/gamma", "svt/layer_0/scale"}
    assert (20, "validation/accuracy", 0.75) in found
    assert (20, "spectrum_skewness/embeddings", 0.5) in found
    assert (20, "spectrum_effective_rank/layer_0_output", 0.5) in found
    assert {name for _, name, _ in found if name.startswith("train/")} == {"train/loss"}


def test_tensorboard_without_its_package_is_refused_before_training(tmp_path, capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else real(name))
    assert cli.train(["--run.output_dir", str(tmp_path), "--model.path", "demo", "--log.tensorboard", "true"]) == 2
    error = capsys.readouterr().err
    assert "tensorboardX, which writes the events, is not installed" in error
    assert "pip install 'svt_jax[tensorboard]'" in error
    assert list(tmp_path.iterdir()) == []


def test_the_interval_is_checked(capsys):
    assert cli.train(["--model.path", "demo", "--log.spectrum_every_steps", "0"]) == 2
    assert "log.spectrum_every_steps is 0; it must be greater than 0" in capsys.readouterr().err
