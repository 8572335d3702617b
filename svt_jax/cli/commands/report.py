"""`eval report`: writes report.html from a run's files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svt_jax.cli.options import eval_parser, path, read_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def options() -> ArgumentParser:
    parser = eval_parser(
        "report",
        "Writes report.html from what a run left.",
        needed="--run DIR",
        examples=("--run runs/demo", "--run runs/demo --baseline runs/plain"),
    )
    inputs = parser.add_argument_group("what is read")
    inputs.add_argument("--run", type=path, help="folder that train.py wrote")
    inputs.add_argument("--baseline", type=path, help="another run of the same task to compare with")
    return parser


def run(arguments: list[str], *, started: float) -> None:
    chosen = read_options(options(), arguments, required=("run",))

    from svt_jax.analysis.report import write_report
    from svt_jax.run.folder import read_run

    folder, _, _ = read_run(chosen.run)
    write_report(folder, read_run(chosen.baseline)[0].path if chosen.baseline else None)
    print(folder.report)
