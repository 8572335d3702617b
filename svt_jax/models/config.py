"""What an encoder is, read from a Hugging Face config.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from svt_jax.models.activations import ACTIVATION_FUNCTIONS
from svt_jax.models.families import FAMILIES, UNSUPPORTED
from svt_jax.models.files import read_json
from svt_jax.text import printable

_MOST_LAYERS = 1000
_LARGEST = 2**24
"""The largest whole number. A config.json that asks for more is damaged, or made to fill the memory."""
_MOST_SINES = 2**26  # numbers in a table of sinusoidal positions, which is made before weights are read

Head = Literal["pooled", "tanh", "relu"]

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
      pooler: whether there is a pooler, tanh(W x + b) of the first token.
      attention_output_dropout, feed_forward_dropout: whether hidden_dropout_prob acts there.
      head: the classifier's form. pooled: a dense layer on the pooled output. tanh and relu: two dense layers on the
        first token with that function between them; tanh has a dropout before both.
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
    attention_output_dropout: bool = True
    feed_forward_dropout: bool = True
    head: Head = "pooled"

    def __post_init__(self) -> None:
        problems = []
        names = FAMILIES[self.model_type].fields if self.model_type in FAMILIES else {}
        for field in dataclasses.fields(self):
            name, value = names.get(field.name, (field.name,))[0], getattr(self, field.name)
            if value is None and "None" in field.type:
                continue
            if field.type.startswith("int"):
                smallest = 0 if field.name in ("pad_token_id", "type_vocab_size") else 1
                if type(value) is not int:
                    problems.append(f"{name} is {printable(repr(value))}, not a whole number")
                elif value < smallest:
                    problems.append(f"{name} is {value}, less than {smallest}")
                elif value > _LARGEST:
                    problems.append(f"{name} is {printable(str(value))}, more than {_LARGEST}")
            elif field.type == "float":
                below = 1.0 if "dropout" in field.name else math.inf
                if type(value) not in (int, float):
                    problems.append(f"{name} is {printable(repr(value))}, not a number")
                elif not 0.0 <= value < below:
                    problems.append(f"{name} {value} is not in [0, {below:g})")
            elif field.type == "bool" and type(value) is not bool:
                problems.append(f"{name} is {printable(repr(value))}, not true or false")
        if self.hidden_act not in ACTIVATION_FUNCTIONS:
            problems.append(
                f"{names.get('hidden_act', ('hidden_act',))[0]} {printable(repr(self.hidden_act))} is not one of {', '.join(ACTIVATION_FUNCTIONS)}"
            )
        if not problems:
            problems += self._contradictions(names)
        if problems:
            raise ValueError(f"config.json: {'; '.join(problems)}. Use a checkpoint with supported values.")

    def _contradictions(self, names: Mapping[str, Sequence[str]]) -> list[str]:
        problems = []
        if self.hidden_size % self.num_attention_heads:
            size, heads = (names.get(name, (name,))[0] for name in ("hidden_size", "num_attention_heads"))
            problems.append(f"{size} {self.hidden_size} does not divide by {heads} {self.num_attention_heads}")
        if self.num_layers > _MOST_LAYERS:
            name = names.get("num_hidden_layers", ("num_hidden_layers",))[0]
            inner = f" times inner_group_num {self.inner_group_num}" if self.inner_group_num > 1 else ""
            problems.append(f"{name} {self.num_hidden_layers}{inner} is more than {_MOST_LAYERS}")
        width = self.embedding_size or self.hidden_size
        if self.sinusoidal_pos_embds and self.max_position_embeddings * width > _MOST_SINES:
            problems.append(
                f"max_position_embeddings {self.max_position_embeddings} times {width} is more than {_MOST_SINES}"
            )
        if self.pad_token_id >= self.vocab_size:
            problems.append(f"pad_token_id {self.pad_token_id} is not below vocab_size {self.vocab_size}")
        if (self.num_hidden_groups or 1) > self.num_hidden_layers:
            problems.append(
                f"num_hidden_groups {self.num_hidden_groups} is more than num_hidden_layers {self.num_hidden_layers}"
            )
        if self.max_tokens < 1:
            problems.append(
                f"max_position_embeddings {self.max_position_embeddings} leaves no position after pad_token_id {self.pad_token_id}"
            )
        return problems

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def max_tokens(self) -> int:
        """The length of the longest sequence, in tokens."""
        return self.max_position_embeddings - (self.pad_token_id + 1 if self.positions_skip_padding else 0)

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
        given = {name: value for name, value in values.items() if value is not None}
        given |= {family.synonyms[name]: value for name, value in given.items() if name in family.synonyms}
        problems = [
            f"{name} is {printable(repr(given[name]))} and only {only!r} is supported"
            for name, only in UNSUPPORTED.items()
            if given.get(name, only) != only
        ]
        if problems:
            raise ValueError(f"config.json: {'; '.join(problems)}. Use a checkpoint with supported values.")
        fields = {ours: given.get(theirs, default) for ours, (theirs, default) in family.fields.items()}
        if fields["classifier_dropout"] is None:
            fields["classifier_dropout"] = fields["hidden_dropout_prob"]
        return cls(model_type=model_type, **fields, **family.fixed)

    def to_hf(self) -> dict[str, Any]:
        """The fields of a config.json that transformers reads back as the same model."""
        fields = FAMILIES[self.model_type].fields
        return {"model_type": self.model_type, **{theirs: getattr(self, ours) for ours, (theirs, _) in fields.items()}}


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
