"""The help that a person reads first, and the advice of a message about a wrong name."""

import re

import pytest

from svt_jax import cli
from svt_jax.cli.entry import DATA, EVALUATIONS
from svt_jax.run.command_line import called, parse_config

COMMANDS = [["train"], ["predict"], *(["eval", name] for name in EVALUATIONS), *(["data", name] for name in DATA)]


@pytest.fixture(autouse=True)
def width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


def help_of(*command):
    def read(capsys):
        assert cli.main([*command, "--help"]) == 0
        return capsys.readouterr().out

    return read


def test_the_first_help_fits_a_screen_and_shows_three_examples(capsys):
    text = help_of()(capsys)
    assert len(text.splitlines()) <= 24
    assert len(re.findall(r"^  svt-jax (?:train|eval)\b", text, re.MULTILINE)) == 3
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_help_has_groups_defaults_and_examples_that_are_read(command, capsys):
    text = help_of(*command)(capsys)
    assert len(re.findall(r"^\S.*:$", text, re.MULTILINE)) >= 3, "options, another group, examples"
    for internal in ("type:", "<function", "NoneType", "None", "CONFIG]", "Path to a configuration"):
        assert internal not in text, internal
    options = re.split(r"^  (?=-)", text, flags=re.MULTILINE)[1:]
    assert all(each.count("(default") <= 1 for each in options)
    *_, last = text.partition("examples:\n")
    lines = last.strip().splitlines()
    assert 2 <= len(lines) <= 3
    names = set(re.findall(r"^ +(--[\w.]+)", text, re.MULTILINE))
    assert {option for line in lines for option in re.findall(r"--[\w.]+", line)} <= names


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_help_has_the_name_by_which_the_command_was_called(command, capsys):
    name = " ".join(["svt-jax", *command])
    text = help_of(*command)(capsys)
    assert text.startswith(f"usage: {name} ")
    assert f"\n  {name} --" in text


@pytest.mark.parametrize(
    ("script", "command", "name"),
    [
        ("/a/eval.py", "svt-jax eval glue", "eval.py glue"),
        ("train.py", "svt-jax train", "train.py"),
        ("train.py", "svt-jax eval glue", "svt-jax eval glue"),
        ("/bin/svt-jax", "svt-jax train", "svt-jax train"),
    ],
)
def test_a_script_of_the_clone_is_called_by_its_own_name(monkeypatch, script, command, name):
    monkeypatch.setattr("sys.argv", [script])
    assert called(command) == name


def test_options_show_their_choices_and_only_those_of_their_command(capsys):
    assert "--svt {keep,drop}" in help_of("eval", "export")(capsys)
    assert "--plugin" not in help_of("data", "glue")(capsys)


def test_a_list_shows_how_it_is_written(capsys):
    assert '--data.text_columns "[a, b]"' in help_of("train")(capsys)
    with pytest.raises(
        ValueError, match=r"""data.text_columns is 'question'; allowed is a list as "\[a, b\]" or null"""
    ):
        parse_config(["--data.task", "custom", "--data.text_columns", "question"])


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("--optim.lr", "Did you mean optim.learning_rate?"),
        ("--optim.colour", "Correct the name."),
        ("--alpha", "Did you mean svt.alpha?"),
        ("--optim.alpha", "Did you mean svt.alpha?"),
        ("--data.tsak", "Did you mean data.task?"),
        ("--zzz", "Correct the name."),
    ],
)
def test_a_name_is_suggested_only_if_one_is_near(option, advice):
    with pytest.raises(ValueError, match=re.escape(advice) + "$"):
        parse_config([option, "1"])
