"""The families of encoders that are read from a Hugging Face config.json: names, defaults, and what is fixed in each.

Defaults are those of transformers 5, which leaves fields at their default out of a config.json.

References: Devlin et al., "BERT", 2019, arXiv 1810.04805; Liu et al., "RoBERTa", 2019, arXiv 1907.11692; Sanh et al.,
"DistilBERT", 2019, arXiv 1910.01108; Lan et al., "ALBERT", 2020, arXiv 1909.11942; Conneau et al., "XLM-R", 2020, arXiv
1911.02116; Martin et al., "CamemBERT", 2020, arXiv 1911.03894; Clark et al., "ELECTRA", 2020, arXiv 2003.10555; Warner et
al., "ModernBERT", 2024, arXiv 2412.13663; Nussbaum et al., "Nomic Embed", 2024, arXiv 2402.01613; Zhang et al., "mGTE",
2024, arXiv 2407.19669; Lin et al., "ESM-2", 2023, Science 379; Song et al., "MPNet", 2020, arXiv 2004.09297.
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
      fields: our field -> (name in config.json, default). A dot in a name leads into a table.
      fixed: our fields that no config.json of this family changes, where they differ from BERT's.
      synonyms: second names that transformers accepts for a field of config.json.
      special: numbers of special tokens that transformers takes by default; a smaller vocabulary has none of them.
      only: fields of config.json of which we support one value, beside those of `UNSUPPORTED`.
    """

    class_name: str
    fields: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    synonyms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    special: Mapping[str, int] = dataclasses.field(default_factory=dict)


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

_AS_ROBERTA: dict[str, Any] = {"positions_skip_padding": True, "head": "tanh"}


def _rope(name: str) -> dict[str, Any]:
    """Kinds of rotary positions that we support, in the table of that name."""
    return {f"{name}.rope_type": "default", f"{name}.type": "default"}


def _gated(class_name: str, defaults: Mapping[str, Any], fixed: Mapping[str, Any], inner_dropout: bool) -> Family:
    """Nomic's and GTE's: post-norm, rotary, gated."""
    fields = _same_names(
        {**_BERT_DEFAULTS, **{name: value for name, value in defaults.items() if name != "rope_theta"}}
    )
    fields["rope_theta"] = ("rope_parameters.rope_theta", defaults["rope_theta"])
    if inner_dropout:
        fields["inner_dropout_prob"] = fields["hidden_dropout_prob"]
    return Family(
        class_name,
        fields,
        {"positions": "rotary", "mlp": "gated", "pooler": False, "up_bias": False, **fixed},
        {"rope_theta": "rope_parameters.rope_theta"},
        {**_rope("rope_parameters"), **_rope("rope_scaling")},
    )


FAMILIES: dict[str, Family] = {
    "bert": Family("Bert", _same_names(_BERT_DEFAULTS), {}),
    "roberta": Family("Roberta", _same_names({**_BERT_DEFAULTS, "vocab_size": 50265, "pad_token_id": 1}), _AS_ROBERTA),
    "xlm-roberta": Family("XLMRoberta", _same_names({**_BERT_DEFAULTS, "pad_token_id": 1}), _AS_ROBERTA),
    "camembert": Family("Camembert", _same_names({**_BERT_DEFAULTS, "pad_token_id": 1}), _AS_ROBERTA),
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
            "attention_output_dropout_prob": 0.0,
            "head": "relu",
        },
        {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
    ),
    "albert": Family(
        "Albert",
        {**_same_names(_ALBERT_DEFAULTS), "classifier_dropout": ("classifier_dropout_prob", 0.1)},
        {"feed_forward_dropout_prob": 0.0},  # transformers' ALBERT makes that dropout and never calls it
    ),
    "electra": Family(
        "Electra",
        _same_names(
            {
                **_BERT_DEFAULTS,
                "embedding_size": 128,
                "hidden_size": 256,
                "num_attention_heads": 4,
                "intermediate_size": 1024,
            }
        ),
        {"always_projects": False, "pooler": False, "head": "gelu"},
    ),
    "modernbert": Family(
        "ModernBert",
        {
            "vocab_size": ("vocab_size", 50368),
            "hidden_size": ("hidden_size", 768),
            "num_hidden_layers": ("num_hidden_layers", 22),
            "num_attention_heads": ("num_attention_heads", 12),
            "intermediate_size": ("intermediate_size", 1152),
            "hidden_act": ("hidden_activation", "gelu"),
            "max_position_embeddings": ("max_position_embeddings", 8192),
            "layer_norm_eps": ("norm_eps", 1e-5),
            "norm_bias": ("norm_bias", False),
            "hidden_dropout_prob": ("embedding_dropout", 0.0),
            "attention_probs_dropout_prob": ("attention_dropout", 0.0),
            "attention_output_dropout_prob": ("attention_dropout", 0.0),
            "inner_dropout_prob": ("mlp_dropout", 0.0),
            "classifier_dropout": ("classifier_dropout", 0.0),
            "initializer_range": ("initializer_range", 0.02),
            "pad_token_id": ("pad_token_id", 50283),
            "attention_bias": ("attention_bias", False),
            "up_bias": ("mlp_bias", False),
            "down_bias": ("mlp_bias", False),
            "layer_types": ("layer_types", None),  # as global_attn_every_n_layers says
            "local_attention": ("local_attention", 128),
            "rope_theta": ("rope_parameters.full_attention.rope_theta", 160_000.0),
            "local_rope_theta": ("rope_parameters.sliding_attention.rope_theta", 10_000.0),
            "pooling": ("classifier_pooling", "cls"),
            "head_bias": ("classifier_bias", False),
            "head_act": ("classifier_activation", "gelu"),
        },
        {
            "type_vocab_size": 0,
            "norm": "pre",
            "first_attention_norm": False,
            "final_norm": True,
            "positions": "rotary",
            "mlp": "gated",
            "feed_forward_dropout_prob": 0.0,
            "pooler": False,
            "head": "norm",
        },
        {
            "global_rope_theta": "rope_parameters.full_attention.rope_theta",
            "local_rope_theta": "rope_parameters.sliding_attention.rope_theta",
        },
        {
            **_rope("rope_parameters.full_attention"),
            **_rope("rope_parameters.sliding_attention"),
            **_rope("rope_scaling"),
        },
        {"bos_token_id": 50281, "cls_token_id": 50281, "sep_token_id": 50282, "eos_token_id": 50282},
    ),
    "nomic_bert": _gated(
        "NomicBert",
        {
            "vocab_size": 30528,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "rope_theta": 1000.0,
        },
        {"attention_bias": False, "down_bias": False},
        inner_dropout=False,
    ),
    "gte": _gated(
        "Gte",
        {
            "vocab_size": 250048,
            "max_position_embeddings": 8192,
            "type_vocab_size": 1,
            "attention_probs_dropout_prob": 0.0,
            "pad_token_id": 1,
            "rope_theta": 160_000.0,
        },
        {},
        inner_dropout=True,
    ),
    "esm": Family(
        "Esm",
        {
            **{
                name: entry
                for name, entry in _same_names(_BERT_DEFAULTS).items()
                if name not in ("hidden_act", "type_vocab_size", "classifier_dropout")
            },
            "vocab_size": ("vocab_size", None),
            "pad_token_id": ("pad_token_id", None),
            "mask_token_id": ("mask_token_id", None),
            "max_position_embeddings": ("max_position_embeddings", 1026),
            "positions": ("position_embedding_type", "absolute"),
            "rope_theta": ("rope_theta", 10_000.0),
            "embedding_norm": ("emb_layer_norm_before", False),
            "token_dropout": ("token_dropout", False),
        },
        {
            "hidden_act": "gelu",
            "type_vocab_size": 0,
            "norm": "pre",
            "final_norm": True,
            "positions_skip_padding": True,
            "zero_padding": True,
            "embedding_dropout_prob": 0.0,
            "protein": True,
            "head": "tanh",
        },
        only={"is_folding_model": False},
    ),
    "mpnet": Family(
        "MPNet",
        {
            **{
                name: entry
                for name, entry in _same_names({**_BERT_DEFAULTS, "vocab_size": 30527}).items()
                if name not in ("type_vocab_size", "classifier_dropout", "pad_token_id")
            },
            "relative_buckets": ("relative_attention_num_buckets", 32),
        },
        # transformers' MPNet takes 1 as padding whatever config.json says
        {"type_vocab_size": 0, "pad_token_id": 1, "positions_skip_padding": True, "head": "tanh"},
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
    "partial_rotary_factor": 1.0,
}
"""Fields of a config.json that would change a number in a way we do not compute, with the only value we accept.

What transformers' code of these families reads is in `Family.fields`, here, or changes no number of ours (`num_labels`,
`use_cache`, `chunk_size_feed_forward`, ...); a test reads that code. All other fields do nothing there or here."""
