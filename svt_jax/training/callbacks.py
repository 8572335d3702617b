"""Callbacks: the base class, and the calls to several of them.

A callback is an object with any of the methods of `Callback`; their return values are not used. The loop calls the
callbacks in the given order, in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svt_jax.training.session import Run


class Callback:
    """Base class of callbacks: subclass it and write the methods that you need.

    Example:
      >>> class Losses(Callback):
      ...     def on_start(self, run):
      ...         self.losses = []
      ...     def on_log(self, step, metrics):
      ...         self.losses.append(metrics["loss"])
    """

    def on_start(self, run: Run) -> None:
        """Runs before the first step; `run` (its `config`, `folder`, `step`, `num_steps`) stays current."""

    def on_busy(self, what: str) -> None:
        """The run does something other than steps, such as "evaluating"; the text is empty when that is done."""

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """A step's loss, gradient norm and rate are known, some steps after it was started."""

    def on_log(self, step: int, metrics: dict[str, Any]) -> None:
        """A line of metrics.jsonl is ready, after each `log.every_steps` steps and after the last one."""

    def on_evaluate(self, step: int, scores: dict[str, dict[str, float]]) -> None:
        """An evaluation is done; `scores` are by split and metric."""

    def on_spectrum(self, step: int, reading: dict[str, Any]) -> None:
        """The probe has been read (`evaluation.probe`)."""

    def on_checkpoint(self, step: int) -> None:
        """The state after this step is being saved; the run's own callback, which writes it, comes first."""

    def on_end(self, results: dict[str, Any]) -> None:
        """The run is complete; `results` is what results.json holds."""

    def close(self) -> None:
        """The run is over, however it ended."""


class Callbacks:
    """Calls the same method of several callbacks; skips those without it."""

    def __init__(self, callbacks: Sequence[Any]):
        self._callbacks = list(callbacks)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Callback, name):
            raise AttributeError(name)

        def call(*arguments: Any) -> None:
            for callback in self._callbacks:
                if method := getattr(callback, name, None):
                    method(*arguments)

        return call
