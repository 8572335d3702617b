"""Semantic textual similarity: tasks of sentence pairs with scores, and the corpora that a transformation is fitted on.

A folder holds `tasks.json`, {"sts12": {"pairs": 3108, "files": [{"file": "sts12.MSRpar.tsv", "pairs": 750}, ...]}, ...},
and its files: score TAB sentence TAB sentence, no header. As in GLUE's files nothing is quoted, so lines are split on tabs.

Reference: the SemEval tasks, e.g. Agirre et al., "SemEval-2012 Task 6", 2012; Cer et al., "SemEval-2017 Task 1", 2017.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from svt_jax.data.glue import TASKS, Task
from svt_jax.data.tables import name_lines, read_columns, read_header, read_lines, refuse, scan_columns
from svt_jax.stores import as_path

log = logging.getLogger(__name__)

SCORES = (0.0, 5.0)
_ADVICE = "Correct the files, or download them again."
_PAIRS = ("score", "sentence1", "sentence2")
TEXT_COLUMNS = tuple(
    dict.fromkeys([name for task in TASKS.values() for name in (*task.text, *(task.hub_text or ()))] + ["text"])
)
"""Names of the columns that hold sentences: those of GLUE's files, of the hub's, and "text"."""


@dataclasses.dataclass(frozen=True)
class PairFile:
    """The pairs of one file, in its order.

    Attributes:
      name: the file's name, as in tasks.json.
      first: the first sentence of each pair.
      second: the second sentence of each pair.
      scores: float64[N], 0 (unrelated) to 5 (same meaning).
    """

    name: str
    first: list[str]
    second: list[str]
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


@dataclasses.dataclass(frozen=True)
class STSTask:
    """One task, such as all files of a year, in the order of tasks.json."""

    name: str
    files: tuple[PairFile, ...]


def load_sts(folder: str | Path) -> list[STSTask]:
    """Loads all tasks of a folder.

    Raises:
      ValueError: if tasks.json or a file is missing or malformed (with its line), a score is outside [0, 5], a sentence
        is empty, or a file has another number of pairs than tasks.json says. Up to five problems are listed at once.
    """
    folder = as_path(folder)
    tasks: list[STSTask] = []
    problems: list[str] = []
    for name, entries in _read_index(folder / "tasks.json").items():
        files = []
        for file, pairs in entries:
            found, wrong = _parse_pairs(folder / file)
            if not wrong and len(found) != pairs:
                wrong = [f"{folder / file}: {len(found)} pairs where tasks.json says {pairs}"]
            files.append(dataclasses.replace(found, name=file))
            problems += wrong
        tasks.append(STSTask(name, tuple(files)))
    if problems:
        refuse(problems, _ADVICE)
    return tasks


def read_pairs(path: str | Path) -> PairFile:
    """Reads the pairs of one file; errors are as in `load_sts`."""
    pairs, problems = _parse_pairs(as_path(path))
    if problems:
        refuse(problems, _ADVICE)
    return pairs


def read_corpus(path: str | Path) -> list[str]:
    """Reads the distinct sentences of a file, to fit a transformation on. Empty ones are left out.

    The first row tells what the file holds, not only its name:

      a table   .tsv, .csv or .jsonl whose columns have names in `TEXT_COLUMNS`; all of these columns are read
      CoLA's    .tsv without header
      pairs     score, sentence, sentence without header, divided by tabs, as in `load_sts`
      text      .txt, one sentence a line. A .txt that holds a table divided by tabs (MRPC's) is read as a table.

    Raises:
      ValueError: if the file cannot be read, is none of these, has a malformed line, or holds no sentence.
    """
    path = as_path(path)
    first = read_header(path)
    text, tabs = path.suffix.lower() == ".txt", path.suffix.lower() in (".tsv", ".txt")
    names = [] if text and len(first) == 1 else [name for name in TEXT_COLUMNS if name in first]
    headerless = [task for task in TASKS.values() if tabs and _lacks_header(task, first)]
    if not first and not text:  # nothing, or no JSON: the error says which
        read_columns(path, TEXT_COLUMNS[:1])
    if names:
        broken = tabs and any(task.broken_rows and set(task.text) <= set(names) for task in TASKS.values())
        sentences = _read_texts(path, names, skip_short=broken)
    elif headerless:
        sentences = _read_texts(path, headerless[0].text, header=headerless[0].headerless)
    elif tabs and len(first) == len(_PAIRS) and _score(first[0]) is not None:
        pairs = read_pairs(path)
        sentences = pairs.first + pairs.second
    elif text:
        sentences = _text_lines(path)
    else:
        shown = [name if len(name) <= 30 else name[:30] + "..." for name in first[:5]]
        raise ValueError(
            f"{path}, line 1: {len(first)} columns, {shown}; allowed are a header with one of {', '.join(TEXT_COLUMNS)}, CoLA's "
            "files without one, and score, sentence, sentence divided by tabs. Name the column of the sentences so, or give a "
            ".txt file with one sentence a line."
        )
    distinct = list(dict.fromkeys(sentence for sentence in sentences if sentence.strip()))
    if not distinct:
        raise ValueError(
            f"{path} holds no sentence; allowed are a .txt file with one sentence a line and a table (.tsv, .csv, .jsonl). "
            "Give another."
        )
    return distinct


def _lacks_header(task: Task, first: Sequence[str]) -> bool:
    """Whether this is the first row of a file of that task that has no header."""
    if task.headerless is None or task.labels is None or len(first) != len(task.headerless):
        return False
    return first[task.headerless.index(task.label)] in task.labels


def _read_texts(
    path: Path, names: Sequence[str], *, header: Sequence[str] | None = None, skip_short: bool = False
) -> list[str]:
    table = read_columns(path, names, header=header, skip_short=skip_short, may_be_empty=names)
    texts = [text for row in zip(*table.values.values(), strict=True) for text in row]
    if table.left_out:
        log.warning("%s: left out %d rows with too few columns", path, table.left_out)
    if empty := sum(not text.strip() for text in texts):
        log.warning("%s: left out %d empty texts", path, empty)
    return texts


def _text_lines(path: Path) -> list[str]:
    """Reads the lines of a text file; a table by another name is an error."""
    lines = read_lines(path)
    full = [line for line in lines if line.strip()]
    tabs = {line.count("\t") for line in full}
    kind = ""
    if len(tabs) == 1 and tabs != {0}:
        kind = f"{tabs.pop() + 1} columns in every line"
    elif full and all(line.startswith("{") and line.rstrip().endswith("}") for line in full):
        kind = "every line is a JSON object"
    if kind:
        raise ValueError(
            f"{path} is a table: {kind}; allowed in a .txt is one sentence a line. Give it a header, and the ending .tsv or .jsonl."
        )
    return lines


def _read_index(path: Path) -> dict[str, list[tuple[str, int]]]:
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; the folder of --data holds tasks.json and the files that it names. Correct the path, or "
            "make the folder of SentEval's files: docs/sts.md shows its form."
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        tasks = {name: [(str(f["file"]), int(f["pairs"])) for f in task["files"]] for name, task in index.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} is not a table of tasks {{"name": {{"files": [{{"file": ..., "pairs": ...}}]}}}} ({error!r}). Correct it.'
        ) from error
    names = [file for files in tasks.values() for file, _ in files]
    if not tasks or not all(tasks.values()) or len(set(names)) < len(names):
        raise ValueError(f"{path} has no task, a task without files, or a file twice. Correct it.")
    return tasks


def _parse_pairs(path: Path) -> tuple[PairFile, list[str]]:
    """Returns the pairs that can be read, and what is wrong with the other lines."""
    try:
        columns, problems = scan_columns(path, _PAIRS, header=_PAIRS)
    except ValueError as error:
        return PairFile(path.name, [], [], np.zeros(0)), [str(error).removesuffix(". Correct the file.")]
    scores = [_score(text) for text in columns.values["score"]]
    problems += [
        (line, f"score {text!r}, allowed is a number from {SCORES[0]:g} to {SCORES[1]:g}")
        for line, text, score in zip(columns.lines, columns.values["score"], scores, strict=True)
        if score is None
    ]
    pairs = PairFile(
        path.name, columns.values["sentence1"], columns.values["sentence2"], np.asarray(scores, np.float64)
    )
    return pairs, name_lines(path, sorted(problems))


def _score(text: str) -> float | None:
    try:
        score = float(text)
    except ValueError:
        return None
    return score if math.isfinite(score) and SCORES[0] <= score <= SCORES[1] else None
