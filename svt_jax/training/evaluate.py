"""Scores a finished or interrupted run from its folder, or a classifier that has its head."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from svt_jax.data.glue import Split, Task
from svt_jax.evaluation.glue import Evaluator
from svt_jax.evaluation.metrics import check_finite
from svt_jax.evaluation.submission import write_submission
from svt_jax.models.config import EncoderConfig, SVTConfig, read_config
from svt_jax.models.files import local_folder, read_json
from svt_jax.models.heads import Classifier
from svt_jax.models.hf import has_head, load_classifier
from svt_jax.text import listed
from svt_jax.training import assemble, processes
from svt_jax.training.checkpoint import Checkpoints, abstract
from svt_jax.training.config import DataConfig, MeshConfig, ModelConfig
from svt_jax.training.run_folder import read_classes, read_run
from svt_jax.training.sharding import check_batch, make_mesh, parameter_shardings
from svt_jax.training.step import TrainState, split_model

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A run's classifier at a step, and what it needs to be evaluated.

    Attributes:
      graphdef: of the classifier.
      state: its parameters and what else it holds; see `TrainState`.
      task, data, tokenizer, encoder: what it was trained on and with.
      mesh: that the state lies on.
      step: of the checkpoint.
    """

    graphdef: nnx.GraphDef
    state: tuple[nnx.State, nnx.State]
    task: Task
    data: DataConfig
    tokenizer: Any
    encoder: EncoderConfig
    mesh: Mesh
    step: int


def restore_run(
    run: str, *, source: str | None = None, eval_batch_size: int | None = None, checkpoint: str = "last"
) -> Restored:
    """A run's checkpoint; arguments and errors as those of `evaluate_run`."""
    folder, config, encoder = read_run(run)
    data = data_config(DataConfig(**config["data"]), source, eval_batch_size)
    task = assemble.find_task(data, read_classes(folder) if data.task == "custom" else None)
    if not folder.checkpoints.is_dir():
        raise ValueError(f"{run} has no checkpoints yet. Train it first.")
    checkpoints = Checkpoints(folder.checkpoints, read_only=True)
    step = _choose_step(checkpoints, checkpoint)
    classifier = nnx.eval_shape(
        lambda: assemble.random_classifier(
            encoder, SVTConfig(**config["svt"]), task.num_labels, dtype=config["model"]["dtype"], seed=0
        )
    )
    assemble.set_speed(classifier.encoder, ModelConfig(**config["model"]))
    try:  # the run's own mesh gives its score to the last bit; another one may differ in rounding
        mesh = make_mesh(MeshConfig(**config["mesh"]))
    except ValueError:
        mesh = make_mesh(MeshConfig())
    graphdef, params, constants = split_model(classifier)
    shardings = TrainState(parameter_shardings(params, mesh), parameter_shardings(constants, mesh), None)
    step, state, _ = checkpoints.restore(abstract(TrainState(params, constants, None), shardings), step)
    checkpoints.close()
    tokenizer = assemble.load_tokenizer(folder.model, encoder.vocab_size)
    return Restored(graphdef, (state.params, state.constants), task, data, tokenizer, encoder, mesh, step)


def evaluate_run(
    run: str,
    *,
    split: Split = "validation",
    source: str | None = None,
    eval_batch_size: int | None = None,
    checkpoint: str = "last",
    output: str | None = None,
) -> dict[str, Any]:
    """The score of a run's checkpoint: the one that training reported for it. Of an unlabelled test set, predictions.

    Args:
      run: the run's folder; the pretrained model it started from is not needed.
      split: of the run's task; of MNLI both the matched and the mismatched part.
      source: overrides where the data are.
      eval_batch_size: overrides the run's; the score does not depend on it.
      checkpoint: "last", "best" or a step's number.
      output: folder of the predictions for an unlabelled split; None is the run's folder `submission`.
    Returns:
      "metrics" and "examples", and "metrics_mismatched" and "examples_mismatched" of MNLI; or, in place of metrics,
      "files" in the leaderboard's format.
    Raises:
      ValueError: if the folder holds no run, or no such checkpoint.
    """
    found = restore_run(run, source=source, eval_batch_size=eval_batch_size, checkpoint=checkpoint)
    outcome = _outcome(
        found.graphdef, found.state, found.task, found.data, found.tokenizer, found.encoder, found.mesh, split,
        Path(output) if output else Path(run) / "submission",
    )  # fmt: skip
    return {"task": found.task.name, "split": split, "run": run, "step": found.step, **outcome}


def evaluate_model(
    path: str,
    *,
    task: str | None,
    split: Split = "validation",
    source: str | None = None,
    eval_batch_size: int | None = None,
    max_length: int | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """As `evaluate_run`, for a pretrained classifier (a folder or a hub id) that has a head for the task.

    Classes that its config.json names as the task does, in whatever order, are put in the task's; others are taken to be in
    it, with a warning.

    Raises:
      ValueError: if the task is not named, or the checkpoint has no head of its size.
    """
    if task is None or task == "custom":
        raise ValueError(
            f"--model needs --task, not {task}; allowed are {', '.join(assemble.TASKS)}. Name one of these."
        )
    data = data_config(DataConfig(task=task), source, eval_batch_size, max_length)
    found = assemble.find_task(data)
    folder = local_folder(path)
    if not has_head(folder, found.num_labels):
        raise ValueError(
            f"{path} has no classification head for {found.num_labels} labels, so it has no score on {task}. "
            "Fine-tune it with train.py, or name another model."
        )
    mesh = make_mesh(MeshConfig())
    classifier = load_classifier(
        folder, num_labels=found.num_labels, shardings=functools.partial(parameter_shardings, mesh=mesh)
    )
    assemble.set_speed(classifier.encoder, ModelConfig())
    _order_classes(classifier, folder, found)
    encoder = read_config(folder)
    graphdef, params, constants = split_model(classifier)
    outcome = _outcome(
        graphdef, (params, constants), found, data, assemble.load_tokenizer(folder, encoder.vocab_size), encoder,
        mesh, split, Path(output or "submission"),
    )  # fmt: skip
    return {"task": task, "split": split, "model": path, **outcome}


def _order_classes(classifier: Classifier, folder: Path, task: Task) -> None:
    """Puts the head's classes in the task's order, where config.json names them: a public MNLI model may have another."""
    if task.labels is None:
        return
    named = read_json(folder / "config.json").get("id2label")
    named = named if isinstance(named, dict) else {}
    theirs = [str(named.get(str(n), f"LABEL_{n}")) for n in range(task.num_labels)]
    plain = [[re.sub(r"[\s_-]+", "_", name.casefold()) for name in names] for names in (theirs, task.labels)]
    if sorted(plain[0]) != sorted(plain[1]):
        log.warning(
            "%s calls its classes %s; they are taken to be, in this order, %s",
            folder,
            listed(theirs),
            ", ".join(task.labels),
        )
        return
    order = np.array([plain[0].index(name) for name in plain[1]])
    head = nnx.state(classifier.classifier)
    nnx.update(classifier.classifier, jax.tree.map(lambda array: array[..., order], head))


def data_config(
    data: DataConfig, source: str | None, eval_batch_size: int | None, max_length: int | None = None
) -> DataConfig:
    changes: dict[str, Any] = {"source": source, "eval_batch_size": eval_batch_size, "max_length": max_length}
    return dataclasses.replace(data, **{name: value for name, value in changes.items() if value is not None})


def _outcome(
    graphdef: nnx.GraphDef,
    state: tuple[nnx.State, nnx.State],
    task: Task,
    data: DataConfig,
    tokenizer: Any,
    encoder: EncoderConfig,
    mesh: Mesh,
    split: Split,
    output: Path,
) -> dict[str, Any]:
    """Scores of a split's parts, or files of predictions where there are no labels."""
    check_batch(mesh, "data.eval_batch_size", data.eval_batch_size)
    outcome: dict[str, Any] = {}
    for part in task.parts(split):
        tokens = assemble.load_tokens(task, data, tokenizer, encoder, part)
        evaluator = Evaluator(graphdef, task, tokens, data.eval_batch_size, encoder.max_tokens, mesh)
        suffix = part.removeprefix(split)
        outcome["examples" + suffix] = len(tokens)
        if tokens.labels is None:
            logits = evaluator.logits(*state)
            check_finite(logits)
            path = processes.on_first(write_submission, task, part, logits, output)
            outcome["files"] = [*outcome.get("files", []), str(path)]
        else:
            outcome["metrics" + suffix] = evaluator.score(*state)
    return outcome


def _choose_step(checkpoints: Checkpoints, wanted: str) -> int | None:
    if wanted == "last":
        return None
    step = checkpoints.best if wanted == "best" else int(wanted) if wanted.isdigit() else None
    if step is None or step not in checkpoints.steps:
        raise ValueError(
            f"--checkpoint {wanted!r}: the run has the steps {checkpoints.steps}; allowed are last, best or one of these."
        )
    return step
