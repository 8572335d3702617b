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
from pathlib import Path

import numpy as np

from svt_jax.data.tables import read_columns, read_lines

log = logging.getLogger(__name__)

SCORES = (0.0, 5.0)
_COLUMNS = ("sentence", "sentence1", "sentence2", "premise", "hypothesis", "question", "question1", "question2")
"""Names of text columns in files with a header, GLUE's among them."""
_SHOWN = 5  # problems of one folder that an error lists; the others are counted


@dataclasses.dataclass(frozen=True)
class PairFile:
    """The pairs of one file, in its order.

    Attributes:
      name: of the file, as in tasks.json.
      first: the first sentence of each pair.
      second: the second.
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
    """All tasks of a folder.

    Raises:
      ValueError: if tasks.json or a file is missing or malformed (with its line), a score is outside [0, 5], a sentence
        is empty, or a file has another number of pairs than tasks.json says. Up to five problems are listed at once.
    """
    folder = Path(folder)
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
    _raise(problems)
    return tasks


def read_pairs(path: str | Path) -> PairFile:
    """The pairs of one file; errors as in `load_sts`."""
    pairs, problems = _parse_pairs(Path(path))
    _raise(problems)
    return pairs


def read_corpus(path: str | Path) -> list[str]:
    """The distinct sentences of a file, to fit a transformation on.

    Three kinds: `.tsv` with a header that names text columns (sentence, sentence1, premise, ...; GLUE's files), `.tsv`
    of pairs with scores as in `load_sts`, and anything else as text, one sentence a line. Empty lines are left out.

    Raises:
      ValueError: if the file cannot be read, has a malformed line, or holds no sentence.
    """
    path = Path(path)
    lines = read_lines(path)
    header = lines[0].split("\t") if lines else []
    columns = [name for name in _COLUMNS if name in header]
    sentences: list[str] = []
    if path.suffix != ".tsv":
        sentences = lines
    elif columns:
        qqp = "question1" in columns  # its official files have rows cut in two
        table = read_columns(path, columns, skip_short=qqp)
        if table.left_out:
            log.warning("%s: left out %d rows with too few columns", path, table.left_out)
        sentences = [text for row in zip(*table.values.values(), strict=True) for text in row]
    else:
        pairs = read_pairs(path)
        sentences = pairs.first + pairs.second
    distinct = list(dict.fromkeys(sentence for sentence in sentences if sentence.strip()))
    if not distinct:
        raise ValueError(f"{path} holds no sentence. Give a text file with one sentence a line, or a .tsv file.")
    return distinct


def _read_index(path: Path) -> dict[str, list[tuple[str, int]]]:
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; the folder of --data holds tasks.json and the files that it names. Correct the path."
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
    """The pairs that can be read, and what is wrong with the other lines."""
    try:
        lines = read_lines(path)
    except ValueError as error:
        return PairFile(path.name, [], [], np.zeros(0)), [str(error)]
    first, second, scores = [], [], []
    problems = [] if lines else [f"{path} has no pairs"]
    for number, line in enumerate(lines, start=1):
        where, cells = f"{path}, line {number}", line.split("\t")
        if len(cells) != 3:
            problems.append(f"{where}: {len(cells)} columns where score, sentence, sentence are expected")
        elif (score := _score(cells[0])) is None:
            problems.append(f"{where}: score {cells[0]!r}, allowed is a number from {SCORES[0]:g} to {SCORES[1]:g}")
        elif not (cells[1].strip() and cells[2].strip()):
            problems.append(f"{where}: an empty sentence")
        else:
            scores.append(score)
            first.append(cells[1])
            second.append(cells[2])
    return PairFile(path.name, first, second, np.asarray(scores)), problems


def _score(text: str) -> float | None:
    try:
        score = float(text)
    except ValueError:
        return None
    return score if math.isfinite(score) and SCORES[0] <= score <= SCORES[1] else None


def _raise(problems: list[str]) -> None:
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError("; ".join(problems[:_SHOWN]) + more + ". Correct the files, or download them again.")
