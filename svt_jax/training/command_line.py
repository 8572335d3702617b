"""A TrainConfig from a command line, with errors that say what came, what is allowed and what to do."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import logging
import re
from collections.abc import Sequence

import yaml

from svt_jax.text import printable
from svt_jax.training.config import TrainConfig
from svt_jax.yaml_files import as_values, load_text, read_table

log = logging.getLogger(__name__)


def parse_config(arguments: Sequence[str]) -> TrainConfig:
    """The TrainConfig of a command line: defaults, then --config files, then --section.key values, in that order.

    A value is read by its key's type: text is as written, whatever it looks like. Keys that do nothing are warned of.

    Raises:
      ValueError: for an unknown key, a wrong type or a value out of range.
    """
    from jsonargparse import ArgumentParser, Namespace, set_loader, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("svt_jax", load_text, (yaml.YAMLError,))
    parser = ArgumentParser(
        prog="train.py",
        description="Fine-tunes an encoder with a singular value transformation. Without arguments: configs/demo.yaml.",
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode="svt_jax",
    )
    parser.add_argument("--config", help="YAML file with what differs from the defaults; of several a later overrides.")
    parser.add_class_arguments(TrainConfig)
    parser.add_argument("--traceback", action="store_true", help="Show where an error came from.")
    files, options = split_configs(arguments)
    parsed, where = None, ""
    try:
        for path in files:
            where = f"{path}: "
            parsed = parser.parse_object(read_table(path), parsed)
        where = ""
        parsed = parser.parse_args(join_negative_numbers(options), parsed)
    except argparse.ArgumentError as error:
        raise ValueError(where + _explain(str(error), _keys(TrainConfig))) from error
    for section in (field.name for field in dataclasses.fields(TrainConfig)):
        if not isinstance(parsed[section], Namespace):
            raise ValueError(
                f"section {section} is {printable(str(parsed[section]))}; allowed is a table of keys. Fill it or leave it out."
            )
    parsed["svt.params"] = as_values(parsed["svt.params"])  # whose types the function knows, and no annotation
    values = parser.instantiate(parsed).as_dict()
    config = TrainConfig(**{field.name: values[field.name] for field in dataclasses.fields(TrainConfig)})
    for line in config.without_effect():
        log.warning(line)
    return config


def split_configs(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files of every --config, and the other arguments: these override the files wherever they stand."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    try:
        found, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; allowed is --config FILE. Name the file.") from error
    return found.config, rest


def join_negative_numbers(arguments: Sequence[str]) -> list[str]:
    """The arguments with --option and a negative number after it as one: argparse takes -1e-5 for an option.

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


def _explain(message: str, keys: list[str]) -> str:
    """The parser's message as: what came; what is allowed; what to do."""
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
        allowed = re.sub(r"<class '(\w+)'>", r"\1", found[2]).replace("typing.", "").replace(", ...", "")
        return f"{found[1]} is {printable(found[3])}; allowed is one of {allowed}. Correct the config or the option."
    if found := re.search(r'Parser key "(\w+)": Unable to load config .(.*?). - Parser key', message):
        return f"section {found[1]} is {printable(found[2])}; allowed is a table of keys. Fill it or leave it out."
    if found := re.search(r'Parser key "([\w.]+)":.*?Expected an? (.*?)\. Got value: (.*)', message):
        allowed = re.sub(r"<class '(\w+)'>", r"\1", found[2]).replace("typing.", "")
        return f"{found[1]} is {printable(found[3])!r}; allowed is {allowed}. Correct the config or the option."
    return f"{message}; allowed are --config FILE and --section.key VALUE. See --help."


def unknown_key(key: str, keys: list[str]) -> str:
    """The error for a key that is none of `keys`: its neighbours, and the nearest one."""
    near = difflib.get_close_matches(printable(key), keys, n=1, cutoff=0.0)
    section = key.split(".")[0]
    siblings = [k for k in keys if k.startswith(section + ".")]
    allowed = siblings or sorted({k.split(".")[0] for k in keys})
    return f"unknown key {printable(key)!r}; allowed are {', '.join(allowed)}. Did you mean {near[0]}?"
