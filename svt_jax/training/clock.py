"""The time that a run has trained, and counts over the run."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import jax
import numpy as np

from svt_jax.data.batching import Batch, tokens_of


@dataclasses.dataclass
class Clock:
    """Seconds of training (without compilation, evaluation and waiting for saves), and counts since the run's start:
    examples, tokens, places for tokens, compilations, failed decompositions. `first_step_seconds` runs from the call to the end of the
    first step.

    It starts from the numbers of the run's earlier processes, so a resumed run reports the whole.
    """

    seconds: float = 0.0
    examples: int = 0
    tokens: int = 0
    slots: int = 0
    compile_seconds: float = 0.0
    compiles: int = 0
    svt_failures: int = 0
    wall_seconds: float = 0.0
    first_step_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._wall_before, self._process_start = self.wall_seconds, time.perf_counter()
        self._start: float | None = None

    def count(self, batch: Batch, lengths: np.ndarray) -> None:
        """Counts a step's examples and real tokens; `lengths` has the length of every training example.

        The places of tokens are those of this process, times the number of processes.
        """
        real = batch["index"][batch["weights"] > 0]
        self.examples += len(real)
        self.tokens += int(lengths[real].sum())
        self.slots += tokens_of(batch).size * jax.process_count()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """A context whose time counts as training."""
        self._start = time.perf_counter()
        try:
            yield
        finally:
            self._stop()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count as training. The device must have finished its steps."""
        self._stop()
        try:
            yield
        finally:
            self._start = time.perf_counter()

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """A context that compiles a program."""
        start = time.perf_counter()
        with self.paused():
            yield
        self.compile_seconds += time.perf_counter() - start
        self.compiles += 1

    def _stop(self) -> None:
        self.seconds, self._start = self.training_seconds, None

    @property
    def training_seconds(self) -> float:
        return self.seconds + (0.0 if self._start is None else time.perf_counter() - self._start)

    @property
    def examples_per_second(self) -> float:
        return self.examples / max(self.training_seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.training_seconds, 1e-9)

    @property
    def padding_share(self) -> float | None:
        """Share of the places that hold no token; None for a run that an earlier version began."""
        return 1.0 - self.tokens / self.slots if self.slots >= self.tokens > 0 else None

    def numbers(self) -> dict[str, float]:
        """The numbers for a checkpoint; `Clock(**numbers)` continues from them."""
        self.wall_seconds = self._wall_before + time.perf_counter() - self._process_start
        return {**dataclasses.asdict(self), "seconds": self.training_seconds}
