"""A TrainConfig from a command line, with errors that say what came, what is allowed and what to do."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import glob
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from svt_jax.run.config import TrainConfig
from svt_jax.run.plugin import load_plugin
from svt_jax.stores import as_path
from svt_jax.text import did_you_mean, printable
from svt_jax.yaml_files import as_values, load_text, read_table

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

log = logging.getLogger(__name__)


def parse_config(arguments: Sequence[str]) -> TrainConfig:
    """Parses a command line: defaults, then --config files, then --section.key values, in that order.

    Each key's type decides how its value is read; a text key takes the text as written. Keys without effect warn.

    Raises:
      ValueError: for an unknown key, a wrong type or a value out of range.
    """
    parser = train_parser()
    return _to_config(parser, parse(parser, arguments, _keys(TrainConfig)))


def make_config(values: Mapping[str, Any] | str | Path) -> TrainConfig:
    """Makes a TrainConfig from nested values as in a YAML file, or from such a file. Raises as `parse_config`.

    Example:
      >>> make_config({"optim": {"epochs": 1}, "svt": {"function": "soft_decay"}}).optim.epochs
      1
    """
    if not isinstance(values, Mapping):
        return parse_config(["--config", str(values)])
    parser = train_parser()
    return _to_config(parser, _parse_table(parser, dict(values), None, _keys(TrainConfig), ""))


@functools.cache
def train_parser() -> ArgumentParser:
    """The parser of every key of a training config; it takes 0.2 s to make."""
    from svt_jax.run.help_text import tidy

    prog = called("svt-jax train")
    parser = make_parser(
        prog,
        "Fine-tunes an encoder with a singular value transformation. Without arguments: configs/demo.yaml.",
        usage=f"{prog} [--config FILE] [--section.key VALUE ...]",
        examples=(
            "--config rte --model.path MODEL --data.source GLUE",
            '--config rte --svt.function soft_decay --svt.layers "[-2, -1]" --run.name two',
            '--data.task custom --data.source FOLDER --data.text_columns "[question, answer]" --data.label_column verdict',
        ),
    )
    parser.add_argument(
        "--config",
        help="YAML file with what differs from the defaults, or the name of one in configs/; of several a later overrides.",
    )
    parser.add_argument("--plugin", help="The same as --run.plugin.")
    parser.add_class_arguments(TrainConfig)
    parser.add_argument("--traceback", action="store_true", help="Show where an error came from.")
    tidy(parser)
    return parser


def called(command: str) -> str:
    """A command by the name that it was called by: "svt-jax eval glue", or "eval.py glue" where that script was started."""
    script = Path(sys.argv[0]).name
    installed = {"train.py": "svt-jax train", "eval.py": "svt-jax eval"}.get(script, "")
    return script + command.removeprefix(installed) if installed and command.startswith(installed) else command


def make_parser(prog: str, description: str, *, usage: str, examples: tuple[str, ...] = ()) -> ArgumentParser:
    """A parser that keeps values as text until their option's type reads them.

    Args:
      examples: command lines without `prog`, for the end of its help.
    """
    from jsonargparse import ArgumentParser, set_loader, set_parsing_settings

    from svt_jax.run import help_text

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("svt_jax", load_text, (yaml.YAMLError,))
    return ArgumentParser(
        prog=prog,
        usage=usage,
        description=description,
        epilog=help_text.examples(prog, examples),
        formatter_class=help_text.HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode="svt_jax",
    )


_OTHERWISE = "allowed are --config FILE and --section.key VALUE. See --help."


def parse(parser: ArgumentParser, arguments: Sequence[str], keys: list[str], otherwise: str = _OTHERWISE) -> Namespace:
    """The values of --config files, overridden by the other arguments.

    Args:
      parser: the parser, made by `make_parser`.
      arguments: the command line.
      keys: names of its options.
      otherwise: the end of a message that has no form of its own.
    Raises:
      ValueError: for an unknown option or a wrong value.
    """
    files, options = split_configs(arguments) if "config" in (a.dest for a in parser._actions) else ([], arguments)
    parsed = None
    for path in files:
        table = read_table(find_config(path), [key for key in keys if "." not in key] or ("keys",))
        table.pop(SEARCH, None)
        parsed = _parse_table(parser, table, parsed, keys, f"{path}: ")
    try:
        return parser.parse_args(join_negative_numbers(options), parsed)
    except argparse.ArgumentError as error:
        raise ValueError(explain(str(error), keys, otherwise, "--")) from error


SEARCH = "search"
"""A config's section of values that `eval.py compare` tries; a run does not read it."""


def read_search(files: Sequence[str]) -> dict[str, list[Any]]:
    """The values to try for each key, from the configs' sections `search`; a later file overrides.

    Raises:
      ValueError: if a file cannot be read, names an unknown key, or has no list of values for one.
    """
    found: dict[str, list[Any]] = {}
    for file in files:
        table = read_table(find_config(file)).get(SEARCH, {})
        if not isinstance(table, dict):
            raise ValueError(
                f"{file}: search is {table!r}; allowed is a table of keys and lists of values. Correct it."
            )
        for key, values in table.items():
            if key not in (keys := _keys(TrainConfig)):
                raise ValueError(f"{file}: search: {unknown_key(str(key), keys)}")
            if not isinstance(values, list) or not values:
                raise ValueError(f"{file}: search: {key} is {values!r}; allowed is a list of values. Correct it.")
            found[key] = values
    return found


def _config_folders() -> list[Path]:
    """Where configs are found by name: in a wheel, or in a clone."""
    package = Path(__file__).parents[1]
    return [package / "configs", package.parent / "configs"]


def find_config(name: str) -> str:
    """The file of a config: the path itself, or the config of this name in the package, as in "rte".

    Raises:
      ValueError: if there is neither.
    """
    path = as_path(name)
    if path.is_file():
        return name
    for folder in _config_folders() if re.fullmatch(r"\w[\w/-]*", name) else ():
        if (folder / f"{name}.yaml").is_file():
            return str(folder / f"{name}.yaml")
    packaged = [
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in _config_folders()
        for path in sorted(folder.rglob("*.yaml"))
    ]
    shown = dict.fromkeys(each if "/" not in each else each.partition("/")[0] + "/..." for each in packaged)
    advice = did_you_mean([name.removesuffix(".yaml")], packaged, "Check the path.")
    raise ValueError(
        f"--config {str(path)!r} does not exist; allowed is a YAML file, or the name of a packaged config: {', '.join(shown)}. "
        f"{advice}"
    )


def find_configs(pattern: str) -> list[str]:
    """The files of a pattern with *, in alphabetical order; or the names of the package's configs that fit it.

    Example:
      >>> find_configs("paper/svt/p*")
      ['paper/svt/paper', 'paper/svt/plain']
    """
    files = sorted(glob.glob(os.path.expanduser(pattern)))
    if files:
        return files
    for folder in _config_folders():
        if found := sorted(path.relative_to(folder).with_suffix("") for path in folder.glob(f"{pattern}.yaml")):
            return [path.as_posix() for path in found]
    return []


def _parse_table(
    parser: ArgumentParser, table: dict[str, Any], below: Namespace | None, keys: list[str], where: str
) -> Namespace:
    if unknown := _unknown(table, keys):
        raise ValueError(where + " ".join(unknown_key(key, keys) for key in unknown))
    for action in parser._actions:  # a single value is a list of one, as on the command line
        if action.nargs == "+" and table.get(action.dest) is not None and not isinstance(table[action.dest], list):
            table = {**table, action.dest: [table[action.dest]]}
    try:
        return parser.parse_object(table, below)
    except argparse.ArgumentError as error:
        raise ValueError(where + explain(str(error), keys)) from error


def _unknown(table: Mapping[str, Any], keys: list[str]) -> list[str]:
    """The names in a table and its sections that are not in `keys`."""
    sections = {key.split(".")[0] for key in keys if "." in key}
    unknown = []
    for name, value in table.items():
        if str(name) in sections and isinstance(value, Mapping):
            unknown += [f"{name}.{key}" for key in value if f"{name}.{key}" not in keys]
        elif str(name) not in sections and str(name) not in keys:
            unknown.append(str(name))
    return unknown


def _to_config(parser: ArgumentParser, parsed: Namespace) -> TrainConfig:
    from jsonargparse import Namespace

    sections = [field.name for field in dataclasses.fields(TrainConfig)]
    for section in sections:
        if not isinstance(parsed[section], Namespace):
            raise ValueError(
                f"section {section} is {printable(str(parsed[section]))}; allowed is a table of keys. Fill it or leave it out."
            )
    parsed["run.plugin"] = parsed["plugin"] or parsed["run.plugin"]
    if parsed["run.plugin"] is not None:  # before the section svt is read, which knows only registered names
        load_plugin(parsed["run.plugin"])
    parsed["svt.params"] = as_values(parsed["svt.params"])  # no annotation has their types; the function knows them
    values = parser.instantiate(parsed).as_dict()
    config = TrainConfig(**{section: values[section] for section in sections})
    for line in config.without_effect():
        log.warning(line)
    return config


def split_configs(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files of every --config, and the other arguments, which override the files wherever they stand."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    try:
        found, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; allowed is --config FILE. Name the file.") from error
    return found.config, rest


def join_negative_numbers(arguments: Sequence[str]) -> list[str]:
    """Joins --option with a negative number after it: argparse takes -1e-5 for an option.

    Example:
      >>> join_negative_numbers(["--svt.alpha", "-1e-5", "--svt.learnable", "false"])
      ['--svt.alpha=-1e-5', '--svt.learnable', 'false']
    """
    joined: list[str] = []
    for argument in arguments:
        if joined and re.fullmatch(r"--[^=]+", joined[-1]) and _is_negative_number(argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _is_negative_number(argument: str) -> bool:
    try:
        return argument.startswith("-") and float(argument) is not None
    except ValueError:
        return False


def _keys(config_class: type) -> list[str]:
    sections = {f.name: f.default_factory for f in dataclasses.fields(config_class)}
    return [f"{section}.{f.name}" for section, make in sections.items() for f in dataclasses.fields(make)]  # type: ignore[arg-type]


def explain(message: str, keys: list[str], otherwise: str = _OTHERWISE, ahead: str = "") -> str:
    """Rewrites the parser's message as: what came; what is allowed; what to do.

    Args:
      message: the parser's message.
      keys: names of the parser's options.
      otherwise: the end of a message that has no form of its own.
      ahead: what stands before a key where it was given: "--" on a command line.
    """
    message = " ".join(message.split())
    if found := re.search(r"unrecognized arguments: (?:--)?([^\s=]+)", message):
        return unknown_key(found[1], keys)
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        return unknown_key(f"{found[1]}.{found[2]}", keys)
    if found := re.search(r"[Oo]ption '([\w.]+)' is not accepted", message):
        return unknown_key(found[1], keys)
    if found := re.search(
        r'Parser key "([\w.]+)": Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors:.*Given value: (.*)$',
        message,
    ):
        return f"{ahead}{found[1]} is {printable(found[3])!r}; allowed is {_types(found[2])}. Correct it."
    if found := re.search(r'Parser key "(\w+)": Unable to load config .(.*?). - Parser key', message):
        return f"section {found[1]} is {printable(found[2])}; allowed is a table of keys. Fill it or leave it out."
    if found := re.search(r'Parser key "([\w.]+)":.*?Expected an? (.*?)\. Got value: (.*)', message):
        return f"{ahead}{found[1]} is {printable(found[3])!r}; allowed is {_types(found[2])}. Correct it."
    return f"{message}; {otherwise}"


_TYPE = re.compile(
    r"(?:typing\.)?Literal\[(?P<words>.*?)\]|(?:typing\.)?(?:[Ll]ist|Sequence|tuple)\[(?P<items>\w+)(?:, \.\.\.)?\]"
    r"|(?:<class ')?(?P<name>[\w.]+)(?:'>|\[.*?\])?"
)
_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "a table of names and values",
    "NoneType": "null",
}


def _types(text: str) -> str:
    """The parser's type names in a user's words.

    Example:
      >>> _types("NoneType, Literal['keep', 'drop'], <class 'float'>")
      'keep, drop, a number or null'
      >>> _types("list[str], NoneType")
      'a list as "[a, b]" or null'
      >>> _types("Literal['packed', 'padded']")
      'packed or padded'
    """
    words: list[str] = []
    for found in _TYPE.finditer(text):
        if found["words"]:
            words += [word.strip("'\"") for word in found["words"].split(", ")]
        elif found["items"]:
            words.append('a list as "[a, b]"' if found["items"] == "str" else 'a list as "[1, 2]"')
        else:
            name = found["name"].removeprefix("typing.")
            words.append(_NAMES.get(name.lower() if name == "Dict" else name, name))
    *others, last = sorted(dict.fromkeys(words), key=lambda word: word == "null")
    return f"{', '.join(others)} or {last}" if others else last


def unknown_key(key: str, keys: list[str]) -> str:
    """The error for a key that is not in `keys`: the keys of its section, and the nearest one if one is near."""
    section = key.split(".")[0]
    siblings = [k for k in keys if k.startswith(section + ".")]
    allowed = siblings or sorted({k.split(".")[0] for k in keys})
    advice = did_you_mean([key], keys, "Correct the name.")
    return f"unknown key {printable(key)!r}; allowed are {', '.join(allowed)}. {advice}"
