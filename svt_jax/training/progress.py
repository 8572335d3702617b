"""What a person sees while a run goes on: a bar on a terminal; elsewhere a line each minute."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from svt_jax.run import distributed
from svt_jax.training.callbacks import Callback

if TYPE_CHECKING:
    from svt_jax.training.session import Run

log = logging.getLogger(__name__)


def discard_output() -> None:
    """Discards standard output from here on, so that text left in its buffer does not fail at exit."""
    with contextlib.suppress(OSError, ValueError):  # it is closed, or is not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class PlainConsole(Console):
    """A console that shows text as it is (names may look like rich's markup), and goes quiet when its stream ends.

    Output must not end a training run: its reader may have closed it, or the disk may be full.
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


_MINUTE = 60.0


class TrainingProgress(Callback):
    """A bar with loss, rate and time left on a terminal; elsewhere a line each minute. A line for each evaluation."""

    def __init__(self, console: Console, *, enabled: bool, label: str = ""):
        self._console, self._enabled, self._label = console, enabled, label
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} examples/s  left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
            disable=bool(label) or not (enabled and console.is_terminal),  # a console shows one bar at a time
        )
        self._said = time.monotonic()

    def on_start(self, run: Run) -> None:
        self._run = run
        self._say(distributed.describe(jax.sharding.get_mesh()))
        self._say(f"writing to {run.folder}")
        if run.step:
            self._say(f"resuming {run.folder} after step {run.step} of {run.num_steps}")
        self._bar.start()
        self._task = self._bar.add_task("", total=run.num_steps, completed=run.step, loss="-", rate="-", note="")
        self._first, self._began = run.step, run.clock.training_seconds

    def on_busy(self, what: str) -> None:
        self._bar.update(self._task, note=what)

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        loss, rate = f"{metrics['loss']:.4f}", f"{metrics['examples_per_second']:.0f}"
        self._bar.update(self._task, completed=step, loss=loss, rate=rate)
        if self._bar.disable and self._enabled and time.monotonic() - self._said >= _MINUTE:
            self._said = time.monotonic()
            seconds = (self._run.clock.training_seconds - self._began) / max(step - self._first, 1)
            left = datetime.timedelta(seconds=round(seconds * (self._run.num_steps - step)))
            self._say(f"step {step}/{self._run.num_steps}  loss {loss}  {rate} examples/s  left {left}")

    def on_evaluate(self, step: int, scores: dict[str, dict[str, float]]) -> None:
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in scores["validation"].items())
        epoch = step / self._run.steps_per_epoch
        self._say(f"step {step}/{self._run.num_steps}  epoch {epoch:.2f}  validation  {numbers}")

    def close(self) -> None:
        self._bar.stop()

    def _say(self, line: str) -> None:
        line = f"{self._label}: {line}" if self._label else line
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class TokenizingProgress:
    """A bar while many texts are tokenised; without a terminal a line each minute. Few texts take no time to speak of."""

    _FEW = 50_000

    def __init__(self, console: Console, *, enabled: bool):
        self._console, self._enabled = console, enabled

    def begin(self, split: str, total: int) -> Callable[[int], None]:
        """Returns a function to call with the number of examples done since the last call."""
        if not self._enabled or total <= self._FEW:
            return lambda _: None
        bar = Progress(
            TextColumn(f"tokenising {split}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("examples  left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        task, done, said = bar.add_task("", total=total), 0, time.monotonic()
        bar.start()

        def advance(examples: int) -> None:
            nonlocal done, said
            done += examples
            bar.update(task, completed=done)
            if done >= total:
                bar.stop()
            elif bar.disable and time.monotonic() - said >= _MINUTE:
                said = time.monotonic()
                self._console.print(
                    f"tokenising {split}: {done} of {total} examples", highlight=False, markup=False, soft_wrap=True
                )

        return advance


class EncodingProgress:
    """A progress bar with rate and time left for encoding sentences, or other texts; without a terminal a line each minute."""

    def __init__(self, console: Console, what: str = "sentences", doing: str = "encoding"):
        self._console, self._what, self._doing = console, what, doing
        self._progress = Progress(
            TextColumn(doing),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} " + what + "/s  left"),
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
        """Shows the bar; returns a function to call with the number of sentences done since the last call."""
        self._progress.start()
        task, done = self._progress.add_task("", total=total, rate="-"), 0
        start = said = time.monotonic()

        def advance(sentences: int) -> None:
            nonlocal done, said
            done += sentences
            now = time.monotonic()
            rate = done / max(now - start, 1e-6)
            self._progress.update(task, completed=done, rate=f"{rate:.0f}")
            if self._progress.disable and 0 < done < total and now - said >= _MINUTE:
                said = now
                left = datetime.timedelta(seconds=round((total - done) / rate))
                line = f"{self._doing}: {done} of {total} {self._what}  {rate:.0f} {self._what}/s  left {left}"
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)

        return advance


def results_table(title: str, rows: list[tuple[str, str]]) -> Table:
    """A two-column table for the end of a command."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
