"""Loads Hugging Face weights: encoders and classifiers of all families."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from svt_jax.models.checkpoint_names import encoder_names, head_names
from svt_jax.models.config import EncoderConfig
from svt_jax.models.encoder import Encoder
from svt_jax.models.files import Tensors, read_json
from svt_jax.models.filling import Checkpoint, Shardings, fill, open_checkpoint
from svt_jax.models.heads import Classifier
from svt_jax.models.svt_config import SVTConfig
from svt_jax.text import printable

log = logging.getLogger(__name__)

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def load_encoder(
    path_or_id: str | Path,
    *,
    svt: SVTConfig | None = None,
    dtype: str = "float32",
    ignore: Sequence[str] = (),
    remat: bool = False,
    scan_layers: bool = False,
) -> Encoder:
    """Loads a pretrained encoder of one of the families of `models.families`.

    Args:
      path_or_id: a folder with config.json and model.safetensors (or a sharded index), or a hub id. A `pytorch_model.bin`
        is read where PyTorch is installed.
      svt: the transformation to put into it; parameters start from `svt.alpha` and `svt.params`. None: the one that
        `export_hf` kept in the folder with its parameters, if there is one.
      dtype: the computation's dtype, "float32" or "bfloat16"; parameters are float32.
      ignore: name patterns, as in ("my_head.*",), of tensors to leave out where this architecture has no place for
        them. Any other such tensor is an error, except the heads that transformers knows.
      remat, scan_layers: as for `models.encoder.Encoder`.
    Returns:
      The module, called as encoder(input_ids, attention_mask, token_type_ids).
    Raises:
      ValueError: if the folder has no weights, or tensors are missing, unknown, misshapen or not floating point
        (the first few of each kind are listed), or the architecture is not supported.
    """
    checkpoint = open_checkpoint(path_or_id, svt, ignore)
    return fill(
        lambda: _new_encoder(checkpoint, dtype, nnx.Rngs(0), remat, scan_layers),
        checkpoint,
        encoder_names(checkpoint.config),
        0,
    )


def load_classifier(
    path_or_id: str | Path,
    *,
    num_labels: int | None = None,
    svt: SVTConfig | None = None,
    dtype: str = "float32",
    seed: int = 0,
    shardings: Shardings | None = None,
    ignore: Sequence[str] = (),
    remat: bool = False,
    scan_layers: bool = False,
) -> Classifier:
    """Loads a pretrained encoder with a classification head.

    The head is loaded if the checkpoint has one of this size. Otherwise it is drawn from `seed`, with a warning.
    Arguments and errors are as in `load_encoder`. The module's `class_names` are those of config.json (id2label), where
    the head is loaded.

    Args:
      num_labels: number of classes, 1 for regression; None takes the checkpoint's head, as of a folder that `export_hf`
        wrote.
      shardings: maps the module's abstract state to a sharding for each variable, and each device receives only its
        part. Without it all weights come to the default device.
    Raises:
      ValueError: also if `num_labels` is None and the checkpoint has no head, or one for several classes at a time.
    """
    checkpoint = open_checkpoint(path_or_id, svt, ignore)
    config = checkpoint.config
    names = {theirs: (f"encoder/{ours}", change) for theirs, (ours, change) in encoder_names(config).items()}
    size = _head_size(checkpoint) if num_labels is None else num_labels
    fits = _head_fits(config, checkpoint.tensors, size)
    if fits:
        names |= head_names(config)
    elif config.head == "norm":  # all but the classifier is the head of the pretrained language model
        below = {t: entry for t, entry in head_names(config).items() if not entry[0].startswith("classifier/")}
        names |= below if below.keys() <= checkpoint.tensors.keys() else {}

    def make() -> Classifier:
        rngs = nnx.Rngs(seed)
        return Classifier(_new_encoder(checkpoint, dtype, rngs, remat, scan_layers), size, rngs=rngs)

    classifier = fill(make, checkpoint, names, seed, shardings)
    if not fits:  # warned of once all is well: an error must be one line
        found = head_names(config).keys() & checkpoint.tensors.keys()
        reason = "has a head of another size" if found else "has no classification head"
        log.warning(
            "%s %s: the head for %d labels starts from random values (seed %d)",
            checkpoint.folder,
            reason,
            size,
            seed,
        )
    elif size > 1:
        classifier.class_names = _class_names(checkpoint.folder, size)
    return classifier


def _new_encoder(checkpoint: Checkpoint, dtype: str, rngs: nnx.Rngs, remat: bool, scan_layers: bool) -> Encoder:
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed are {', '.join(DTYPES)}. Use float32 when in doubt.")
    config, svt = checkpoint.config, checkpoint.svt
    return Encoder(config, svt, dtype=DTYPES[dtype], rngs=rngs, remat=remat, scan_layers=scan_layers)


def _class_names(folder: Path, number: int) -> tuple[str, ...] | None:
    """The names of so many classes in config.json, in the order of the logits; None unless each has its own."""
    named = read_json(folder / "config.json").get("id2label")
    names = [str(named.get(str(n), "")) for n in range(number)] if isinstance(named, dict) else []
    return tuple(names) if len(named or ()) == len(set(names) - {""}) == number else None


def _head_size(checkpoint: Checkpoint) -> int:
    """The number of labels of the checkpoint's head."""
    bias = next(theirs for theirs, (ours, _) in head_names(checkpoint.config).items() if ours == "classifier/bias")
    found = checkpoint.tensors.get(bias)
    size = 0 if found is None or found.ndim != 1 else len(found)
    if not size or not _head_fits(checkpoint.config, checkpoint.tensors, size):
        raise ValueError(
            f"{checkpoint.folder} has no classification head ({', '.join(head_names(checkpoint.config))}); allowed without "
            "num_labels is the folder of a trained classifier, as eval.py export writes it. Name another folder, or give "
            "num_labels for a new head."
        )
    settings = read_json(checkpoint.folder / "config.json")
    if settings.get("id2label") and _class_names(checkpoint.folder, size) is None:
        raise ValueError(
            f"config.json of {checkpoint.folder} has id2label {printable(str(settings['id2label']))} for a head of {size} "
            f"classes; allowed is a different name for each number from 0. Correct it, or give num_labels={size}."
        )
    if settings.get("problem_type") == "multi_label_classification":
        raise ValueError(
            f"{checkpoint.folder} has a head for several classes at a time (problem_type multi_label_classification); allowed "
            f"is one class of each text. Give num_labels={size} to use its logits."
        )
    return size


def has_head(folder: Path, num_labels: int) -> bool:
    """Whether a checkpoint has a classification head of this size."""
    checkpoint = open_checkpoint(folder, None, ())
    return _head_fits(checkpoint.config, checkpoint.tensors, num_labels)


def _head_fits(config: EncoderConfig, tensors: Tensors, num_labels: int) -> bool:
    size = config.hidden_size
    shapes = {"dense": (size, size), "norm": (size,), "classifier": (num_labels, size)}
    for theirs, (ours, _) in head_names(config).items():
        module, parameter = ours.split("/")
        shape = shapes[module] if parameter == "kernel" else shapes[module][:1]
        tensor = tensors.get(theirs)
        if tensor is None or tensor.shape != shape or not jnp.issubdtype(tensor.dtype, jnp.floating):
            return False
    return True
