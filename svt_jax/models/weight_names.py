"""Names of weights: what a Hugging Face checkpoint calls each of our tensors, one table for each family (`NAMES`).

A table maps Hugging Face's name to (our path, the change of the tensor). A change is its own inverse, so the same table
serves loading and export. {layer} stands for the layer's number, {group} and {inner} for ALBERT's two numbers. A name that
ends in [i/n] is the i-th of n equal parts of a tensor that the checkpoint keeps as one. `checkpoint_names` reads the tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

Change = Callable[[np.ndarray], np.ndarray]
Names = dict[str, tuple[str, Change]]


def same(tensor: np.ndarray) -> np.ndarray:
    return tensor


def _transposed(tensor: np.ndarray) -> np.ndarray:  # PyTorch's Linear keeps [out, in], ours [in, out]
    return np.ascontiguousarray(tensor.T)


def _dense(theirs: str, ours: str) -> Names:
    return {f"{theirs}.weight": (f"{ours}/kernel", _transposed), f"{theirs}.bias": (f"{ours}/bias", same)}


def _norm(theirs: str, ours: str) -> Names:
    return {f"{theirs}.weight": (f"{ours}/scale", same), f"{theirs}.bias": (f"{ours}/bias", same)}


def _parts(theirs: str, *ours: str) -> Names:
    """Dense layers whose outputs one dense layer of the checkpoint makes, one after another."""
    return {
        f"{name}[{n}/{len(ours)}]": entry for n, each in enumerate(ours) for name, entry in _dense(theirs, each).items()
    }


def _embedding(theirs: str, ours: str) -> Names:
    return {f"{theirs}.weight": (f"{ours}/embedding", same)}


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
    "rotary_embeddings.inv_freq": ("positions/frequencies", same),
    "contact_head.regression.weight": ("contact_head/weight", same),
    "contact_head.regression.bias": ("contact_head/bias", same),
}
_MPNET: Names = {
    **{theirs: entry for theirs, entry in _EMBEDDINGS.items() if "token_type" not in theirs},
    **{theirs: entry for theirs, entry in _BERT.items() if theirs.startswith("pooler.")},
    "encoder.relative_attention_bias.weight": ("positions/bias", same),
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
