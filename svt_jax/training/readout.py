"""What each step tells: its metrics are read, logged and checked."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from svt_jax.evaluation.metrics import NonFiniteError
from svt_jax.models.svt_layer import plain_parameters
from svt_jax.training.clock import Clock
from svt_jax.training.progress import TrainingProgress
from svt_jax.training.records import Records

ADVICE = "Lower optim.learning_rate or set optim.grad_clip."
_LAG = 2
"""Steps between dispatch and reading a step's metrics, so that the device never waits for Python."""


class Readout:
    """Reads the metrics of each step some steps late, writes lines of metrics.jsonl, stops the run on one not finite.

    Args:
      records: take the lines of metrics.jsonl.
      bar: shows loss and rate.
      clock: gives the rates.
      schedule: gives the learning rate.
      steps_per_epoch: of the run.
      logs: whether a step gets a line.
      parameter_names: in the order of `squared_norms`.
      last_good: says which checkpoint is the last good one.
      max_svt_failures: decompositions that may fail in the run.
    """

    def __init__(
        self,
        records: Records,
        bar: TrainingProgress,
        clock: Clock,
        *,
        schedule: optax.Schedule,
        steps_per_epoch: int,
        logs: Callable[[int], bool],
        parameter_names: Sequence[str],
        last_good: Callable[[], str],
        max_svt_failures: int,
    ):
        self._records, self._bar, self._clock, self._schedule = records, bar, clock, schedule
        self._steps_per_epoch, self._logs = steps_per_epoch, logs
        self._parameter_names, self._last_good = parameter_names, last_good
        self._max_svt_failures = max_svt_failures
        self._pending: collections.deque[tuple[int, dict[str, Any]]] = collections.deque()

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """Takes a step's metrics, which may not be computed yet, and reads those of an earlier one.

        Raises:
          NonFiniteError: if that step's loss or gradient is not finite, or too many decompositions have failed.
        """
        self._pending.append((step, metrics))
        while len(self._pending) > _LAG:
            self._read(*self._pending.popleft())

    def read_all(self) -> None:
        """Reads what has been added, waiting for the device. Raises as `add`."""
        while self._pending:
            self._read(*self._pending.popleft())

    def wait(self) -> None:
        """Returns when the device has done the steps that were added."""
        jax.block_until_ready([metrics for _, metrics in self._pending])

    def _read(self, step: int, metrics: dict[str, Any]) -> None:
        loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise NonFiniteError(self._non_finite_message(step, loss, np.asarray(metrics["squared_norms"])))
        self._clock.svt_failures += int(metrics["svt_failures"])
        if self._clock.svt_failures > self._max_svt_failures:
            raise NonFiniteError(
                f"step {step}: {self._clock.svt_failures} decompositions have failed since the run began; allowed are "
                f"run.max_svt_failures {self._max_svt_failures}, and {self._last_good()}. Choose another svt.solver, or "
                "raise the limit."
            )
        rate = self._clock.examples_per_second
        self._bar.update(step, loss, rate)
        if self._logs(step):
            self._records.metrics(
                {
                    "step": step,
                    "epoch": step / self._steps_per_epoch,
                    "loss": loss,
                    "learning_rate": float(self._schedule(step - 1)),
                    "alpha": {str(n): float(alpha) for n, alpha in metrics["alpha"].items()},
                    "svt": plain_parameters(metrics["svt"]),
                    "grad_norm": grad_norm,
                    "svt_failures": self._clock.svt_failures,
                    "examples_per_second": rate,
                    "tokens_per_second": self._clock.tokens_per_second,
                    "compiles": self._clock.compiles,
                }
            )

    def _non_finite_message(self, step: int, loss: float, squared_norms: np.ndarray) -> str:
        if not math.isfinite(loss):
            what = f"the loss is {loss}"
        else:
            norms = zip(self._parameter_names, squared_norms, strict=True)
            first = next((name for name, value in norms if not math.isfinite(value)), "their norm")
            what = f"the loss is {loss:.4g} and the gradient of {first} is not finite"
        return f"step {step}: {what}; training needs finite numbers, {self._last_good()}. {ADVICE}"
