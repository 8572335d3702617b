"""`train`: fine-tunes an encoder as its config says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from svt_jax.run.command_line import parse_config, train_parser

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from svt_jax.training.progress import PlainConsole
    from svt_jax.training.session import Run


def options() -> ArgumentParser:
    return train_parser()


def run(arguments: list[str], *, started: float) -> None:
    config = parse_config(arguments)

    from svt_jax.host import only_warns
    from svt_jax.run.distributed import is_first
    from svt_jax.training.progress import PlainConsole
    from svt_jax.training.train import train

    console = PlainConsole()
    finished = train(config, console=console, started=started)
    if is_first():
        with only_warns("the table of results"):
            _show(finished, console)


def _show(run: Run, console: PlainConsole) -> None:
    from svt_jax.cli.options import show
    from svt_jax.run.folder import RunFolder
    from svt_jax.text import counted
    from svt_jax.training.progress import results_table

    results = run.results
    rows = [(f"validation {name}", f"{value:.4f}") for name, value in results["metrics"]["validation"].items()]
    rows.append(("best", f"step {results['best']['step']}, " + _scores(results["best"]["metrics"])))
    if results["svt"]["layers"]:
        rows.append(
            ("svt", "; ".join([results["svt"]["function"], *_parameters(results["svt"].get("parameters", {}))]))
        )
    else:
        rows.append(("svt", "none"))
    seconds = results["train"]
    rate, wall = seconds["examples_per_second"], seconds["wall_time_s"]
    rows += [
        ("training", f"{results['steps']} steps, {rate:.1f} examples/s, {wall:.0f} s in all"),
        ("compilation", f"{counted(seconds['compiles'], 'program')}, {seconds['compile_time_s']:.0f} s"),
    ]
    folder = RunFolder(run.folder)
    files = [path for path in (folder.results, folder.metrics, folder.report, folder.checkpoints) if path.exists()]
    show(console, [results_table(f"{run.config.data.task}: {folder.path}", rows)], files)


def _parameters(by_layer: dict[str, dict[str, Any]]) -> list[str]:
    """Text as in "layer 11: alpha -0.2000 to -0.1997"; an array has too many numbers for a line."""
    return [
        f"layer {n}: "
        + ", ".join(f"{name} {each['first']:.4f} to {each['last']:.4f}" for name, each in numbers.items())
        for n, by_name in by_layer.items()
        if (numbers := {name: each for name, each in by_name.items() if isinstance(each["last"], float)})
    ]


def _scores(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
