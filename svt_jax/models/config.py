"""What an encoder is (read from a Hugging Face config.json) and where its transformation goes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from svt_jax.spectral.base import SpectralFunction
from svt_jax.spectral.peers import TokenOperation
from svt_jax.spectral.registry import function_names, get_function
from svt_jax.spectral.solvers import SOLVERS, Solver

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
"""Values of `hidden_act` we compute. `gelu` is the exact one (erf); the next two are its tanh approximation."""

Placement = Literal["before_norm", "after_norm", "replace_norm", "output"]
PLACEMENTS = ("before_norm", "after_norm", "replace_norm", "output")

# Fields of a config.json that would change a number in a way we do not compute, with the only value we accept.
_UNSUPPORTED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "chunk_size_feed_forward": 0,
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Every number of the architecture, read from the checkpoint's config.json by `from_hf`."""

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

    def __post_init__(self) -> None:
        problems = []
        if self.hidden_act not in ACTIVATIONS:
            problems.append(f"hidden_act {self.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        sizes = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.type == "int"}
        problems += [f"{name} is {size!r}, not a whole number" for name, size in sizes.items() if type(size) is not int]
        least = {name: 0 if name == "pad_token_id" else 1 for name in sizes}
        problems += [f"{n} is {s}, less than {least[n]}" for n, s in sizes.items() if type(s) is int and s < least[n]]
        if not problems and self.hidden_size % self.num_attention_heads:
            problems.append(
                f"hidden_size {self.hidden_size} does not divide by num_attention_heads {self.num_attention_heads}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                problems.append(f"{name} {getattr(self, name)} is not in [0, 1)")
        if problems:
            raise ValueError(f"config.json: {'; '.join(problems)}. Use a checkpoint with supported values.")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> EncoderConfig:
        """Reads the fields of a Hugging Face config.json; what we do not support is an error that names it.

        Fields that the file leaves out have the defaults that transformers gives this family.

        Raises:
          ValueError: for an unsupported family or field value, or a missing field; all of them at once.
        """
        if not isinstance(values, Mapping):
            raise ValueError("config.json holds no table of fields. Use the model's own file.")
        model_type = values.get("model_type")
        if model_type not in _FAMILY_DEFAULTS:
            raise ValueError(
                f"config.json: model_type {model_type!r}; supported are {', '.join(_FAMILY_DEFAULTS)}. "
                "Choose a checkpoint of one of these."
            )
        merged = {**_FAMILY_DEFAULTS[model_type], **{k: v for k, v in values.items() if v is not None}}
        problems = [
            f"{name} is {merged[name]!r} and only {only!r} is supported"
            for name, only in _UNSUPPORTED.items()
            if merged.get(name, only) != only
        ]
        merged.setdefault("classifier_dropout", merged["hidden_dropout_prob"])
        names = [f.name for f in dataclasses.fields(cls)]
        problems += [f"{name} is missing" for name in names if name not in merged]
        if problems:
            raise ValueError(f"config.json: {'; '.join(problems)}. Use a checkpoint with supported values.")
        return cls(**{name: merged[name] for name in names})

    def to_hf(self) -> dict[str, Any]:
        """The fields of a config.json that transformers reads back as the same model."""
        return dataclasses.asdict(self)


# transformers writes a config.json without the fields that have its class's default values.
_FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {
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
        "initializer_range": 0.02,
        "pad_token_id": 0,
    },
}


def read_config(folder: Path) -> EncoderConfig:
    """The EncoderConfig of a local model folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no config.json; a model folder holds config.json, model.safetensors and a tokenizer. Check the path."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Download the model again.") from error
    return EncoderConfig.from_hf(values)


@dataclasses.dataclass(frozen=True)
class SVTConfig:
    """Which transformation acts, and where.

    Attributes:
        function: Spectral function, or a peer of it, by name; `none` switches the transformation off, exactly.
        layers: Layers that get one: a list (negative numbers count from the end), `all`, or `every:K` (each K-th).
        placement: Where in the layer. With h the feed-forward output after its dropout, x its input, drop this
            section's dropout: before_norm LN(SVT(drop(h + x)) + x); after_norm SVT(drop(LN(h + x) + x));
            replace_norm SVT(drop(h + x)); output SVT(layer output).
        alpha: Where the function's alpha starts: one number inside its bounds, (-1, 0) for SoftDecay, or one per chosen
            layer. A function without alpha does not read it.
        learnable: Train the function's parameters.
        solver: auto, svd or gram.
        mask_padding: Keep padding out of the decomposition. False reproduces the published code.
        dropout: Dropout in front of the transformation while training; the published code has 0.1.
        params: The function's other parameters by name, as in {gamma: 5.0} for log_shift; where they start, if they are
            trained. Those left out have their defaults.
    """

    function: str = "none"
    layers: tuple[int, ...] | str = (-1,)
    placement: Placement = "before_norm"
    alpha: float | tuple[float, ...] = -0.2
    learnable: bool = True
    solver: Solver = "auto"
    mask_padding: bool = True
    dropout: float = 0.1
    params: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)  # a dict has no hash

    def __post_init__(self) -> None:
        for name in ("layers", "alpha"):  # lists from YAML and Python: tuples keep the config hashable
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.function != "none" and self.function not in function_names():
            raise ValueError(
                f"svt.function is {self.function!r}; allowed are none, {', '.join(function_names())}. Register your own with svt_jax.register_function."
            )
        if self.placement not in PLACEMENTS:
            raise ValueError(
                f"svt.placement is {self.placement!r}; allowed are {', '.join(PLACEMENTS)}. The published BERT is before_norm."
            )
        if self.solver not in SOLVERS:
            raise ValueError(
                f"svt.solver is {self.solver!r}; allowed are {', '.join(SOLVERS)}. Use auto when in doubt."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"svt.dropout is {self.dropout}; it must lie in [0, 1). The published value is 0.1.")
        if not isinstance(self.params, Mapping) or not all(isinstance(name, str) for name in self.params):
            raise ValueError(
                f"svt.params is {self.params!r}; allowed is a table of names and values, as in {{gamma: 5.0}}. Correct the config."
            )
        object.__setattr__(self, "params", dict(self.params))
        low, high, usual = -1.0, 0.0, -0.2
        if self.enabled:
            function = self._function_but_alpha()
            if hasattr(function, "alpha"):
                (low, high), usual = function.bounds.get("alpha", (-math.inf, math.inf)), function.alpha
        for alpha in self.alpha if isinstance(self.alpha, tuple) else [self.alpha]:
            if not low < alpha < high:
                raise ValueError(f"svt.alpha is {alpha}; it must lie in ({low:g}, {high:g}). Start from {usual}.")

    def _function_but_alpha(self) -> SpectralFunction | TokenOperation:
        others = {name: value for name, value in self.params.items() if name != "alpha"}
        try:
            function = get_function(self.function, **others)
        except ValueError as error:
            raise ValueError(f"svt.params: {error}") from error
        if "alpha" in self.params:
            advice = "Set svt.alpha instead" if hasattr(function, "alpha") else f"{self.function} has none: remove it"
            raise ValueError(f"svt.params holds alpha, which is not set there. {advice}.")
        return function

    def make_function(self, alpha: float) -> SpectralFunction | TokenOperation:
        """The function of a layer at the start of training; `alpha` counts where it has one.

        Example:
          >>> SVTConfig("soft_decay", params={"eps": 1e-7}).make_function(alpha=-0.3)
          SoftDecay(alpha=-0.3, centered=False, eps=1e-07)
        """
        function = self._function_but_alpha()
        return get_function(self.function, alpha=alpha, **self.params) if hasattr(function, "alpha") else function

    @property
    def enabled(self) -> bool:
        return self.function != "none"

    def alpha_by_layer(self, num_layers: int) -> dict[int, float]:
        """The start value of alpha for each transformed layer, by layer number; empty when switched off.

        Raises:
          ValueError: if a layer does not exist or is named twice, or alpha has another length than the layers.

        Example:
          >>> SVTConfig("soft_decay", layers=[0, -1], alpha=[-0.1, -0.3]).alpha_by_layer(6)
          {0: -0.1, 5: -0.3}
          >>> SVTConfig("soft_decay", layers="every:2").alpha_by_layer(4)
          {1: -0.2, 3: -0.2}
        """
        if not self.enabled:
            return {}
        layers = self._layer_numbers(num_layers)
        alphas = self.alpha if isinstance(self.alpha, tuple) else [self.alpha] * len(layers)
        if len(alphas) != len(layers):
            raise ValueError(
                f"svt.alpha has {len(alphas)} numbers for {len(layers)} layers {layers}. Give one number, or one per layer."
            )
        return dict(zip(layers, alphas, strict=True))

    def _layer_numbers(self, num_layers: int) -> list[int]:
        if isinstance(self.layers, str):
            if self.layers == "all":
                return list(range(num_layers))
            step = self.layers.removeprefix("every:").strip()
            if not self.layers.startswith("every:") or not step.isdigit() or not 1 <= int(step) <= num_layers:
                raise ValueError(
                    f"svt.layers is {self.layers!r}; allowed are a list of numbers, 'all' and 'every:K' with K from 1 to {num_layers}."
                )
            return list(range(int(step) - 1, num_layers, int(step)))
        outside = [n for n in self.layers if not -num_layers <= n < num_layers]
        if outside or not self.layers:
            raise ValueError(
                f"svt.layers is {list(self.layers)}; the model has layers 0 to {num_layers - 1} (or {-num_layers} to -1). Choose at least one of these."
            )
        numbers = [n % num_layers for n in self.layers]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"svt.layers is {list(self.layers)} and names a layer twice. Name each layer once.")
        return numbers
