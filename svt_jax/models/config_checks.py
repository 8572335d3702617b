"""Which values the fields of an `EncoderConfig` may have, each by itself and together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from svt_jax.models.activations import ACTIVATION_FUNCTIONS
from svt_jax.models.families import FAMILIES
from svt_jax.text import printable

if TYPE_CHECKING:
    from svt_jax.models.config import EncoderConfig

MOST_LAYERS = 1000
_LARGEST = 2**24
"""The largest whole number. A config.json that asks for more is damaged, or made to fill the memory."""
_MOST_SINES = 2**26  # numbers in a table of sinusoidal positions, which is made before weights are read

LAYER_TYPES = ("full_attention", "sliding_attention")
RELATIVE_BUCKETS = 32
"""Buckets of distances that MPNet's code tells apart, whatever its config.json says of the table's rows."""

_OPTIONS: dict[str, Sequence[str]] = {
    "hidden_act": tuple(ACTIVATION_FUNCTIONS),
    "head_act": tuple(ACTIVATION_FUNCTIONS),
    "pooling": ("cls", "mean"),
    "positions": ("absolute", "rotary"),
}


def problems_of(config: EncoderConfig) -> list[str]:
    """What is wrong with a config's values, in the words of its family's config.json."""
    problems: list[str] = []
    names = FAMILIES[config.model_type].fields if config.model_type in FAMILIES else {}
    for field in dataclasses.fields(config):
        name, value = names.get(field.name, (field.name,))[0], getattr(config, field.name)
        if value is None and "None" in field.type:
            continue
        if field.type.startswith("int"):
            zero = ("pad_token_id", "type_vocab_size", "mask_token_id", "relative_buckets")
            smallest = 0 if field.name in zero else 1
            if type(value) is not int:
                problems.append(f"{name} is {printable(repr(value))}, not a whole number")
            elif value < smallest:
                problems.append(f"{name} is {value}, less than {smallest}")
            elif value > _LARGEST:
                problems.append(f"{name} is {printable(str(value))}, more than {_LARGEST}")
        elif field.type.startswith("float"):
            below = 1.0 if "dropout" in field.name else math.inf
            if type(value) not in (int, float):
                problems.append(f"{name} is {printable(repr(value))}, not a number")
            elif not 0.0 <= value < below:
                problems.append(f"{name} {value} is not in [0, {below:g})")
        elif field.type == "bool" and type(value) is not bool:
            problems.append(f"{name} is {printable(repr(value))}, not true or false")
        elif field.name in _OPTIONS and value not in (options := _OPTIONS[field.name]):
            problems.append(f"{name} {printable(repr(value))} is not one of {', '.join(options)}")
    return problems or _contradictions(config, names)


def _contradictions(config: EncoderConfig, names: Mapping[str, Sequence[str]]) -> list[str]:
    problems = []
    if config.hidden_size % config.num_attention_heads:
        size, heads = (names.get(name, (name,))[0] for name in ("hidden_size", "num_attention_heads"))
        problems.append(f"{size} {config.hidden_size} does not divide by {heads} {config.num_attention_heads}")
    if config.num_layers > MOST_LAYERS:
        name = names.get("num_hidden_layers", ("num_hidden_layers",))[0]
        inner = f" times inner_group_num {config.inner_group_num}" if config.inner_group_num > 1 else ""
        problems.append(f"{name} {config.num_hidden_layers}{inner} is more than {MOST_LAYERS}")
    width = config.embedding_size or config.hidden_size
    if config.sinusoidal_pos_embds and config.max_position_embeddings * width > _MOST_SINES:
        problems.append(
            f"max_position_embeddings {config.max_position_embeddings} times {width} is more than {_MOST_SINES}"
        )
    for name in ("pad_token_id", "mask_token_id"):
        if (getattr(config, name) or 0) >= config.vocab_size:
            problems.append(f"{name} {getattr(config, name)} is not below vocab_size {config.vocab_size}")
    if config.token_dropout and config.mask_token_id is None:
        problems.append("token_dropout is true and mask_token_id is missing")
    if config.positions == "rotary" and config.head_size % 2:
        problems.append(f"heads of {config.head_size} dimensions cannot be rotated in pairs")
    if 0 < config.relative_buckets < RELATIVE_BUCKETS:
        name = names.get("relative_buckets", ("relative_buckets",))[0]
        problems.append(f"{name} {config.relative_buckets} is less than {RELATIVE_BUCKETS}")
    if config.layer_types is not None:
        strange = [each for each in config.layer_types if each not in LAYER_TYPES]
        fits = len(config.layer_types) == config.num_hidden_layers or config.num_hidden_layers > MOST_LAYERS
        if strange or not fits:
            problems.append(
                f"layer_types names {len(config.layer_types)} layers of num_hidden_layers {config.num_hidden_layers}, "
                f"and {printable(repr(strange[0])) + ' is not one of' if strange else 'each is one of'} {', '.join(LAYER_TYPES)}"
            )
    if (config.num_hidden_groups or 1) > config.num_hidden_layers:
        problems.append(
            f"num_hidden_groups {config.num_hidden_groups} is more than num_hidden_layers {config.num_hidden_layers}"
        )
    if config.max_tokens < 1:
        problems.append(
            f"max_position_embeddings {config.max_position_embeddings} leaves no position after pad_token_id {config.pad_token_id}"
        )
    return problems
