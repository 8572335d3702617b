"""Search before a comparison: each setting tries the values that its config declares, on a held part of the training set.

The validation set, on which the comparison reports, is not looked at. All settings have the same number of tries.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from svt_jax.analysis.compare import Search
from svt_jax.run.command_line import read_search
from svt_jax.run.folder import RunFolder
from svt_jax.training.grid import check_one_task, placed, read_setting, run_grid, setting_names


def declared(configs: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The tries of each setting, by its name; empty if no setting declares values.

    Raises:
      ValueError: if the settings have different numbers of tries.
    """
    tries = {}
    for name, config in zip(setting_names(configs), configs, strict=True):
        values = read_search(config.split("+"))
        tries[name] = [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]
    numbers = {name: len(each) for name, each in tries.items()}
    if len(set(numbers.values())) > 1:
        raise ValueError(
            f"the settings try different numbers of values ({', '.join(f'{name} {n}' for name, n in numbers.items())}); "
            "allowed is the same number for each, or a comparison would favour one. Change their sections search."
        )
    return tries if any(values != [{}] for values in tries.values()) else {}


def options(values: Mapping[str, Any]) -> list[str]:
    """Values by key as command-line options.

    Example:
      >>> options({"svt.alpha": "-0.5", "svt.layers": ["-1", "-2"]})
      ['--svt.alpha=-0.5', '--svt.layers=["-1", "-2"]']
    """
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def search(
    configs: Sequence[str],
    tries: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    seed: int,
    holdout: float,
    overrides: Sequence[str],
    output: Path,
    console: Console,
    side_by_side: int | None = None,
) -> dict[str, Search]:
    """Trains every try of every setting; those that have been trained are not trained again.

    Args:
      configs: as for `grid_configs`.
      tries: from `declared`.
      seed: the seed of all tries.
      holdout: the share of the training set that is held out.
      overrides: options applied after every file, before a try's values.
      output: the comparison's folder; the runs come into its subfolder `search`.
      console: receives the output.
      side_by_side: as for `run_grid`.
    Raises:
      ValueError: if a config is wrong.
      NonFiniteError: if a try's numbers were not finite; raised after all others are done.
    """
    runs = []
    for config, (name, values) in zip(configs, tries.items(), strict=True):
        for number, each in enumerate(values):
            parsed = read_setting(config, [*overrides, f"--data.holdout={holdout}", *options(each)])
            runs.append((name, placed(parsed, output / "search", f"{name}-try{number}", seed)))
    check_one_task([config for _, config in runs])
    folders = iter(run_grid(runs, console, side_by_side))
    found = {}
    for name, values in tries.items():
        results = [RunFolder(next(folders)).read_results() for _ in values]
        metric = next(iter(results[0]["metrics"]["validation"]))
        scores = [each["metrics"]["validation"][metric] for each in results]
        found[name] = Search([dict(each) for each in values], scores, metric)
    return found
