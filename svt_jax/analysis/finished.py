"""What a report and a comparison read: the files of a finished run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


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
        """The task's name; of a user's own also its columns and classes, by which two of them can be told apart."""
        if self.results["task"] != "custom":
            return self.results["task"]
        data, classes = self.config["data"], self.manifest.get("classes")
        kind = "a number" if classes is None else " or ".join(classes)
        return f"custom ({', '.join(data['text_columns'])} to {data['label_column']}: {kind})"

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
      ValueError: if the run is not complete, or a file is not what a run writes.
    """
    if not (run / "results.json").is_file():
        raise ValueError(
            f"{run} has no results.json: the run is not complete. Start the same training command again to finish it."
        )

    def table(name: str, keys: Sequence[str]) -> dict[str, Any]:
        try:
            text = (run / name).read_text(encoding="utf-8")
            found = yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
            missing = [key for key in keys if key not in found]
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            raise _not_a_runs(run / name, str(error)) from error
        if missing:
            raise _not_a_runs(run / name, f"it lacks {', '.join(missing)}")
        return found

    def lines(name: str) -> list[dict[str, Any]]:
        path = run / name
        try:
            return (
                [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
            )
        except ValueError as error:
            raise _not_a_runs(path, str(error)) from error

    return FinishedRun(
        run,
        table("results.json", ("task", "metrics", "best")),
        table("manifest.json", ("versions", "device")),
        table("config.yaml", ("run", "model", "data", "svt", "optim")),
        lines("metrics.jsonl"),
        lines("spectrum.jsonl"),
    )


def _not_a_runs(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is not as a run writes it ({why}). Restore it from a copy, or train again.")
