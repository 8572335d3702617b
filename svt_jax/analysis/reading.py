"""`svt_jax.probe`: measures any encoder on any texts, as a table, pictures and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from svt_jax.data.glue import Examples
from svt_jax.data.tokenizer import check_vocabulary, load_tokenizer, tokenize
from svt_jax.evaluation.layer_measures import OF_SAMPLE, chosen_measures
from svt_jax.evaluation.probe import Probe
from svt_jax.evaluation.probe import Reading as Values
from svt_jax.mesh import make_mesh
from svt_jax.models.encoder import Encoder
from svt_jax.models.files import local_folder
from svt_jax.models.heads import Classifier
from svt_jax.models.hf import load_encoder
from svt_jax.run.task_model import TaskModel
from svt_jax.stores import as_path, make_folder
from svt_jax.text import counted
from svt_jax.writing import write_whole, writing

_NO_ROOM = "Make room, or choose another folder."
Text = str | tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Reading:
    """What `probe` found; `print` shows it as a table of layers and measures.

    Attributes:
      values: the reading as plain values for JSON (`evaluation.probe`), with "measures" and, where there is one, "model".
    """

    values: Values

    @property
    def table(self) -> dict[str, list[Any]]:
        """Columns of equal length, a row for each state and measure; `pandas.DataFrame(reading.table)` takes them.

        layer    the layer's number from 0; -1 is the output of the embeddings
        state    output, or svt_input and svt_output in a layer with an SVT
        measure  its name
        mean     over the texts; for a measure of the sample, over batches of 64 texts
        std      standard deviation over the same, 0 for a single one
        n        how many they are
        """
        columns: dict[str, list[Any]] = {name: [] for name in ("layer", "state", "measure", "mean", "std", "n")}
        batches = self.values["batches"]
        for state in self.values["states"]:
            for name in (name for name in self.values["measures"] if name in state):
                row = (
                    -1 if state["layer"] is None else state["layer"], state["state"], name, state[name], state["std"][name],
                    batches if name in OF_SAMPLE else self.values["examples"],
                )  # fmt: skip
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
        return columns

    def save(self, folder: str | Path) -> list[Path]:
        """Writes probe.json, and the pictures measures and spectra as SVG and PNG; returns the paths.

        Raises:
          OSError: if the folder cannot be written.
        """
        from svt_jax.analysis import measure_plots, plots
        from svt_jax.host import only_warns

        folder = as_path(folder)
        with writing(folder, _NO_ROOM):
            make_folder(folder)
        paths = [folder / "probe.json"]
        write_whole(paths[0], json.dumps({**self.values, "table": self.table}, indent=2) + "\n", _NO_ROOM)
        with only_warns("the pictures"):
            figures = {
                "measures": measure_plots.by_depth(self.values, self.values["measures"]),
                "spectra": plots.spectrum_histograms(self.values),
            }
            paths += plots.save(figures, folder)
        return paths

    def __str__(self) -> str:
        """A row for each state, a column for each measure; more than five measures are tables one under another."""
        names, states = self.values["measures"], self.values["states"]
        rows = [_place(state) for state in states]
        width = max(len(row) for row in rows)
        lines = [f"{counted(self.values['examples'], 'text')}: means"]
        for start in range(0, len(names), _COLUMNS):
            part = names[start : start + _COLUMNS]
            lines += ["", " " * width + "".join(f"  {name:>{max(len(name), 7)}}" for name in part)]
            for row, state in zip(rows, states, strict=True):
                cells = (f"  {_short(state.get(name)):>{max(len(name), 7)}}" for name in part)
                lines.append(f"{row:<{width}}" + "".join(cells))
        return "\n".join(lines)


_COLUMNS = 5
_SPECTRA = ("median_ratio", "skewness")
"""What the picture of the spectra says of each."""


def _place(state: dict[str, Any]) -> str:
    layer = "embeddings" if state["layer"] is None else f"layer {state['layer']}"
    return layer if state["state"] == "output" else f"{layer}, {state['state'].replace('svt_', 'SVT ')}"


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def probe(
    model_or_folder: str | Path | Encoder | Classifier | TaskModel,
    texts: Iterable[Text],
    *,
    measures: Iterable[str] | str | None = None,
    max_length: int = 128,
    tokenizer: Any = None,
) -> Reading:
    """Measures every layer of an encoder on texts of your own.

    Args:
      model_or_folder: a model folder or hub id, a run's folder (its last checkpoint), a `TaskModel`; or a loaded encoder
        or classifier, for which `tokenizer` is needed.
      texts: strings, or pairs of strings that the model reads as one input. All of them are measured.
      measures: names from docs/measures.md; "all", or None, is all of them. Those of attention maps and those that compare layers
        cost more than the others.
      max_length: the most tokens of a text, special ones included; what is longer is cut. At most the model's positions.
      tokenizer: a transformers tokenizer, in place of the folder's own.
    Returns:
      an object with .table (columns), .save(folder) (JSON, SVG, PNG) and .values (plain values).
    Raises:
      ValueError: for texts that are not strings or pairs, none at all, an unknown measure, or a model or tokenizer that
        cannot be read.

    Example:
      >>> reading = probe(model, ["A dog runs.", "The sun is out."], measures="token_uniformity")  # doctest: +SKIP
      >>> print(reading)  # doctest: +SKIP
    """
    names = chosen_measures(measures)
    examples = _examples(texts)
    model = _opened(model_or_folder, tokenizer)
    check_vocabulary(model.tokenizer, model.encoder.vocab_size)
    tokens = tokenize(examples, model.tokenizer, min(max_length, model.encoder.max_tokens), model.encoder.pad_token_id)
    prepared = Probe(model, tokens, dict.fromkeys([*names, *_SPECTRA]), whole=True)
    where = {"model": str(model_or_folder)} if isinstance(model_or_folder, str | Path) else {}
    return Reading({**where, "measures": list(names), "batches": prepared.batches, **prepared.read(model)})


def _examples(texts: Iterable[Text]) -> Examples:
    given = [] if isinstance(texts, str | bytes) or not isinstance(texts, Iterable) else list(texts)
    if given and all(isinstance(text, str) for text in given):
        return Examples(given, None, None)  # type: ignore[arg-type]
    if given and all(_is_pair(text) for text in given):
        first, second = zip(*given, strict=True)
        return Examples(list(first), list(second), None)
    raise ValueError(
        "texts must be a list of strings, or of pairs of strings, at least one. Put a single one into a list."
    )


def _is_pair(text: Any) -> bool:
    return isinstance(text, Sequence) and not isinstance(text, str) and [type(part) for part in text] == [str, str]


def _opened(model: str | Path | Encoder | Classifier | TaskModel, tokenizer: Any) -> TaskModel:
    if isinstance(model, TaskModel):
        return model if tokenizer is None else dataclasses.replace(model, tokenizer=tokenizer)
    if isinstance(model, Encoder | Classifier):
        if tokenizer is None:
            raise ValueError(
                f"{type(model).__name__} in memory has no tokenizer; allowed is one with tokenizer=, or a folder. "
                "Give tokenizer=, or the folder that it came from."
            )
        return TaskModel.of(model, make_mesh(), tokenizer=tokenizer)
    if (as_path(model) / "config.yaml").is_file():
        found = TaskModel.from_run(model)
        return found if tokenizer is None else dataclasses.replace(found, tokenizer=tokenizer)
    folder = local_folder(model)
    encoder = load_encoder(folder)
    if tokenizer is None:
        tokenizer = load_tokenizer(folder, encoder.config.vocab_size)
    return TaskModel.of(encoder, make_mesh(), tokenizer=tokenizer)
