"""What commands share: the parser of options, the sources of their values, and the output of a result."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svt_jax.run.command_line import called, make_parser, parse
from svt_jax.run.plugin import load_plugin
from svt_jax.stores import as_path, check_reachable, in_store

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from svt_jax.training.progress import PlainConsole

NO_ROOM = "Make room, or choose another --output."

path = os.path.expanduser
"""The type of an option that is a path or a hub id. It expands ~, since no shell does in --run=~/runs or a file."""


def eval_parser(name: str, description: str, *, needed: str, examples: tuple[str, ...]) -> ArgumentParser:
    """The parser of an evaluation command's options; arguments as for `command_parser`."""
    return command_parser(called(f"svt-jax eval {name}"), description, needed=needed, examples=examples)


def command_parser(
    prog: str, description: str, *, needed: str, examples: tuple[str, ...], plugin: bool = True
) -> ArgumentParser:
    """A parser with the options that every command but train has.

    Args:
      needed: the options without which there is no such command, as its usage shows them.
      examples: command lines without `prog`.
      plugin: whether the command computes with functions, which may be a user's own.
    """
    parser = make_parser(prog, description, usage=f"{prog} {needed} [OPTION ...]", examples=examples)
    if plugin:
        parser.add_argument(
            "--plugin",
            help="module or .py file that registers functions of your own; a run that has one loads it by itself",
        )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser


def run_or_model(parser: ArgumentParser, *, run: str, model: str) -> None:
    """Adds --run and --model, of which one must be given, and the options that go with only one of them."""
    inputs = parser.add_argument_group("what is read")
    which = inputs.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=path, help=run)
    which.add_argument("--model", type=path, help=model)
    inputs.add_argument("--task", help="task for --model; a run knows its own")
    inputs.add_argument("--data.source", type=path, help="overrides the run's data.source")
    inputs.add_argument("--data.max_length", type=int, help="with --model (default 128)")
    inputs.add_argument("--checkpoint", help="with --run: last, best, or a step's number (default last)")


def read_options(parser: ArgumentParser, arguments: Sequence[str], required: Sequence[str] = ()) -> Namespace:
    """The options of a command line; they override those of --config files. Loads the plugin that they name.

    Raises:
      ValueError: for an unknown option, a wrong value or a missing required option; it names all problems at once.
    """
    otherwise = f"allowed is what {parser.prog} --help lists. Correct the command."
    options = parse(parser, arguments, option_names(parser), otherwise)
    if missing := [f"--{name}" for name in required if options[name] is None]:
        raise ValueError(
            f"{', '.join(missing)} is missing; {parser.prog} needs {', '.join(f'--{name}' for name in required)}. "
            "Add what is missing."
        )
    if options.get("plugin"):
        load_plugin(options.plugin)
    return options


def reads_files(parser: ArgumentParser) -> bool:
    """Whether --config names files of the parser's own options."""
    return any(action.dest == "config" for action in parser._actions)


def option_names(parser: ArgumentParser) -> list[str]:
    """The names of a parser's options without dashes."""
    hidden = ("help", "traceback", "print_shtab", *(["config"] if reads_files(parser) else []))
    names = [action.option_strings[-1].lstrip("-") for action in parser._actions if action.option_strings]
    return [name for name in names if name not in hidden]


def check_owner(options: Namespace) -> None:
    """Rejects options that would not be read: those of --model given with --run, and the reverse."""
    if options.run and (options.task or options.data.max_length):
        raise ValueError("--task and --data.max_length go with --model; a run knows its own. Leave them out.")
    if options.model and options.checkpoint:
        raise ValueError("--checkpoint goes with --run; a model folder has one set of weights. Leave it out.")


def output_folder(name: str) -> Path:
    """The folder. Raises ValueError if --output is a file."""
    folder = as_path(name)
    check_reachable(folder)
    if folder.is_file():
        raise ValueError(f"--output {name} is a file; allowed is a folder, which may not exist yet. Correct it.")
    return folder


def output_file(name: str, endings: Sequence[str] = ()) -> Path:
    """The file to write. Raises ValueError if it is there already, or cannot be made.

    Args:
      endings: the allowed ends of its name; none allow any.
    """
    file = as_path(name)
    check_reachable(file)
    if endings and file.suffix.lower() not in endings:
        raise ValueError(f"--output {name}: allowed is a file that ends in {' or '.join(endings)}. Correct it.")
    if file.is_dir() or not (in_store(file) or file.parent.is_dir()):
        raise ValueError(f"--output {name}: allowed is a file in a folder that exists. Make the folder, or correct it.")
    check_absent(file)
    return file


def check_absent(*files: Path) -> None:
    """Raises ValueError if one of the files that a command will write is there already."""
    if present := [str(file) for file in files if file.exists()]:
        raise ValueError(f"{', '.join(present)} is there already, and nothing is overwritten. Choose another --output.")


def show(console: PlainConsole, tables: Sequence[Any], paths: Sequence[Path]) -> None:
    """Prints the tables and the paths of the files that hold the same."""
    for each in tables:
        console.print(each)
    for each in paths:
        print(f"see {each}")
    sys.stdout.flush()
