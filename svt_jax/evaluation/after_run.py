"""Work on a trained model: score a split or write predictions, read the spectra, export a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from svt_jax.data.glue import Split
from svt_jax.evaluation.glue import Evaluator
from svt_jax.evaluation.metrics import check_finite
from svt_jax.evaluation.probe import MEASURES, Probe
from svt_jax.evaluation.submission import write_submission
from svt_jax.mesh import check_batch
from svt_jax.models.config import EncoderConfig
from svt_jax.models.export import export_hf
from svt_jax.run import distributed
from svt_jax.run.folder import save_tokenizer
from svt_jax.run.task_model import TaskModel
from svt_jax.stores import writable
from svt_jax.writing import writing


def score(model: TaskModel, split: Split = "validation", output: Path = Path("submission")) -> dict[str, Any]:
    """Scores a split of the model's task; for an unlabelled test set, writes files of predictions.

    Args:
      model: a classifier with its task and data.
      split: name of the split; for MNLI, validation and test have a matched and a mismatched part.
      output: folder for the predictions.
    Returns:
      "task", "split", "metrics" and "examples"; for MNLI also "metrics_mismatched" and "examples_mismatched". For
      predictions, "files" in the leaderboard's format replaces the metrics.
    Raises:
      ValueError: if the data cannot be read.
      NonFiniteError: if a prediction is not finite.
    """
    assert model.task is not None and model.data is not None, "a classifier has a task"  # noqa: PT018
    check_batch(model.mesh, "data.eval_batch_size", model.data.eval_batch_size)
    outcome: dict[str, Any] = {"task": model.task.name, "split": split}
    for part in model.task.parts(split):
        tokens = model.tokens(part)
        evaluator = Evaluator(model, tokens, model.data.eval_batch_size, model.data.layout)
        suffix = part.removeprefix(split)
        outcome["examples" + suffix] = len(tokens)
        if tokens.labels is None:
            logits = evaluator.logits(model)
            check_finite(logits)
            with writing(output, "Make room, or choose another --output."):
                path = distributed.on_first(write_submission, model.task, part, logits, output)
            outcome["files"] = [*outcome.get("files", []), str(path)]
        else:
            outcome["metrics" + suffix] = evaluator.score(model)
    return outcome


def spectrum(model: TaskModel, names: Sequence[str] = ()) -> dict[str, Any]:
    """Reads the probe on the validation set of the model's task; for a run, the same reading as training logs.

    Args:
      names: further measures, of `layer_measures.ALL`.

    Returns:
      "task", "step" and the keys of a reading (`evaluation.probe`).
    """
    assert model.task is not None, "a reading is of a task"
    probe = Probe(model, model.tokens("validation"), tuple(dict.fromkeys([*MEASURES, *names])))
    return {"task": model.task.name, "step": model.step, **probe.read(model)}


def export(model: TaskModel, folder: Path, *, svt: Literal["drop", "keep"] | None = None) -> None:
    """Writes config.json with the task's class names, model.safetensors, and the tokenizer's files.

    `load_classifier`, `eval.py --model` and transformers read the folder. The tokenizer's settings make transformers'
    pipeline build the same inputs as here: no more tokens than positions, padding on the right, and token types if the
    model has them.

    Args:
      model: a classifier with its tokenizer.
      folder: the folder to write; made if it does not exist.
      svt: as for `svt_jax.export_hf`; needed for a model with an SVT, which transformers cannot compute.
    Raises:
      ValueError: if `folder` is not empty, and as `svt_jax.export_hf`.
    """
    assert model.task is not None, "a classifier has a task"
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty, and nothing is overwritten. Choose another folder.")
    export_hf(model.module(), folder, svt=svt, labels=model.task.labels)
    with writable(folder) as local:
        save_tokenizer(fit_tokenizer(model.tokenizer, model.encoder), local)


def fit_tokenizer(tokenizer: Any, encoder: EncoderConfig) -> Any:
    """The tokenizer with settings that make other programs build the same inputs as here."""
    names = ["input_ids", *(["token_type_ids"] if encoder.type_vocab_size > 1 else []), "attention_mask"]
    tokenizer.model_input_names = names
    tokenizer.init_kwargs["model_input_names"] = names  # the tokenizer saves init_kwargs
    tokenizer.model_max_length = min(tokenizer.model_max_length, encoder.max_tokens)
    tokenizer.padding_side = "right"
    return tokenizer
