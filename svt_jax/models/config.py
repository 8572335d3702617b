"""What an encoder is (read from a Hugging Face config.json) and where its transformation goes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from svt_jax.models.activations import ACTIVATION_FUNCTIONS
from svt_jax.models.families import FAMILIES, UNSUPPORTED
from svt_jax.models.files import read_json
from svt_jax.remedies.tokens import ContraNorm
from svt_jax.spectral.base import SOLVERS, Solver, SpectralFunction, TokenOperation, solver_for
from svt_jax.spectral.registry import function_names, get_function
from svt_jax.text import printable

_MOST_LAYERS = 1000
_LARGEST = 2**24
"""The largest whole number. A config.json that asks for more is damaged, or made to fill the memory."""
_MOST_SINES = 2**26  # numbers in a table of sinusoidal positions, which is made before weights are read

Head = Literal["pooled", "tanh", "relu"]

Placement = Literal["before_norm", "after_norm", "replace_norm", "output"]
PLACEMENTS = ("before_norm", "after_norm", "replace_norm", "output")

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
    return EncoderConfig.from_hf(_read_fields(folder))


Parameters = Mapping[str, Mapping[str, Any]]
"""Parameters of functions, by the layer's number as text and by name: numbers inside their bounds, or lists of them."""


def has_svt(folder: Path) -> bool:
    """Whether `export_hf` kept an SVT in a model folder."""
    return _read_fields(folder).get("svt_jax") is not None


def read_svt(folder: Path) -> tuple[SVTConfig | None, Parameters | None]:
    """Reads what `export_hf` wrote into a folder's config.json, if it did: the SVTConfig and the functions' parameters.

    The parameters are None in a folder of an earlier version, which kept them among the tensors.
    """
    stored = _read_fields(folder).get("svt_jax")
    if stored is None:
        return None, None
    try:
        parameters = stored.get("parameters")
        if parameters is not None and not all(isinstance(named, dict) for named in parameters.values()):
            raise TypeError("parameters is no table of layers and names")
        return SVTConfig(**stored["svt"]), parameters
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'config.json'}: svt_jax is none that this version wrote ({printable(str(error))}). Pass svt, or export the model again."
        ) from error


def _read_fields(folder: Path) -> Any:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no config.json; a model folder holds config.json, model.safetensors and a tokenizer. Check the path."
        )
    return read_json(path)


@dataclasses.dataclass(frozen=True)
class SVTConfig:
    """Which transformation acts, and where.

    Attributes:
        function: Spectral function, or another remedy, by name; `none` switches the transformation off, exactly.
        layers: Layers that get one: a list (negative numbers count from the end), `all`, or `every:K` (each K-th).
        placement: Where in the layer. With h the feed-forward output after its dropout, x its input, drop this
            section's dropout: before_norm LN(SVT(drop(h + x)) + x); after_norm SVT(drop(LN(h + x) + x));
            replace_norm SVT(drop(h + x)); output SVT(layer output).
        alpha: Where the function's alpha starts: one number inside its bounds, (-1, 0) for SoftDecay, or one per chosen
            layer. A function without alpha does not read it.
        learnable: Train the function's parameters.
        solver: auto, svd, gram, gram64 or poly (docs/how-it-works.md).
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
        for name in ("layers", "alpha"):  # tuples keep the config hashable, and a generator can be read once
            value = getattr(self, name)
            value = value.tolist() if hasattr(value, "tolist") else value  # NumPy's numbers are none of JSON's
            several = isinstance(value, Iterable) and not isinstance(value, str)
            object.__setattr__(self, name, tuple(value) if several else value)
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
            solver_for(function, self.solver)
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
        """Makes a layer's function as it is at the start of training; `alpha` counts where it has one.

        Example:
          >>> SVTConfig("soft_decay", params={"eps": 1e-7}).make_function(alpha=-0.3)
          SoftDecay(alpha=-0.3, centered=False, eps=1e-07)
        """
        function = self._function_but_alpha()
        return get_function(self.function, alpha=alpha, **self.params) if hasattr(function, "alpha") else function

    @property
    def enabled(self) -> bool:
        return self.function != "none"

    @property
    def trains(self) -> bool:
        """Whether training changes a parameter of the function."""
        return self.enabled and self.learnable and bool(jax.tree.leaves(self._function_but_alpha()))

    def without_effect(self) -> list[str]:
        """Returns a sentence for each reason why keys other than their default do nothing beside the other keys."""
        plain = SVTConfig()
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != getattr(plain, f.name)]
        if not self.enabled:
            keys = ", ".join(f"svt.{name}" for name in changed)
            each = "does nothing, for svt.function is none. Name a function, or leave it out."
            several = "do nothing, for svt.function is none. Name a function, or leave them out."
            return [f"{keys} {each if len(changed) == 1 else several}"] if changed else []
        found, function = [], self._function_but_alpha()
        if "alpha" in changed and not hasattr(function, "alpha"):
            found.append(f"svt.alpha does nothing, for svt.function {self.function} has none. Leave it out.")
        if "dropout" in changed and self.placement == "output":
            found.append("svt.dropout does nothing, for svt.placement is output. Leave it out.")
        if "solver" in changed and isinstance(function, ContraNorm):
            found.append(f"svt.solver does nothing, for {self.function} decomposes no matrix. Leave it out.")
        return found

    def alpha_by_layer(self, num_layers: int) -> dict[int, float]:
        """Returns the start value of alpha for each transformed layer, by layer number; empty when switched off.

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
                    f"svt.layers is {self.layers!r}; allowed are a list of numbers, 'all' and 'every:K' with K from 1 to {num_layers}. Correct it."
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
