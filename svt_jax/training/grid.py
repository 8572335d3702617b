"""A grid of configs and seeds; it keeps finished runs and resumes stopped ones.

One after another, seeds are the outer loop, so that a stopped grid leaves runs that can be compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from svt_jax.errors import NonFiniteError
from svt_jax.run.command_line import find_configs, parse_config
from svt_jax.run.config import TrainConfig
from svt_jax.run.folder import find_run, run_path
from svt_jax.training.logs import check_packages
from svt_jax.training.session import Run
from svt_jax.training.setup import Experiment, setup
from svt_jax.training.side_by_side import together, train_side_by_side
from svt_jax.training.stacked import compile_what_fits
from svt_jax.training.train import own_callbacks, train


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


def expanded(settings: Sequence[str]) -> list[str]:
    """The settings, with one for each new file where the last file of a setting holds *.

    Example:
      >>> expanded(["cola+bench/neutreno", "cola+bench/*eu*"])
      ['cola+bench/neutreno']

    Raises:
      ValueError: if no file fits.
    """
    found: list[str] = []
    for setting in settings:
        *first, last = setting.split("+")
        if "*" not in last:
            found.append(setting)
            continue
        named = find_configs(last)
        if not named:
            raise ValueError(f"no config fits {last!r}; allowed is a pattern of files, as in bench/*. Correct it.")
        found += [each for name in named if (each := "+".join([*first, name])) not in found]
    return found


def read_setting(setting: str, overrides: Sequence[str]) -> TrainConfig:
    """The checked config of a setting: a file, or several joined with +, in which a later one overrides.

    Raises:
      ValueError: if it is wrong, or an override sets what a grid sets.
    """
    taken = [o for o in overrides if o.split("=")[0] in ("--run.seed", "--run.name", "--run.output_dir", "--config")]
    if taken:
        raise ValueError(f"{taken[0]} cannot be given to a grid, which sets it. Use --config, --seeds and --output.")
    return parse_config([*(f"--config={file}" for file in setting.split("+")), *overrides])


def placed(config: TrainConfig, folder: Path, name: str, seed: int) -> TrainConfig:
    """The config of one run of a grid. Raises ValueError if its folder holds another run."""
    run = dataclasses.replace(config.run, name=name, output_dir=str(folder), seed=seed)
    config = dataclasses.replace(config, run=run)
    find_run(config)
    return config


def grid_configs(
    configs: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[str],
    output: Path,
    chosen: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[tuple[str, TrainConfig]]:
    """The setting's name and the checked config of every run of the grid.

    Args:
      configs: one entry for each setting, as for `read_setting`.
      seeds: the seeds of the runs.
      overrides: options applied after every file.
      output: the folder whose subfolder `runs` holds the runs.
      chosen: options of a setting by its name, applied last.
    Raises:
      ValueError: as `read_setting` and `placed`, or if the settings are of several tasks.
    """
    runs = []
    for name, config in zip(setting_names(configs), configs, strict=True):
        parsed = read_setting(config, [*overrides, *chosen.get(name, ())])
        runs += [(name, placed(parsed, output / "runs", f"{name}-seed{seed}", seed)) for seed in seeds]
    check_one_task([config for _, config in runs])
    return sorted(runs, key=lambda run: seeds.index(run[1].run.seed))  # stable: configs keep their order


def check_one_task(configs: Sequence[TrainConfig]) -> None:
    """Raises ValueError if the configs are of several tasks."""
    tasks = sorted({config.data.task for config in configs})
    if len(tasks) > 1:
        raise ValueError(f"the configs are of the tasks {', '.join(tasks)}; allowed is one. Compare each by itself.")


def run_grid(runs: Sequence[tuple[str, TrainConfig]], console: Console, side_by_side: int | None = None) -> list[Path]:
    """Trains every unfinished run; returns the runs' folders in order.

    Runs that differ only in numbers are trained side by side, as many at a time as the memory has room for; the others
    one after another.

    Args:
      runs: names and configs from `grid_configs`.
      console: receives the output.
      side_by_side: the most runs at a time; None is as many as fit, 1 trains each by itself.
    Raises:
      NonFiniteError: if a run's numbers were not finite; raised after all other runs are done.
    """
    configs = [config for _, config in runs]
    failed: dict[str, NonFiniteError] = {}
    done = 0
    for group in _groups(configs, side_by_side):
        waiting = list(group)
        while waiting:
            if len(waiting) == 1:
                now = waiting
                _say(console, f"run {done + 1} of {len(configs)}: {now[0].run.name}")
                found: list[Run | NonFiniteError] = [_one(now[0], console)]
            else:
                now, found = _several(waiting, console, done, len(configs))
            for config, each in zip(now, found, strict=True):
                if isinstance(each, NonFiniteError):
                    _say(console, f"{config.run.name}: {each}")
                    failed[config.run.name or ""] = each
            waiting, done = waiting[len(now) :], done + len(now)
    if failed:
        raise NonFiniteError(
            f"{len(failed)} of {len(runs)} runs have no result: {'; '.join(f'{n} ({e})' for n, e in failed.items())}. "
            "Compare the others with --runs."
        )
    return [run_path(config).path for config in configs]


def _groups(configs: Sequence[TrainConfig], most: int | None) -> list[list[TrainConfig]]:
    """Configs that may share a program, in the order of their first ones; what is complete goes by itself."""
    groups: dict[str, list[TrainConfig]] = {}
    for number, config in enumerate(configs):
        key = None if most == 1 or run_path(config).results.is_file() else together(config)
        groups.setdefault(str(number) if key is None else key, []).append(config)
    size = most or len(configs)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


def _one(config: TrainConfig, console: Console) -> Run | NonFiniteError:
    try:
        return train(config, console=console)
    except NonFiniteError as error:
        return error


def _several(
    configs: list[TrainConfig], console: Console, done: int, total: int
) -> tuple[list[TrainConfig], list[Run | NonFiniteError]]:
    """Trains the first of these configs side by side, as many as fit; returns these and what became of them."""
    check_packages(configs[0].log)
    started = time.perf_counter()
    with contextlib.ExitStack() as failing:

        def prepared(config: TrainConfig) -> Experiment:
            experiment = setup(config, started, one_device=True)
            if experiment.lock is not None:
                failing.callback(experiment.lock.release)
            return experiment

        experiments = [prepared(configs[0])]
        program = compile_what_fits(experiments[0], len(configs))
        now = configs[: program.number]
        if len(now) > 1:
            names = ", ".join(str(config.run.name) for config in now)
            _say(console, f"runs {done + 1} to {done + len(now)} of {total}, side by side: {names}")
        experiments += [prepared(config) for config in now[1:]]
        callbacks = [own_callbacks(each, console, str(each.config.run.name)) for each in experiments]
        return now, train_side_by_side(experiments, callbacks, program)


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
