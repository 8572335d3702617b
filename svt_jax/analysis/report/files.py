"""What a report reads: the files of a finished run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from svt_jax.analysis.compare import full_task_name


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """The contents of a run's folder; see `training.run_folder` for what they are.

    Attributes:
      path: of the folder.
      results, manifest, config: of the files of these names.
      lines: of metrics.jsonl; none if the run has no such file.
      readings: of spectrum.jsonl; likewise.
    """

    path: Path
    results: dict[str, Any]
    manifest: dict[str, Any]
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    readings: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def task(self) -> str:
        return full_task_name(self.results, self.config, self.manifest)

    def scores(self) -> dict[str, float]:
        """The last step's validation scores by name; those of mismatched validation have names of their own."""
        return {
            name + split.removeprefix("validation").replace("_", " "): value
            for split, metrics in self.results["metrics"].items()
            for name, value in metrics.items()
        }

    def alphas(self) -> dict[int, float]:
        """The last alpha of each transformed layer that has one."""
        return dict(zip(self.results["svt"]["layers"], self.results["svt"]["alpha"], strict=False))


def read_finished(run: Path) -> FinishedRun:
    """Reads a run's folder.

    Raises:
      ValueError: if the run is not complete.
    """
    if not (run / "results.json").is_file():
        raise ValueError(
            f"{run} has no results.json: the run is not complete. Start the same training command again to finish it."
        )

    def text(name: str) -> str:
        return (run / name).read_text(encoding="utf-8")

    def lines(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in text(name).splitlines()] if (run / name).is_file() else []

    return FinishedRun(
        run,
        json.loads(text("results.json")),
        json.loads(text("manifest.json")),
        yaml.safe_load(text("config.yaml")),
        lines("metrics.jsonl"),
        lines("spectrum.jsonl"),
    )
