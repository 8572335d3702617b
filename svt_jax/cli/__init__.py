"""The command line: `svt-jax`, `python -m svt_jax`, and what train.py and eval.py call.

entry.py     finds the command, keeps libraries quiet, turns errors into one line and an exit status
options.py   what commands share
commands/    a file a command: its options, its function, the table that it prints
"""

from svt_jax.cli.entry import evaluate, main, train

__all__ = ["evaluate", "main", "train"]
