"""Checks that the files of a run hold what a run writes: the type of each value, by its key.

A check takes a value and its name, and yields each problem, as in "loss is 'high', not a number".
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from svt_jax.evaluation.probe import BINS, MEASURES

Check = Callable[[Any, str], Iterator[str]]
_LARGEST = 3.4e38
"""The largest float32: no number of a run is larger, and a plot's axis can show it."""


def anything(value: Any, name: str) -> Iterator[str]:
    yield from ()


def number(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        yield f"{name} is {reprlib.repr(value)}, not a number"
    elif not abs(value) <= _LARGEST:  # not: NaN compares false with everything
        yield f"{name} is {reprlib.repr(value)}, not a finite number that float32 holds"


def whole(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 2**53:
        yield f"{name} is {reprlib.repr(value)}, not a whole number from 0"


def text(value: Any, name: str) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"{name} is {reprlib.repr(value)}, not text"
    elif value.encode("utf-8", "replace") != value.encode("utf-8", "surrogatepass"):
        yield f"{name} is {reprlib.repr(value)}, which holds half a character"


def unless_none(check: Check) -> Check:
    def checked(value: Any, name: str) -> Iterator[str]:
        return iter(()) if value is None else check(value, name)

    return checked


def listed(check: Check, least: int = 0) -> Check:
    """A list of at least `least` values."""

    def checked(value: Any, name: str) -> Iterator[str]:
        if not isinstance(value, list) or len(value) < least:
            yield f"{name} is {reprlib.repr(value)}, not a list" + (f" of {least} or more" if least else "")
        else:
            for n, each in enumerate(value):
                yield from check(each, f"{name}[{n}]")

    return checked


def by_name(check: Check, name_check: Check = text, least: int = 0) -> Check:
    """A table of at least `least` values of one kind."""

    def checked(value: Any, name: str) -> Iterator[str]:
        if not isinstance(value, dict) or len(value) < least:
            yield f"{name} is {reprlib.repr(value)}, not a table" + (f" of {least} or more" if least else "")
        else:
            for key, each in value.items():
                yield from name_check(key, f"a name in {name}")
                yield from check(each, f"{name}.{key}")

    return checked


def table(
    required: Mapping[str, Check], optional: Mapping[str, Check] | None = None, others: Check = anything
) -> Check:
    """A table with these keys; it may have others."""
    optional = optional or {}

    def checked(value: Any, name: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{name} is {reprlib.repr(value)}, not a table"
            return
        missing = [key for key in required if key not in value]
        if missing:
            yield f"it lacks {', '.join(f'{name}.{key}'.removeprefix('it.') for key in missing)}"
        for key, each in value.items():
            full = f"{name}.{key}".removeprefix("it.")
            yield from text(key, f"a name in {name}")
            yield from required.get(key, optional.get(key, others))(each, full)

    return checked


def _layer(key: Any, name: str) -> Iterator[str]:
    if not (isinstance(key, str) and key.isascii() and key.isdecimal() and str(int(key[:9])) == key):
        yield f"{name} is {reprlib.repr(key)}, not a layer's number"


def _value(value: Any, name: str) -> Iterator[str]:
    """A parameter: a number, or an array as nested lists."""
    return listed(_value)(value, name) if isinstance(value, list) else number(value, name)


def _state(value: Any, name: str) -> Iterator[str]:
    kinds = ("output", "svt_input", "svt_output")
    problems = list(_STATE(value, name))
    yield from problems
    if not problems:
        if value["state"] not in kinds:
            yield f"{name}.state is {value['state']!r}, none of {', '.join(kinds)}"
        shares = value["histogram"]
        if len(shares) != BINS or not all(0 <= share <= 1.001 for share in shares) or not any(shares):
            yield f"{name}.histogram is not {BINS} shares from 0 to 1, of which one is above 0"


def measure(value: Any, name: str) -> Iterator[str]:
    """A number, or a sign that there is none: null, NaN, an infinite number."""
    if value is None or (isinstance(value, float) and not abs(value) < float("inf")):
        return iter(())
    return number(value, name)


_SCORES = by_name(number, least=1)
_STATE = table(
    {
        "layer": unless_none(whole),
        "state": text,
        **dict.fromkeys(MEASURES, measure),
        "histogram": listed(number),
    }
)
_EVALUATION: dict[str, Check] = {"step": whole, "metrics": _SCORES}

LINE = table(
    {"step": whole, "epoch": number, "loss": number, "learning_rate": number, "grad_norm": number}
    | {"alpha": by_name(number, _layer)},
    {"svt": by_name(by_name(_value), _layer)},
)
"""A line of metrics.jsonl."""
READING = table(
    {"step": whole, "examples": whole, "alpha": by_name(number, _layer), "states": listed(_state, least=1)},
    {"svt": by_name(by_name(_value), _layer)},
)
"""A line of spectrum.jsonl."""

_RESULTS = {
    "steps": whole,
    "epochs": number,
    "evaluations": listed(table(_EVALUATION, others=_SCORES), least=1),
    "svt": table(
        {"function": text, "layers": listed(whole), "alpha": listed(number)},
        {"parameters": by_name(by_name(table({"first": _value, "last": _value})), _layer)},
    ),
    "train": table({"examples_per_second": number, "wall_time_s": number}),
    "device": text,
}
_MANIFEST = {"git_commit": unless_none(text), "weights_sha256": unless_none(text)}
_CONFIG = {"model": {"path": text, "dtype": text}, "svt": {"placement": text}, "data": {"source": text}}
_ALL = {"optim": {"batch_size": whole}, **_CONFIG}


def files(*, whole_run: bool) -> dict[str, Check]:
    """The checks of results.json, manifest.json and config.yaml.

    Args:
      whole_run: true requires all that a report shows; false only what a comparison needs.
    """

    def of(required: dict[str, Check], more: Mapping[str, Check]) -> Check:
        return table({**required, **more}) if whole_run else table(required, more)

    columns = {"text_columns": unless_none(listed(text)), "label_column": unless_none(text)}
    sections = {
        name: table(keys if whole_run else {}, {**keys, **(columns if name == "data" else {})})
        for name, keys in _ALL.items()
    }
    return {
        "results.json": of(
            {"task": text, "metrics": table({"validation": _SCORES}, others=_SCORES), "best": table(_EVALUATION)},
            _RESULTS,
        ),
        "manifest.json": table(
            {"versions": by_name(unless_none(text)), "device": text, **(_MANIFEST if whole_run else {})},
            {**_MANIFEST, "classes": unless_none(listed(text))},
        ),
        "config.yaml": table({"run": table({"seed": whole}), **sections}),
    }
