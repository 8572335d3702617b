"""A grid of configs and seeds, one run after another; it keeps finished runs and resumes stopped ones.

Seeds are the outer loop, so that a stopped grid leaves runs that can be compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from svt_jax.errors import NonFiniteError
from svt_jax.run.command_line import parse_config
from svt_jax.run.config import TrainConfig
from svt_jax.run.folder import find_run
from svt_jax.training.train import train


def setting_names(configs: Sequence[str]) -> list[str]:
    """A name for each setting: its files' names without those that all settings share.

    Example:
      >>> setting_names(["paper/task/rte.yaml+paper/svt/plain.yaml", "paper/task/rte.yaml+paper/svt/paper.yaml"])
      ['plain', 'paper']
      >>> setting_names(["cola.yaml", "mine/soft.yaml"])
      ['cola', 'soft']

    Raises:
      ValueError: if two settings would have the same name.
    """
    stems = [[Path(file).stem for file in config.split("+")] for config in configs]
    shared = set.intersection(*map(set, stems)) if len(stems) > 1 else set()
    names = ["-".join(stem for stem in files if stem not in shared) or "-".join(files) for files in stems]
    if len(set(names)) < len(names):
        raise ValueError(
            f"the configs {', '.join(configs)} would be called {', '.join(names)}; allowed are different names. Rename a file."
        )
    return names


def grid_configs(
    configs: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[str],
    output: Path,
) -> list[tuple[str, TrainConfig]]:
    """The setting's name and the checked config of every run of the grid.

    Args:
      configs: one entry for each setting: a file, or several joined with +, in which a later one overrides.
      seeds: the seeds of the runs.
      overrides: options applied after every file.
      output: the folder whose subfolder `runs` holds the runs.
    Raises:
      ValueError: if a config is wrong, an override sets what the grid sets, or a folder holds another run.
    """
    taken = [o for o in overrides if o.split("=")[0] in ("--run.seed", "--run.name", "--run.output_dir", "--config")]
    if taken:
        raise ValueError(f"{taken[0]} cannot be given to a grid, which sets it. Use --config, --seeds and --output.")
    runs = []
    for name, config in zip(setting_names(configs), configs, strict=True):
        parsed = parse_config([*(f"--config={file}" for file in config.split("+")), *overrides])
        for seed in seeds:
            run = dataclasses.replace(
                parsed.run, name=f"{name}-seed{seed}", output_dir=str(output / "runs"), seed=seed
            )  # fmt: skip
            runs.append((name, dataclasses.replace(parsed, run=run)))
            find_run(runs[-1][1])
    tasks = sorted({config.data.task for _, config in runs})
    if len(tasks) > 1:
        raise ValueError(f"the configs are of the tasks {', '.join(tasks)}; allowed is one. Compare each by itself.")
    return sorted(runs, key=lambda run: seeds.index(run[1].run.seed))  # stable: configs keep their order


def run_grid(runs: Sequence[tuple[str, TrainConfig]], console: Console) -> list[Path]:
    """Trains every unfinished run; returns the runs' folders in order.

    Args:
      runs: names and configs from `grid_configs`.
      console: receives the output.
    Raises:
      NonFiniteError: if a run's numbers were not finite; raised after all other runs are done.
    """
    folders, failed = [], []
    for number, (_, config) in enumerate(runs, start=1):
        console.print(f"run {number} of {len(runs)}: {config.run.name}", highlight=False, soft_wrap=True)
        try:
            folders.append(train(config, console=console).folder)
        except NonFiniteError as error:
            console.print(f"{config.run.name}: {error}", highlight=False, soft_wrap=True)
            failed.append(f"{config.run.name} ({error})")
    if failed:
        raise NonFiniteError(
            f"{len(failed)} of {len(runs)} runs have no result: {'; '.join(failed)}. Compare the others with --runs."
        )
    return folders
