"""Parameters of a run's spectral functions: every file that a run leaves has each by layer and name."""

import json
import shutil
from pathlib import Path

import pytest

from svt_jax import cli

ROOT = Path(__file__).parents[2]
SHORT = [
    "--config", str(ROOT / "configs" / "demo.yaml"), "--optim.max_steps", "4", "--log.every_steps", "1",
    "--checkpoint.every_steps", "2", "--svt.function", "log_shift", "--svt.params.gamma", "2.5", "--svt.layers", "all",
    "--run.name", "run",
]  # fmt: skip


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_a_parameter_that_is_not_alpha_is_in_every_file_and_a_resumed_run_keeps_its_first_value(tmp_path, capsys):
    command = [*SHORT, "--run.output_dir", str(tmp_path), "--optim.svt_learning_rate", "0.1"]
    assert cli.train(command) == 0
    assert "layer 0: gamma 2.5000 to " in " ".join(capsys.readouterr().out.replace("│", " ").split())
    run = tmp_path / "run"
    results, lines = json.loads((run / "results.json").read_text()), read(run / "metrics.jsonl")
    assert results["svt"]["alpha"] == []
    parameters = results["svt"]["parameters"]
    assert {layer: set(named) for layer, named in parameters.items()} == {"0": {"gamma"}, "1": {"gamma"}}
    for layer, named in parameters.items():
        assert named["gamma"]["first"] == pytest.approx(2.5, rel=1e-6)
        # The first step's: later ones may lead back, for the batches of four steps disagree about the sign.
        assert abs(lines[0]["svt"][layer]["gamma"] - 2.5) > 0.01
        assert [line["svt"][layer]["gamma"] for line in lines][-1] == named["gamma"]["last"]
        assert read(run / "spectrum.jsonl")[-1]["svt"][layer]["gamma"] == named["gamma"]["last"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"log_shift in layers 0 (gamma {parameters['0']['gamma']['last']:.4f})" in page

    shutil.rmtree(run / "checkpoints" / "4")
    (run / "results.json").unlink()
    assert cli.train(command) == 0
    assert "after step 2 of 4" in " ".join(capsys.readouterr().out.split())
    assert json.loads((run / "results.json").read_text())["svt"] == results["svt"]


@pytest.mark.slow
def test_a_parameter_that_is_not_trained_is_written_down_as_the_constant_that_it_is(tmp_path):
    assert cli.train([*SHORT, "--run.output_dir", str(tmp_path), "--svt.learnable", "false"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for named in results["svt"]["parameters"].values():
        assert named["gamma"]["first"] == named["gamma"]["last"] == pytest.approx(2.5, rel=1e-6)
