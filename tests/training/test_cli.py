"""The command line: each bad input ends in one line with the right status, and leaves nothing behind."""

import json
import logging
import re
from pathlib import Path

import pytest

from svt_jax import cli
from svt_jax.cli import entry
from svt_jax.cli.commands import glue
from tests.pages import ROOT


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optim.learnin_rate", "1"], "unknown key 'optim.learnin_rate'; allowed are optim.learning_rate, .*Did you mean optim.learning_rate?"),
        (["--optimizer.epochs", "1"], "unknown key 'optimizer.epochs'; allowed are checkpoint, data, "),
        (["--optim.epochs", "three"], "--optim.epochs is 'three'; allowed is a whole number. Correct it."),
        (["--optim.epochs", "0"], "optim.epochs is 0; it must be greater than 0"),
        (["--svt.alpha", "0.5"], r"svt.alpha is 0.5; it must lie in \(-1, 0\)"),
        (["--svt.function", "softdecay"], "svt.function is 'softdecay'; allowed are none, soft_decay"),
        (["--svt.function", "log_shift", "--svt.params", "{gama: 5}"], "svt.params: spectral function 'log_shift'.*'gama'; its parameters are gamma"),
        (["--svt.function", "token_all_but_the_top", "--svt.params.directions", "2.5"], "directions of TokenAllButTheTop must be a whole number, got 2.5"),
        (["--svt.params", "3"], "svt.params is '3'; allowed is a table of names and values"),
        (["--svt.placement", "x"], "svt.placement is 'x'; allowed is .*before_norm"),
        (["--config", "no.yaml"], "--config 'no.yaml' does not exist; allowed is a YAML file, or the name of a packaged config: .*cola, .*Check the path"),
        (["--config", "paper/svt/plan"], "Did you mean paper/svt/plain?"),
        (["--svt.function", "soft_decy"], "Did you mean soft_decay?"),
        (["--plugin", "nofile.py"], "^error: --plugin [^ ]*nofile.py does not exist; .*Check the path.$"),
        (["--model.path", __file__, "--data.task", "rte"], "test_cli.py' is a file; allowed are a folder with .*Name its folder"),
        (["--data.task", "rte"], "model.path is 'demo' and data.task is 'rte'"),
        (["--model.path", "m", "--data.task", "gleu"], "data.task is 'gleu'; allowed are demo, cola"),
        (["--model.path", "no/such/folder", "--data.task", "rte"], "the model 'no/such/folder' is not a folder here"),
        (["--mesh.data", "3"], "mesh data=3, fsdp=1, tensor=1 does not fit 8 devices"),
        (["--optim.batch_size", "12"], "optim.batch_size is 12 and does not divide over 8 devices"),
        (["--svt.function", "soft_decay", "--svt.layers", "[7]"], r"svt.layers is \[7\]; the model has layers 0 to 1"),
        (["--distributed.num_processes", "2"], "distributed is .*allowed are all three keys, or none"),
        (["--distributed", "{coordinator: here, num_processes: 2, process_id: 0}"], "coordinator is 'here'; allowed is host:port"),
        (["--distributed", "{coordinator: 'h:1', num_processes: 2, process_id: 2}"], "process_id is 2 of 2 processes; allowed are 0 to"),
        (["--run.name", "../../x"], "run.name is '../../x'; allowed is a folder's name inside run.output_dir"),
        (["--optim.batch_size", "3000000"], "optim.batch_size 3000000 times optim.accumulate 1 is 3000000 examples a step and the training set has "),
        (["--optim.batch_size", "1000000000000"], "is 1000000000000 examples a step"),
        (["--optim.accumulate", "1000000"], "optim.batch_size 32 times optim.accumulate 1000000 is 32000000"),
        (["--optim.epochs", "1" + "0" * 30], r"steps; allowed are fewer than 2\^31"),
        (["--data.layout", "padded", "--data.buckets", "[1000000000]"], r"data.buckets is \[1000000000\] and the model has 64 positions"),
        (["--data.layout", "Packed"], "data.layout is 'Packed'; allowed is packed or padded"),
        (["--data.groups", "4"], "data.groups is 4 and the mesh divides the batch over 8 devices .*multiples of 8"),
        (["--data.groups", "0"], "data.groups is 0; allowed is a number from 1, or auto"),
        (["--data.rows", "12", "--data.groups", "8"], "data.rows is 12; it must be a multiple of data.groups, 8"),
        (["--svt.function", "soft_decay", "--svt.mask_padding", "false"], "svt.mask_padding is false and data.layout is packed"),
        (["--mesh.data", "1000000000000"], "mesh data=1000000000000, .* does not fit 8 devices"),
        (["--run.max_svt_failures", "-1"], "run.max_svt_failures is -1; it must be at least 0"),
        (["stray"], "stray"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2_and_leaves_no_folder(tmp_path, capsys, arguments, words):
    status = cli.train(["--run.output_dir", str(tmp_path / "runs"), *arguments])
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(words, error), error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("svt:\n", "section svt is None|svt"),
        ("svt: 3\n", "svt"),
        ("learning_rate: 1e-4\n", "unknown key 'learning_rate'.*Did you mean optim.learning_rate"),
        ("svt: {alpha: big}\n", "svt.alpha is 'big'; allowed is a number or a list as"),
        ("optim: {learning_rate: .nan}\n", "optim.learning_rate is nan; it must be greater than 0 and finite"),
        ("optim: {learning_rate: [\n", "a.yaml, line 2: "),
        (
            "optim: {epochs: 1}\nrun: {seed: 1}\noptim:\n  learning_rate: 1e-3\n",
            "a.yaml, line 3: the key 'optim' stands twice",
        ),
        (
            "optim: {learning_rate: 1e-3,\n  learning_rate: 1e-4}\n",
            "a.yaml, line 2: the key 'learning_rate' stands twice",
        ),
        ("run: {name: " + "[" * 100_000, "a.yaml, line 1: it nests deeper than 20 levels"),
        (
            "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
            "more than 10000 values",
        ),
        ("run: &run {name: *run}\n", "the alias 'run' is inside of what it stands for"),
        ("run: {name: " + "x" * 10**6 + "}\n", "run.name is 'xxx.* ... xxx.*'; allowed is a folder's name"),
        ("optim: {epochs: " + "x" * 10**6 + "}\n", "optim.epochs is 'xxx.* ... xxx.*'; allowed is a whole number"),
        ("? " + "x" * 10**6 + "\n: 1\n", "unknown key 'xxx"),
        ("? [a]\n: 1\n", "a.yaml, line 1: "),
    ],
)
def test_odd_config_files_are_one_line_and_status_2(tmp_path, capsys, text, words):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert cli.train(["--config", str(file), "--run.output_dir", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert len(error) < 1000
    assert re.search(words, error), error


@pytest.mark.parametrize("text", ["foo: 1\n", "", "[", "run: 3\n"])
def test_a_folder_with_a_foreign_config_is_refused(tmp_path, capsys, text):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.yaml").write_text(text)
    arguments = ["--config", str(ROOT / "configs" / "demo.yaml"), "--run.output_dir", str(tmp_path)]
    assert cli.train(arguments) == 2
    assert cli.evaluate(["glue", "--run", str(tmp_path / "demo")]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
    assert (tmp_path / "demo" / "config.yaml").read_text() == text


def test_without_a_config_the_demos_is_the_base(tmp_path, capsys):
    demo = ROOT / "configs" / "demo.yaml"
    assert cli.train(["--optim.epochs", "0"], default_config=demo) == 2
    arguments = ["--svt.layers", "[9]", "--run.output_dir", str(tmp_path)]  # demo.yaml turns the SVT on
    assert cli.train(arguments, default_config=demo) == 2
    assert "svt.layers is [9]" in capsys.readouterr().err


def test_an_unknown_key_in_a_file_names_its_section(tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text("svt: {functoin: soft_decay}\n")
    assert cli.train(["--config", str(file)]) == 2
    assert "unknown key 'svt.functoin'; allowed are svt.function, " in capsys.readouterr().err


def test_missing_data_folder_and_folder_without_weights(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 7}))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    common = ["--model.path", str(tmp_path), "--data.task", "rte", "--run.output_dir", str(tmp_path / "runs")]
    assert cli.train([*common, "--data.source", str(tmp_path / "nowhere")]) == 2
    assert "nowhere' is not a folder" in capsys.readouterr().err
    data = tmp_path / "data" / "RTE"
    data.mkdir(parents=True)
    for name in ("train.tsv", "dev.tsv"):
        (data / name).write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    assert cli.train([*common, "--data.source", str(data.parent)]) == 2
    assert "has no model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["glue"], "one of the arguments --run --model is required"),
        (["glue", "--run", "nowhere"], "nowhere holds no run"),
        (["glue", "--model", "m"], "--model needs --task"),
        (["glue", "--run", "r", "--task", "rte"], "--task and --data.max_length go with --model"),
        (["glue", "--run", "r", "--data.max_length", "9"], "--task and --data.max_length go with --model"),
        (["glue", "--model", "m", "--task", "rte", "--checkpoint", "best"], "--checkpoint goes with --run"),
        (["spectrum", "--run", "r", "--task", "rte", "--output", "o"], "--task and --data.max_length go with --model"),
        (["spectrum", "--model", "m", "--checkpoint", "1", "--output", "o"], "--checkpoint goes with --run"),
        (["gleu", "--run", "x"], "unknown command 'gleu'"),
        (["reprot"], "Did you mean report?"),
        (["spectrum", "--run", "r", "--output", "o", "--measures", "stable_rnk"], "Did you mean stable_rank?"),
        (["spectrum", "--model", "m", "--output", "o", "--task", "rtee"], "Did you mean rte?"),
        (
            ["export", "--run", "r", "--output", "o", "--svt", "kep"],
            "--svt is 'kep'; allowed is keep or drop. Correct it.",
        ),
        (["glue", "--run", "x", "--splitt", "test"], "Did you mean split?"),
        (["report", "--run", "nowhere"], "nowhere holds no run"),
    ],
)
def test_bad_evaluation_commands_are_one_line_and_status_2(capsys, arguments, words):
    assert cli.evaluate(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("predict --model=m --input=i.txt --output=a.csv", "a.csv"),
        ("eval sts --model=m --data=d --output=a.json", "a.json"),
        ("eval spectrum --run=r --output=s", "s/spectrum.json"),
        ("eval spectrum --run=r --output=s --measures=all", "s/probe/probe.json"),
    ],
)
def test_what_lies_at_the_output_is_never_overwritten(tmp_path, monkeypatch, capsys, command, file):
    monkeypatch.chdir(tmp_path)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text("mine")
    assert cli.main(command.split()) == 2
    assert capsys.readouterr().err == (
        f"error: {file} is there already, and nothing is overwritten. Choose another --output.\n"
    )
    assert Path(file).read_text() == "mine"


def test_traceback_is_shown_on_request(capsys):
    assert cli.train(["--optim.epochs", "0", "--traceback"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "level", "message", "heard"),
    [
        ("jax._src.xla_bridge", "warning", "An NVIDIA GPU may be present on this machine, but a CUDA-enabled jaxlib is not installed.", True),
        ("jax._src.xla_bridge", "warning", "A Google TPU may be present on this machine, but libtpu is not installed.", True),
        ("jax._src.xla_bridge", "info", "Unable to initialize backend 'tpu'", False),
        ("jax._src.dispatch", "warning", "Finished tracing", False),
        ("jax._src.dispatch", "error", "Tracing has failed", True),
        ("svt_jax.cli", "warning", "ours", True),
    ],
)  # fmt: skip
def test_jax_is_heard_on_devices_that_are_not_used(caplog, name, level, message, heard):
    entry._be_quiet()
    getattr(logging.getLogger(name), level)(message)
    assert (message in caplog.messages) == heard


@pytest.mark.parametrize("card", ["NVIDIA GPU", "Google TPU"])
def test_jax_itself_tells_of_a_card_that_it_does_not_use(monkeypatch, caplog, card):
    from jax._src import hardware_utils, xla_bridge

    monkeypatch.setattr(hardware_utils, "has_visible_nvidia_gpu", lambda: card == "NVIDIA GPU")
    monkeypatch.setattr(hardware_utils, "num_available_tpu_chips_and_device_id", lambda: (8, None))
    entry._be_quiet()
    xla_bridge._suggest_missing_backends()
    assert f"A{'n' * (card[0] == 'N')} {card} may be present on this machine" in caplog.text


def test_no_memory_is_one_line_and_status_2(monkeypatch, capsys):
    def allocate(*_, **__):
        raise MemoryError("Unable to allocate 9 PiB")

    monkeypatch.setattr(glue, "run", allocate)
    assert cli.evaluate(["glue"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the memory does not suffice (Unable to allocate 9 PiB)" in error
    assert "Lower optim.batch_size" in error


def test_an_error_shows_no_control_characters_and_is_never_long(monkeypatch, capsys):
    def fail(*_, **__):
        raise ValueError("came \x1b[2J" + "x" * 10**7 + "; allowed is y. Do z.")

    monkeypatch.setattr(glue, "run", fail)
    assert cli.evaluate(["glue"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: came \\x1b[2Jxx")
    assert error.endswith("xx; allowed is y. Do z.\n")
    assert len(error) < 2100
