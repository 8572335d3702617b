"""The command line: what bad input gets, in one line and with the right status, leaving nothing behind."""

import json
import re
from pathlib import Path

import pytest
import yaml

from svt_jax import cli
from svt_jax.training.command_line import parse_config
from svt_jax.training.config import TrainConfig
from svt_jax.training.run_folder import find_run

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PARTS = {part: sorted((ROOT / "configs" / "paper" / part).glob("*.yaml")) for part in ("task", "model", "svt")}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_file_loads_and_differs_from_the_defaults(path):
    config = parse_config(["--config", str(path)])
    assert config != TrainConfig()
    stated = yaml.safe_load(path.read_text())
    for section, values in stated.items():
        for key, value in values.items():
            assert getattr(getattr(config, section), key) == value


@pytest.mark.parametrize("model", PARTS["model"], ids=lambda p: p.stem)
@pytest.mark.parametrize("task", PARTS["task"], ids=lambda p: p.stem)
def test_every_setting_of_the_paper_is_what_its_three_files_say(task, model):
    expected = {
        "bert": "google-bert/bert-base-uncased", "albert": "albert/albert-base-v1",
        "distilbert": "distilbert/distilbert-base-uncased", "roberta": "FacebookAI/roberta-base",
    }  # fmt: skip
    functions = {  # function, alpha's rate, layers, dropout
        "plain": ("none", None, (-1,), 0.1),
        "paper": ("soft_decay", None, (-1,), 0.1),
        "centred": ("centered_soft_decay", 2e-3, (-1,), 0.1),
        "contra_norm": ("contra_norm", None, "all", 0.0),
    }
    assert {p.stem for p in PARTS["svt"]} == set(functions)
    for svt in PARTS["svt"]:
        config = parse_config([f"--config={file}" for file in (task, model, svt)])
        assert (config.data.task, config.model.path) == (task.stem, expected[model.stem])
        optim, svt_config = config.optim, config.svt
        found = (svt_config.function, optim.svt_learning_rate, svt_config.layers, svt_config.dropout)
        assert found == functions[svt.stem]
        protocol = (optim.batch_size, optim.learning_rate, optim.epochs, optim.weight_decay, optim.warmup_ratio)
        assert protocol == (32, 2e-5, 3, 0.0, 0.0)
        assert not config.data.group_by_length
        assert (config.data.max_length, optim.schedule, optim.accumulate, optim.grad_clip) == (128, "linear", 1, None)
        assert (svt_config.placement, svt_config.alpha) == ("before_norm", -0.2)


def test_the_paper_has_five_tasks_four_models_and_four_functions():
    assert {part: len(files) for part, files in PARTS.items()} == {"task": 5, "model": 4, "svt": 4}
    for part, files in PARTS.items():
        for file in files:
            stated = yaml.safe_load(file.read_text())
            assert file.read_text().startswith("# ")
            assert set(stated) <= {"task": {"data"}, "model": {"model"}, "svt": {"svt", "optim"}}[part], file


def test_options_override_the_file_wherever_they_stand(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("optim: {epochs: 9, learning_rate: 1e-4}\n")
    for arguments in (["--optim.epochs", "2", "--config", str(file)], [f"--config={file}", "--optim.epochs=2"]):
        config = parse_config(arguments)
        assert (config.optim.epochs, config.optim.learning_rate) == (2, 1e-4)


def test_lists_words_and_null_are_read_by_type():
    config = parse_config(
        ["--svt.layers", "every:2", "--svt.alpha", "[-0.1,-0.2]", "--run.name", "null", "--data.buckets", "[16,128]"]
    )
    assert (config.svt.layers, config.svt.alpha, config.run.name, config.data.buckets) == (
        "every:2",
        (-0.1, -0.2),
        None,
        [16, 128],
    )


@pytest.mark.parametrize(
    "arguments", [["--svt.params", "{gamma: 5.0}"], ["--svt.params.gamma", "5.0"], ["--svt.params.gamma=5"]]
)
def test_params_come_from_a_file_or_the_command_line_and_go_through_config_yaml(tmp_path, arguments):
    file = tmp_path / "a.yaml"
    file.write_text("svt: {function: log_shift, params: {gamma: 2.0}}\n")
    assert parse_config(["--config", str(file)]).svt.params == {"gamma": 2.0}
    config = parse_config(["--config", str(file), *arguments])
    assert config.svt.params == {"gamma": 5.0}
    file.write_text(yaml.safe_dump(config.to_dict()))
    assert parse_config(["--config", str(file)]) == config


def test_a_run_with_other_params_is_another_run(tmp_path):
    arguments = ["--svt.function", "log_shift", "--run.name", "a", "--run.output_dir", str(tmp_path)]
    first = parse_config([*arguments, "--svt.params.gamma", "5.0"])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text(yaml.safe_dump(first.to_dict()))
    assert find_run(first).path == tmp_path / "a"
    for others, change in (([], "svt.params.gamma 5.0 -> None"), (["--svt.params.gamma", "6"], "gamma 5.0 -> 6")):
        with pytest.raises(ValueError, match=change):
            find_run(parse_config([*arguments, *others]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optim.learnin_rate", "1"], "unknown key 'optim.learnin_rate'; allowed are optim.learning_rate, .*Did you mean optim.learning_rate?"),
        (["--optimizer.epochs", "1"], "unknown key 'optimizer.epochs'; allowed are checkpoint, data, "),
        (["--optim.epochs", "three"], "optim.epochs is 'three'; allowed is int"),
        (["--optim.epochs", "0"], "optim.epochs is 0; it must be greater than 0"),
        (["--svt.alpha", "0.5"], r"svt.alpha is 0.5; it must lie in \(-1, 0\)"),
        (["--svt.function", "softdecay"], "svt.function is 'softdecay'; allowed are none, soft_decay"),
        (["--svt.function", "log_shift", "--svt.params", "{gama: 5}"], "svt.params: spectral function 'log_shift'.*'gama'; its parameters are gamma"),
        (["--svt.function", "all_but_the_top", "--svt.params.directions", "2.5"], "directions of TokenAllButTheTop must be a whole number, got 2.5"),
        (["--svt.params", "3"], "svt.params is '3'; allowed is dict"),
        (["--svt.placement", "x"], "svt.placement is 'x'; allowed is .*before_norm"),
        (["--config", "no.yaml"], "config file '.*no.yaml' does not exist"),
        (["--data.task", "rte"], "model.path is 'demo' and data.task is 'rte'"),
        (["--model.path", "m", "--data.task", "gleu"], "data.task is 'gleu'; allowed are demo, cola"),
        (["--model.path", "no/such/folder", "--data.task", "rte"], "the model 'no/such/folder' is not a folder here"),
        (["--mesh.data", "3"], "mesh data=3, fsdp=1, tensor=1 does not fit 8 devices"),
        (["--optim.batch_size", "12"], "optim.batch_size is 12 and does not divide over 8 devices"),
        (["--svt.function", "soft_decay", "--svt.layers", "[7]"], r"svt.layers is \[7\]; the model has layers 0 to 1"),
        (["--distributed.num_processes", "2"], "distributed is .*allowed are all three keys, or none"),
        (["--distributed", "{coordinator: here, num_processes: 2, process_id: 0}"], "coordinator is 'here'; allowed is host:port"),
        (["--distributed", "{coordinator: 'h:1', num_processes: 2, process_id: 2}"], "process_id is 2 of 2 processes; allowed are 0 to"),
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
        ("svt: {alpha: big}\n", "svt.alpha is big; allowed is one of float"),
        ("optim: {learning_rate: .nan}\n", "optim.learning_rate is nan; it must be greater than 0 and finite"),
        ("optim: {learning_rate: [\n", "error: "),
    ],
)
def test_odd_config_files_are_one_line_and_status_2(tmp_path, capsys, text, words):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert cli.train(["--config", str(file), "--run.output_dir", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
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
    arguments = ["--svt.layers", "[9]", "--run.output_dir", str(tmp_path)]  # it is on in demo.yaml
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
        (["gleu", "--run", "x"], "invalid choice: 'gleu'"),
        (["glue", "--run", "x", "--splitt", "test"], "Did you mean --split?"),
        (["report", "--run", "nowhere"], "nowhere holds no run"),
    ],
)
def test_bad_evaluation_commands_are_one_line_and_status_2(capsys, arguments, words):
    assert cli.evaluate(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error


def test_traceback_is_shown_on_request(capsys):
    assert cli.train(["--optim.epochs", "0", "--traceback"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err
