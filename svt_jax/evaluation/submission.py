"""Files for the GLUE leaderboard: a header index<TAB>prediction, then each row of the test set once, in order.

File names, label strings and row numbers are those of gluebenchmark.com; a submission is a zip of all the files.
This module does not write the eleventh file, AX.tsv of the diagnostic set, which has no training data.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np

from svt_jax.data.glue import TASKS, Split, Task
from svt_jax.stores import make_folder

log = logging.getLogger(__name__)
_HEADER = "index\tprediction"


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules for one file.

    Attributes:
      name: the file's name.
      rows: number of rows of the official test set; None if there is none.
      labels: allowed predictions; None for a score.
      scores: smallest and largest allowed score.
    """

    name: str
    rows: int | None
    labels: tuple[str, ...] | None
    scores: tuple[float, float]


_OFFICIAL: dict[tuple[str, Split], tuple[str, int]] = {
    ("cola", "test"): ("CoLA.tsv", 1063),
    ("sst2", "test"): ("SST-2.tsv", 1821),
    ("mrpc", "test"): ("MRPC.tsv", 1725),
    ("stsb", "test"): ("STS-B.tsv", 1379),
    ("qqp", "test"): ("QQP.tsv", 390965),
    ("mnli", "test"): ("MNLI-m.tsv", 9796),
    ("mnli", "test_mismatched"): ("MNLI-mm.tsv", 9847),
    ("qnli", "test"): ("QNLI.tsv", 5463),
    ("rte", "test"): ("RTE.tsv", 3000),
    ("wnli", "test"): ("WNLI.tsv", 146),
}


def find_rules(task: Task, split: Split) -> Rules:
    """The rules for a task's test set; a custom task's file has the task's name."""
    name, rows = _OFFICIAL.get((task.name, split), (f"{task.name}.tsv", None))
    return Rules(name, rows, task.labels, task.scores)


def write_submission(task: Task, split: Split, logits: np.ndarray, folder: Path) -> Path:
    """Writes the predictions for an unlabelled split in the leaderboard's format.

    Args:
      task: the split's task; it has the label strings, and scores are clipped to its range.
      split: "test", or "test_mismatched" for MNLI.
      logits: float[N, num_labels], one row for each example, in the order of the test file.
      folder: folder for the file; made if it does not exist.
    Returns:
      The file's path.
    Raises:
      ValueError: if a class name cannot stand in such a file, or the file is there with other predictions.
    """
    rules, logits = find_rules(task, split), np.asarray(logits)
    if task.labels is None:
        predictions = [f"{score:.6f}" for score in np.clip(logits[:, 0].astype(np.float64), *task.scores)]
    else:
        predictions = [task.labels[n] for n in logits.argmax(axis=1)]
    text = "\n".join([_HEADER, *(f"{n}\t{prediction}" for n, prediction in enumerate(predictions))]) + "\n"
    problems = check_text(text, dataclasses.replace(rules, rows=len(logits)))
    if problems:
        raise ValueError(f"no predictions were written: {'; '.join(problems[:3])}. Rename the classes.")
    if rules.rows not in (None, len(logits)):
        log.warning("%s has %d rows; the leaderboard takes exactly %d", rules.name, len(logits), rules.rows)
    path = folder / rules.name
    if path.exists() and path.read_bytes() != text.encode():
        raise ValueError(f"{path} has other predictions, and nothing is overwritten. Choose another --output.")
    make_folder(folder)
    path.write_bytes(text.encode())
    return path


def check_text(text: str, rules: Rules) -> list[str]:
    """The ways in which a file's text breaks the rules; empty if it is correct.

    Example:
      >>> check_text("index\\tprediction\\n0\\tyes\\n2\\tno\\n", find_rules(TASKS["wnli"], "test"))
      ["WNLI.tsv, row 0: prediction 'yes'; allowed is 0 or 1", "WNLI.tsv, row 1: index '2', not 1", 'WNLI.tsv has 2 rows, not 146']
    """
    header, *lines = text.removesuffix("\n").split("\n")
    problems = [] if header == _HEADER else [f"{rules.name}: the header is {header!r}, not {_HEADER!r}"]
    for number, line in enumerate(lines):
        cells = line.split("\t")
        where = f"{rules.name}, row {number}"
        if len(cells) != 2:
            problems.append(f"{where}: {len(cells)} columns, not 2")
        elif cells[0] != str(number):
            problems.append(f"{where}: index {cells[0]!r}, not {number}")
        elif not _allowed(cells[1], rules):
            low, high = rules.scores
            allowed = f"a number from {low:g} to {high:g}" if rules.labels is None else " or ".join(rules.labels)
            problems.append(f"{where}: prediction {cells[1]!r}; allowed is {allowed}")
    if rules.rows not in (None, len(lines)):
        problems.append(f"{rules.name} has {len(lines)} rows, not {rules.rows}")
    return problems


def _allowed(prediction: str, rules: Rules) -> bool:
    if rules.labels is not None:
        return prediction in rules.labels
    try:
        return rules.scores[0] <= float(prediction) <= rules.scores[1]
    except ValueError:
        return False


def check_submission(folder: Path) -> list[str]:
    """The ways in which the nine tasks' files in a folder break the leaderboard's rules, including missing files."""
    problems = []
    for task, split in _OFFICIAL:
        rules = find_rules(TASKS[task], split)
        path = folder / rules.name
        problems += check_text(path.read_bytes().decode(), rules) if path.is_file() else [f"{rules.name} is missing"]
    return problems
