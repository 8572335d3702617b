"""`eval spectrum`: measures the spectrum of each layer, as JSON and pictures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from svt_jax.cli.options import (
    NO_ROOM,
    check_absent,
    check_owner,
    eval_parser,
    output_folder,
    path,
    read_options,
    run_or_model,
    show,
)

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def options() -> ArgumentParser:
    parser = eval_parser(
        "spectrum",
        "Measures the spectrum of each layer on validation examples: JSON and pictures.",
        needed="--run DIR | --model PATH --task NAME --output DIR",
        examples=(
            "--run runs/demo --output spectra",
            "--model MODEL --task rte --data.source GLUE --output spectra --measures all",
        ),
    )
    run_or_model(parser, run="folder that train.py wrote", model="folder or hub id of an encoder")
    output = parser.add_argument_group("what is written")
    output.add_argument(
        "--measures",
        nargs="+",
        help="further measures by name (docs/measures.md), or all; then OUTPUT/probe and a table have them",
    )
    output.add_argument("--output", type=path, help="folder of spectrum.json and the pictures")
    return parser


def run(arguments: list[str], *, started: float) -> None:
    chosen = read_options(options(), arguments, required=("output",))
    output = output_folder(chosen.output)
    check_owner(chosen)
    check_absent(output / "spectrum.json", *([output / "probe" / "probe.json"] if chosen.measures else []))

    from rich.table import Table

    from svt_jax.analysis.reading import Reading
    from svt_jax.evaluation.after_run import spectrum
    from svt_jax.evaluation.layer_measures import chosen_measures
    from svt_jax.evaluation.probe import MEASURES
    from svt_jax.host import only_warns
    from svt_jax.run.folder import read_run
    from svt_jax.run.task_model import TaskModel
    from svt_jax.stores import make_folder
    from svt_jax.training.progress import PlainConsole
    from svt_jax.writing import write_whole, writing

    methods = {}
    names = chosen_measures(chosen.measures) if chosen.measures else ()
    if chosen.run:
        model = TaskModel.from_run(chosen.run, checkpoint=chosen.checkpoint or "last", source=chosen.data.source)
        methods[chosen.run] = read_run(chosen.run)[1]["svt"].get("function", "none")
        reading = {"run": chosen.run, **spectrum(model, names)}
    else:
        model = TaskModel.from_pretrained(
            chosen.model, chosen.task, head=False, source=chosen.data.source, max_length=chosen.data.max_length
        )
        reading = {"model": chosen.model, **spectrum(model, names)}
    with writing(output, NO_ROOM):
        make_folder(output)
    paths = [output / "spectrum.json"]
    write_whole(paths[0], json.dumps(reading, indent=2) + "\n", NO_ROOM)
    with only_warns("the pictures"):
        from svt_jax.analysis import plots

        figures = {
            "histograms": plots.spectrum_histograms(reading),
            "svt_histograms": plots.svt_histograms(reading),
            "cdf": plots.spectrum_cdf(reading),
            "measures": plots.measures_by_depth({chosen.run or chosen.model: [reading]}, methods),
        }
        paths += plots.save(figures, output)
    further = Reading({"measures": list(names), "batches": 1, **reading})
    if names:
        paths += further.save(output / "probe")
    with only_warns("the table of results"):
        shown = Table(
            *("layer", "state", "skewness", "median", "token", "CLS", "EV1", "EV3", "rank"),
            box=None,
            title_justify="left",
            title=f"{reading['task']}: skewness, median of σ/σ₁, uniformities, effective rank; {reading['examples']} examples",
        )
        for state in reading["states"]:
            shown.add_row(
                "embeddings" if state["layer"] is None else f"layer {state['layer']}",
                state["state"].replace("svt_", "SVT "),
                *(f"{state[measure]:.3f}" for measure in MEASURES),
            )
        show(PlainConsole(), [shown, *([str(further)] if names else [])], paths)
