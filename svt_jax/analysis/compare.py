"""Comparison of finished runs: mean and standard deviation over seeds, and paired differences (statistics.py).

Runs of one seed share the order of the examples, the head's initialisation and dropout, so pairing removes that noise.
The score is the last step's: the best of several evaluations on the validation set would be biased upwards.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svt_jax.analysis.finished import read_finished
from svt_jax.analysis.statistics import Difference, holm, mean_interval, paired_difference
from svt_jax.run.config import identity
from svt_jax.stores import as_path


@dataclasses.dataclass(frozen=True)
class Search:
    """What a setting's search found.

    Attributes:
      tried: values by key of each try.
      scores: the score of each try on the held part, in the task's first metric.
      metric: that metric.
    """

    tried: list[dict[str, Any]]
    scores: list[float]
    metric: str

    @property
    def chosen(self) -> dict[str, Any]:
        """The values of the best try; the first of equal ones.

        Example:
          >>> Search([{"svt.alpha": -0.2}, {"svt.alpha": -0.5}], [0.5, 0.7], "accuracy").chosen
          {'svt.alpha': -0.5}
        """
        return self.tried[self.scores.index(max(self.scores))]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Scores of several settings over seeds.

    Attributes:
      task: the task of all runs.
      scores: scores by metric, setting and seed; mismatched validation has its own metric names.
      warnings: what makes the runs less comparable.
      folders: the runs' folders by setting and seed.
      uniformity: token uniformity of the last layer's output after the last step, by setting and seed; without runs
        that did not record it.
      methods: the setting's `svt.function`; pictures show each method in its own colour.
    """

    task: str
    scores: dict[str, dict[str, dict[int, float]]]
    warnings: list[str]
    folders: dict[str, dict[int, Path]]
    uniformity: dict[str, dict[int, float]] = dataclasses.field(default_factory=dict)
    methods: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def settings(self) -> list[str]:
        """Names of the settings; the first is the baseline."""
        return list(next(iter(self.scores.values())))

    def summary(self, metric: str, setting: str) -> tuple[int, float, float | None]:
        """Number of seeds, mean, and standard deviation with n - 1 (None for a single seed)."""
        values = list(self.scores[metric][setting].values())
        return len(values), float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None

    def interval(self, metric: str, setting: str) -> tuple[float, float] | None:
        """95 % t interval of the setting's mean; None for a single seed, or if the scores do not vary."""
        return mean_interval(list(self.scores[metric][setting].values()))

    def difference(self, metric: str, setting: str) -> Difference | None:
        """The setting minus the baseline; None with fewer than two seeds in common, since one seed shows nothing."""
        return self._differences.get((metric, setting))

    def mean_uniformity(self, setting: str) -> tuple[float | None, float | None]:
        """The setting's mean token uniformity, and its mean change from the baseline over seeds in common."""
        values, baseline = (self.uniformity.get(name, {}) for name in (setting, self.settings[0]))
        both = values.keys() & baseline.keys()
        change = float(np.mean([values[seed] - baseline[seed] for seed in both])) if both else None
        return (float(np.mean(list(values.values()))) if values else None), change

    @functools.cached_property
    def _differences(self) -> dict[tuple[str, str], Difference]:
        """By metric and setting; `p_holm` is over all of them."""
        baseline, *others = self.settings
        found = {
            (metric, setting): paired
            for metric, by_setting in self.scores.items()
            for setting in others
            if (paired := paired_difference(by_setting[setting], by_setting[baseline])) is not None
        }
        corrected = holm([each.p_t for each in found.values()])
        return {
            key: dataclasses.replace(each, p_holm=p) for (key, each), p in zip(found.items(), corrected, strict=True)
        }


def compare(runs: Sequence[str | Path], names: Sequence[str] | None = None) -> Comparison:
    """Reads finished runs and groups them into settings: runs whose configs differ only in the seed.

    Args:
      runs: folders that train.py wrote; the first run's setting is the baseline.
      names: the name of each run's setting; None makes them from the folders' names or from the differing keys.
    Raises:
      ValueError: if a folder holds no finished run, the runs are of several tasks, or a setting has one seed twice.
    """
    if isinstance(runs, str):
        raise ValueError(f"runs is {runs!r}; allowed is a list of folders. Put a single one into a list.")
    folders = [as_path(run) for run in runs]
    names = None if names is None else list(names)
    unfinished = [str(folder) for folder in folders if not (folder / "results.json").is_file()]
    if unfinished or not folders:
        raise ValueError(
            f"no finished run (results.json) in {', '.join(unfinished) or 'no folder at all'}; allowed are folders that "
            "train.py has completed. Finish or leave them out."
        )
    finished = [read_finished(folder) for folder in folders]
    tasks = sorted({run.task for run in finished})
    if len(tasks) > 1:
        raise ValueError(f"the runs are of the tasks {', '.join(tasks)}; allowed is one. Compare each task by itself.")
    if not names:
        names = _names(folders, [run.config for run in finished])
    scores: dict[str, dict[str, dict[int, float]]] = {}
    by_setting: dict[str, dict[int, Path]] = {}
    uniformity: dict[str, dict[int, float]] = {}
    for name, run, folder in zip(names, finished, folders, strict=True):
        seed = run.config["run"]["seed"]
        by_setting.setdefault(name, {})[seed] = folder
        if run.readings:
            last = [state for state in run.readings[-1]["states"] if state["state"] == "output"][-1]
            uniformity.setdefault(name, {})[seed] = last["token_uniformity"]
        for split, metrics in run.results["metrics"].items():
            for metric, value in metrics.items():
                metric += split.removeprefix("validation")
                by_seed = scores.setdefault(metric, {}).setdefault(name, {})
                if seed in by_seed:
                    raise ValueError(
                        f"{folder}: there is another run of {name} with seed {seed}; allowed is one a seed. Leave one out."
                    )
                by_seed[seed] = value
    warnings = [*_warnings([run.manifest for run in finished]), *(each for run in finished for each in run.left_out)]
    methods = {name: run.method for name, run in zip(names, finished, strict=True)}
    return Comparison(finished[0].results["task"], scores, warnings, by_setting, uniformity, methods)


def _names(folders: list[Path], configs: list[dict[str, Any]]) -> list[str]:
    """The folder's name without its seed if that tells the settings apart, else the keys that differ."""
    settings = [{key: value for key, value in identity(config).items() if key != "seed"} for config in configs]
    keys = [json.dumps(setting, sort_keys=True) for setting in settings]
    names = [re.sub(r"[-_]?seed\d+", "", folder.resolve().name) or "run" for folder in folders]
    if len(set(names)) == len(set(keys)) == len(set(zip(names, keys, strict=True))):
        return names
    differing = differing_keys(settings)
    return [", ".join(f"{key} {setting.get(key)}" for key in differing) or "all" for setting in settings]


def differing_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys whose values are not the same in all settings.

    Example:
      >>> differing_keys([{"svt.alpha": -0.2, "optim.epochs": 3}, {"optim.epochs": 3}])
      ['svt.alpha']
    """
    keys = dict.fromkeys(key for setting in settings for key in setting)
    return [key for key in keys if len({str(setting.get(key)) for setting in settings}) > 1]


def _warnings(manifests: list[dict[str, Any]]) -> list[str]:
    """What differs between the runs apart from their configs."""
    found = []
    for key in ("weights_sha256", "git_commit", "device", "versions"):
        values = {json.dumps(manifest.get(key), sort_keys=True) for manifest in manifests}
        if len(values) > 1:
            found.append(f"the runs differ in {key} (see their manifest.json)")
    return found
