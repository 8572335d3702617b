"""Step metrics: read some steps late, checked, and handed to the callbacks."""

from __future__ import annotations

import collections
import math
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from svt_jax.errors import NonFiniteError
from svt_jax.models.slot import plain_parameters
from svt_jax.run.checkpoint import last_good
from svt_jax.training.callbacks import Callbacks
from svt_jax.training.optimizer import named_paths
from svt_jax.training.profiling import memory_in_use
from svt_jax.training.setup import Experiment

if TYPE_CHECKING:
    from svt_jax.training.session import Run

ADVICE = "Lower optim.learning_rate or set optim.grad_clip."
_LAG = 2
"""Steps between a step's dispatch and the reading of its metrics, so that the device never waits for Python."""


class StepMetrics:
    """Reads the metrics of each step and stops the run on a non-finite one.

    Args:
      experiment: has the schedule and the parameters' names.
      run: the run whose steps they are.
      call: the callbacks; calls `on_step` for each step, `on_log` for a line of metrics.jsonl.
    """

    def __init__(self, experiment: Experiment, run: Run, call: Callbacks):
        self._experiment, self._run, self._call = experiment, run, call
        self._pending: collections.deque[tuple[int, dict[str, Any]]] = collections.deque()

    def logs(self, step: int) -> bool:
        """Whether a step writes a line."""
        log, may_stop = self._run.config.log, self._run.config.optim.stop_after_worse is not None
        evaluates = step % (log.evaluate_every_steps or self._experiment.steps_per_epoch) == 0
        return step % log.every_steps == 0 or step == self._run.num_steps or (may_stop and evaluates)

    def add(self, step: int, metrics: dict[str, jax.Array], svt: dict[str, Any]) -> None:
        """Adds a step's metrics, which may still be computing, and reads an earlier step's.

        Args:
          step: the step's number, from 1.
          metrics: the step's metrics.
          svt: "alpha" by layer and "svt" by layer and name, for a step that writes a line.
        Raises:
          NonFiniteError: if the loss or gradient that it reads is not finite, or the remedy has failed too often.
        """
        self._pending.append((step, {**metrics, **svt}))
        while len(self._pending) > _LAG:
            self._read(*self._pending.popleft())

    def read_all(self) -> None:
        """Reads all added metrics, waiting for the device. Raises as `add`."""
        while self._pending:
            self._read(*self._pending.popleft())

    def wait(self) -> None:
        """Waits until the device has done all added steps."""
        jax.block_until_ready([metrics for _, metrics in self._pending])

    def _read(self, step: int, metrics: dict[str, Any]) -> None:
        loss, grad_norm, clock = float(metrics["loss"]), float(metrics["grad_norm"]), self._run.clock
        term = {"svt_loss": float(metrics["svt_loss"])} if "svt_loss" in metrics else {}
        if not all(map(math.isfinite, (loss, grad_norm, *term.values()))):
            raise NonFiniteError(self._non_finite_message(step, loss, term, np.asarray(metrics["squared_norms"])))
        clock.svt_failures += int(metrics["svt_failures"])
        limit = self._run.config.run.max_svt_failures
        if clock.svt_failures > limit:
            svt = self._run.config.svt
            advice = (
                "Choose another svt.solver, or raise the limit"
                if svt.decomposes
                else "Change svt.params, or raise the limit"
            )
            raise NonFiniteError(
                f"step {step}: svt.function {svt.function} has failed {clock.svt_failures} times since the run began (its result "
                f"was not finite, and was left out); allowed are run.max_svt_failures {limit}, and "
                f"{last_good(self._experiment.checkpoints)}. {advice}."
            )
        numbers = {"loss": loss, **term, "grad_norm": grad_norm, "examples_per_second": clock.examples_per_second}
        self._call.on_step(step, numbers)
        if self.logs(step):
            line = {
                "step": step,
                "epoch": step / self._experiment.steps_per_epoch,
                "loss": loss,
                **term,
                "learning_rate": float(self._experiment.schedule(step - 1)),
                "alpha": {str(n): float(alpha) for n, alpha in metrics["alpha"].items()},
                "svt": plain_parameters(metrics["svt"]),
                "grad_norm": grad_norm,
                "svt_failures": clock.svt_failures,
                "examples_per_second": clock.examples_per_second,
                "tokens_per_second": clock.tokens_per_second,
                "compiles": clock.compiles,
                **(memory_in_use() if self._run.config.log.memory else {}),
            }
            self._call.on_log(step, line)

    def _non_finite_message(self, step: int, loss: float, term: dict[str, float], squared_norms: np.ndarray) -> str:
        if not math.isfinite(loss):
            what = f"the loss is {loss}"
        elif not all(map(math.isfinite, term.values())):
            what = f"the term of svt.function {self._run.config.svt.function} is {term['svt_loss']}"
        else:
            norms = zip(named_paths(self._experiment.shardings.params), squared_norms, strict=True)
            first = next((name for name, value in norms if not math.isfinite(value)), "their norm")
            what = f"the loss is {loss:.4g} and the gradient of {first} is not finite"
        return (
            f"step {step}: {what}; training needs finite numbers, {last_good(self._experiment.checkpoints)}. {ADVICE}"
        )
