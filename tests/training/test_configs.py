"""Config files and options: what they are read as, which come together, and which do nothing."""

import json

import pytest
import yaml

from svt_jax import cli
from svt_jax.run.command_line import parse_config
from svt_jax.run.config import TrainConfig
from svt_jax.run.folder import find_run
from svt_jax.spectral.registry import function_names
from svt_jax.training.search import declared
from tests.pages import ROOT

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
