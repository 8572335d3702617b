"""`eval export`: writes a run's classifier as a model folder."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from svt_jax.cli.options import eval_parser, path, read_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

log = logging.getLogger(__name__)


def options() -> ArgumentParser:
    parser = eval_parser("export", "Writes a run's classifier as a model folder.")
    parser.add_argument("--run", type=path, help="folder that train.py wrote")
    parser.add_argument("--checkpoint", default="last", help="last, best, or a step's number (default last)")
    parser.add_argument(
        "--svt",
        type=Literal["keep", "drop"] | None,
        help="for a run with an SVT, which transformers cannot compute: keep its parameters beside the others, for svt_jax, "
        "or leave it out",
    )
    parser.add_argument("--output", type=path, help="folder of config.json, model.safetensors and the tokenizer")
    return parser


def run(arguments: list[str], *, started: float) -> None:
    chosen = read_options(options(), arguments, required=("run", "output"))

    from svt_jax.evaluation.after_run import export
    from svt_jax.run.folder import read_run
    from svt_jax.run.task_model import TaskModel
    from svt_jax.stores import as_path

    if chosen.svt is not None and read_run(chosen.run)[1]["svt"]["function"] == "none":
        log.warning("--svt %s does nothing: the run has no SVT. Leave it out.", chosen.svt)
    model = TaskModel.from_run(chosen.run, checkpoint=chosen.checkpoint)
    export(model, as_path(chosen.output), svt=chosen.svt)
    print(f"see {chosen.output}: the model after step {model.step}")
