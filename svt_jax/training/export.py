"""A run's classifier as a model folder, with its tokenizer: what `load_classifier`, `eval.py --model` and transformers read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from flax import nnx

from svt_jax.models.config import EncoderConfig
from svt_jax.models.export import export_hf
from svt_jax.training.evaluate import restore_run


def export_run(
    run: str, folder: str | Path, *, checkpoint: str = "last", svt: Literal["drop", "keep"] | None = None
) -> int:
    """Writes config.json with the task's class names, model.safetensors, and the tokenizer's files.

    The tokenizer's settings are those by which transformers' pipeline gives the model what it was given here: no more tokens
    than it has positions, padding on the right, and token types where it has them.

    Args:
      run: the run's folder; the pretrained model it started from is not needed.
      folder: made if it does not exist.
      checkpoint: "last", "best" or a step's number.
      svt: as of `svt_jax.export_hf`; needed for a run with an SVT, which transformers cannot compute.
    Returns:
      The checkpoint's step.
    Raises:
      ValueError: if `run` holds no run, or no such checkpoint, if `folder` holds anything, and as `svt_jax.export_hf`.
    """
    if Path(folder).is_dir() and any(Path(folder).iterdir()):
        raise ValueError(f"{folder} is not empty, and nothing is overwritten. Choose another folder.")
    found = restore_run(run, checkpoint=checkpoint)
    export_hf(nnx.merge(found.graphdef, *found.state), folder, svt=svt, labels=found.task.labels)
    fit_tokenizer(found.tokenizer, found.encoder).save_pretrained(folder)
    return found.step


def fit_tokenizer(tokenizer: Any, encoder: EncoderConfig) -> Any:
    """The tokenizer with settings by which others give the model what it is given here."""
    names = ["input_ids", *(["token_type_ids"] if encoder.type_vocab_size > 1 else []), "attention_mask"]
    tokenizer.model_input_names = names
    tokenizer.init_kwargs["model_input_names"] = names  # what is saved
    tokenizer.model_max_length = min(tokenizer.model_max_length, encoder.max_tokens)
    tokenizer.padding_side = "right"
    return tokenizer
