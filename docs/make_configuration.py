"""Writes configuration.md from the config's dataclasses: python docs/make_configuration.py"""

import dataclasses
from pathlib import Path

import docstring_parser
import yaml

from svt_jax.run.config import TrainConfig

HEAD = """# Every key of a training run

A run that names nothing else does what the defaults say. A config file holds only what differs from them. On the command line
a key is `--section.key VALUE`, and overrides the file. `svt-jax train --help` prints the same.

| where | how a config is named |
|---|---|
| `train.py`, `svt-jax train` | `--config FILE`, several times if you like: a later one overrides |
| `eval.py compare`, `svt-jax eval compare` | one `--config` a setting; `A+B` joins files |
| Python | `svt_jax.train(config)`, with a `TrainConfig`, nested values as in a file, or a file |

A file of `configs/` also has a name, from any folder: `rte` for `configs/rte.yaml`, `paper/svt/plain` for
`configs/paper/svt/plain.yaml`.

A file is YAML or JSON in UTF-8, and names each key once. The key's type says how its value is read: text is as written, so
the labels `[NO, 01]` are these two words. A `~` at the start of a path is the home folder. A key that has no effect next to
the others is a warning.

`python docs/make_configuration.py` makes this page from the dataclasses.
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
