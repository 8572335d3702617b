"""The command line: each bad input ends in one line with the right status, and leaves nothing behind."""

import json
import logging
import re
from pathlib import Path

import pytest
import yaml

from svt_jax import cli
from svt_jax.cli import entry
from svt_jax.cli.commands import glue
from svt_jax.run.command_line import parse_config
from svt_jax.run.config import TrainConfig
from svt_jax.run.folder import find_run
from svt_jax.spectral.registry import function_names
from svt_jax.training.search import declared

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
BENCH = sorted((ROOT / "configs" / "bench").glob("*.yaml"))
PARTS = {part: sorted((ROOT / "configs" / "paper" / part).glob("*.yaml")) for part in ("task", "model", "svt")}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_file_loads_and_differs_from_the_defaults(path, caplog):
    config = parse_config(["--config", str(path)])
    assert not caplog.records  # each of its keys does something
    assert config != TrainConfig()
    stated = yaml.safe_load(path.read_text())
    for section, values in stated.items():
        for key, value in values.items():
            assert getattr(getattr(config, section), key) == value


@pytest.mark.parametrize("model", PARTS["model"], ids=lambda p: p.stem)
@pytest.mark.parametrize("task", PARTS["task"], ids=lambda p: p.stem)
def test_every_setting_of_the_paper_is_what_its_three_files_say(task, model, caplog):
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
        assert config.data.layout == "packed"  # of random batches
        assert (config.data.max_length, optim.schedule, optim.accumulate, optim.grad_clip) == (128, "linear", 1, None)
        assert (svt_config.placement, svt_config.alpha) == ("before_norm", -0.2)
    assert not caplog.records


def test_the_paper_has_five_tasks_four_models_and_four_functions():
    assert {part: len(files) for part, files in PARTS.items()} == {"task": 5, "model": 4, "svt": 4}
    for part, files in PARTS.items():
        for file in files:
            stated = yaml.safe_load(file.read_text())
            assert file.read_text().startswith("# ")
            assert set(stated) <= {"task": {"data"}, "model": {"model"}, "svt": {"svt", "optim"}}[part], file


@pytest.mark.parametrize("path", BENCH, ids=lambda p: p.stem)
def test_every_remedy_of_the_bench_has_a_file_without_a_key_that_does_nothing(path, caplog):
    config = parse_config(["--config", str(ROOT / "configs" / "cola.yaml"), "--config", str(path)])
    assert not caplog.records
    function = {"plain": "none", "centred": "centered_soft_decay"}.get(path.stem, path.stem)
    assert (config.svt.function, config.data.task) == (function, "cola")
    assert function in ("none", *function_names())
    assert len(declared([str(path)])[path.stem]) == 3  # the same number of tries for each


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


CUSTOM = ["--data.task", "custom", "--model.path", "m", "--data.text_columns", "[a]", "--data.label_column", "b"]


@pytest.mark.parametrize(
    "labels",
    [
        "NO, SE, DK",
        "01, 02",
        "1:30, 2:00",
        "0, 1",
        "1.0, 1e3",
        "true, false",
        "on, off",
        "1_000, 0x10",
        "2024-01-01, x",
    ],
)
def test_labels_are_the_text_as_written(tmp_path, labels):
    file = tmp_path / "a.yaml"
    file.write_text(f"data: {{labels: [{labels}]}}\n")
    for given in ([f"--data.labels=[{labels}]"], ["--config", str(file)]):
        config = parse_config([*CUSTOM, *given])
        assert config.data.labels == labels.split(", ")
        (tmp_path / "b.yaml").write_text(yaml.safe_dump(config.to_dict()))
        assert parse_config(["--config", str(tmp_path / "b.yaml")]) == config


def test_a_files_values_are_read_by_their_keys_types(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "run: {name: 2024-01-01, seed: 07}\nmodel: {path: 007, remat: true}\n"
        "data: {task: custom, source: 1e5, text_columns: [NO, 02], label_column: 3, labels: regression, buckets: [64, 128]}\n"
        "svt: {function: soft_decay, layers: [-1, 0], alpha: [-1e-1, -0.00001], params: {eps: 1.0e+0}}\n"
        "optim: {learning_rate: 1e-4, weight_decay: 1E-3, grad_clip: .5, max_steps: null, svt_learning_rate: ~}\n"
    )
    config = parse_config(["--config", str(file)])
    assert (config.run.name, config.run.seed, config.model.path, config.model.remat) == ("2024-01-01", 7, "007", True)
    data, svt, optim = config.data, config.svt, config.optim
    assert (data.source, data.text_columns, data.label_column, data.labels) == ("1e5", ["NO", "02"], "3", "regression")
    assert data.buckets == [64, 128]
    assert (svt.layers, svt.alpha, svt.params) == ((-1, 0), (-0.1, -1e-5), {"eps": 1.0})
    assert (optim.learning_rate, optim.weight_decay, optim.grad_clip) == (1e-4, 1e-3, 0.5)
    assert (optim.max_steps, optim.svt_learning_rate) == (None, None)
    file.write_text(yaml.safe_dump(config.to_dict()))
    assert parse_config(["--config", str(file)]) == config


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_config_is_utf_8_with_or_without_a_byte_order_mark(tmp_path, mark):
    (tmp_path / "a.yaml").write_bytes(mark + "run: {name: Grüße 😀}\n".encode())
    (tmp_path / "a.json").write_bytes(mark + json.dumps({"run": {"name": "Grüße 😀"}}, indent="\t").encode())
    for file in ("a.yaml", "a.json"):
        assert parse_config(["--config", str(tmp_path / file)]).run.name == "Grüße 😀"
    (tmp_path / "a.yaml").write_bytes("run: {name: Grüße}\n".encode("latin-1"))
    with pytest.raises(ValueError, match="a.yaml cannot be read .*allowed is a YAML file in UTF-8"):
        parse_config(["--config", str(tmp_path / "a.yaml")])
    (tmp_path / "a.json").write_text('{"run": {"seed": 1,\n "seed": 2}}')
    with pytest.raises(ValueError, match="a.json, line 2: the key 'seed' stands twice"):
        parse_config(["--config", str(tmp_path / "a.json")])


@pytest.mark.parametrize("number", ["-2e-1", "-1e-5", "-1E-05", "-.2", "-0.2e0"])
def test_a_negative_number_with_an_exponent_is_a_value(number):
    config = parse_config(["--svt.function", "soft_decay", "--svt.alpha", number, "--optim.epochs", "2"])
    assert (config.svt.alpha, config.optim.epochs) == (float(number), 2)


@pytest.mark.parametrize(
    ("given", "alpha"),
    [
        ("alpha: -0.00001", -1e-5), ("alpha: -2e-1", -0.2), ("post: [none, soft_decay]", -0.6), ("alpha: null", -0.6),
        ("--alpha -2e-1", -0.2), ("--alpha=-2e-1", -0.2),
    ],
)  # fmt: skip
def test_sts_takes_negative_numbers_with_an_exponent_too(tmp_path, monkeypatch, capsys, given, alpha):
    def evaluate(model, data, *, post_processing, **_):
        raise ValueError(f"{model} {data} {post_processing[-1].alpha}")

    monkeypatch.setattr("svt_jax.embeddings.sts.evaluate_sts", evaluate)
    arguments = given.split()
    if not given.startswith("--"):
        (tmp_path / "a.yaml").write_text(f"{{model: 007, data: NO, {given}}}")
        arguments = ["--config", str(tmp_path / "a.yaml")]
    others = ["--post", "soft_decay", "--output", str(tmp_path / "o.json")]
    model = [] if "--config" in arguments else ["--model", "007", "--data", "NO"]
    assert cli.evaluate(["sts", *model, *arguments, *others]) == 2
    assert capsys.readouterr().err == f"error: 007 NO {alpha}\n"


def test_a_tilde_in_a_path_is_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("run: {output_dir: ~/runs}\nmodel: {path: ~/m}\n")
    config = parse_config(["--config=~/a.yaml", "--data.task=rte", "--data.source=~/glue"])
    paths = (config.run.output_dir, config.model.path, config.data.source)
    assert paths == tuple(str(tmp_path / name) for name in ("runs", "m", "glue"))
    config = parse_config(["--model.path", "google-bert/bert-base-uncased", "--data.task", "rte"])
    assert (config.model.path, config.data.source) == ("google-bert/bert-base-uncased", "hub")
    for arguments in (
        ["glue", "--run=~/r"], ["spectrum", "--run=~/r", "--output=o"], ["report", "--run=~/r"],
        ["export", "--run=~/r", "--output=o"], ["compare", "--runs", "~/r", "--output=o"],
        ["sts", "--config=~/r", "--output=o"], ["compare", "--config=~/a.yaml+~/r", "--seeds=0", "--output=o"],
        ["sts", "--model=m", "--data=~/r", "--output=o"], ["sts", "--model=m", "--data=d", "--output=~/r/o"],
    ):  # fmt: skip
        assert cli.evaluate(arguments) == 2
        assert str(tmp_path / "r") in capsys.readouterr().err, arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--svt.alpha -0.5 --svt.layers all", "svt.layers, svt.alpha do nothing, for svt.function is none"),
        ("--svt.params.gamma 5", "svt.params does nothing, for svt.function is none"),
        ("--svt.placement output", "svt.placement does nothing, for svt.function is none"),
        ("--run.max_svt_failures 3", "run.max_svt_failures does nothing, for svt.function is none"),
        ("--optim.svt_learning_rate 1e-3", "optim.svt_learning_rate does nothing, for svt.function none has no parameters"),
        ("--svt.function average --optim.svt_learning_rate 1e-3", "svt.function average has no parameters"),
        ("--svt.function soft_decay --svt.learnable false --optim.svt_learning_rate 1e-3", "optim.svt_learning_rate does"),
        ("--svt.function log_shift --svt.alpha -0.5", "svt.alpha does nothing, for svt.function log_shift has none"),
        ("--svt.function soft_decay --svt.placement output --svt.dropout 0", "svt.dropout does nothing, for svt.placement"),
        ("--svt.function contra_norm --svt.solver svd", "svt.solver does nothing, for contra_norm decomposes no matrix"),
        ("--data.buckets [128]", "data.buckets does nothing, for data.layout is packed. Set it to padded"),
        ("--data.layout padded --data.rows 8", "data.rows does nothing, for data.layout is padded. Set it to packed"),
        ("--data.source here", "data.source does nothing, for the task demo makes its own examples"),
        ("--svt.function soft_decay --svt.alpha -0.5 --optim.svt_learning_rate 1e-3", None),
        ("--svt.function log_shift --svt.params.gamma 5 --run.max_svt_failures 3", None),
    ],
)  # fmt: skip
def test_a_key_that_does_nothing_is_a_warning(caplog, arguments, words):
    parse_config(arguments.split())
    assert len(caplog.messages) == (words is not None)
    assert all(words in message for message in caplog.messages)


@pytest.mark.parametrize(
    "name", ["../../x", "/x", "a/b", "a\\b", "", " ", ".", "..", "a\nb", "a\x1b[2J", "x" * 256, "\ud800"]
)
def test_a_runs_name_is_a_folder_inside_of_the_output_folder(name):
    with pytest.raises(ValueError, match="allowed is a folder's name inside run.output_dir"):
        parse_config([f"--run.name={name}"])


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
