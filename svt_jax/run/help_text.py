"""How the help of a command looks: options in groups, each with its default, and examples at the end."""

from __future__ import annotations

import argparse
import re
from typing import Any

from jsonargparse import DefaultHelpFormatter


class HelpFormatter(DefaultHelpFormatter):
    """Shows what a user writes and gets, and no Python types. Lines of an epilog stay as they are."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default is argparse.SUPPRESS or action.nargs == 0 or "(default" in text:
            return text
        if default is None and "null" not in text:  # without it, there is simply none
            return text
        end = "." if text.endswith(".") else ""
        shown = " ".join(default) if action.nargs == "+" else _written(default)
        return f"{text.removesuffix('.')} (default {shown}){end}"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return re.sub(r", --\S+\+ .*", "", super()._format_action_invocation(action))  # --key+ adds to a list

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "".join(f"{indent}{line}\n" for line in text.splitlines())
        return super()._fill_text(text, width, indent)


def _written(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def examples(prog: str, options: tuple[str, ...]) -> str | None:
    """The end of a command's help."""
    return "\n".join(["examples:", *(f"  {prog} {each}" for each in options)]) if options else None


def tidy(parser: argparse.ArgumentParser) -> None:
    """Hides options that take a whole section from a file, and shows how a list is written."""
    for action in parser._actions:
        if type(action).__name__ == "_ActionConfigLoad":
            action.help = argparse.SUPPRESS
        elif action.nargs is None and "list[" in str(getattr(action, "_typehint", "")).lower():
            numbers = "list[str]" not in str(getattr(action, "_typehint", "")).lower()
            action.metavar = '"[1, 2]"' if numbers else '"[a, b]"'
