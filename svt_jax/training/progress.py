"""What a person sees while a run goes on: a bar on a terminal, a line for each evaluation elsewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

log = logging.getLogger(__name__)


def discard_output() -> None:
    """Sends standard output nowhere from here on, so that what is left in its buffer does not fail at exit."""
    with contextlib.suppress(OSError, ValueError):  # it is closed, or no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class PlainConsole(Console):
    """A console that shows text as it is, and goes quiet when its stream ends: names may look like rich's markup.

    What it says lies beside the work: a reader that has gone, or a full disk, must not end a training run.
    """

    def __init__(self, **options: Any):
        super().__init__(**{"markup": False, "emoji": False, **options})

    def print(self, *objects: Any, **options: Any) -> None:
        if self.quiet:
            return
        try:
            super().print(*objects, **options)
        except OSError as error:
            self.on_broken_pipe(error)

    def on_broken_pipe(self, error: OSError | None = None) -> None:
        self.quiet = True
        discard_output()
        log.warning("nothing more is shown: the output cannot be written (%s)", error or "its reader has gone")


class TrainingProgress:
    """A progress bar with loss, rate and time left."""

    def __init__(self, console: Console, num_steps: int, start_step: int, enabled: bool):
        self._console = console
        self._num_steps = num_steps
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} examples/s  left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
            disable=not (enabled and console.is_terminal),
        )
        self._task = self._progress.add_task("", total=num_steps, completed=start_step, loss="-", rate="-", note="")

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, step: int, loss: float, examples_per_second: float) -> None:
        self._progress.update(self._task, completed=step, loss=f"{loss:.4f}", rate=f"{examples_per_second:.0f}")

    def note(self, text: str) -> None:
        """Says what the run is busy with besides training."""
        self._progress.update(self._task, note=text)

    def evaluated(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        scores = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._console.print(f"step {step}/{self._num_steps}  epoch {epoch:.2f}  validation  {scores}", highlight=False)


class EncodingProgress:
    """A progress bar with rate and time left for the encoding of sentences; nothing where there is no terminal."""

    def __init__(self, console: Console):
        self._progress = Progress(
            TextColumn("encoding"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} sentences/s  left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> EncodingProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, total: int) -> Callable[[int], None]:
        """Shows the bar; what it returns is called with the number of sentences done since the last call."""
        self._progress.start()
        task, start, done = self._progress.add_task("", total=total, rate="-"), time.perf_counter(), 0

        def advance(sentences: int) -> None:
            nonlocal done
            done += sentences
            self._progress.update(task, completed=done, rate=f"{done / (time.perf_counter() - start):.0f}")

        return advance


def results_table(title: str, rows: list[tuple[str, str]]) -> Table:
    """A two-column table for the end of a command."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
