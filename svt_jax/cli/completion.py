"""What completes `svt-jax` in a shell: a script that knows the commands and the options of each."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping

SHELLS = ("bash", "zsh", "tcsh")


def script(shell: str, commands: Mapping[str, str], nested: Mapping[str, tuple[str, Mapping[str, str]]]) -> str:
    """The completion script, which the shell sources.

    Args:
      shell: one of SHELLS.
      commands: what each command does.
      nested: for a command that has commands of its own, the prefix of their modules' names and what each does.

    Raises:
      ValueError: for another shell, or if shtab is not installed.
    """
    if shell not in SHELLS:
        raise ValueError(f"--print-completion is {shell!r}; allowed are {', '.join(SHELLS)}. Name your shell.")
    try:
        import shtab
    except ImportError:
        raise ValueError(
            "--print-completion needs the package shtab; allowed is an environment that has it. "
            "Install it: pip install 'svt_jax[completion]'."
        ) from None
    root = argparse.ArgumentParser("svt-jax")
    children = root.add_subparsers()
    for name, summary in commands.items():
        if name in nested:
            prefix, names = nested[name]
            grandchildren = children.add_parser(name, help=summary).add_subparsers()
            for each, what in names.items():
                _add(grandchildren, each, what, f"{prefix}{each}")
        else:
            _add(children, name, summary, name)
    return shtab.complete(root, shell)


def _add(children: argparse._SubParsersAction, name: str, summary: str, module: str) -> None:
    """Adds a command with the options that its module parses."""
    parser = children.add_parser(name, help=summary)
    for action in importlib.import_module(f"svt_jax.cli.commands.{module}").options()._actions:
        if action.option_strings and not set(action.option_strings) & set(parser._option_string_actions):
            parser._add_action(action)
