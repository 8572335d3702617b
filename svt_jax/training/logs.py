"""Callbacks that write while a run goes on: JSON lines, TensorBoard events, Weights & Biases, checkpoints, report."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import shlex
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from svt_jax.evaluation.probe import MEASURES
from svt_jax.host import only_warns
from svt_jax.run.config import LogConfig
from svt_jax.run.folder import RunFolder, read_id
from svt_jax.run.line_files import LineFile
from svt_jax.stores import in_store
from svt_jax.training.callbacks import Callback
from svt_jax.training.events import Events
from svt_jax.training.results import best_evaluation

if TYPE_CHECKING:
    from svt_jax.training.session import Run
    from svt_jax.training.setup import Experiment

log = logging.getLogger(__name__)

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def check_packages(config: LogConfig) -> None:
    """Raises ValueError if the config asks for a logger whose package is not installed."""
    missing = {
        key: package
        for key, package in _PACKAGES.items()
        if getattr(config, key) and importlib.util.find_spec(package) is None
    }
    if missing:
        raise ValueError(
            " ".join(
                f"log.{key} is true and the package {package} is not installed; allowed is false, or true with it. "
                f"Install it: pip install 'svt_jax[{key}]'."
                for key, package in missing.items()
            )
        )


class SaveCheckpoints(Callback):
    """Saves the run's state, so that a resumed run continues after this step with the same bits."""

    def __init__(self, experiment: Experiment):
        assert experiment.model.task is not None, "a config names one"
        self._checkpoints, self._task = experiment.checkpoints, experiment.model.task

    def on_start(self, run: Run) -> None:
        self._run = run

    def on_checkpoint(self, step: int) -> None:
        run = self._run
        progress = {
            "clock": run.clock.numbers(),
            "evaluations": run.evaluations,
            "svt": run.svt,
            "first_svt": run.first_svt,
        }
        best = best_evaluation(self._task, run.evaluations)["step"] if run.evaluations else None
        self._checkpoints.save(step, run.state, progress, best)


class JsonLines(Callback):
    """Appends to metrics.jsonl and spectrum.jsonl; on resuming, drops lines of steps that will run again."""

    def __init__(self, folder: RunFolder):
        self._folder = folder
        self._metrics: LineFile | None = None
        self._spectrum: LineFile | None = None

    def on_start(self, run: Run) -> None:
        self._metrics = LineFile(self._folder.metrics, run.step)
        self._spectrum = LineFile(self._folder.spectrum, run.step)

    def on_log(self, step: int, metrics: dict[str, Any]) -> None:
        assert self._metrics is not None, "on_start comes first"
        self._metrics.write(metrics)

    def on_spectrum(self, step: int, reading: dict[str, Any]) -> None:
        assert self._spectrum is not None, "on_start comes first"
        self._spectrum.write({"step": step, **reading})

    def on_checkpoint(self, step: int) -> None:
        for lines in self._files():  # before the checkpoint: the resumed run writes only lines of later steps
            lines.flush()

    def on_end(self, results: dict[str, Any]) -> None:
        for lines in self._files():
            lines.join()

    def close(self) -> None:
        for lines in self._files():
            lines.close()

    def _files(self) -> list[LineFile]:
        return [lines for lines in (self._metrics, self._spectrum) if lines is not None]


def scalars_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl as numbers by slash-separated name; an array parameter is a list.

    Example:
      >>> scalars_of({"step": 3, "loss": 0.5, "alpha": {"11": -0.25}, "svt": {"11": {"alpha": -0.25, "gamma": 2.0}}})
      {'train/loss': 0.5, 'alpha/layer_11': -0.25, 'svt/layer_11/gamma': 2.0}
    """
    numbers = {f"train/{name}": value for name, value in metrics.items() if name not in ("step", "alpha", "svt")}
    numbers |= {f"alpha/layer_{n}": alpha for n, alpha in metrics["alpha"].items()}
    others = {(n, name): value for n, by_name in metrics["svt"].items() for name, value in by_name.items()}
    return numbers | {f"svt/layer_{n}/{name}": value for (n, name), value in others.items() if name != "alpha"}


def scalars_of_reading(reading: Mapping[str, Any]) -> dict[str, float]:
    """As `scalars_of`, for a reading of the probe."""
    numbers: dict[str, float] = {}
    for state in reading["states"]:
        place = "embeddings" if state["layer"] is None else f"layer_{state['layer']}_{state['state']}"
        numbers |= {f"spectrum_{measure}/{place}": state[measure] for measure in MEASURES}
    return numbers


class _Numbers(Callback):
    """Turns lines, scores and readings into numbers by name; a subclass sends them."""

    def add(self, step: int, numbers: dict[str, Any]) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define add(step, numbers)")

    def on_log(self, step: int, metrics: dict[str, Any]) -> None:
        self.add(step, scalars_of(metrics))

    def on_evaluate(self, step: int, scores: dict[str, dict[str, float]]) -> None:
        self.add(step, {f"{split}/{name}": value for split, each in scores.items() for name, value in each.items()})

    def on_spectrum(self, step: int, reading: dict[str, Any]) -> None:
        self.add(step, scalars_of_reading(reading))


class TensorBoard(_Numbers):
    """Event files in the run's folder. A failure here only warns."""

    def __init__(self, folder: RunFolder):
        self._folder = folder
        self._events: Events | None = None

    def on_start(self, run: Run) -> None:
        with only_warns("TensorBoard's folder of events"):
            self._events = Events(self._folder.tensorboard, run.step)

    def add(self, step: int, numbers: dict[str, Any]) -> None:
        if self._events is None:
            return
        for name, value in numbers.items():
            write = self._events.add_histogram if isinstance(value, list) else self._events.add_scalar
            write(name, value, step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


class WeightsAndBiases(_Numbers):
    """Sends the same numbers to Weights & Biases. Its own environment variables choose project, entity and mode.

    Its run id is made from the run's folder, so that a resumed run continues there. A failure here only warns.
    """

    def __init__(self, folder: RunFolder):
        self._folder = folder
        self._run: Any = None

    def on_start(self, run: Run) -> None:
        with self._warning():
            import wandb

            self._run = wandb.init(
                dir=tempfile.mkdtemp(prefix="svt_jax-") if in_store(self._folder.path) else str(self._folder.path),
                name=self._folder.path.name,
                id=read_id(self._folder),
                resume="allow",
                config=run.config.to_dict(),
            )

    def add(self, step: int, numbers: dict[str, Any]) -> None:
        with self._warning():
            if self._run is not None:
                self._run.log(numbers, step=step)

    def on_end(self, results: dict[str, Any]) -> None:
        with self._warning():
            if self._run is not None:
                self._run.summary.update({"best": results["best"], "metrics": results["metrics"]})

    def close(self) -> None:
        with self._warning():
            if self._run is not None:
                self._run.finish()

    @contextlib.contextmanager
    def _warning(self) -> Any:
        try:
            yield
        except Exception as error:  # a failing service must not stop the run
            self._run = None
            log.warning("Weights & Biases gets no more (%s)", error)


class Report(Callback):
    """Writes report.html at the end. The run is complete then; a failure here does not fail it."""

    def __init__(self, folder: RunFolder):
        self._folder = folder

    def on_end(self, results: dict[str, Any]) -> None:
        from svt_jax.analysis.report import write_report

        try:
            if not self._folder.report.is_file():
                write_report(self._folder)
        except Exception as error:
            why = " ".join(str(error).split()) or type(error).__name__
            log.warning(
                "the run is complete, and its report could not be made (%s). Once that is mended: "
                "python eval.py report --run %s",
                why,
                shlex.quote(str(self._folder.path)),
            )
