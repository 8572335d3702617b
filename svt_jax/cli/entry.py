"""Finds the command, keeps libraries quiet, and turns an error into one line and an exit status.

Exit status: 0 done; 2 bad input or a folder that cannot be written (one line on standard error); 3 a number was not
finite; 4 another process of the run was lost; 143 stopped by SIGTERM and 130 by Ctrl-C, state saved.

Faults beside the finished work, as in printing the table at its end, only warn. This module imports nothing slow: each
command imports JAX itself.
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence

from svt_jax.errors import BAD_INPUT, DONE, PROCESS_LOST, NonFiniteError, StoppedBySignalError, exit_status
from svt_jax.text import did_you_mean

_STARTED = time.perf_counter()

EVALUATIONS = {
    "glue": "score a run, or a classifier, on its task",
    "sts": "score sentence embeddings on similarity, unsupervised",
    "compare": "compare settings over seeds: train a grid, or read finished runs",
    "spectrum": "measure the spectrum of each layer: JSON and pictures",
    "report": "write report.html from what a run left, or of several side by side",
    "export": "write a run's classifier as a model folder, here or on the hub",
}
DATA = {"glue": "write GLUE's files from the hub in the official layout"}
COMMANDS = {
    "train": "fine-tune an encoder as a config says",
    "predict": "predict the classes of the texts of a file",
    "eval": ", ".join(EVALUATIONS),
    "data": "glue: write a data set's files from the hub",
}
_EXAMPLES = """examples:
  svt-jax train                           # the embedded demo: no network, under two minutes
  svt-jax eval report --run runs/demo     # what it learned, as a page
  svt-jax train --config rte --model.path MODEL --data.source GLUE --svt.function soft_decay

svt-jax COMMAND --help lists the options of a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """`svt-jax`: trains or evaluates. Returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        "svt-jax",
        description="Remedies against token uniformity: singular value transformations for BERT-like encoders.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument(
        "--print-completion", metavar="SHELL", help="print what completes commands in bash, zsh or tcsh"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    if arguments[:1] == ["--version"]:
        from svt_jax import __version__

        print(__version__)
        return DONE
    if arguments[:1] == ["--print-completion"]:
        return _print_completion(*arguments[1:2])
    command = _command(parser, arguments, COMMANDS)
    if command is None:
        return DONE if set(arguments) <= _HELP else BAD_INPUT
    arguments.remove(command)
    match command:
        case "train":
            return train(arguments, "demo")
        case "eval":
            return evaluate(arguments)
        case "data":
            return _of_several("svt-jax data", "Gets a data set.", DATA, arguments, "data_")
        case _:
            return _guarded(command, arguments)


def _print_completion(shell: str = "") -> int:
    from svt_jax.cli.completion import script

    try:
        print(script(shell, COMMANDS, {"eval": ("", EVALUATIONS), "data": ("data_", DATA)}))
    except ValueError as error:
        _say("error", str(error))
        return BAD_INPUT
    return DONE


def train(arguments: Sequence[str] | None = None, default_config: str | None = None) -> int:
    """`train.py` and `svt-jax train`: trains as the config says. Returns the exit status.

    Args:
      arguments: the command line; None takes the process's own.
      default_config: the config to use if the arguments name no config, model or task.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    chosen = any(re.match(r"--(config|model\.path|data\.task|help)\b|-h$", argument) for argument in arguments)
    if not chosen and default_config is not None:
        arguments = ["--config", str(default_config), *arguments]
    return _guarded("train", arguments)


def evaluate(arguments: Sequence[str] | None = None) -> int:
    """`eval.py` and `svt-jax eval`: evaluates a run or a model. Returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    from svt_jax.run.command_line import called

    return _of_several(called("svt-jax eval"), "Evaluates a run or a model.", EVALUATIONS, arguments)


def _of_several(prog: str, description: str, names: Mapping[str, str], arguments: list[str], prefix: str = "") -> int:
    """Runs the command that the arguments begin with; its module is called `prefix` and its name."""
    parser = argparse.ArgumentParser(prog, description=description, epilog=f"{prog} COMMAND --help lists its options.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in names.items():
        commands.add_parser(name, help=summary, add_help=False)
    command = _command(parser, arguments, names)
    if command is None:
        return DONE if arguments and set(arguments) <= _HELP else BAD_INPUT
    arguments.remove(command)
    return _guarded(prefix + command, arguments)


_HELP = {"-h", "--help"}


def _command(parser: argparse.ArgumentParser, arguments: list[str], names: Mapping[str, str]) -> str | None:
    """The command that the arguments begin with; None where help was printed, or what is wrong."""
    first = next((argument for argument in arguments if argument != "--traceback"), None)
    if first in names:
        return first
    if first is None or first in _HELP:
        parser.print_help()
    else:
        advice = did_you_mean([first], names, "Put one of them first.")
        _say("error", f"unknown command {first!r}; allowed are {', '.join(names)}. {advice}")
    return None


def _guarded(command: str, arguments: list[str]) -> int:
    show_traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    _be_quiet()
    module = importlib.import_module(f"svt_jax.cli.commands.{command}")
    if {"-h", "--help"} & set(arguments):
        module.options().print_help()
        return 0

    import jax
    import yaml

    from svt_jax.host import enable_compilation_cache, hide_closed_loops, keep_freed_memory
    from svt_jax.training.progress import discard_output
    from svt_jax.training.signals import stop_at_once

    keep_freed_memory()
    hide_closed_loops()
    try:
        enable_compilation_cache()
        with stop_at_once():
            module.run(arguments, started=_STARTED)
        return 0
    except (ValueError, OSError, yaml.YAMLError, NonFiniteError, StoppedBySignalError) as error:
        if show_traceback:
            traceback.print_exc()
        _say("stopped" if isinstance(error, StoppedBySignalError) else "error", str(error))
        return exit_status(error)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        first_line = str(error).partition("\n")[0]
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            if show_traceback:
                traceback.print_exc()
            _say(
                "error",
                f"the memory does not suffice ({first_line or type(error).__name__}); allowed is what the device holds. Lower optim.batch_size, "
                "data.eval_batch_size or data.max_length.",
            )
            return BAD_INPUT
        if jax.process_count() == 1:
            raise
        _say(
            "error",
            f"process {jax.process_index()} of {jax.process_count()} cannot reach the others ({first_line}); a run needs "
            "all of its processes. See why one stopped, and start all of them again to resume.",
        )
        sys.stdout.flush()
        os._exit(PROCESS_LOST)  # an orderly exit would wait for the lost process
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # the reader has closed it, or the disk is full
            discard_output()


def _say(kind: str, message: str) -> None:
    print(f"{kind}: {_one_line(message)}", file=sys.stderr, flush=True)


def _be_quiet() -> None:
    """Silences messages of libraries, which would bury our own lines."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for name in ("TRANSFORMERS", "DATASETS", "HF_HUB"):  # each sets the level of its logger when it is imported
        os.environ.setdefault(f"{name}_VERBOSITY", "error")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    for name in ("absl", "orbax", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Orbax logs a traceback for each error in its threads; `Checkpoints` raises them as one line
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_heard)
    # a path that is not text, or a terminal with few characters, must not end the command
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


_DEVICES = re.compile(r"GPU|TPU|CUDA|ROCm|[Pp]latform|[Bb]ackend|[Ff]alling back")


def _is_heard(record: logging.LogRecord) -> bool:
    """JAX's errors pass, and its note that a device is there but unused: whoever pays for a GPU must know."""
    of_jax = record.name.split(".")[0] == "jax"
    return not of_jax or record.levelno >= logging.ERROR or bool(_DEVICES.search(record.getMessage()))


_LONGEST = 2000


def _one_line(text: str) -> str:
    """The text without line breaks and control characters; if it is very long, without its middle."""
    text = " ".join(text.split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
