"""`eval report`: writes report.html from a run's files, or about several runs side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from svt_jax.cli.options import NO_ROOM, eval_parser, output_folder, path, read_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def options() -> ArgumentParser:
    parser = eval_parser(
        "report",
        "Writes report.html from what a run left, or a page with the settings and seeds of several runs side by side.",
        needed="--run DIR | --runs DIR ... --output DIR",
        examples=(
            "--run runs/demo",
            "--run runs/demo --baseline runs/plain",
            "--runs runs/plain-0 runs/plain-1 runs/svt-0 runs/svt-1 --output report",
        ),
    )
    inputs = parser.add_argument_group("what is read")
    inputs.add_argument("--run", type=path, help="folder that train.py wrote")
    inputs.add_argument("--baseline", type=path, help="with --run: another run of the same task to compare with")
    inputs.add_argument(
        "--runs", nargs="+", type=path, help="folders that train.py has completed; the first is the baseline's"
    )
    parser.add_argument_group("what is written").add_argument(
        "--output", type=path, help="with --runs: folder of report.html; with --run it is the run's"
    )
    return parser


def run(arguments: list[str], *, started: float) -> None:
    chosen = read_options(options(), arguments)
    if (chosen.run is None) == (chosen.runs is None):
        raise ValueError(
            "report needs --run DIR, or --runs DIR ... with --output DIR, and not both. Correct the command."
        )
    if chosen.runs:
        return _several(chosen)
    if chosen.output:
        raise ValueError("--output goes with --runs; the page of one run lies in its folder. Leave it out.")

    from svt_jax.analysis.report import write_report
    from svt_jax.run.folder import read_run

    folder, _, _ = read_run(chosen.run)
    write_report(folder, read_run(chosen.baseline)[0].path if chosen.baseline else None)
    print(f"see {folder.report}")
    return None


def _several(chosen: Any) -> None:
    if chosen.baseline:
        raise ValueError("--baseline goes with --run; the first of --runs is the baseline. Leave it out.")
    if not chosen.output:
        raise ValueError("--output is missing; --runs needs --output DIR, the folder of report.html. Add it.")

    from svt_jax.analysis.compare import compare
    from svt_jax.analysis.comparison_files import figures, runs_of
    from svt_jax.analysis.report import check_no_run, write_comparison_report
    from svt_jax.host import only_warns
    from svt_jax.writing import writing

    output = output_folder(chosen.output)
    check_no_run(output)
    comparison = compare(chosen.runs)
    runs, drawn = runs_of(comparison), {}
    with only_warns("the pictures"):
        drawn = figures(comparison, runs)
    with writing(output, NO_ROOM):
        print(f"see {write_comparison_report(comparison, runs, drawn, output)}")
