"""GLUE tasks: what each one is, and its examples from the official download layout or from the hub.

The official files are TSV without quoting: quotes, backslashes and control characters are text, columns may be empty,
some files start with a byte-order mark, some have no header. So lines are split on tabs here; a csv reader would glue
rows together.

Reference: Wang et al., "GLUE", ICLR 2019, arXiv 1804.07461.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

Split = Literal["train", "validation", "test"]
_SCORES = (0.0, 5.0)
"""Range of STS-B's labels, GLUE's only regression task."""
_FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts and labels of one split, in file order.

    Attributes:
      first: the sentence, or the first of each pair.
      second: the second of each pair; None for single sentences.
      labels: int32 class numbers, or float32 scores for regression; None for an unlabelled test set.
    """

    first: list[str]
    second: list[str] | None
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.first)


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      name: ours and the hub's.
      folder: in the official download.
      text: columns that hold the sentence or the pair of sentences.
      label: the label's column.
      labels: names of the classes in order of their numbers; None for regression.
      metrics: names as in `evaluation.metrics`; the first is the one that the best checkpoint is chosen by.
      headerless: column names of the train and dev files if these have no header.
      hub_text: as `text`, where the hub calls the columns otherwise.
    """

    name: str
    folder: str
    text: tuple[str, ...]
    label: str
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    headerless: tuple[str, ...] | None = None
    hub_text: tuple[str, ...] | None = None

    @property
    def regression(self) -> bool:
        return self.labels is None

    @property
    def num_labels(self) -> int:
        return 1 if self.labels is None else len(self.labels)


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_BINARY = ("0", "1")
TASKS = {
    task.name: task
    for task in (
        Task(
            "cola", "CoLA", ("sentence",), "label", _BINARY, ("matthews_correlation", "accuracy"),
            headerless=("source", "label", "original_mark", "sentence"),
        ),
        Task("sst2", "SST-2", ("sentence",), "label", _BINARY, ("accuracy",)),
        Task("mrpc", "MRPC", ("#1 String", "#2 String"), "Quality", _BINARY, ("accuracy", "f1"), hub_text=_PAIR),
        Task("stsb", "STS-B", _PAIR, "score", None, ("spearmanr", "pearson")),
        Task("qnli", "QNLI", ("question", "sentence"), "label", _ENTAILMENT, ("accuracy",)),
        Task("rte", "RTE", _PAIR, "label", _ENTAILMENT, ("accuracy",)),
        Task("wnli", "WNLI", _PAIR, "label", _BINARY, ("accuracy",)),
    )
}  # fmt: skip


def load_examples(task: Task, source: str, split: Split) -> Examples:
    """The examples of one split.

    Args:
      task: one of `TASKS`.
      source: "hub", or a folder in the official download layout (<source>/RTE/train.tsv).
      split: "train", "validation" or "test".
    Raises:
      ValueError: if the folder, file or a column is missing, a row is malformed (its line is named), a label does not
        belong to the task, or there are no rows.
    """
    return _from_hub(task, split) if source == "hub" else _from_file(task, Path(source), split)


def _from_file(task: Task, source: Path, split: Split) -> Examples:
    path = source / task.folder / _FILES[split]
    if not source.is_dir():
        raise ValueError(
            f"data.source {str(source)!r} is not a folder; allowed are 'hub' and a folder in the official GLUE layout, "
            f"holding {task.folder}/{_FILES[split]}. Correct the path."
        )
    if not path.is_file():
        have = ", ".join(sorted(p.name for p in source.iterdir())) or "nothing"
        raise ValueError(f"{path} does not exist; {source} holds {have}. Download the task, or correct data.source.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); allowed is UTF-8 text. Download it again.") from error
    rows = [line.removesuffix("\r").split("\t") for line in lines]
    if rows[-1] == [""]:
        rows.pop()  # the newline at the end
    header_lines = 0
    if task.headerless and split != "test":
        header = list(task.headerless)
    else:
        header, rows = (rows[0], rows[1:]) if rows else ([], [])
        header_lines = 1
    if not rows:
        raise ValueError(f"{path} has no rows. Download it again.")
    labelled = split != "test"
    missing = [c for c in (*task.text, *([task.label] if labelled else [])) if c not in header]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; it has {header}. Use the official file.")
    for number, row in enumerate(rows, start=1 + header_lines):
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {number}: {len(row)} columns where {len(header)} are expected ({', '.join(header)}). "
                "Use the official file."
            )
    texts = [[row[header.index(column)] for row in rows] for column in task.text]
    labels = None
    if labelled:
        column = header.index(task.label)
        labels = _parse_labels(task, [row[column] for row in rows], path, first_line=1 + header_lines)
    return Examples(texts[0], texts[1] if len(texts) > 1 else None, labels)


def _parse_labels(task: Task, values: list[str], path: Path, first_line: int) -> np.ndarray:
    numbers: dict[str, int] = {} if task.labels is None else {name: n for n, name in enumerate(task.labels)}
    labels = []
    for line, value in enumerate(values, start=first_line):
        try:
            labels.append(float(value) if task.regression else numbers[value])
            if task.regression and not _SCORES[0] <= labels[-1] <= _SCORES[1]:
                raise ValueError
        except (ValueError, KeyError):
            allowed = f"a number from {_SCORES[0]:g} to {_SCORES[1]:g}" if task.regression else " or ".join(numbers)
            raise ValueError(f"{path}, line {line}: label {value!r}; allowed is {allowed}. Correct the file.") from None
    return np.asarray(labels, np.float32 if task.regression else np.int32)


def _from_hub(task: Task, split: Split) -> Examples:
    from datasets import load_dataset

    try:
        data = load_dataset("nyu-mll/glue", task.name, split=split)
    except (ConnectionError, OSError) as error:
        raise ValueError(
            f"the hub does not give nyu-mll/glue {task.name} ({type(error).__name__}). Check the network, or give a folder "
            "in the official GLUE layout as data.source."
        ) from error
    columns = task.hub_text or task.text
    labels = np.asarray(data["label"][:], np.float32 if task.regression else np.int32)
    second = list(data[columns[1]][:]) if len(columns) > 1 else None
    return Examples(list(data[columns[0]][:]), second, None if split == "test" else labels)
