"""The probe on a run's checkpoint or on a pretrained model, for `eval.py spectrum`."""

from __future__ import annotations

from typing import Any

from svt_jax.evaluation.probe import Probe
from svt_jax.mesh import make_mesh
from svt_jax.models.config import read_config
from svt_jax.models.files import local_folder
from svt_jax.models.hf import load_encoder
from svt_jax.run.config import DataConfig, MeshConfig, ModelConfig
from svt_jax.training import assemble
from svt_jax.training.evaluate import data_config, restore_run
from svt_jax.training.step import split_model


def run_spectrum(run: str, *, source: str | None = None, checkpoint: str = "last") -> dict[str, Any]:
    """The reading of a run's checkpoint on the sample of its validation set: the one that training logs for that step.

    Args:
      run: the run's folder.
      source: overrides where the data are.
      checkpoint: "last", "best" or a step's number.
    Returns:
      "run", "task", "step" and the keys of a reading (see `evaluation.probe`).
    """
    found = restore_run(run, source=source, checkpoint=checkpoint)
    tokens = assemble.load_tokens(found.task, found.data, found.tokenizer, found.encoder, "validation")
    probe = Probe(found.graphdef, tokens, found.encoder.max_tokens, found.mesh)
    return {"run": run, "task": found.task.name, "step": found.step, **probe.read(*found.state)}


def model_spectrum(
    path: str, *, task: str | None, source: str | None = None, max_length: int | None = None
) -> dict[str, Any]:
    """As `run_spectrum`, for a pretrained encoder (a folder or a hub id) on a task's validation sentences.

    Raises:
      ValueError: if the task is not named.
    """
    if task in (None, "custom", "demo"):
        raise ValueError(
            f"--model needs --task, not {task}; allowed are {', '.join(assemble.TASKS)}. Name one of these, and where its "
            "files are by --data.source."
        )
    data = data_config(DataConfig(task=task), source, None, max_length)
    encoder = read_config(local_folder(path))
    tokenizer = assemble.load_tokenizer(local_folder(path), encoder.vocab_size)
    tokens = assemble.load_tokens(assemble.find_task(data), data, tokenizer, encoder, "validation")
    model = load_encoder(path)
    assemble.set_speed(model, ModelConfig())
    graphdef, params, constants = split_model(model)
    probe = Probe(graphdef, tokens, encoder.max_tokens, make_mesh(MeshConfig()))
    return {"model": path, "task": task, "step": None, **probe.read(params, constants)}
