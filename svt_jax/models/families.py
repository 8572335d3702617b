"""The families of encoders that are read from a Hugging Face config.json: names, defaults, and what is fixed in each.

Defaults are those of transformers 5, which leaves fields at their default out of a config.json.

References: Devlin et al., "BERT", 2019, arXiv 1810.04805; Liu et al., "RoBERTa", 2019, arXiv 1907.11692; Sanh et al.,
"DistilBERT", 2019, arXiv 1910.01108; Lan et al., "ALBERT", 2020, arXiv 1909.11942.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family's config.json maps to the fields of an EncoderConfig.

    Attributes:
      class_name: what transformers' class names begin with.
      fields: our field -> (name in config.json, default).
      fixed: our fields that no config.json of this family changes, where they differ from BERT's.
      synonyms: second names that transformers accepts for a field of config.json.
    """

    class_name: str
    fields: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    synonyms: Mapping[str, str] = dataclasses.field(default_factory=dict)


_BERT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,  # as hidden_dropout_prob
    "initializer_range": 0.02,
    "pad_token_id": 0,
}


def _same_names(defaults: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    return {name: (name, default) for name, default in defaults.items()}


_ALBERT_DEFAULTS: dict[str, Any] = {
    **_BERT_DEFAULTS,
    "vocab_size": 30000,
    "embedding_size": 128,
    "hidden_size": 4096,
    "num_hidden_groups": 1,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "inner_group_num": 1,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

FAMILIES: dict[str, Family] = {
    "bert": Family("Bert", _same_names(_BERT_DEFAULTS), {}),
    "roberta": Family(
        "Roberta",
        _same_names({**_BERT_DEFAULTS, "vocab_size": 50265, "pad_token_id": 1}),
        {"positions_skip_padding": True, "head": "tanh"},
    ),
    "distilbert": Family(
        "DistilBert",
        {
            "vocab_size": ("vocab_size", 30522),
            "hidden_size": ("dim", 768),
            "num_hidden_layers": ("n_layers", 6),
            "num_attention_heads": ("n_heads", 12),
            "intermediate_size": ("hidden_dim", 3072),
            "hidden_act": ("activation", "gelu"),
            "max_position_embeddings": ("max_position_embeddings", 512),
            "sinusoidal_pos_embds": ("sinusoidal_pos_embds", False),
            "hidden_dropout_prob": ("dropout", 0.1),
            "attention_probs_dropout_prob": ("attention_dropout", 0.1),
            "classifier_dropout": ("seq_classif_dropout", 0.2),
            "initializer_range": ("initializer_range", 0.02),
            "pad_token_id": ("pad_token_id", 0),
        },
        # transformers' DistilBERT has no dropout between the attention's output and the residual
        {
            "type_vocab_size": 0,
            "layer_norm_eps": 1e-12,
            "pooler": False,
            "attention_output_dropout": False,
            "head": "relu",
        },
        {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
    ),
    "albert": Family(
        "Albert",
        {**_same_names(_ALBERT_DEFAULTS), "classifier_dropout": ("classifier_dropout_prob", 0.1)},
        {"feed_forward_dropout": False},  # transformers' ALBERT makes that dropout and never calls it
    ),
}
"""By `model_type`."""

UNSUPPORTED: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "per_layer_config": {},
    "quantization_config": {},
}
"""Fields of a config.json that would change a number in a way we do not compute, with the only value we accept.

What transformers' code of the four families reads is in `Family.fields`, here, or changes no number of ours (`num_labels`,
`use_cache`, `chunk_size_feed_forward`, ...); a test reads that code. All other fields do nothing there or here."""
