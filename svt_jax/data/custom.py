"""A user's own task: train, validation and optional test files (.tsv, .csv or .jsonl) with named columns.

A .tsv has no quoting, as GLUE's files; a .csv uses double quotes. A .jsonl holds one object a line; its numbers, true
and false read as the same cells of a .csv. A missing value or an empty text is an error in each format.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from svt_jax.data.glue import Examples, Split, Task, make_examples
from svt_jax.data.tables import ENDINGS, Problem, Table, name_lines, read_header, read_lines, refuse
from svt_jax.stores import as_path, check_reachable
from svt_jax.text import printable


def custom_task(text: Sequence[str], label: str, labels: Sequence[str] | None) -> Task:
    """A task on a user's own files.

    Args:
      text: names of one or two columns.
      label: name of the label's column.
      labels: names of the classes in order of their numbers; None for regression.
    """
    labels = None if labels is None else tuple(labels)
    if labels is None:
        metrics: tuple[str, ...] = ("spearmanr", "pearson")
    else:  # F1 takes the second class as positive, as in GLUE
        metrics = ("accuracy", "matthews_correlation", *(("f1",) if len(labels) == 2 else ()))
    return Task("custom", "", tuple(text), label, labels, metrics)


def find_classes(source: str, label: str) -> tuple[str, ...]:
    """The class names in the training file: numbers sorted by size, other names alphabetically.

    Raises:
      ValueError: if the file cannot be read, a row has no class, there are fewer than two classes, or two class names
        are the same number, as 1 and 1.0.
    """
    path = _file(source, "train")
    names: set[str] = set()
    problems: list[Problem] = []
    missing: list[Problem] = []
    for block in Table(path, [label]).blocks():
        names.update(block.columns.values[label])
        problems += block.problems
        missing += [
            (line, f"{label} is {name!r}; allowed is the name of a class")
            for line, name in zip(block.columns.lines, block.columns.values[label], strict=True)
            if name.strip().lower() == "nan"  # many programs write this for a missing value
        ]
    if problems:
        refuse(name_lines(path, problems))
    if missing:
        refuse(
            name_lines(path, missing), "Fill them in, or take the rows out. A class of that name goes into data.labels."
        )
    by_number: dict[float, list[str]] = {}
    for name in sorted(names):
        with contextlib.suppress(ValueError):
            by_number.setdefault(float(name), []).append(name)
    if same := [" and ".join(map(repr, alike)) for alike in by_number.values() if len(alike) > 1]:
        raise ValueError(
            f"{path} has the classes {', '.join(same)} in {label!r}; allowed is one spelling of a number. Correct the file, or "
            "list the names as data.labels."
        )
    if len(names) < 2:
        raise ValueError(
            f"{path} has the one class {next(iter(names))!r} in {label!r}; allowed are two or more. Add examples of "
            "another class, or list the names as data.labels."
        )
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if numbers else 0, name)))


def load_custom(task: Task, source: str, split: Split) -> Examples:
    """The examples of one split; without labels if a test file lacks the label's column.

    Raises:
      ValueError: as `data.glue.load_examples`.
    """
    path = _file(source, split)
    if split == "test":
        return make_examples(task, Table(path, task.text, optional=[task.label]))
    return make_examples(task, Table(path, [*task.text, task.label]))


def load_texts(path: Path, columns: Sequence[str] | None) -> Examples:
    """The texts of one file, without labels.

    Args:
      path: a .tsv, .csv or .jsonl, or a .txt with one text a line.
      columns: names of one or two columns; None for a .txt without header.
    Raises:
      ValueError: as `data.glue.load_examples`, or if a table comes without names of columns.
    """
    if columns is not None:
        return make_examples(custom_task(columns, "", None), Table(path, columns))
    if path.suffix.lower() != ".txt":
        raise ValueError(
            f"{path} has the columns {', '.join(map(printable, read_header(path)))}; needed is which to read. Name the column of "
            "the sentences, or the two columns of the pairs, by --data.text_columns."
        )
    lines = read_lines(path)
    if empty := [(number, "it is empty") for number, line in enumerate(lines, start=1) if not line.strip()]:
        refuse(name_lines(path, empty))
    if not lines:
        raise ValueError(f"{path} has no lines; allowed is one text a line. Correct the file.")
    return Examples(lines, None, None)


def _file(source: str, split: Split) -> Path:
    folder = as_path(source)
    check_reachable(folder)
    names = ", ".join(split + ending for ending in ENDINGS)
    if not folder.is_dir():
        raise ValueError(f"data.source {source!r} is not a folder; the task custom needs one with {names}. Set it.")
    found = [folder / (split + ending) for ending in ENDINGS if (folder / (split + ending)).is_file()]
    if len(found) != 1:
        have = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise ValueError(f"{source} holds {have}; allowed is exactly one of {names}. Add it, or take the others away.")
    return found[0]
