"""Names of weights: what a Hugging Face checkpoint calls each of our tensors, one table for each family (`NAMES`).

A table maps Hugging Face's name to (our path, the change of the tensor). A change is its own inverse, so the same table
serves loading and export. {layer} stands for the layer's number, {group} and {inner} for ALBERT's two numbers. A name that
ends in [i/n] is the i-th of n equal parts of a tensor that the checkpoint keeps as one (`in_parts`, `in_one`).
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


def _parts(theirs: str, *ours: str) -> Names:
    """Dense layers whose outputs one dense layer of the checkpoint makes, one after another."""
    return {
        f"{name}[{n}/{len(ours)}]": entry for n, each in enumerate(ours) for name, entry in _dense(theirs, each).items()
    }


def _embedding(theirs: str, ours: str) -> Names:
    return {f"{theirs}.weight": (f"{ours}/embedding", _same)}


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
_ELECTRA: Names = {
    **{theirs: entry for theirs, entry in _BERT.items() if not theirs.startswith("pooler.")},
    **_dense("embeddings_project", "embeddings/projection"),
}
_MODERNBERT: Names = {
    **_embedding("embeddings.tok_embeddings", "embeddings/word"),
    **_norm("embeddings.norm", "embeddings/norm"),
    **_norm("layers.{layer}.attn_norm", "layers/{layer}/attention_norm"),
    **_parts("layers.{layer}.attn.Wqkv", *(f"layers/{{layer}}/attention/{name}" for name in ("query", "key", "value"))),
    **_dense("layers.{layer}.attn.Wo", "layers/{layer}/attention/out"),
    **_norm("layers.{layer}.mlp_norm", "layers/{layer}/output_norm"),
    **_parts("layers.{layer}.mlp.Wi", "layers/{layer}/gate", "layers/{layer}/up"),
    **_dense("layers.{layer}.mlp.Wo", "layers/{layer}/down"),
    **_norm("final_norm", "final_norm"),
}
_GATED: Names = {
    **{theirs: entry for theirs, entry in _EMBEDDINGS.items() if "position" not in theirs},
    **_dense("layers.{layer}.self_attn.q_proj", "layers/{layer}/attention/query"),
    **_dense("layers.{layer}.self_attn.k_proj", "layers/{layer}/attention/key"),
    **_dense("layers.{layer}.self_attn.v_proj", "layers/{layer}/attention/value"),
    **_dense("layers.{layer}.self_attn.o_proj", "layers/{layer}/attention/out"),
    **_norm("layers.{layer}.post_attention_layernorm", "layers/{layer}/attention_norm"),
    **_dense("layers.{layer}.mlp.gate_proj", "layers/{layer}/gate"),
    **_dense("layers.{layer}.mlp.up_proj", "layers/{layer}/up"),
    **_dense("layers.{layer}.mlp.down_proj", "layers/{layer}/down"),
    **_norm("layers.{layer}.post_mlp_layernorm", "layers/{layer}/output_norm"),
    **_dense("pooler.dense", "pooler/dense"),
}
_ESM: Names = {
    **{theirs: entry for theirs, entry in _BERT.items() if "LayerNorm" not in theirs and "token_type" not in theirs},
    **_norm("embeddings.layer_norm", "embeddings/norm"),
    **_norm("encoder.layer.{layer}.attention.LayerNorm", "layers/{layer}/attention_norm"),
    **_norm("encoder.layer.{layer}.LayerNorm", "layers/{layer}/output_norm"),
    **_norm("encoder.emb_layer_norm_after", "final_norm"),
    "rotary_embeddings.inv_freq": ("positions/frequencies", _same),
    "contact_head.regression.weight": ("contact_head/weight", _same),
    "contact_head.regression.bias": ("contact_head/bias", _same),
}
_MPNET: Names = {
    **{theirs: entry for theirs, entry in _EMBEDDINGS.items() if "token_type" not in theirs},
    **{theirs: entry for theirs, entry in _BERT.items() if theirs.startswith("pooler.")},
    "encoder.relative_attention_bias.weight": ("positions/bias", _same),
    **_dense("encoder.layer.{layer}.attention.attn.q", "layers/{layer}/attention/query"),
    **_dense("encoder.layer.{layer}.attention.attn.k", "layers/{layer}/attention/key"),
    **_dense("encoder.layer.{layer}.attention.attn.v", "layers/{layer}/attention/value"),
    **_dense("encoder.layer.{layer}.attention.attn.o", "layers/{layer}/attention/out"),
    **_norm("encoder.layer.{layer}.attention.LayerNorm", "layers/{layer}/attention_norm"),
    **_dense("encoder.layer.{layer}.intermediate.dense", "layers/{layer}/up"),
    **_dense("encoder.layer.{layer}.output.dense", "layers/{layer}/down"),
    **_norm("encoder.layer.{layer}.output.LayerNorm", "layers/{layer}/output_norm"),
}
_TWO_DENSE: Names = {**_dense("classifier.dense", "dense"), **_dense("classifier.out_proj", "classifier")}


@dataclasses.dataclass(frozen=True)
class FamilyNames:
    """What the checkpoints of one family call things.

    Attributes:
      prefix: what stands in front of the encoder's names in a checkpoint with a head.
      encoder: the base model's tensors.
      head: the tensors of the classification head.
      other_heads: pattern for the beginning of names that are not the encoder's: heads, for this task or others.
      tied: the output embeddings of the masked language model, which are the word embeddings; some files keep only these.
      word: the word embeddings.
    """

    prefix: str
    encoder: Names
    head: Names
    other_heads: str
    tied: str
    word: str = "embeddings.word_embeddings.weight"


NAMES: dict[str, FamilyNames] = {
    "bert": FamilyNames(
        "bert.",
        _BERT,
        _dense("classifier", "classifier"),
        "cls|classifier|qa_outputs",
        "cls.predictions.decoder.weight",
    ),
    **{
        family: FamilyNames("roberta.", _BERT, _TWO_DENSE, "lm_head|classifier|qa_outputs", "lm_head.decoder.weight")
        for family in ("roberta", "xlm-roberta", "camembert")
    },
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
    "electra": FamilyNames(
        "electra.",
        _ELECTRA,
        _TWO_DENSE,
        "discriminator_predictions|generator_predictions|generator_lm_head|sequence_summary|classifier|qa_outputs",
        "generator_lm_head.weight",
    ),
    "modernbert": FamilyNames(
        "model.",
        _MODERNBERT,
        {**_dense("head.dense", "dense"), **_norm("head.norm", "norm"), **_dense("classifier", "classifier")},
        "head|decoder|classifier",
        "decoder.weight",
        "embeddings.tok_embeddings.weight",
    ),
    "nomic_bert": FamilyNames(
        "nomic_bert.", _GATED, _dense("classifier", "classifier"), "cls|classifier", "cls.predictions.decoder.weight"
    ),
    "gte": FamilyNames(
        "gte.", _GATED, _dense("classifier", "classifier"), "lm_head|classifier", "lm_head.decoder.weight"
    ),
    "esm": FamilyNames("esm.", _ESM, _TWO_DENSE, "lm_head|classifier", "lm_head.decoder.weight"),
    "mpnet": FamilyNames("mpnet.", _MPNET, _TWO_DENSE, "lm_head|classifier|qa_outputs", "lm_head.decoder.weight"),
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
    absent = {path for path, there in (("dense/bias", config.head_bias), ("norm/bias", config.norm_bias)) if not there}
    return {theirs: entry for theirs, entry in NAMES[config.model_type].head.items() if entry[0] not in absent}


def in_parts(names: Names, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors with parts in place of those that the checkpoint keeps as one; one that does not divide stays.

    Example:
      >>> in_parts({"W[0/2]": ("a", _same), "W[1/2]": ("b", _same)}, {"W": np.arange(4)})
      {'W[0/2]': array([0, 1]), 'W[1/2]': array([2, 3])}
    """
    counts = {whole: int(count) for whole, _, count in map(_part, names) if count}
    out: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        count = counts.get(name, 0)
        if count and tensor.ndim and not len(tensor) % count:
            out |= {f"{name}[{n}/{count}]": each for n, each in enumerate(np.split(tensor, count))}
        else:
            out[name] = tensor
    return out


def in_one(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `in_parts`; parts must stand in their order.

    Example:
      >>> in_one({"W[0/2]": np.arange(2), "W[1/2]": np.arange(2)})
      {'W': array([0, 1, 0, 1])}
    """
    parts: dict[str, list[np.ndarray]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(_part(name)[0], []).append(tensor)
    return {name: np.concatenate(each) if len(each) > 1 else each[0] for name, each in parts.items()}


def _part(name: str) -> tuple[str, str, str]:
    """A name, and of a part its number and how many there are."""
    found = re.fullmatch(r"(.+)\[(\d+)/(\d+)\]", name)
    return (name, "", "") if found is None else (found[1], found[2], found[3])


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
    if config.protein:  # until transformers 5 each of ESM's layers kept the same frequencies; the first's count
        name = re.sub(r"^encoder\.layer\.0\.attention\.self\.(?=rotary_embeddings\.inv_freq$)", "", name)
    # TensorFlow-era checkpoints call layer norm's parameters gamma and beta
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))


def is_head(config: EncoderConfig, name: str) -> bool:
    """Whether a tensor that is not the encoder's belongs to a head."""
    return re.match(rf"({NAMES[config.model_type].other_heads})\.", name) is not None


def may_be_absent(name: str) -> bool:
    """Whether a model's purpose, not its config.json, may leave no place for this tensor of its family."""
    # RoBERTa's classifier has no pooler; files of rotary ESMs have a table of positions that nothing reads
    return name.startswith(("pooler.", "embeddings.position_embeddings."))


def may_be_missing(path: str) -> bool:
    """Whether a file may lack our tensor, which then has the value of a new model."""
    return path.removeprefix("encoder/") in ("positions/frequencies", "contact_head/weight", "contact_head/bias")


def is_buffer(name: str) -> bool:
    return name in _BUFFERS or name.endswith(".attention.self.rotary_embeddings.inv_freq")


def with_tied(config: EncoderConfig, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds word embeddings that a file keeps only as the output embeddings which they are tied to."""
    tied, word = NAMES[config.model_type].tied, NAMES[config.model_type].word
    if word not in tensors and tied in tensors:
        return {**tensors, word: tensors[tied]}
    return tensors


def svt_name(path: str) -> str:
    """Returns what exports of earlier versions call a parameter in the SVT slot, which they hold unbounded.

    Example:
      >>> svt_name("layers/11/svt/parameters/alpha")
      'svt.layers.11.parameters.alpha'
    """
    return "svt." + ".".join(part for part in path.split("/") if part != "svt")
