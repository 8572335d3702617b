"""What train.py and eval.py call: errors in one line, exit codes, and the table at the end of training.

Exit status: 0 done; 2 bad input or a folder that cannot be written (one line on standard error); 3 a number was not
finite; 4 another process of the run was lost; 143 stopped by SIGTERM and 130 by Ctrl-C, state saved.

What lies beside finished work, such as the table at its end, only warns.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from svt_jax.host import enable_compilation_cache, keep_freed_memory, only_warns

if TYPE_CHECKING:
    from svt_jax.training.config import TrainConfig
    from svt_jax.training.progress import PlainConsole
    from svt_jax.training.run_folder import RunFolder

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
    _be_quiet()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    keep_freed_memory()

    import yaml

    from svt_jax.evaluation.metrics import NonFiniteError
    from svt_jax.training.progress import discard_output
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
        print(f"{kind}: {_one_line(str(error))}", file=sys.stderr)
        return status
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            if show_traceback:
                traceback.print_exc()
            print(
                f"error: the memory does not suffice ({_one_line(_first_line(error))}); allowed is what the device holds. "
                "Lower optim.batch_size, data.eval_batch_size or data.max_length.",
                file=sys.stderr,
            )
            return BAD_INPUT
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
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # its reader has gone, or its disk is full
            discard_output()


def _be_quiet() -> None:
    """Libraries' chatter would bury our own lines."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    for name in ("absl", "orbax", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Orbax logs each of its threads' errors with a traceback; `Checkpoints` raises them as one line
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_heard)
    # a path that is not text, or a terminal that knows few letters, must not end what it tells of
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


_OF_DEVICES = re.compile(r"GPU|TPU|CUDA|ROCm|[Pp]latform|[Bb]ackend|[Ff]alling back")


def _is_heard(record: logging.LogRecord) -> bool:
    """JAX is heard on errors, and on devices that are there and not used: who pays for a GPU must know."""
    of_jax = record.name.split(".")[0] == "jax"
    return not of_jax or record.levelno >= logging.ERROR or bool(_OF_DEVICES.search(record.getMessage()))


_LONGEST = 2000


def _one_line(text: str) -> str:
    """The text without line breaks and control characters, and without its middle if it is very long."""
    text = " ".join(text.split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _train(arguments: list[str], default_config: Path | None) -> int:
    from svt_jax.runs import train_run
    from svt_jax.training.command_line import parse_config
    from svt_jax.training.processes import is_first
    from svt_jax.training.progress import PlainConsole

    chosen = any(re.match(r"--(config|model\.path|data\.task|help)\b|-h$", argument) for argument in arguments)
    if not chosen and default_config is not None:
        arguments = ["--config", str(default_config), *arguments]
    config = parse_config(arguments)
    console = PlainConsole()
    folder = train_run(config, console)
    if not is_first():
        return 0
    results = folder.read_results()
    with only_warns("the table of results"):
        _show(results, config, folder, console)
    return 0


def _show(results: dict[str, Any], config: TrainConfig, folder: RunFolder, console: PlainConsole) -> None:
    from svt_jax.training.progress import results_table

    rows = [(f"validation {name}", f"{value:.4f}") for name, value in results["metrics"]["validation"].items()]
    rows.append(("best", f"step {results['best']['step']}, " + _scores(results["best"]["metrics"])))
    if results["svt"]["layers"]:
        alphas = ", ".join(
            f"layer {n}: {a:.4f}" for n, a in zip(results["svt"]["layers"], results["svt"]["alpha"], strict=False)
        )
        rows.append(("svt", results["svt"]["function"] + (f"; alpha {alphas}" if alphas else "")))
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
        if path.exists():  # the report may have failed
            print(f"see {path}")
    sys.stdout.flush()


def _evaluate(arguments: list[str]) -> int:
    from svt_jax.eval_commands import run_command

    return run_command(arguments)


def _scores(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
