"""`eval compare`: trains a grid of runs or reads finished ones, and compares settings over seeds."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from svt_jax.cli.options import NO_ROOM, eval_parser, output_folder, path, read_options, show

if TYPE_CHECKING:
    from pathlib import Path

    from jsonargparse import ArgumentParser
    from rich.console import Console

log = logging.getLogger(__name__)


def options() -> ArgumentParser:
    parser = eval_parser(
        "compare",
        "Compares settings over seeds: trains a grid, or reads finished runs. With --config, --section.key VALUE overrides "
        "every file.",
        needed="--config FILE --config FILE ... --seeds 0,1,2 | --runs DIR ... --output DIR",
        examples=(
            "--config configs/paper/svt/plain.yaml --config rte --seeds 0,1,2 --output comparison",
            "--runs runs/plain-0 runs/plain-1 runs/svt-0 runs/svt-1 --output comparison",
        ),
    )
    inputs = parser.add_argument_group("what is compared")
    what = parser.add_argument_group("how it is trained")
    inputs.add_argument(
        "--config",
        dest="settings",
        action="append",
        help="a setting: one file, or several joined with +; * in the last one stands for every such file; may be given "
        "again, the first is the baseline",
    )
    inputs.add_argument(
        "--runs", nargs="+", type=path, help="folders that train.py has completed; the first is the baseline's"
    )
    inputs.add_argument("--seeds", help="seeds of the grid, as in 0,1,2")
    what.add_argument(
        "--side_by_side",
        default="auto",
        help="how many runs that differ only in seed, alpha or rates one program trains at a time; auto is as many as the "
        "memory has room for, 1 trains one after another",
    )
    what.add_argument(
        "--holdout",
        type=float,
        default=0.1,
        help="share of the training set on which settings whose files have a section search choose their values; 0 searches "
        "nothing and trains the files' own values",
    )
    parser.add_argument_group("what is written").add_argument(
        "--output", type=path, help="folder of table, CSV and pictures, and of the grid's runs"
    )
    return parser


def run(arguments: list[str], *, started: float) -> None:
    own, overrides = split_overrides(arguments)
    chosen = read_options(options(), own, required=("output",))
    if (chosen.settings is None) == (chosen.runs is None):
        raise ValueError(
            "compare needs --config FILE for each setting, or --runs DIR ..., and not both. Correct the command."
        )
    if overrides and chosen.runs:
        raise ValueError(f"{overrides[0]} goes with --config; finished runs have their settings. Leave it out.")

    from rich.table import Table

    from svt_jax.analysis.compare import compare
    from svt_jax.analysis.comparison_files import table, write_comparison
    from svt_jax.host import only_warns
    from svt_jax.run.distributed import is_first
    from svt_jax.training.progress import PlainConsole
    from svt_jax.writing import writing

    output = output_folder(chosen.output)
    console, runs, names, found = PlainConsole(), chosen.runs, None, None
    if not console.is_terminal:
        console = PlainConsole(width=120)  # 80 columns, the default of a file, would cut headers
    if chosen.settings:
        runs, names, found = _train(chosen, overrides, output, console)
        if not is_first():
            return
    elif chosen.seeds:
        raise ValueError("--seeds goes with --config; the runs of --runs have theirs. Leave it out.")
    comparison = compare(runs, names)
    with writing(output, NO_ROOM):
        paths = write_comparison(comparison, output, found)
    for warning in comparison.warnings:
        log.warning(warning)
    header, *rows = table(comparison)
    with only_warns("the table of results"):
        shown = Table(
            *header,
            title=f"{comparison.task}: validation x 100; differences from {comparison.settings[0]}, paired by seed",
            title_justify="left",
        )
        for row in rows:
            shown.add_row(*row)
        show(console, [shown], paths)


def _train(chosen: Any, overrides: list[str], output: Path, console: Console) -> tuple[list[Path], list[str], Any]:
    """Trains the settings, after their search if they declare one: the runs' folders, their settings' names, the search."""
    from svt_jax.training.grid import expanded, grid_configs, run_grid
    from svt_jax.training.search import declared, search
    from svt_jax.training.search import options as options_of

    if not re.fullmatch(r"\d+(,\d+)*", chosen.seeds or ""):
        raise ValueError(f"--seeds is {chosen.seeds!r}; --config needs numbers as in 0,1,2. Add or correct them.")
    if chosen.plugin:
        overrides = [*overrides, "--run.plugin", chosen.plugin]
    seeds = list(dict.fromkeys(int(seed) for seed in chosen.seeds.split(",")))
    settings, at_a_time, found = expanded(chosen.settings), side_by_side(chosen.side_by_side), None
    if chosen.holdout and (tries := declared(settings)):
        found = search(
            settings,
            tries,
            seed=seeds[0],
            holdout=chosen.holdout,
            overrides=overrides,
            output=output,
            console=console,
            side_by_side=at_a_time,
        )
    best = {name: options_of(each.chosen) for name, each in (found or {}).items()}
    grid = grid_configs(settings, seeds, overrides, output, best)
    return run_grid(grid, console, at_a_time), [name for name, _ in grid], found


def side_by_side(text: str) -> int | None:
    """How many runs at a time; None where the memory decides.

    Raises:
      ValueError: for anything but "auto" and whole numbers from 1.
    """
    if text == "auto":
        return None
    if not re.fullmatch(r"[1-9]\d*", text):
        raise ValueError(f"--side_by_side is {text!r}; allowed are auto and whole numbers from 1. Correct it.")
    return int(text)


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits off the arguments for every config of the grid: those with a dot in their name.

    Example:
      >>> split_overrides(["--seeds", "0,1", "--svt.alpha", "-0.5", "--output", "out", "--optim.epochs=1"])
      (['--seeds', '0,1', '--output', 'out'], ['--svt.alpha', '-0.5', '--optim.epochs=1'])
    """
    own: list[str] = []
    overrides: list[str] = []
    part = own
    for argument in arguments:
        if argument.startswith("--"):
            part = overrides if "." in argument.split("=")[0] else own
        part.append(argument)
    return own, overrides
