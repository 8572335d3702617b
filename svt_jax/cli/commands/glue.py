"""`eval glue`: scores a run or a classifier on its task."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from svt_jax.cli.options import check_owner, eval_parser, path, read_options, run_or_model

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

log = logging.getLogger(__name__)


def options() -> ArgumentParser:
    from svt_jax.run.config import DistributedConfig
    from svt_jax.run.help_text import tidy

    parser = eval_parser(
        "glue",
        "Scores a run, or a classifier, on its task.",
        needed="--run DIR | --model PATH --task NAME",
        examples=(
            "--run runs/rte",
            "--model MODEL --task rte --data.source GLUE",
            "--run runs/rte --split test --output submission",
        ),
    )
    run_or_model(parser, run="folder that train.py wrote", model="folder or hub id of a classifier with its head")
    what = parser.add_argument_group("what is computed")
    what.add_argument("--data.eval_batch_size", type=int, help="overrides the run's; the score does not depend on it")
    what.add_argument(
        "--split", default="validation", type=Literal["train", "validation", "test"], help="which examples"
    )
    parser.add_argument_group("what is written").add_argument(
        "--output",
        type=path,
        help="folder of the predictions for an unlabelled split (default RUN/submission, or submission)",
    )
    parser.add_class_arguments(DistributedConfig, "distributed")
    tidy(parser)
    return parser


def run(arguments: list[str], *, started: float) -> None:
    chosen = read_options(parser := options(), arguments)
    check_owner(chosen)

    from svt_jax.evaluation.after_run import score
    from svt_jax.host import only_warns
    from svt_jax.run import distributed
    from svt_jax.run.task_model import TaskModel
    from svt_jax.stores import as_path
    from svt_jax.training.progress import PlainConsole, results_table

    distributed.join(parser.instantiate(chosen).distributed, saves=False)
    source, batch_size = chosen.data.source, chosen.data.eval_batch_size
    if chosen.run:
        model = TaskModel.from_run(
            chosen.run, checkpoint=chosen.checkpoint or "last", source=source, eval_batch_size=batch_size
        )
        whose, default = {"run": chosen.run, "step": model.step}, as_path(chosen.run) / "submission"
    else:
        model = TaskModel.from_pretrained(
            chosen.model, chosen.task, source=source, eval_batch_size=batch_size, max_length=chosen.data.max_length
        )
        whose, default = {"model": chosen.model}, Path("submission")
    outcome = {**score(model, chosen.split, as_path(chosen.output) if chosen.output else default), **whose}
    if not distributed.is_first():
        return
    rows = [
        (f"{name}{key.removeprefix('metrics')}", f"{value:.6f}")
        for key in outcome
        if key.startswith("metrics")
        for name, value in outcome[key].items()
    ]
    rows += [(name, str(value)) for name, value in outcome.items() if not name.startswith("metrics")]
    if chosen.output and "files" not in outcome:
        log.warning(
            "--output %s does nothing: a split with labels has scores and no files of predictions", chosen.output
        )
    with only_warns("the table of results"):
        PlainConsole().print(results_table(f"{outcome['task']} {chosen.split}", rows))
    print(json.dumps(outcome), flush=True)
