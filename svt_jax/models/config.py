"""What an encoder is, read from a Hugging Face config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from svt_jax.models.config_checks import LAYER_TYPES, MOST_LAYERS, problems_of
from svt_jax.models.families import FAMILIES, UNSUPPORTED
from svt_jax.models.files import read_json
from svt_jax.text import printable

Head = Literal["pooled", "tanh", "relu", "gelu", "norm"]
MODEL_KEYS_OF_SPEED = ("remat", "scan_layers")
"""Keys of a run's `model` that change only time and memory: a run goes on with other values of them."""


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Every number of the architecture, read from the checkpoint's config.json by `from_hf`; the defaults are BERT's.

    Attributes:
      type_vocab_size: 0 for a model without token types.
      embedding_size: width of the embedding tables, which a dense layer maps to hidden_size; None without that layer.
      num_hidden_groups: number of groups of layers; the layers of a group share their weights. None where each layer
        has its own.
      inner_group_num: layers in a row that make one of the `num_hidden_layers`.
      sinusoidal_pos_embds: positions start as sines and cosines (Vaswani et al., 2017, section 3.5).
      positions_skip_padding: position numbers begin at pad_token_id + 1 and count only tokens that are not padding
        themselves, whatever the attention mask says; padding has number pad_token_id.
      pooler: whether the encoder has a pooler, tanh(W x + b) of the first token. A head that needs one brings it.
      embedding_dropout_prob, attention_output_dropout_prob, feed_forward_dropout_prob: dropout behind the embeddings and
        behind the two parts of a layer; None is hidden_dropout_prob.
      inner_dropout_prob: dropout inside the feed-forward, in front of its second matrix.
      head: the classifier's form. pooled: a dense layer on the pooled output. tanh, gelu and relu: two dense layers on the
        first token with that function between them; tanh and gelu have a dropout before both. norm: dense layer,
        `head_act`, layer norm, dropout, dense layer.
      head_bias, head_act: whether the dense layer of the head `norm` has a bias, and the function behind it.
      pooling: what the head `norm` reads, the first token (cls) or the mean of all (mean).
      norm: where a layer's norms stand: behind each part's sum with its input (post), or in front of the part (pre).
      first_attention_norm: whether the first layer of a pre-norm encoder has the norm of its attention.
      final_norm: whether a norm follows the last layer.
      norm_bias, attention_bias, up_bias, down_bias: whether norms, attention's matrices and the feed-forward's two have one.
      mlp: dense W_2 act(W_1 x), or gated W_2 (act(W_g x) * W_1 x).
      positions: a table of positions that is added to the embeddings (absolute), or a rotation of queries and keys.
      rope_theta: base of the rotation.
      layer_types: full_attention or sliding_attention for each layer; None is full for all.
      local_attention: width of the window of sliding attention; a token sees half of it, rounded down, to each side.
      local_rope_theta: base of the rotation in layers of sliding attention; None is rope_theta.
      relative_buckets: rows of the table of biases by distance that all layers add to their scores; 0 for none.
      embedding_norm: whether the embeddings have a layer norm.
      always_projects: whether the dense layer of `embedding_size` is there even where it equals hidden_size.
      token_dropout: embeddings of mask_token_id are zero, and all are scaled by the share of tokens that are left.
      zero_padding: embeddings of padding are set to zero.
      protein: whether it carries ESM's contact head and stored frequencies, which no number of ours but rotations needs.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    classifier_dropout: float
    initializer_range: float
    pad_token_id: int
    embedding_size: int | None = None
    num_hidden_groups: int | None = None
    inner_group_num: int = 1
    sinusoidal_pos_embds: bool = False
    positions_skip_padding: bool = False
    pooler: bool = True
    embedding_dropout_prob: float | None = None
    attention_output_dropout_prob: float | None = None
    feed_forward_dropout_prob: float | None = None
    inner_dropout_prob: float = 0.0
    head: Head = "pooled"
    head_bias: bool = True
    head_act: str = "gelu"
    pooling: Literal["cls", "mean"] = "cls"
    norm: Literal["post", "pre"] = "post"
    first_attention_norm: bool = True
    final_norm: bool = False
    norm_bias: bool = True
    attention_bias: bool = True
    up_bias: bool = True
    down_bias: bool = True
    mlp: Literal["dense", "gated"] = "dense"
    positions: Literal["absolute", "rotary"] = "absolute"
    rope_theta: float = 10_000.0
    layer_types: tuple[str, ...] | None = None
    local_attention: int = 128
    local_rope_theta: float | None = None
    relative_buckets: int = 0
    embedding_norm: bool = True
    always_projects: bool = True
    token_dropout: bool = False
    mask_token_id: int | None = None
    zero_padding: bool = False
    protein: bool = False

    def __post_init__(self) -> None:
        if problems := problems_of(self):
            raise ValueError(f"config.json: {'; '.join(problems)}. Use a checkpoint with supported values.")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def max_tokens(self) -> int:
        """The length of the longest sequence, in tokens."""
        first = self.pad_token_id + 1 if self.positions_skip_padding and self.positions == "absolute" else 0
        return self.max_position_embeddings - first

    @property
    def projects(self) -> bool:
        """Whether a dense layer maps embeddings to hidden states."""
        return self.embedding_size is not None and (self.always_projects or self.embedding_size != self.hidden_size)

    def window(self, layer: int) -> int | None:
        """How far a layer's tokens see to each side; None is everywhere.

        Example:
          >>> EncoderConfig.from_hf({"model_type": "modernbert"}).window(1)
          64
        """
        sliding = self.layer_types is not None and self.layer_types[layer] == "sliding_attention"
        return self.local_attention // 2 if sliding else None

    @property
    def num_layers(self) -> int:
        """Number of layers that a token passes. An SVT is placed by these numbers. Layers may share their weights."""
        return self.num_hidden_layers * self.inner_group_num

    @property
    def weight_groups(self) -> list[tuple[int, int]]:
        """The weights of each layer: the group's number, and the layer's number in it. Equal pairs share weights.

        Example:
          >>> albert = EncoderConfig.from_hf({"model_type": "albert", "num_hidden_layers": 3, "num_hidden_groups": 2})
          >>> albert.weight_groups
          [(0, 0), (0, 0), (1, 0)]
        """
        groups = self.num_hidden_groups or self.num_hidden_layers
        # the quotient as ALBERT's code rounds it
        return [
            (int(n / (self.num_hidden_layers / groups)), inner)
            for n in range(self.num_hidden_layers)
            for inner in range(self.inner_group_num)
        ]

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> EncoderConfig:
        """Reads the fields of a Hugging Face config.json; what we do not support is an error that names it.

        Fields that the file leaves out have transformers' defaults for this family.

        Raises:
          ValueError: for an unsupported family or field value; all of them at once.
        """
        if not isinstance(values, Mapping):
            raise ValueError("config.json holds no table of fields. Use the model's own file.")
        model_type = values.get("model_type")
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            raise ValueError(
                f"config.json: model_type {printable(repr(model_type))}; supported are {', '.join(FAMILIES)}. "
                "Choose a checkpoint of one of these."
            )
        family = FAMILIES[model_type]
        given = _flat({name: value for name, value in values.items() if value is not None})
        for name, target in family.synonyms.items():
            if name in given and not ("." in target and target in given):  # inside a table its own name counts
                given[target] = given[name]
        problems = [
            f"{name} is {printable(repr(given[name]))} and only {only!r} is supported"
            for name, only in {**UNSUPPORTED, **family.only}.items()
            if given.get(name, only) != only and name not in (theirs for theirs, _ in family.fields.values())
        ]
        if problems:
            raise ValueError(f"config.json: {'; '.join(problems)}. Use a checkpoint with supported values.")
        fields = {ours: given.get(theirs, default) for ours, (theirs, default) in family.fields.items()}
        if fields.get("classifier_dropout") is None:
            fields["classifier_dropout"] = fields["hidden_dropout_prob"]
        if "layer_types" in fields:
            fields["layer_types"] = _layer_types(fields, given)
        config = cls(model_type=model_type, **fields, **family.fixed)
        if config.positions == "rotary" and given.get("head_dim", config.head_size) != config.head_size:
            raise ValueError(
                f"config.json: head_dim is {printable(repr(given['head_dim']))} and only {config.head_size}, hidden_size "
                "by num_attention_heads, is supported. Use a checkpoint with supported values."
            )
        return config

    def to_hf(self) -> dict[str, Any]:
        """The fields of a config.json that transformers reads back as the same model."""
        family = FAMILIES[self.model_type]
        flat = {theirs: getattr(self, ours) for ours, (theirs, _) in family.fields.items()}
        if self.layer_types is not None:
            flat["layer_types"] = list(self.layer_types)
        absent = {name: None for name, number in family.special.items() if number >= self.vocab_size}
        values: dict[str, Any] = {"model_type": self.model_type, **absent}
        for name, value in flat.items():
            *tables, last = name.split(".")
            inner = values
            for table in tables:
                inner = inner.setdefault(table, {})
            inner[last] = value
            if last == "rope_theta" and tables:
                inner["rope_type"] = "default"
        return values


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Adds what the tables of rotary positions hold, by names with dots."""
    flat = dict(values)
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(values.get(name), Mapping):
            flat |= {f"{name}.{key}": value for key, value in values[name].items() if value is not None}
    for name, value in list(flat.items()):
        if name.startswith("rope_parameters.") and isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in value.items() if inner is not None}
    return flat


def _layer_types(fields: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, ...]:
    types, layers, every = (
        fields["layer_types"],
        fields["num_hidden_layers"],
        given.get("global_attn_every_n_layers", 3),
    )
    if types is not None:
        if not isinstance(types, list | tuple) or not all(isinstance(each, str) for each in types):
            raise ValueError(
                f"config.json: layer_types is {printable(repr(types))}, not a list of {', '.join(LAYER_TYPES)}. "
                "Use a checkpoint with supported values."
            )
        return tuple(types)
    if type(every) is not int or every < 1:
        raise ValueError(
            f"config.json: global_attn_every_n_layers is {printable(repr(every))}; allowed is a whole number from 1. "
            "Use a checkpoint with supported values."
        )
    # a wrong number of layers is reported with the other fields
    count = layers if type(layers) is int and 0 < layers <= MOST_LAYERS else 0
    return tuple(LAYER_TYPES[n % every > 0] for n in range(count))


def read_config(folder: Path) -> EncoderConfig:
    """The EncoderConfig of a local model folder."""
    return EncoderConfig.from_hf(read_fields(folder))


def read_fields(folder: Path) -> Any:
    """What the config.json of a model folder says."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no config.json; a model folder holds config.json, model.safetensors and a tokenizer. Check the path."
        )
    return read_json(path)
