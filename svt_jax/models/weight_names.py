"""Names of weights: what a Hugging Face checkpoint calls each of our tensors, one table for each family (`NAMES`).

A table maps Hugging Face's name to (our path, the change of the tensor). A change is its own inverse, so the same table
serves loading and export. {layer} stands for the layer's number, {group} and {inner} for ALBERT's two numbers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from svt_jax.models.config import EncoderConfig

Change = Callable[[np.ndarray], np.ndarray]
Names = dict[str, tuple[str, Change]]


def _same(tensor: np.ndarray) -> np.ndarray:
    return tensor


def _transposed(tensor: np.ndarray) -> np.ndarray:  # PyTorch's Linear keeps [out, in], ours [in, out]
    return np.ascontiguousarray(tensor.T)


def _dense(theirs: str, ours: str) -> Names:
    return {f"{theirs}.weight": (f"{ours}/kernel", _transposed), f"{theirs}.bias": (f"{ours}/bias", _same)}


def _norm(theirs: str, ours: str) -> Names:
    return {f"{theirs}.weight": (f"{ours}/scale", _same), f"{theirs}.bias": (f"{ours}/bias", _same)}


def _embedding(theirs: str, ours: str) -> Names:
    return {f"{theirs}.weight": (f"{ours}/embedding", _same)}


_WORD = "embeddings.word_embeddings.weight"
_EMBEDDINGS: Names = {
    **_embedding("embeddings.word_embeddings", "embeddings/word"),
    **_embedding("embeddings.position_embeddings", "embeddings/position"),
    **_embedding("embeddings.token_type_embeddings", "embeddings/token_type"),
    **_norm("embeddings.LayerNorm", "embeddings/norm"),
}
_BERT: Names = {
    **_EMBEDDINGS,
    **_dense("encoder.layer.{layer}.attention.self.query", "layers/{layer}/attention/query"),
    **_dense("encoder.layer.{layer}.attention.self.key", "layers/{layer}/attention/key"),
    **_dense("encoder.layer.{layer}.attention.self.value", "layers/{layer}/attention/value"),
    **_dense("encoder.layer.{layer}.attention.output.dense", "layers/{layer}/attention/out"),
    **_norm("encoder.layer.{layer}.attention.output.LayerNorm", "layers/{layer}/attention_norm"),
    **_dense("encoder.layer.{layer}.intermediate.dense", "layers/{layer}/up"),
    **_dense("encoder.layer.{layer}.output.dense", "layers/{layer}/down"),
    **_norm("encoder.layer.{layer}.output.LayerNorm", "layers/{layer}/output_norm"),
    **_dense("pooler.dense", "pooler/dense"),
}
_DISTILBERT: Names = {
    **{theirs: entry for theirs, entry in _EMBEDDINGS.items() if "token_type" not in theirs},
    **_dense("transformer.layer.{layer}.attention.q_lin", "layers/{layer}/attention/query"),
    **_dense("transformer.layer.{layer}.attention.k_lin", "layers/{layer}/attention/key"),
    **_dense("transformer.layer.{layer}.attention.v_lin", "layers/{layer}/attention/value"),
    **_dense("transformer.layer.{layer}.attention.out_lin", "layers/{layer}/attention/out"),
    **_norm("transformer.layer.{layer}.sa_layer_norm", "layers/{layer}/attention_norm"),
    **_dense("transformer.layer.{layer}.ffn.lin1", "layers/{layer}/up"),
    **_dense("transformer.layer.{layer}.ffn.lin2", "layers/{layer}/down"),
    **_norm("transformer.layer.{layer}.output_layer_norm", "layers/{layer}/output_norm"),
}
_SHARED = "encoder.albert_layer_groups.{group}.albert_layers.{inner}"
_ALBERT: Names = {
    **_EMBEDDINGS,
    **_dense("encoder.embedding_hidden_mapping_in", "embeddings/projection"),
    **_dense(f"{_SHARED}.attention.query", "layers/{layer}/attention/query"),
    **_dense(f"{_SHARED}.attention.key", "layers/{layer}/attention/key"),
    **_dense(f"{_SHARED}.attention.value", "layers/{layer}/attention/value"),
    **_dense(f"{_SHARED}.attention.dense", "layers/{layer}/attention/out"),
    **_norm(f"{_SHARED}.attention.LayerNorm", "layers/{layer}/attention_norm"),
    **_dense(f"{_SHARED}.ffn", "layers/{layer}/up"),
    **_dense(f"{_SHARED}.ffn_output", "layers/{layer}/down"),
    **_norm(f"{_SHARED}.full_layer_layer_norm", "layers/{layer}/output_norm"),
    **_dense("pooler", "pooler/dense"),
}


@dataclasses.dataclass(frozen=True)
class FamilyNames:
    """What the checkpoints of one family call things.

    Attributes:
      prefix: what stands in front of the encoder's names in a checkpoint with a head.
      encoder: the base model's tensors.
      head: the tensors of the classification head.
      other_heads: pattern for the beginning of names that are not the encoder's: heads, for this task or others.
      tied: the output embeddings of the masked language model, which are the word embeddings; some files keep only these.
    """

    prefix: str
    encoder: Names
    head: Names
    other_heads: str
    tied: str


NAMES: dict[str, FamilyNames] = {
    "bert": FamilyNames(
        "bert.",
        _BERT,
        _dense("classifier", "classifier"),
        "cls|classifier|qa_outputs",
        "cls.predictions.decoder.weight",
    ),
    "roberta": FamilyNames(
        "roberta.",
        _BERT,
        {**_dense("classifier.dense", "dense"), **_dense("classifier.out_proj", "classifier")},
        "lm_head|classifier|qa_outputs",
        "lm_head.decoder.weight",
    ),
    "distilbert": FamilyNames(
        "distilbert.",
        _DISTILBERT,
        {**_dense("pre_classifier", "dense"), **_dense("classifier", "classifier")},
        "vocab_transform|vocab_layer_norm|vocab_projector|pre_classifier|classifier|qa_outputs",
        "vocab_projector.weight",
    ),
    "albert": FamilyNames(
        "albert.",
        _ALBERT,
        _dense("classifier", "classifier"),
        "predictions|sop_classifier|classifier|qa_outputs",
        "predictions.decoder.weight",
    ),
}
"""By `model_type`, as `families.FAMILIES`."""

# What wrappers put in front of every name: DataParallel, PyTorch Lightning, sentence-transformers before 6 and since.
_WRAPPERS = ("module.", "model.", "0.auto_model.", "0.model.", "auto_model.")
# What torch.compile, FSDP and checkpointed activations put anywhere in a name, around any part of a model.
_WRAPPED = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")  # the same numbers in every model of the family


def encoder_names(config: EncoderConfig) -> Names:
    """Names the encoder's tensors, its pooler's included, as a base model's checkpoint does."""
    names: Names = {}
    first: dict[tuple[int, int], int] = {}  # NNX keeps shared weights under the first layer's path
    for layer, pair in enumerate(config.weight_groups):
        first.setdefault(pair, layer)
    for theirs, (ours, change) in NAMES[config.model_type].encoder.items():
        for (group, inner), layer in first.items():
            name = theirs.format(layer=layer, group=group, inner=inner)
            names[name] = (ours.format(layer=layer), change)
    return names


def head_names(config: EncoderConfig) -> Names:
    """The classification head's tensors."""
    return NAMES[config.model_type].head


def prefix(config: EncoderConfig) -> str:
    """What a checkpoint with a head has in front of the encoder's names."""
    return NAMES[config.model_type].prefix


def base_name(config: EncoderConfig, name: str) -> str:
    """Returns a tensor's name without its prefixes, in whatever order they stand, and as it is spelt today.

    Example:
      >>> base_name(EncoderConfig.from_hf({"model_type": "bert"}), "module._orig_mod.bert.embeddings.LayerNorm.gamma")
      'embeddings.LayerNorm.weight'
    """
    name = _WRAPPED.sub("", name)
    prefixes = (*_WRAPPERS, prefix(config))
    while ahead := next((each for each in prefixes if name.startswith(each)), None):
        name = name.removeprefix(ahead)
    # TensorFlow-era checkpoints call layer norm's parameters gamma and beta
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))


def is_head(config: EncoderConfig, name: str) -> bool:
    """Whether a tensor that is not the encoder's belongs to a head."""
    return re.match(rf"({NAMES[config.model_type].other_heads})\.", name) is not None


def may_be_absent(name: str) -> bool:
    """Whether a model's purpose, not its config.json, may leave no place for this tensor of its family."""
    return name.startswith("pooler.")  # RoBERTa's classifier has none


def is_buffer(name: str) -> bool:
    return name in _BUFFERS


def with_tied(config: EncoderConfig, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds word embeddings that a file keeps only as the output embeddings which they are tied to."""
    tied = NAMES[config.model_type].tied
    if _WORD not in tensors and tied in tensors:
        return {**tensors, _WORD: tensors[tied]}
    return tensors


def svt_name(path: str) -> str:
    """Returns what exports of earlier versions call a parameter in the SVT slot, which they hold unbounded.

    Example:
      >>> svt_name("layers/11/svt/parameters/alpha")
      'svt.layers.11.parameters.alpha'
    """
    return "svt." + ".".join(part for part in path.split("/") if part != "svt")
