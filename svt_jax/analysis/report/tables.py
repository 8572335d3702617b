"""The tables of a report: the rows that the page shows, and all rows as CSV."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from svt_jax.analysis.csv_text import csv_text
from svt_jax.analysis.finished import FinishedRun, parameters_of
from svt_jax.analysis.plots import layer_name
from svt_jax.evaluation.probe import MEASURES

_SHOWN = 200
"""The page shows at most this many rows of a table; its CSV has all."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table on the page.

    Attributes:
      name: the heading.
      header, rows: the text that the page shows.
      file: the CSV file's name; empty if there is no file.
      csv: the file's contents in base64.
      rows_in_csv: number of rows without the header.
      note: says what the page does not show.
    """

    name: str
    header: list[str]
    rows: list[list[str]]
    file: str = ""
    csv: str = ""
    rows_in_csv: int = 0
    note: str = ""


def with_csv(name: str, file: str, header: list[str], rows: list[list[Any]], shown: Sequence[list[Any]]) -> Table:
    """A table whose CSV has `rows` at full precision and whose page shows `shown` of them, rounded."""
    data = base64.b64encode(csv_text(header, rows).encode("utf-8", "replace")).decode()
    note = "" if len(shown) == len(rows) else f"{len(shown)} of them below"
    return Table(name, header, [[_short(cell) for cell in row] for row in shown], file, data, len(rows), note)


def layer_table(run: FinishedRun) -> Table:
    """Every state of every reading in the CSV; the page shows the last reading."""
    readings = [(reading, parameters_of(reading)) for reading in run.readings]
    names = _names(parameters for _, parameters in readings)
    header = ["layer", "state", "step", *names, *MEASURES]
    rows = [
        [
            *place_name(state),
            reading["step"],
            *(parameters.get(state["layer"], {}).get(name, "") if state["state"] != "output" else "" for name in names),
            *(state[measure] for measure in MEASURES),
        ]
        for reading, parameters in readings
        for state in sorted(reading["states"], key=_depth)
    ]
    last = [row for row in rows if row[2] == run.readings[-1]["step"]]
    return with_csv("Measures by layer", "layers.csv", header, rows, last)


def training_table(run: FinishedRun) -> Table:
    """The lines of metrics.jsonl."""
    parameters = [parameters_of(line) for line in run.lines]
    layers = sorted({layer for each in parameters for layer in each})
    places = [(layer, name) for name in _names(parameters) for layer in layers]
    keys = [key for key in dict.fromkeys(key for line in run.lines for key in line) if key not in ("alpha", "svt")]
    header = [*keys, *(f"{name} layer {layer}" for layer, name in places)]
    rows = [
        [*(line.get(key, "") for key in keys), *(each.get(layer, {}).get(name, "") for layer, name in places)]
        for line, each in zip(run.lines, parameters, strict=True)
    ]
    every = -(-len(rows) // _SHOWN)
    return with_csv("Course of the training", "training.csv", header, rows, rows[::-1][::every][::-1])


def evaluation_table(run: FinishedRun) -> Table:
    """Scores on the validation set for each evaluation."""
    rows = [
        [evaluation["step"], split, name, value]
        for evaluation in run.results["evaluations"]
        for split, metrics in [("validation", evaluation["metrics"]), *other_splits(evaluation)]
        for name, value in metrics.items()
    ]
    return with_csv("Evaluations", "evaluations.csv", ["step", "split", "metric", "value"], rows, rows)


def score_table(run: FinishedRun, baseline: FinishedRun | None) -> Table:
    """Scores of the last step, times 100."""
    ours, theirs = run.scores(), baseline.scores() if baseline else {}
    header = ["validation score × 100", "this run", *(["baseline", "difference"] if baseline else [])]
    rows = [
        [name, f"{100 * value:.2f}"]
        + ([f"{100 * theirs[name]:.2f}", f"{100 * (value - theirs[name]):+.2f}"] if baseline else [])
        for name, value in ours.items()
    ]
    return Table("Scores", header, rows)


def _names(parameters: Iterable[dict[int, dict[str, Any]]]) -> list[str]:
    """The names of all parameters, in order of first appearance."""
    return list(dict.fromkeys(name for by_layer in parameters for named in by_layer.values() for name in named))


def place_name(state: dict[str, Any]) -> tuple[str, str]:
    """A state's layer and kind in words."""
    return layer_name(state["layer"]), state["state"].replace("svt_", "SVT ")


def other_splits(evaluation: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """An evaluation's scores by split, without the validation set's."""
    return [(name, metrics) for name, metrics in evaluation.items() if name not in ("step", "metrics")]


def _depth(state: dict[str, Any]) -> tuple[int, int]:
    order = ("svt_input", "svt_output", "output")  # as a token passes through the layer
    return (-1 if state["layer"] is None else state["layer"], order.index(state["state"]))


def _short(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
