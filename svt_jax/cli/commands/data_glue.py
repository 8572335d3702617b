"""`data glue`: writes GLUE's files in the official layout from the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svt_jax.cli.options import command_parser, path, read_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def options() -> ArgumentParser:
    from svt_jax.data.glue import TASKS

    parser = command_parser(
        "svt-jax data glue",
        "Writes GLUE's files from the hub (nyu-mll/glue) in the official download layout, for --data.source DIR.",
        needed="--to DIR",
        plugin=False,
        examples=("--to glue", "--to glue --tasks rte cola"),
    )
    output = parser.add_argument_group("what is written")
    output.add_argument("--to", type=path, help="folder to write; what is there already is kept")
    output.add_argument("--tasks", nargs="+", default=list(TASKS), help=f"{' '.join(TASKS)} (default all)")
    return parser


def run(arguments: list[str], *, started: float) -> None:
    chosen = read_options(options(), arguments, required=("to",))

    from svt_jax.data.glue_files import write_glue

    folder = write_glue(chosen.to, chosen.tasks)
    print(f"see {folder}: --data.source {folder}")
