"""A TrainConfig from a command line, with errors that say what came, what is allowed and what to do."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from svt_jax.run.config import TrainConfig


def parse_config(arguments: Sequence[str]) -> TrainConfig:
    """The TrainConfig of a command line: defaults, then --config files, then --section.key values, in that order.

    Raises:
      ValueError: for an unknown key, a wrong type or a value out of range.
    """
    from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="train.py",
        description="Fine-tunes an encoder with a singular value transformation. Without arguments: configs/demo.yaml.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with what differs from the defaults.")
    parser.add_class_arguments(TrainConfig)
    parser.add_argument("--traceback", action="store_true", help="Show where an error came from.")
    try:
        parsed = parser.parse_args(_config_first(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(_explain(str(error), _keys(TrainConfig))) from error
    for section in (field.name for field in dataclasses.fields(TrainConfig)):
        if not isinstance(parsed[section], Namespace):
            raise ValueError(
                f"section {section} is {parsed[section]!r}; allowed is a table of keys. Fill it or leave it out."
            )
    values = parser.instantiate(parsed).as_dict()
    return TrainConfig(**{field.name: values[field.name] for field in dataclasses.fields(TrainConfig)})


def _config_first(arguments: Sequence[str]) -> list[str]:
    """Moves --config to the front: an option before it would otherwise be overridden by the file."""
    front: list[str] = []
    rest: list[str] = []
    items = iter(arguments)
    for item in items:
        if item == "--config":
            front += [item, *([value] if (value := next(items, None)) is not None else [])]
        elif item.startswith("--config="):
            front.append(item)
        else:
            rest.append(item)
    for path in [item.removeprefix("--config=") for item in front if item != "--config"]:
        _check_file(Path(path))
    return front + rest


def _check_file(path: Path) -> None:
    """What the parser would report without the file's name; that there is none it says itself."""
    if not path.is_file():
        return
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read ({error}); allowed is a YAML file. Correct it.") from error
    if content is None:
        raise ValueError(f"{path} holds nothing; allowed is a table of keys. Fill it or leave it out.")


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
    if found := re.search(r'Parser key "([\w.]+)": File does not exist: (.*)', message):
        return f"{found[1]} file {found[2]} does not exist; allowed is a YAML file. Check the path."
    if found := re.search(r'Parser key "([\w.]+)":.*?Expected an? (.*?)\. Got value: (.*)', message):
        allowed = re.sub(r"<class '(\w+)'>", r"\1", found[2]).replace("typing.", "")
        return f"{found[1]} is {found[3]!r}; allowed is {allowed}. Correct the config or the option."
    if found := re.search(
        r'Parser key "([\w.]+)": Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors:.*Given value: (.*)$',
        message,
    ):
        allowed = re.sub(r"<class '(\w+)'>", r"\1", found[2]).replace("typing.", "").replace(", ...", "")
        return f"{found[1]} is {found[3]}; allowed is one of {allowed}. Correct the config or the option."
    return f"{message}; allowed are --config FILE and --section.key VALUE. See --help."


def unknown_key(key: str, keys: list[str]) -> str:
    """The error for a key that is none of `keys`: its neighbours, and the nearest one."""
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
    section = key.split(".")[0]
    siblings = [k for k in keys if k.startswith(section + ".")]
    allowed = siblings or sorted({k.split(".")[0] for k in keys})
    return f"unknown key {key!r}; allowed are {', '.join(allowed)}. Did you mean {near[0]}?"
