"""GLUE tasks: the definition of each, and its examples from the official download layout or from the hub.

The official files are TSV without quoting: quotes, backslashes and control characters are text, columns may be empty,
some files start with a byte-order mark, some have no header. `data.tables` reads them that way; a csv reader would join
rows.

Reference: Wang et al., "GLUE", ICLR 2019, arXiv 1804.07461.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from svt_jax.data.stored_texts import KEPT_ROWS, StoredTexts, read_parts
from svt_jax.data.tables import Columns, Problem, Table, name_lines, refuse
from svt_jax.stores import as_path, check_reachable
from svt_jax.text import listed

log = logging.getLogger(__name__)

Split = Literal["train", "validation", "validation_mismatched", "test", "test_mismatched"]
_FILES: dict[Split, str] = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}


HUB = "nyu-mll/glue"


class HubError(ValueError):
    """The hub does not give a data set. The message begins with the name, and ends with what to do."""

    def __init__(self, name: str, error: Exception, advice: str):
        super().__init__(f"the hub does not give {name} ({type(error).__name__}). {advice}")
        self.name, self.error = name, error


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts and labels of one split, in file order.

    Attributes:
      first: the sentence, or the first sentence of each pair: a list, or texts that stay on disk (`data.stored_texts`).
      second: the second sentence of each pair; None for single sentences.
      labels: int32 class numbers, or float32 scores for regression; None for an unlabelled test set.
    """

    first: Sequence[str]
    second: Sequence[str] | None
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.first)


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      name: our name, which is also the hub's.
      folder: folder in the official download.
      text: columns that hold the sentence or the pair of sentences.
      label: name of the label's column.
      labels: names of the classes in order of their numbers; None for regression.
      metrics: names as in `evaluation.metrics`; the first one chooses the best checkpoint.
      scores: smallest and largest label of a regression.
      headerless: column names of the train and dev files if these have no header.
      hub_text: as `text`, if the hub names the columns differently.
      files: name of each split's file.
      broken_rows: whether official files have rows cut short, which every reader leaves out.
    """

    name: str
    folder: str
    text: tuple[str, ...]
    label: str
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    scores: tuple[float, float] = (-math.inf, math.inf)
    headerless: tuple[str, ...] | None = None
    hub_text: tuple[str, ...] | None = None
    files: Mapping[Split, str] = dataclasses.field(default_factory=_FILES.copy)
    broken_rows: bool = False

    @property
    def regression(self) -> bool:
        return self.labels is None

    @property
    def num_labels(self) -> int:
        return 1 if self.labels is None else len(self.labels)

    def parts(self, split: Split) -> list[Split]:
        """The split, and for MNLI also its mismatched part."""
        return [part for part in self.files if part in (split, f"{split}_mismatched")]


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_BINARY = ("0", "1")
_MNLI_FILES: dict[Split, str] = {
    "train": "train.tsv",
    "validation": "dev_matched.tsv",
    "validation_mismatched": "dev_mismatched.tsv",
    "test": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
}
TASKS = {
    task.name: task
    for task in (
        Task(
            "cola", "CoLA", ("sentence",), "label", _BINARY, ("matthews_correlation", "accuracy"),
            headerless=("source", "label", "original_mark", "sentence"),
        ),
        Task("sst2", "SST-2", ("sentence",), "label", _BINARY, ("accuracy",)),
        Task("mrpc", "MRPC", ("#1 String", "#2 String"), "Quality", _BINARY, ("accuracy", "f1"), hub_text=_PAIR),
        Task("stsb", "STS-B", _PAIR, "score", None, ("spearmanr", "pearson"), scores=(0.0, 5.0)),
        # some questions hold newlines, so their rows are cut in two: line 97931 of train.tsv (GLUE-baselines issue 5)
        Task(
            "qqp", "QQP", ("question1", "question2"), "is_duplicate", _BINARY, ("accuracy", "f1"), broken_rows=True,
        ),
        Task(
            "mnli", "MNLI", _PAIR, "gold_label", ("entailment", "neutral", "contradiction"), ("accuracy",),
            hub_text=("premise", "hypothesis"), files=_MNLI_FILES,
        ),
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
      split: one that the task has; MNLI also has mismatched ones.
    Raises:
      ValueError: if the folder, file or a column is missing, a row is malformed or lacks a value, a label does not
        belong to the task, or there are no rows. It names the line. A text may be empty: in official files some are.
    """
    return _from_hub(task, split) if source == "hub" else _from_file(task, as_path(source), split)


def _from_file(task: Task, source: Path, split: Split) -> Examples:
    check_reachable(source)
    path = source / task.folder / task.files[split]
    if not source.is_dir():
        raise ValueError(
            f"data.source {str(source)!r} is not a folder; allowed are 'hub' and a folder in the official GLUE layout, "
            f"holding {task.folder}/{task.files[split]}. Correct the path, or make the folder: svt-jax data glue --to DIR."
        )
    if not path.is_file():
        have = listed(sorted(p.name for p in source.iterdir()), most=12) or "nothing"
        advice = "Correct data.source, or get the task: svt-jax data glue --to DIR."
        if (right := _right_level(source, task, split)) is not None:
            advice = f"The folder to name is {right}."
        raise ValueError(
            f"{path} does not exist; {source} holds {have}; allowed is the folder that holds {task.folder}/. {advice}"
        )
    labelled = not split.startswith("test")
    table = Table(
        path,
        (*task.text, *([task.label] if labelled else [])),
        header=task.headerless if labelled else None,
        skip_short=task.broken_rows and labelled,
        may_be_empty=task.text,
    )
    return make_examples(task, table)


def _right_level(source: Path, task: Task, split: Split) -> Path | None:
    """The folder in the official layout, if `source` is the one above or below it."""
    if (source / task.files[split]).is_file() and source.resolve().name == task.folder:
        return source.parent if source.name == task.folder else source.resolve().parent
    below = [each for each in sorted(source.iterdir()) if (each / task.folder / task.files[split]).is_file()]
    return below[0] if len(below) == 1 else None


def make_examples(task: Task, table: Table) -> Examples:
    """Examples from a file; without labels if the file lacks the label's column.

    The texts of a large file stay there, and are read again in blocks.

    Raises:
      ValueError: as `Table.blocks`, for malformed rows and missing values, and for labels that do not belong to the task.
    """
    texts = StoredTexts(table)
    labels: list[np.ndarray] = []
    problems: list[Problem] = []
    left_out = 0
    for block in table.blocks():
        texts.add(block)
        left_out += block.columns.left_out
        problems += block.problems
        if task.label in block.columns.values:
            found, wrong = _parse_labels(task, block.columns)
            labels.append(found)
            problems += wrong
    if problems:
        refuse(name_lines(table.path, sorted(problems)))
    if left_out:  # warn only if nothing failed: an error must be one line
        log.warning("%s: left out %d rows with too few columns", table.path, left_out)
    first, second = [*(texts.column(name) for name in task.text), None][:2]
    assert first is not None
    return Examples(first, second, np.concatenate(labels) if labels else None)


def _parse_labels(task: Task, columns: Columns) -> tuple[np.ndarray, list[Problem]]:
    numbers: dict[str, int] = {} if task.labels is None else {name: n for n, name in enumerate(task.labels)}
    labels: list[float] = []
    problems = []
    for line, value in zip(columns.lines, columns.values[task.label], strict=True):
        try:
            number = float(value) if task.regression else numbers[value]
        except (ValueError, KeyError):
            number = math.nan
        if not _allowed(task, number):
            problems.append((line, f"label {value!r}; allowed is {_allowed_labels(task)}"))
            number = 0
        labels.append(number)
    return np.asarray(labels, np.float32 if task.regression else np.int32), problems


def _allowed(task: Task, number: float) -> bool:
    if task.labels is not None:
        return number in range(task.num_labels)
    return math.isfinite(number) and task.scores[0] <= number <= task.scores[1]


def _allowed_labels(task: Task) -> str:
    if task.labels is not None:
        return " or ".join(task.labels)
    low, high = task.scores
    return "a finite number" if math.isinf(high) else f"a number from {low:g} to {high:g}"


def _from_hub(task: Task, split: Split) -> Examples:
    from datasets import load_dataset

    # the hub calls MNLI's splits validation_matched and validation_mismatched
    hub_split = f"{split}_matched" if len(task.parts(split)) > 1 else split
    try:
        data = load_dataset(HUB, task.name, split=hub_split)
    except OSError as error:
        advice = "Check the network, or give a folder in the official GLUE layout as data.source (svt-jax data glue --to DIR makes one where there is a network)."
        raise HubError(f"{HUB} {task.name}", error, advice) from error
    columns = task.hub_text or task.text
    labelled = not split.startswith("test")
    labels: list[np.ndarray] = []
    problems: list[Problem] = []
    for part in read_parts(data, [*columns, *(["label"] if labelled else [])]):
        problems += [
            (row, f"{column} is {value!r}; allowed is text")
            for column in columns
            for row, value in enumerate(part.values[column], start=part.first)
            if not isinstance(value, str)
        ]
        wrong = [
            (row, label)
            for row, label in enumerate(part.values.get("label", ()), start=part.first)
            if not isinstance(label, int | float) or not _allowed(task, label)
        ]
        allowed = _allowed_labels(task) if task.regression else f"a number from 0 to {task.num_labels - 1}"
        problems += [(row, f"label {label!r}; allowed is {allowed}") for row, label in wrong]
        if labelled and not wrong:
            labels.append(np.asarray(part.values["label"], np.float32 if task.regression else np.int32))
    if problems:
        where = f"{HUB} {task.name} {hub_split}"
        refuse([f"{where}, row {row}: {what}" for row, what in sorted(problems)], "Download it again.")
    first, second = [*(data[column] if len(data) > KEPT_ROWS else data[column][:] for column in columns), None][:2]
    return Examples(first, second, np.concatenate(labels) if labelled else None)
