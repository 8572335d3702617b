"""Weights out: a folder that transformers loads as the same model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import save_file

from svt_jax.host import open_to_umask
from svt_jax.models.checkpoint_names import encoder_names, head_names, in_one, prefix
from svt_jax.models.encoder import Encoder
from svt_jax.models.families import FAMILIES
from svt_jax.models.files import Tensors
from svt_jax.models.heads import Classifier
from svt_jax.models.slot import learned_values
from svt_jax.stores import as_path, make_folder, writable
from svt_jax.text import listed


def export_hf(
    model: Encoder | Classifier,
    folder: str | Path,
    *,
    svt: Literal["drop", "keep"] | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Writes config.json and model.safetensors, which transformers loads as <Family>Model or <Family>ForSequenceClassification.

    Args:
      model: an encoder, or one with a head.
      folder: made if it does not exist; a tokenizer may lie in it already.
      svt: what to do with a transformation, which transformers cannot express. drop: leave it out, so that transformers
        computes the plain model, with other numbers. keep: also write a section `svt_jax` into config.json, with the
        settings and, by layer and name, the present parameters, each inside its bounds. transformers ignores it;
        `load_encoder` and `load_classifier` read it back.
      labels: names of a classifier's classes, in its order; None takes its `class_names`.
    Raises:
      ValueError: if the model has a transformation and `svt` is not given, if there are more or fewer labels than
        classes, or one twice, if the folder holds a model, or if it cannot be written.
    """
    if svt not in (None, "drop", "keep"):
        raise ValueError(f"svt is {svt!r}; allowed are 'drop' and 'keep'. Leave it out for a model without SVT.")
    encoder = model.encoder if isinstance(model, Classifier) else model
    if encoder.svt_config.enabled and svt is None:
        raise ValueError(
            f"the model has svt.function {encoder.svt_config.function}, which transformers cannot compute; pass svt='drop' "
            "(--svt drop) to export without it, or svt='keep' (--svt keep) to put its parameters beside the others for "
            "svt_jax to read."
        )
    labels = None if labels is None else list(labels)
    classes = model.num_labels if isinstance(model, Classifier) else 0
    if labels is not None and not len(labels) == len(set(labels)) == classes:
        raise ValueError(
            f"{len(labels)} labels ({listed(labels)}) for {classes} classes; allowed is a different one for each. "
            "Name each class once."
        )
    folder = as_path(folder)
    files = [folder / "config.json", folder / "model.safetensors", folder / "model.safetensors.index.json"]
    if present := [file.name for file in files if file.exists()]:
        raise ValueError(
            f"{folder} has {', '.join(present)} already, and nothing is overwritten. Choose another folder."
        )
    keep = svt == "keep" and encoder.svt_config.enabled
    try:
        make_folder(folder)
        with writable(folder) as local:
            # the config last: a folder that has one is whole
            save_file(_tensors(model), local / "model.safetensors", metadata={"format": "pt"})
            open_to_umask(local / "model.safetensors")
            text = json.dumps(_config(model, labels, keep_svt=keep), indent=2) + "\n"
            (local / "config.json").write_text(text, encoding="utf-8")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder} cannot be written ({error}). Choose another folder.") from error


def _config(model: Encoder | Classifier, labels: Sequence[str] | None, *, keep_svt: bool) -> dict[str, Any]:
    encoder = model.encoder if isinstance(model, Classifier) else model
    class_name = FAMILIES[encoder.config.model_type].class_name
    fields: dict[str, Any] = {"architectures": [f"{class_name}Model"], **encoder.config.to_hf(), "dtype": "float32"}
    if isinstance(model, Classifier):
        names = labels or model.class_names or [f"LABEL_{n}" for n in range(model.num_labels)]
        fields |= {
            "architectures": [f"{class_name}ForSequenceClassification"],
            "id2label": {str(n): label for n, label in enumerate(names)},
            "label2id": {label: n for n, label in enumerate(names)},
            **(_REGRESSION if len(names) == 1 else _CLASSES),
        }
    if keep_svt:
        parameters = {
            str(n): learned_values(layer.svt) for n, layer in enumerate(encoder.layers) if layer.svt is not None
        }
        fields["svt_jax"] = {"svt": dataclasses.asdict(encoder.svt_config), "parameters": parameters}
    return fields


# What transformers' pipeline and sentence-transformers' CrossEncoder do to the logits. By default both apply a sigmoid
# to a single one.
_CLASSES = {"problem_type": "single_label_classification"}
_REGRESSION = {
    "problem_type": "regression",
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
}


def _tensors(model: Encoder | Classifier) -> Tensors:
    arrays = {"/".join(map(str, key)): np.asarray(v.get_value()) for key, v in nnx.to_flat_state(nnx.state(model))}
    if isinstance(model, Classifier):
        config = model.encoder.config
        names = {prefix(config) + theirs: (f"encoder/{ours}", c) for theirs, (ours, c) in encoder_names(config).items()}
        names |= head_names(config)
    else:
        names = encoder_names(model.config)
    tensors = in_one({theirs: change(arrays[ours]) for theirs, (ours, change) in names.items() if ours in arrays})
    # safetensors' NumPy writer would write the bytes of an array that is not contiguous in another order
    return {name: np.array(array, np.float32, order="C") for name, array in tensors.items()}
