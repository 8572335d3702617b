"""What train.py and eval.py call: errors in one line, exit codes, and the table at the end of training.

Exit status: 0 done; 2 bad input or a folder that cannot be written (one line on standard error); 3 a number was not
finite; 4 another process of the run was lost; 143 stopped by SIGTERM and 130 by Ctrl-C, state saved.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from svt_jax.host import enable_compilation_cache, keep_freed_memory

BAD_INPUT, NOT_FINITE, PROCESS_LOST, SIGNALLED = 2, 3, 4, 128


def train(arguments: Sequence[str] | None = None, default_config: Path | None = None) -> int:
    """`train.py`: trains as a config says. Returns the exit status."""
    return _guarded(_train, list(sys.argv[1:] if arguments is None else arguments), default_config)


def evaluate(arguments: Sequence[str] | None = None) -> int:
    """`eval.py`: evaluates a run or a model. Returns the exit status."""
    return _guarded(_evaluate, list(sys.argv[1:] if arguments is None else arguments))


def _guarded(command: Callable[..., int], arguments: list[str], *rest: Any) -> int:
    show_traceback = "--traceback" in arguments
    arguments = [a for a in arguments if a != "--traceback"]
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    # libraries' chatter would bury our own lines
    for name in ("absl", "orbax", "jax", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Orbax logs each of its threads' errors with a traceback; `Checkpoints` raises them as one line
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    keep_freed_memory()

    import yaml

    from svt_jax.evaluation.metrics import NonFiniteError
    from svt_jax.training.signals import StoppedBySignalError, stop_at_once

    try:
        enable_compilation_cache()
        with stop_at_once():
            return command(arguments, *rest)
    except (ValueError, OSError, yaml.YAMLError, NonFiniteError, StoppedBySignalError) as error:
        if show_traceback:
            traceback.print_exc()
        kind, status = "error", BAD_INPUT
        if isinstance(error, NonFiniteError):
            status = NOT_FINITE
        elif isinstance(error, StoppedBySignalError):
            kind, status = "stopped", SIGNALLED + error.number
        print(f"{kind}: {' '.join(str(error).split())}", file=sys.stderr)
        return status
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} cannot reach the others ({_first_line(error)}); "
            "a run needs all of its processes. See why one stopped, and start all of them again to resume.",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        os._exit(PROCESS_LOST)  # an orderly exit would wait for the process that is lost


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _train(arguments: list[str], default_config: Path | None) -> int:
    from rich.console import Console

    from svt_jax.runs import train_run
    from svt_jax.training.command_line import parse_config
    from svt_jax.training.processes import is_first
    from svt_jax.training.progress import results_table

    chosen = any(re.match(r"--(config|model\.path|data\.task|help)\b|-h$", argument) for argument in arguments)
    if not chosen and default_config is not None:
        arguments = ["--config", str(default_config), *arguments]
    config = parse_config(arguments)
    console = Console()
    folder = train_run(config, console)
    if not is_first():
        return 0
    results = folder.read_results()
    rows = [(f"validation {name}", f"{value:.4f}") for name, value in results["metrics"]["validation"].items()]
    rows.append(("best", f"step {results['best']['step']}, " + _scores(results["best"]["metrics"])))
    if results["svt"]["layers"]:
        rows.append(
            ("svt", "; ".join([results["svt"]["function"], *_parameters(results["svt"].get("parameters", {}))]))
        )
    else:
        rows.append(("svt", "none"))
    seconds = results["train"]
    rows += [
        (
            "training",
            f"{results['steps']} steps, {seconds['examples_per_second']:.1f} examples/s, {seconds['wall_time_s']:.0f} s in all",
        ),
        ("compilation", f"{seconds['compiles']} programs, {seconds['compile_time_s']:.0f} s"),
    ]
    console.print(results_table(f"{config.data.task}: {folder.path}", rows))
    for path in (folder.results, folder.metrics, folder.report, folder.checkpoints):
        print(f"see {path}")
    return 0


def _evaluate(arguments: list[str]) -> int:
    from svt_jax.eval_commands import run_command

    return run_command(arguments)


def _parameters(by_layer: dict[str, dict[str, Any]]) -> list[str]:
    """As in "layer 11: alpha -0.2000 to -0.1997"; an array has too many numbers for a line."""
    return [
        f"layer {n}: "
        + ", ".join(f"{name} {each['first']:.4f} to {each['last']:.4f}" for name, each in numbers.items())
        for n, by_name in by_layer.items()
        if (numbers := {name: each for name, each in by_name.items() if isinstance(each["last"], float)})
    ]


def _scores(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
