"""Names in a checkpoint file: those of one architecture's tensors, and what wrappers, heads and old versions put there.

`weight_names` has each family's table.
"""

from __future__ import annotations

import re

import numpy as np

from svt_jax.models.config import EncoderConfig
from svt_jax.models.weight_names import NAMES, Names

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
      >>> in_parts({"W[0/2]": ("a", None), "W[1/2]": ("b", None)}, {"W": np.arange(4)})
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
