"""One run to its end: the work of `svt_jax.train` and of the command `train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from svt_jax.run import distributed
from svt_jax.run.command_line import make_config
from svt_jax.run.config import TrainConfig
from svt_jax.run.folder import find_run, run_path
from svt_jax.training.callbacks import Callback
from svt_jax.training.logs import JsonLines, Report, SaveCheckpoints, TensorBoard, WeightsAndBiases, check_packages
from svt_jax.training.loop import train as train_experiment
from svt_jax.training.progress import PlainConsole, TokenizingProgress, TrainingProgress
from svt_jax.training.session import Run
from svt_jax.training.setup import Experiment, setup


def train(
    config: TrainConfig | Mapping[str, Any] | str | Path,
    callbacks: Sequence[Any] = (),
    *,
    console: Console | None = None,
    started: float | None = None,
) -> Run:
    """Trains as a config says, from the newest checkpoint if the run's folder has one; keeps a complete run.

    Args:
      config: a `TrainConfig`, nested values as in a YAML file, or a YAML file.
      callbacks: objects with methods of `Callback`, called after the run's own.
      console: receives progress messages; None is standard output.
      started: when the run was asked for, by time.perf_counter(); None is now.
    Returns:
      An object with `folder`, `results` (what results.json holds) and `config`.
    Raises:
      ValueError: if the config, the model or the data are faulty; nothing has been written.
      NonFiniteError: if a loss or a gradient is not finite; the last good checkpoint stays.
    """
    config = config if isinstance(config, TrainConfig) else make_config(config)
    console = console or PlainConsole()
    distributed.join(config.distributed)
    if not distributed.is_first():
        console = PlainConsole(quiet=True)
    folder = run_path(config)
    distributed.on_first(find_run, config)
    if distributed.agree(folder.results.is_file()):
        console.print(
            f"{folder.path} is complete already; to train again choose another --run.name.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        results = folder.read_results()
        steps_per_epoch = round(results["steps"] / results["epochs"])
        run = Run(config, folder.path, results["steps"], steps_per_epoch, results["steps"], results=results)
        distributed.on_first(Report(folder).on_end, results)
        return run
    check_packages(config.log)
    experiment = setup(config, started, TokenizingProgress(console, enabled=config.log.progress).begin)
    return train_experiment(experiment, [*own_callbacks(experiment, console), *callbacks])


def own_callbacks(experiment: Experiment, console: Console, label: str = "") -> list[Callback]:
    """The callbacks that write a run's folder: all processes save checkpoints; the first runs the others.

    Args:
      label: begins each line of progress, for one of several runs; there is no bar then.
    """
    config, folder = experiment.config, experiment.folder
    saves: list[Callback] = [SaveCheckpoints(experiment)]
    if not distributed.is_first():
        return saves
    optional = [
        *([TensorBoard(folder)] if config.log.tensorboard else ()),
        *([WeightsAndBiases(folder)] if config.log.wandb else ()),
    ]
    return [
        TrainingProgress(console, enabled=config.log.progress, label=label),
        JsonLines(folder),
        *saves,
        *optional,
        Report(folder),
    ]
