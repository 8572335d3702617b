"""YAML as we read it: UTF-8, each key once, of bounded size. A value stays text until its key says what it is.

YAML 1.1, which PyYAML reads, judges a word by its looks: NO is false, 01 is 1 and 1:30 is 90. A config's keys have
types, so the file need not guess: every scalar except null is text, and the parser reads a number where the key is one.
JSON is read in the same way, because it is YAML.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from svt_jax.stores import as_path
from svt_jax.text import printable

MAX_DEPTH, MAX_VALUES = 20, 10_000
"""Most levels of nesting, and most values, in a file. An alias counts as all the values that it stands for."""


class _Loader(yaml.SafeLoader):
    """Reads YAML's own values, with bounds; a key that stands twice is an error."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self._depth = self._values = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self._values
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _error(event, f"it nests deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:  # still being read
                raise _error(event, f"the alias {event.anchor!r} is inside of what it stands for")
            self._values += self._sizes[id(node)]
        else:
            self._values += 1
            self._sizes[id(node)] = self._values - before
        if self._values > MAX_VALUES:
            raise _error(event, f"it holds more than {MAX_VALUES} values")
        return node

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise _error(key, f"the key {printable(key.value)!r} stands twice")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


class _TextLoader(_Loader):
    """Reads scalars as text, whatever they look like. Only null is null, and << merges."""

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        # JSON writes a character beyond 16 bits as two halves
        return super().construct_scalar(node).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


for _first in ("~", "n", ""):
    _NULL = yaml.resolver.Resolver.yaml_implicit_resolvers[_first]
    _TextLoader.yaml_implicit_resolvers[_first] = [(tag, known) for tag, known in _NULL if tag.endswith(":null")]
_TextLoader.yaml_implicit_resolvers["<"] = yaml.resolver.Resolver.yaml_implicit_resolvers["<"]


def _error(at: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def load_text(text: str) -> Any:
    """Returns the content of a YAML document, with its scalars as text.

    Raises:
      yaml.YAMLError: if it is not YAML, holds a key twice, or is too large.

    Example:
      >>> load_text("labels: [NO, 01, 1:30, 1e-4, null]")
      {'labels': ['NO', '01', '1:30', '1e-4', None]}
    """
    return yaml.load(text, Loader=_TextLoader)


def load_values(text: str) -> Any:
    """Returns the content of what `yaml.safe_dump` wrote, such as a run's config.yaml. Raises as `load_text`."""
    return yaml.load(text, Loader=_Loader)


def as_values(content: Any) -> Any:
    """Turns text into the number, true, false or null that it spells, also inside lists and tables.

    Example:
      >>> as_values({"gamma": "1e-4", "steps": ["1", "2"], "kind": "NO", "flag": "true"})
      {'gamma': 0.0001, 'steps': [1, 2], 'kind': 'NO', 'flag': True}
    """
    if isinstance(content, dict):
        return {key: as_values(value) for key, value in content.items()}
    if isinstance(content, list):
        return [as_values(value) for value in content]
    if not isinstance(content, str):
        return content
    if content in (words := {"true": True, "false": False, "null": None}):
        return words[content]
    for read in (int, float):
        try:
            return read(content)
        except ValueError:
            continue
    return content


def read_table(path: str | Path, keys: Sequence[str] = ("keys",)) -> dict[str, Any]:
    """Returns the table in a --config file, YAML or JSON, with its scalars as text.

    Args:
      path: the file; a leading ~ is the home folder.
      keys: what the table holds, in the words of an error.
    Raises:
      ValueError: if the file does not exist, is not UTF-8 or YAML, or holds no table. It names the line if there is
      one.
    """
    path = as_path(path)
    if not path.is_file():
        raise ValueError(f"--config {str(path)!r} does not exist; allowed is a YAML file. Check the path.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        # a raw tab in JSON stands only between values: inside text it is written \t
        content = load_text(text.replace("\t", " ") if path.suffix == ".json" else text)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ValueError(f"{path}{line}: {error.problem}; allowed is a YAML file. Correct it.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read ({error}); allowed is a YAML file in UTF-8. Correct it.") from error
    if not isinstance(content, dict):
        what = "nothing" if content is None else printable(json.dumps(content, default=str))
        raise ValueError(f"{path} holds {what}; allowed is a table of {', '.join(keys)}. Fill it or leave it out.")
    return content
