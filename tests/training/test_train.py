"""The whole path on the demo: train, evaluate, resume to the same bits, stop, reject."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer

from svt_jax import cli
from svt_jax.analysis.finished import read_finished
from svt_jax.models.hf import load_classifier
from svt_jax.run.checkpoint import Checkpoints
from svt_jax.run.command_line import parse_config
from svt_jax.run.folder import RunFolder, find_run, read_lines, read_run
from svt_jax.run.task_model import TaskModel
from svt_jax.training import session
from svt_jax.training.setup import setup

ROOT = Path(__file__).parents[2]
SHORT = ["--config", str(ROOT / "configs" / "demo.yaml"), "--optim.max_steps", "12", "--log.every_steps", "3"]


def train(folder, *options, name="run"):
    return cli.train([*SHORT, "--run.output_dir", str(folder), "--run.name", name, *options])


def raw_arrays(run):
    """Every array of the newest checkpoint, as saved."""
    import orbax.checkpoint as ocp

    step = Checkpoints(RunFolder(run).checkpoints).steps[-1]
    arrays = {}
    for item in ("params", "optimizer"):
        tree = ocp.StandardCheckpointer().restore(run.absolute() / "checkpoints" / str(step) / item)
        arrays |= {item + jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(tree)}
    return step, arrays


def assert_same_bits(first, second):
    (step, ours), (other_step, theirs) = raw_arrays(first), raw_arrays(second)
    assert step == other_step
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert train(folder) == 0
    return folder / "run"


def test_a_run_leaves_the_files_of_the_contract(finished):
    results = json.loads((finished / "results.json").read_text())
    assert set(results) >= {"task", "steps", "epochs", "metrics", "best", "svt", "train", "device"}
    assert results["steps"] == 12
    assert set(results["metrics"]["validation"]) == {"accuracy", "f1"}
    assert results["best"]["metrics"] == results["metrics"]["validation"]
    assert (results["svt"]["function"], results["svt"]["layers"]) == ("soft_decay", [1])
    assert -1 < results["svt"]["alpha"][0] < 0
    assert set(results["train"]) >= {"examples_per_second", "wall_time_s", "compiles"}
    assert 0 < results["train"]["padding_share"] < 0.5  # eight groups of four examples
    assert (results["train"]["compiles"], results["evaluation"]["compiles"]) == (1, 1)
    assert results["evaluation"]["compile_time_s"] > 0
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert set(lines[0]) >= {
        "step", "epoch", "loss", "learning_rate", "alpha", "grad_norm", "examples_per_second", "tokens_per_second", "compiles",
    }  # fmt: skip
    assert lines[0]["alpha"].keys() == {"1"}
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["optim"]["max_steps"] == 12
    assert config["checkpoint"]["keep"] == 2
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["devices"] == 8
    assert (finished / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("batch_size", [64, *(pytest.param(size, marks=pytest.mark.slow) for size in (8, 1024))])
def test_evaluation_gives_exactly_the_score_that_training_reported(finished, batch_size, capsys):
    assert cli.evaluate(["glue", "--run", str(finished), "--data.eval_batch_size", str(batch_size)]) == 0
    outcome = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    reported = json.loads((finished / "results.json").read_text())
    assert outcome["metrics"] == reported["metrics"]["validation"]
    assert (outcome["step"], outcome["examples"]) == (12, 1000)


def test_a_finished_run_is_not_trained_again(finished, capsys):
    before = (finished / "results.json").read_text()
    assert train(finished.parent) == 0
    assert "is complete already" in capsys.readouterr().out
    assert (finished / "results.json").read_text() == before


def test_another_config_in_the_same_folder_is_refused_and_nothing_lost(finished, capsys):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert train(finished.parent, "--optim.learning_rate", "0.5") == 2
    message = capsys.readouterr().err
    assert "holds another run's config (optim.learning_rate 0.001 -> 0.5)" in message
    assert "Choose another --run.name" in message
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def start(folder, *options):
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *SHORT,
        "--run.output_dir",
        str(folder),
        "--run.name",
        "run",
        *options,
    ]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_step(process, run, step):
    deadline = time.time() + 200
    while process.poll() is None and time.time() < deadline:
        if any(line["step"] >= step for line in RunFolder(run).read_metrics()):
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} never came: {process.communicate()}")


EVERY = ["--checkpoint.every_steps", "3", "--log.every_steps", "1", "--log.spectrum_every_steps", "4"]


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_and_resumed_ends_with_the_same_bits(finished, tmp_path):
    """tests/faults tests SIGKILL."""
    process = start(tmp_path, *EVERY)
    wait_for_step(process, tmp_path / "run", 5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 143, errors
    assert "stopped by SIGTERM after step" in errors
    assert train(tmp_path, *EVERY) == 0
    assert_same_bits(finished, tmp_path / "run")
    without_times = lambda run: [
        {k: v for k, v in line.items() if "per_second" not in k and k != "compiles"}
        for line in RunFolder(run).read_metrics()
        if line["step"] % 3 == 0
    ]
    assert without_times(finished) == without_times(tmp_path / "run")
    scores = [RunFolder(run).read_results()["metrics"] for run in (finished, tmp_path / "run")]
    assert scores[0] == scores[1]


@pytest.fixture(scope="module")
def died_after_seven(tmp_path_factory):
    """A run that died after step 7; its last checkpoint is step 6's."""
    from svt_jax.training.step_metrics import StepMetrics

    folder = tmp_path_factory.mktemp("died")

    class Killed(BaseException):
        pass

    original = StepMetrics._read

    def kill_at_seven(self, step, *rest):
        if step == 7:
            raise Killed
        return original(self, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepMetrics, "_read", kill_at_seven)
        with pytest.raises(Killed):
            train(folder, *EVERY)
    assert Checkpoints(RunFolder(folder / "run").checkpoints, read_only=True).steps[-1] == 6
    return folder / "run"


@pytest.fixture
def interrupted_at_seven(died_after_seven, tmp_path):
    return Path(shutil.copytree(died_after_seven, tmp_path / "run"))


def test_a_run_interrupted_between_steps_resumes_to_the_same_bits(finished, tmp_path, interrupted_at_seven):
    first = json.loads((interrupted_at_seven / "manifest.json").read_text())
    assert train(tmp_path, *EVERY) == 0
    assert_same_bits(finished, interrupted_at_seven)
    again = json.loads((interrupted_at_seven / "manifest.json").read_text())
    assert len(again.pop("resumed")) == 1
    assert again == first
    results = RunFolder(interrupted_at_seven).read_results()
    assert results["train"]["examples_per_second"] > 0
    readings = [read_lines(RunFolder(run).spectrum) for run in (finished, interrupted_at_seven)]
    assert [[reading["step"] for reading in each] for each in readings] == [[12], [0, 4, 8, 12]]
    assert readings[0][-1] == readings[1][-1]
    page = (interrupted_at_seven / "report.html").read_text()
    assert "Spectrum, layer by layer" in page


def test_eval_spectrum_gives_exactly_the_reading_that_training_logged(finished, tmp_path, capsys):
    assert cli.evaluate(["spectrum", "--run", str(finished), "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "spectrum.json").read_text())
    (logged,) = read_lines(RunFolder(finished).spectrum)
    assert {key: found[key] for key in logged} == logged
    assert (found["task"], found["run"]) == ("demo", str(finished))
    assert {(s["layer"], s["state"]) for s in found["states"]} >= {(1, "svt_input"), (1, "svt_output")}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = ("histograms", "svt_histograms", "cdf", "measures")
    assert names == {"spectrum.json", *(f"{name}.{kind}" for name in pictures for kind in ("svg", "png"))}
    assert "layer 1     SVT output" in capsys.readouterr().out


@pytest.mark.slow
def test_accumulating_four_batches_is_one_batch_of_four_times_the_size(tmp_path):
    """The same examples, steps and losses, through the config's keys."""
    options = ["--svt.dropout", "0", "--optim.max_steps", "6", "--log.every_steps", "1"]
    assert train(tmp_path, *options, "--optim.batch_size", "32", name="whole") == 0
    assert train(tmp_path, *options, "--optim.batch_size", "8", "--optim.accumulate", "4", name="parts") == 0
    losses = [[line["loss"] for line in RunFolder(tmp_path / name).read_metrics()] for name in ("whole", "parts")]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_with_status_3(tmp_path, capsys):
    status = train(
        tmp_path, "--optim.learning_rate", "1e30", "--optim.warmup_ratio", "0", "--checkpoint.every_steps", "1"
    )
    message = capsys.readouterr().err
    assert status == 3
    assert re.search(
        r"error: step \d+: the loss is .*training needs finite numbers, .*Lower optim.learning_rate", message
    )
    failed_at = int(re.search(r"step (\d+)", message)[1])
    assert all(step < failed_at for step in Checkpoints(RunFolder(tmp_path / "run").checkpoints).steps)
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["1e30", "1e38"])
def test_a_last_step_into_nonsense_is_told_with_its_step(tmp_path, capsys, rate):
    """Loss and gradient were finite, being those before the step. The rate 1e38 leaves no finite parameter."""
    options = ["--optim.learning_rate", rate, "--optim.warmup_ratio", "0", "--optim.max_steps", "1"]
    assert train(tmp_path, *options) == 3
    message = capsys.readouterr().err
    assert re.search(
        r"error: step 1: .* not finite.*; no checkpoint had been written. Lower optim.learning_rate", message
    ), message
    spectrum = RunFolder(tmp_path / "run").spectrum
    assert not spectrum.exists() or "NaN" not in spectrum.read_text()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("manifest.json", "{}", "manifest.json is not one that a run wrote (it lacks weights_sha256, classes)"),
        ("manifest.json", "{", "manifest.json is not one that a run wrote"),
        ("config.yaml", None, "config.yaml is not one that a run wrote"),
    ],
)
def test_a_damaged_run_folder_is_one_line_and_status_2(finished, tmp_path, capsys, file, content, words):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / file
    if content is None:
        values = yaml.safe_load(path.read_text())
        values["mesh"]["unknown"] = 1
        content = yaml.safe_dump(values)
        assert cli.evaluate(["glue", "--run", str(tmp_path / "run")]) == 0
    path.write_text(content)
    (tmp_path / "run" / "results.json").unlink()
    capsys.readouterr()
    status = train(tmp_path) if file == "manifest.json" else cli.evaluate(["glue", "--run", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert status == 2
    assert error.count("\n") == 1
    assert words in error, error


@pytest.mark.slow
def test_sigterm_before_the_first_step_ends_with_its_status(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--run.output_dir", str(tmp_path), "--run.name", "run"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "config.yaml").exists():  # written before the first program is compiled
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 143
    assert "stopped: stopped by SIGTERM" in error
    assert "Traceback" not in error


def test_a_run_is_evaluated_by_the_program_that_it_was_trained_with(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    for scans in (True, False):
        values = yaml.safe_load(config.read_text())
        values["model"]["scan_layers"] = scans
        config.write_text(yaml.safe_dump(values))
        found = TaskModel.from_run(tmp_path / "run")
        assert found.module().encoder.scan_layers == scans


def test_a_comparison_refuses_a_run_whose_config_has_changed(finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    assert read_finished(run).config["svt"]["placement"] == "before_norm"
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("placement: before_norm", "placement: output"))
    with pytest.raises(ValueError, match="config.yaml has changed since the run wrote its folder"):
        read_finished(run)


def test_a_reader_leaves_an_unfinished_save_alone(finished):
    unfinished = finished / "checkpoints" / "99.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert cli.evaluate(["glue", "--run", str(finished), "--checkpoint", "best"]) == 0
    assert unfinished.is_dir()
    unfinished.rmdir()


def test_an_exported_run_is_a_model_folder_with_its_classes_and_tokenizer(finished, tmp_path, capsys):
    command = ["export", "--run", str(finished), "--output", str(tmp_path / "model")]
    assert cli.evaluate(command) == 2
    assert "--svt drop" in capsys.readouterr().err
    assert cli.evaluate([*command, "--svt", "keep"]) == 0
    assert "after step" in capsys.readouterr().out

    texts = (
        ["the baker sold a red kite in the barn .", "the poet hid a lamp ."],
        ["the kite was red .", "it was the baker ."],
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    batch = tokenizer(*texts, padding=True, return_tensors="np")
    found = TaskModel.from_run(finished)
    expected = found.module()(**found.tokenizer(*texts, padding=True, return_tensors="np"))
    classifier = load_classifier(tmp_path / "model", num_labels=2)
    np.testing.assert_allclose(classifier(**batch), expected, atol=1e-6)  # the run's classifier is sharded
    assert classifier.encoder.alphas.keys() == {1}
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "unsupported", "1": "supported"}
    assert config["problem_type"] == "single_label_classification"
    assert tokenizer.model_max_length == classifier.encoder.config.max_tokens
    assert tokenizer.model_input_names == ["input_ids", "token_type_ids", "attention_mask"]

    assert cli.evaluate([*command, "--svt", "keep"]) == 2
    assert "is not empty, and nothing is overwritten" in capsys.readouterr().err


@pytest.mark.slow
def test_never_resuming_refuses_a_folder_with_a_checkpoint_and_no_other(finished, tmp_path, capsys, caplog):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    assert train(tmp_path, "--checkpoint.resume", "never") == 2
    assert "holds this run already and checkpoint.resume is 'never'" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints").mkdir()  # as left by a run that was killed before its first checkpoint
    assert train(tmp_path, "--checkpoint.resume", "never") == 0
    assert [line["step"] for line in RunFolder(tmp_path / "run").read_metrics()] == [3, 6, 9, 12]
    # the old files are kept, and the run says so
    message = (
        f"{tmp_path / 'run'} has no checkpoint, so the run starts at step 0; what an earlier one left there is kept in"
    )
    assert f"{message} {tmp_path / 'run' / 'before-1'}" in caplog.text
    for name in ("metrics.jsonl", "spectrum.jsonl", "config.yaml", "manifest.json", "report.html"):
        assert (tmp_path / "run" / "before-1" / name).read_bytes() == (finished / name).read_bytes()
    ids = [json.loads((each / "manifest.json").read_text())["run_id"] for each in (finished, tmp_path / "run")]
    assert ids[0] != ids[1]


def changed(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("model/config.json", lambda path: changed(path, '"num_attention_heads": 4', '"num_attention_heads": 8')),
        ("model/config.json", lambda path: changed(path, "1e-12", "1e-02")),
        ("model/tokenizer.json", lambda path: changed(path, "baker", "bakes")),
        ("model/tokenizer.json", lambda path: path.unlink()),
        ("model/added_tokens.json", lambda path: path.write_text("{}")),
        ("config.yaml", lambda path: changed(path, "mask_padding: true", "mask_padding: false")),
        ("config.yaml", lambda path: changed(path, "function: soft_decay", "function: centered_soft_decay")),
    ],
)
def test_a_run_of_which_a_file_has_changed_is_refused_by_the_file_s_name(finished, tmp_path, capsys, file, change):
    run = shutil.copytree(finished, tmp_path / "run")
    change(run / file)
    commands = ("glue", "spectrum", "export", "report")
    results = [
        cli.evaluate([each, "--run", str(run), *(["--output", str(tmp_path / "o")] if each in commands[1:3] else [])])
        for each in commands
    ]
    (run / "results.json").unlink()
    assert [*results, train(tmp_path)] == [2] * 5
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    for line in lines:
        assert line.startswith(f"error: {run}: {file} ")
        assert "Put them back from a copy" in line


def test_a_run_may_move_and_its_places_and_speed_may_change(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "elsewhere")
    changed(run / "config.yaml", "every_steps: 3", "every_steps: 5")
    changed(run / "config.yaml", "remat: false", "remat: true")
    changed(run / "config.yaml", "source: hub", "source: /data/elsewhere")
    assert read_run(run)[0].path == run
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["files_sha256"], manifest["run_id"]  # as an earlier version wrote the manifest
    (run / "manifest.json").write_text(json.dumps(manifest))
    changed(run / "model" / "config.json", "1e-12", "1e-11")
    assert read_run(run)[0].path == run


def test_a_checkpoint_of_another_run_is_neither_scored_nor_resumed(finished, interrupted_at_seven, tmp_path, capsys):
    run = interrupted_at_seven
    shutil.copytree(finished / "checkpoints" / "12", run / "checkpoints" / "12")
    assert [cli.evaluate(["glue", "--run", str(run)]), train(tmp_path, *EVERY)] == [2, 2]
    ids = [json.loads((each / "manifest.json").read_text())["run_id"] for each in (finished, run)]
    for line in capsys.readouterr().err.splitlines():
        assert f"12 holds the checkpoint of step 12 of another run, {ids[0]}, and this is {ids[1]}" in line


def test_a_start_that_failed_leaves_the_folder_to_the_corrected_command(tmp_path, monkeypatch, capsys):
    class OutOfMemoryError(Exception):
        pass

    def fail(*_):
        raise OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(session, "_start", fail)
        for size in ("48", "96"):
            with pytest.raises(OutOfMemoryError):
                train(tmp_path, "--optim.batch_size", size)
    find_run(parse_config([*SHORT, "--run.output_dir", str(tmp_path), "--run.name", "run"]))
    setup(parse_config([*SHORT, "--run.output_dir", str(tmp_path), "--run.name", "run"])).lock.release()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["optim"]["batch_size"] == 32
    sizes = [
        yaml.safe_load((tmp_path / "run" / name / "config.yaml").read_text())["optim"]["batch_size"]
        for name in ("before-1", "before-2")
    ]
    assert sizes == [48, 96]


def test_a_user_s_own_config_in_the_folder_is_not_taken_for_a_failed_start(finished, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    shutil.copy(finished / "config.yaml", tmp_path / "run")
    assert train(tmp_path, "--optim.batch_size", "48") == 2
    assert "holds another run's config (optim.batch_size" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ModuleNotFoundError("No module named 'x'")])
def test_a_report_that_cannot_be_made_does_not_fail_a_run_that_is_complete(
    finished, tmp_path, monkeypatch, caplog, error
):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "report.html").unlink()

    def fail(*_):
        raise error

    monkeypatch.setattr("svt_jax.analysis.report.render_report", fail)
    assert train(tmp_path) == 0
    assert "its report could not be made" in caplog.text
    assert f"python eval.py report --run {run}" in caplog.text
    monkeypatch.undo()
    assert cli.evaluate(["report", "--run", str(run)]) == 0
    assert (run / "report.html").stat().st_size > 1000
