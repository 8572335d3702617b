"""GLUE in the official download layout, written from the hub: for machines without a network, and for other readers.

The files have the columns that readers of that layout take by name, and a row number. What only the official archive has
(MRPC's sentence numbers, parse trees of MNLI) is not on the hub. A tab or a line break inside a text becomes a space, for
a file without quoting cannot hold it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from svt_jax.data.glue import HUB, TASKS, Examples, HubError, Split, Task, load_examples
from svt_jax.stores import as_path, check_reachable, make_folder
from svt_jax.text import did_you_mean
from svt_jax.writing import write_whole, writing

log = logging.getLogger(__name__)
_ADVICE = "Make room, or choose another --to."
_NO_HUB = "Check the network, or run this command on a machine that has one and copy the folder here."
_BREAKS = re.compile(r"[\t\r\n]")


def write_glue(folder: str | Path, tasks: Sequence[str] = tuple(TASKS), said: Callable[[str], None] = print) -> Path:
    """Writes TASK/train.tsv, dev.tsv and test.tsv of each task. A file that is there already is kept.

    Args:
      folder: made if it does not exist; then it can be `data.source`.
      tasks: names of `TASKS`.
      said: is told of each file.
    Returns:
      The folder.
    Raises:
      ValueError: for an unknown task, or if the hub does not give one.
      WriteError: if a file cannot be written. What is there is whole: the same command goes on.
    """
    if unknown := [name for name in tasks if name not in TASKS]:
        advice = did_you_mean(unknown, TASKS, "Correct the names.")
        raise ValueError(f"unknown tasks {', '.join(unknown)}; allowed are {', '.join(TASKS)}. {advice}")
    folder = as_path(folder)
    check_reachable(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; allowed is a folder, which may not exist yet. Choose another.")
    chosen = [TASKS[name] for name in dict.fromkeys(tasks)]
    if not all((folder / task.folder / name).is_file() for task in chosen for name in task.files.values()):
        _check_hub()
    for task in chosen:
        with writing(folder / task.folder, _ADVICE):
            make_folder(folder / task.folder)
        for split, name in task.files.items():
            path = folder / task.folder / name
            if path.is_file():
                said(f"kept {path}")
                continue
            try:
                examples = load_examples(task, "hub", split)
            except HubError as error:
                raise HubError(error.name, error.error, _NO_HUB) from error
            write_whole(path, "".join(_lines(task, split, examples, path)), _ADVICE)
            said(f"wrote {path}: {len(examples)} rows")
    return folder


def _check_hub() -> None:
    """Asks the hub once: without a network, the reader of data sets tries for half a minute before it says so."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError

    if constants.HF_HUB_OFFLINE:  # the reader takes its cache, or fails at once
        return
    try:
        HfApi().dataset_info(HUB, timeout=10)
    except (HTTPError, OSError) as error:
        raise HubError(HUB, error, _NO_HUB) from error


def _lines(task: Task, split: Split, examples: Examples, path: Path) -> Iterator[str]:
    labelled = examples.labels is not None
    if labelled and task.headerless:  # CoLA: its train and dev files have these columns and no header
        names = list(task.headerless)
    else:
        names = ["index", *task.text, *([task.label] if labelled else [])]
        yield "\t".join(names) + "\n"
    broken = 0
    columns = [examples.first] if examples.second is None else [examples.first, examples.second]
    for number, texts in enumerate(zip(*columns, strict=True)):
        plain = [_BREAKS.sub(" ", text) for text in texts]
        broken += plain != list(texts)
        cells = {"index": str(number), **dict(zip(task.text, plain, strict=True))}
        if examples.labels is not None:
            value = examples.labels[number]
            cells[task.label] = f"{value:.3f}" if task.labels is None else task.labels[value]
        yield "\t".join(cells.get(name, "") for name in names) + "\n"
    if broken:
        log.warning("%s: in %d rows a tab or a line break inside a text became a space", path, broken)
