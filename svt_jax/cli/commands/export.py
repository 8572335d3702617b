"""`eval export`: writes a run's classifier as a model folder, here or on the hub."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from svt_jax.cli.options import eval_parser, path, read_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

log = logging.getLogger(__name__)


def options() -> ArgumentParser:
    parser = eval_parser(
        "export",
        "Writes a run's classifier as a model folder, here or on the hub.",
        needed="--run DIR --output DIR | --push USER/NAME",
        examples=(
            "--run runs/rte --output rte-model",
            "--run runs/rte --output rte-model --svt keep --checkpoint best",
            "--run runs/rte --push USER/NAME --license apache-2.0",
        ),
    )
    inputs = parser.add_argument_group("what is read")
    output = parser.add_argument_group("what is written")
    hub = parser.add_argument_group("the hub")
    inputs.add_argument("--run", type=path, help="folder that train.py wrote")
    inputs.add_argument("--checkpoint", default="last", help="last, best, or a step's number (default last)")
    output.add_argument(
        "--svt",
        type=Literal["keep", "drop"],
        help="for a run with an SVT, which transformers cannot compute: keep its parameters beside the others, for svt_jax, "
        "or leave it out",
    )
    output.add_argument("--output", type=path, help="folder of config.json, model.safetensors and the tokenizer")
    hub.add_argument(
        "--push", help="USER/NAME: also upload it to the hub, with a model card (--svt is keep by default)"
    )
    hub.add_argument("--license", help="for --push: the hub's name of the licence (default the base model's)")
    hub.add_argument("--private", action="store_true", help="for --push: a new repository is private")
    return parser


def run(arguments: list[str], *, started: float) -> None:
    chosen = read_options(options(), arguments, required=("run",))
    if not (chosen.output or chosen.push):
        raise ValueError("--output is missing; allowed are --output DIR, --push USER/NAME, or both. Add one.")
    if not chosen.push and (chosen.license or chosen.private):
        raise ValueError("--license and --private go with --push USER/NAME. Add it, or leave them out.")

    from svt_jax.run.folder import read_run

    if chosen.svt is not None and read_run(chosen.run)[1]["svt"]["function"] == "none":
        log.warning("--svt %s does nothing: the run has no SVT. Leave it out.", chosen.svt)
    if chosen.push:
        from svt_jax.analysis.hub import check_repo

        check_repo(chosen.push)  # before anything is written
    if chosen.output:
        from svt_jax.evaluation.after_run import export
        from svt_jax.run.task_model import TaskModel
        from svt_jax.stores import as_path

        model = TaskModel.from_run(chosen.run, checkpoint=chosen.checkpoint)
        export(model, as_path(chosen.output), svt=chosen.svt)
        print(f"see {chosen.output}: the model after step {model.step}")
    if chosen.push:
        from svt_jax.analysis.hub import push_to_hub

        read_run(chosen.run)
        url = push_to_hub(
            chosen.run,
            chosen.push,
            checkpoint=chosen.checkpoint,
            svt=chosen.svt or "keep",
            license=chosen.license,
            private=chosen.private or None,
        )
        print(f"see {url}")
