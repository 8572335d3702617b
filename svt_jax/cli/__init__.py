"""The command line: `svt-jax`, `python -m svt_jax`, and the functions that train.py and eval.py call.

entry.py     finds the command, keeps libraries quiet, turns errors into one line and an exit status
options.py   options and output that several commands share
commands/    one file for each command: its options, its function, the table that it prints
"""

from svt_jax.cli.entry import evaluate, main, train

__all__ = ["evaluate", "main", "train"]
