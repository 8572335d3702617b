"""Writes configuration.md from the config's dataclasses: python docs/make_configuration.py"""

import dataclasses
from pathlib import Path

import docstring_parser
import yaml

from svt_jax.training.config import TrainConfig

HEAD = """# Every key of a training run

Defaults are what a run does that names nothing else. A config file holds what differs from them; on the command line a key
is `--section.key VALUE`, and overrides the file. `python train.py --help` prints the same.

A file is YAML or JSON in UTF-8, and each key stands in it once. A value is read by its key's type: text is as written, so
the labels `[NO, 01]` are these two words. A `~` at the start of a path is the home folder. A key that does nothing beside the
others is a warning.

Made from the dataclasses by `python docs/make_configuration.py`.
"""


def as_yaml(value: object) -> str:
    """A default as it is written in a config file."""
    return yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True).split("\n")[0]


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for section in dataclasses.fields(TrainConfig):
        config = section.default_factory
        described = docstring_parser.parse(config.__doc__)
        meanings = {parameter.arg_name: " ".join(parameter.description.split()) for parameter in described.params}
        lines += [f"## {section.name}", "", described.short_description, "", "| key | default | |", "|---|---|---|"]
        for field in dataclasses.fields(config):
            default = getattr(config(), field.name)
            meaning = meanings[field.name].replace("|", "\\|")
            lines.append(f"| `{section.name}.{field.name}` | `{as_yaml(default)}` | {meaning} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    Path(__file__).with_name("configuration.md").write_text(page(), encoding="utf-8")
