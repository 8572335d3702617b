"""What a run writes down while it goes on: metrics.jsonl, spectrum.jsonl, and TensorBoard events where they are asked for."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svt_jax.evaluation.probe import MEASURES
from svt_jax.training.config import LogConfig
from svt_jax.training.run_folder import RunFolder, read_lines, write_atomically


def check_tensorboard(config: LogConfig) -> None:
    """Raises ValueError if events are asked for and cannot be written."""
    if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            "log.tensorboard is true and the package tensorboardX, which writes the events, is not installed; allowed is "
            "false, or true with it. Install it: pip install 'svt_jax[tensorboard]'."
        )


class Records:
    """Appends to a run's files; on resuming, drops what is of steps that will be done again.

    Args:
      folder: of the run.
      start_step: steps that are done.
      tensorboard: also write TensorBoard events.
      writes: false in the processes that leave it to the first: nothing is written then.
    """

    def __init__(self, folder: RunFolder, start_step: int, *, tensorboard: bool, writes: bool = True):
        self._metrics = _Lines(folder.metrics, start_step) if writes else None
        self._spectrum = _Lines(folder.spectrum, start_step) if writes else None
        self._events: Any = None
        if tensorboard and writes:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(folder.tensorboard), purge_step=start_step + 1 if start_step else None)

    def metrics(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl: numbers by name, alpha by layer, and every parameter of an SVT by layer and name."""
        if self._metrics is not None:
            self._metrics.write(line)
        numbers = {name: value for name, value in line.items() if name not in ("step", "alpha", "svt")}
        self._scalars("train", line["step"], numbers)
        self._scalars("alpha", line["step"], {f"layer_{n}": alpha for n, alpha in line["alpha"].items()})
        for n, by_name in line.get("svt", {}).items():
            others = {f"layer_{n}/{name}": value for name, value in by_name.items() if name != "alpha"}
            self._scalars("svt", line["step"], others)

    def evaluation(self, step: int, scores: Mapping[Any, dict[str, float]]) -> None:
        """Scores by split and metric. (results.json and the checkpoints hold them too.)"""
        for split, metrics in scores.items():
            self._scalars(split, step, metrics)

    def spectrum(self, step: int, reading: dict[str, Any]) -> None:
        """A reading of the probe."""
        if self._spectrum is not None:
            self._spectrum.write({"step": step, **reading})
        for state in reading["states"]:
            place = "embeddings" if state["layer"] is None else f"layer_{state['layer']}_{state['state']}"
            for measure in MEASURES:
                self._scalars(f"spectrum_{measure}", step, {place: state[measure]})

    def close(self) -> None:
        for file in (self._metrics, self._spectrum, self._events):
            if file is not None:
                file.close()

    def _scalars(self, group: str, step: int, numbers: dict[str, float]) -> None:
        if self._events is not None:
            for name, value in numbers.items():
                add = self._events.add_histogram if isinstance(value, list) else self._events.add_scalar
                add(f"{group}/{name}", value, step)


class _Lines:
    """A file of JSON lines, each with its "step"."""

    def __init__(self, path: Path, start_step: int):
        # before the first step a run may have written a reading, and will do so again
        kept = [line for line in read_lines(path) if 0 < start_step >= line["step"]]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        """Raises OSError if there is no room for the line."""
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"{self._file.name} could not be written ({error.strerror}). Make room, and start the same command again "
                "to resume."
            ) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a line for which there was no room, as `write` has said
            self._file.close()
