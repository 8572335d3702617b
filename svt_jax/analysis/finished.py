"""Reads the files of a finished run, for reports and comparisons."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from svt_jax.analysis import checks
from svt_jax.evaluation.probe import MEASURES
from svt_jax.run.config import identity
from svt_jax.run.line_files import read_all
from svt_jax.run.run_files import check_files, file_digests
from svt_jax.yaml_files import load_values

_SAID = 10
"""A message lists at most this many problems of a file."""


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """The contents of a run's folder; `run.folder` describes the files.

    Attributes:
      path: the folder.
      results, manifest, config: contents of the files with these names.
      lines: lines of metrics.jsonl; empty if the run has no such file.
      readings: lines of spectrum.jsonl; empty if there is none. NaN replaces a measure that is not a finite number.
      left_out: what `lines` and `readings` leave out of these two files, and why.
    """

    path: Path
    results: dict[str, Any]
    manifest: dict[str, Any]
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    readings: list[dict[str, Any]]
    left_out: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def method(self) -> str:
        """Its spectral function or remedy; "none" without one."""
        return str(self.config["svt"].get("function", "none"))

    @property
    def task(self) -> str:
        """The task's name; for a custom task also its columns and classes, which tell two custom tasks apart."""
        if self.results["task"] != "custom":
            return self.results["task"]
        data, classes = self.config["data"], self.manifest.get("classes")
        kind = "a number" if classes is None else " or ".join(classes)
        return f"custom ({', '.join(data.get('text_columns') or [])} to {data.get('label_column')}: {kind})"

    def scores(self) -> dict[str, float]:
        """The last step's validation scores by name; mismatched validation has its own names."""
        return {
            name + split.removeprefix("validation").replace("_", " "): value
            for split, metrics in self.results["metrics"].items()
            for name, value in metrics.items()
        }

    def parameters(self) -> dict[int, dict[str, Any]]:
        """The last value of each parameter of each transformed layer, by layer and name."""
        svt = self.results["svt"]
        alphas = dict(zip(svt["layers"], svt["alpha"], strict=False))  # earlier versions wrote only these
        return {layer: {"alpha": alpha} for layer, alpha in alphas.items()} | {
            int(layer): {name: each["last"] for name, each in named.items()}
            for layer, named in svt.get("parameters", {}).items()
        }


def parameters_of(line: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Each parameter of each transformed layer in a line of metrics.jsonl or spectrum.jsonl, by layer and name.

    Example:
      >>> parameters_of({"alpha": {"3": -0.2}})  # an earlier version's, that knew alpha only
      {3: {'alpha': -0.2}}
    """
    alphas = {int(layer): {"alpha": alpha} for layer, alpha in line["alpha"].items()}
    return alphas | {int(layer): named for layer, named in line.get("svt", {}).items()}


def read_finished(run: Path, *, whole: bool = False) -> FinishedRun:
    """Reads a run's folder.

    Args:
      run: the folder.
      whole: true requires all that a report shows; false only what a comparison needs.
    Raises:
      ValueError: if the run is not complete, results.json, manifest.json or config.yaml is not what a run writes, or a
        file has changed since the run wrote it.
    """
    if not (run / "results.json").is_file():
        raise ValueError(
            f"{run} has no results.json: the run is not complete. Start the same training command again to finish it."
        )
    results, manifest, config = (_table(run / name, check) for name, check in checks.files(whole_run=whole).items())
    if written := manifest.get("files_sha256"):  # earlier versions wrote none
        check_files(run, written, file_digests(run, identity(config)))
    lines, lines_left_out = _lines(run / "metrics.jsonl", checks.LINE)
    readings, readings_left_out = _lines(run / "spectrum.jsonl", checks.READING)
    kept, others = _comparable(readings, run / "spectrum.jsonl")
    left_out = [*lines_left_out, *readings_left_out, *others]
    for number, reading in kept:
        left_out += _without_numbers(reading, f"{run / 'spectrum.jsonl'}, line {number}")
    return FinishedRun(
        run, results, manifest, config, [line for _, line in lines], [each for _, each in kept], _shortened(left_out)
    )


def _table(path: Path, check: checks.Check) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        found = load_values(text) if path.suffix == ".yaml" else json.loads(text)
        problems = list(check(found, "it"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise _not_a_runs(path, str(error)) from error
    if problems:
        raise _not_a_runs(path, "; ".join(_shortened(problems)))
    return found


_Numbered = list[tuple[int, dict[str, Any]]]
_Places = dict[str, list[int | None]]


def _lines(path: Path, check: checks.Check) -> tuple[_Numbered, list[str]]:
    """The valid lines with their numbers, and the problems of the others."""
    found, left_out = [], []
    for number, line in enumerate(read_all(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
            problems = list(check(value, "it"))
        except (ValueError, RecursionError) as error:
            problems = [str(error)]
        if problems:
            left_out.append(f"{path}, line {number}: left out ({'; '.join(_shortened(problems, 3))})")
        else:
            found.append((number, value))
    return found, left_out


def _comparable(readings: _Numbered, path: Path) -> tuple[_Numbered, list[str]]:
    """The readings with the same states as the last one, which must be a model's; and the problems of the others."""
    kept: _Numbered = []
    left_out: list[str] = []
    last: _Places | None = None
    for number, reading in readings[::-1]:
        places: _Places = {kind: [] for kind in ("output", "svt_input", "svt_output")}
        for state in reading["states"]:
            places[state["state"]].append(state["layer"])
        if any(len(set(layers)) < len(layers) for layers in places.values()):
            problem = "a layer stands twice"
        elif not places["output"] or places["svt_input"] != places["svt_output"]:
            problem = "its states are not a model's: an output at least, and of each SVT both input and output"
        elif last is not None and places != last:
            problem = "its layers are not those of the last reading"
        else:
            last = places
            kept.insert(0, (number, reading))
            continue
        left_out.insert(0, f"{path}, line {number}: left out ({problem})")
    return kept, left_out


def _without_numbers(reading: dict[str, Any], where: str) -> Iterator[str]:
    """Sets measures that are not numbers to NaN, and yields a message for each."""
    for state in reading["states"]:
        for measure in MEASURES:
            if state[measure] is None or not math.isfinite(state[measure]):
                state[measure] = math.nan
                yield f"{where}: {measure} of layer {state['layer']}, {state['state']}, is not a number"


def _shortened(problems: list[str], most: int = _SAID) -> list[str]:
    return problems if len(problems) <= most else [*problems[:most], f"and {len(problems) - most} more"]


def _not_a_runs(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is not as a run writes it ({why}). Restore it from a copy, or train again.")
