"""Plugins: a user's own remedies on the command line, recorded in the run, and read by the plain commands."""

import json
import sys

import pytest

from svt_jax import cli
from svt_jax.run import plugin
from svt_jax.run.command_line import make_config, parse_config
from svt_jax.spectral import registry

SHARPER = """
import jax.numpy as jnp
import svt_jax


class Sharper(svt_jax.AttentionMapOperation):
    share: float = 0.1
    one_per = {"share": "heads"}

    def operate(self, attention, attends):
        return attention + jnp.reshape(self.share, (-1, 1, 1)) * (jnp.square(attention) - attention)


svt_jax.register_function("sharper", Sharper)
"""


@pytest.fixture
def other_process(monkeypatch):
    """Forgets what was registered, as a new process does."""

    def forget():
        monkeypatch.setattr(registry, "_REGISTRY", {n: f for n, f in registry._REGISTRY.items() if n != "sharper"})
        monkeypatch.setattr(plugin, "_loaded", set())

    forget()
    return forget


@pytest.fixture
def file(tmp_path, other_process):
    path = tmp_path / "mine.py"
    path.write_text(SHARPER)
    return path


def test_a_file_makes_its_names_known_to_a_config(file, monkeypatch, other_process):
    monkeypatch.chdir(file.parent)
    settings = ["--svt.function", "sharper", "--svt.site", "attention_map"]
    config = parse_config(["--plugin", "mine.py", *settings])
    assert (config.run.plugin, config.svt.function) == (str(file), "sharper")
    assert parse_config(["--run.plugin", str(file), *settings]) == config  # loaded once
    other_process()
    assert (
        make_config({"run": {"plugin": str(file)}, "svt": {"function": "sharper", "site": "attention_map"}}) == config
    )


def test_a_module_is_found_in_the_working_folder(file, monkeypatch):
    file.rename(file.with_name("my_remedies.py"))
    monkeypatch.chdir(file.parent)
    path = list(sys.path)
    assert parse_config(
        ["--plugin", "my_remedies", "--svt.function", "sharper", "--svt.site", "attention_map"]
    ).run.plugin
    assert sys.path == path
    sys.modules.pop("my_remedies")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 / 0", "cannot be loaded (ZeroDivisionError: division by zero); allowed is a module or a .py file"),
        ("", "registers nothing; allowed is a module or a .py file that calls svt_jax.register_function"),
        ("import svt_jax; svt_jax.register_function('gfsa', None)", "'gfsa' is registered already"),
    ],
)
def test_a_plugin_that_fails_is_one_line_and_status_2(file, capsys, text, words):
    file.write_text(text)
    assert cli.train(["--plugin", str(file), "--run.output_dir", str(file.parent / "runs")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (file.parent / "runs").exists()


def test_a_run_whose_remedy_is_not_known_says_how_to_name_it(file, other_process):
    config = {"svt": {"function": "sharper"}, "run": {}}
    with pytest.raises(ValueError, match="sharper', which is not registered here.*by --plugin"):
        plugin.load_recorded(file.parent, config, None)
    config["run"]["plugin"] = str(file)
    with pytest.raises(ValueError, match="has changed since the run.*Put it back, or name the file to use by --plugin"):
        plugin.load_recorded(file.parent, config, "0" * 64)
    assert "sharper" not in registry.function_names()  # it has not run
    with pytest.raises(ValueError, match="mine2.py, which is not there"):
        plugin.load_recorded(file.parent, {**config, "run": {"plugin": str(file.with_name("mine2.py"))}}, None)
    plugin.load_recorded(file.parent, config, plugin.plugin_digest(str(file)))
    assert "sharper" in registry.function_names()


@pytest.mark.slow
def test_plain_commands_read_a_run_with_a_remedy_of_ones_own(file, other_process, capsys):
    runs, command = file.parent / "runs", "--config demo --svt.function sharper --svt.site attention_map --run.name own"
    command = [*command.split(), "--optim.max_steps", "2", "--run.output_dir", str(runs), "--plugin", str(file)]
    assert cli.train(command) == 0
    results = json.loads((runs / "own" / "results.json").read_text())
    assert len(results["svt"]["parameters"]["1"]["share"]["last"]) == 4
    other_process()
    assert cli.evaluate(["glue", "--run", str(runs / "own")]) == 0
    assert json.dumps(results["metrics"]["validation"])[1:-1] in capsys.readouterr().out
    other_process()
    exported = str(file.parent / "exported")
    assert cli.evaluate(["export", "--run", str(runs / "own"), "--svt", "keep", "--output", exported]) == 0
    other_process()
    file.write_text(SHARPER.replace("square", "abs"))
    (runs / "own" / "results.json").unlink()  # as a run that was stopped
    assert cli.train(command) == 2  # a resumed run would go on with another remedy
    assert "began with another plugin" in capsys.readouterr().err
