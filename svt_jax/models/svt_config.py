"""Which transformation acts and where, from a config or from what `export_hf` kept in a config.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from svt_jax.models.config import read_fields
from svt_jax.remedies.tokens import ContraNorm
from svt_jax.spectral.base import SOLVERS, Solver, SpectralFunction, TokenOperation, solver_for
from svt_jax.spectral.registry import function_names, get_function
from svt_jax.text import printable

Placement = Literal["before_norm", "after_norm", "replace_norm", "output"]
PLACEMENTS = ("before_norm", "after_norm", "replace_norm", "output")

Parameters = Mapping[str, Mapping[str, Any]]
"""Parameters of functions, by the layer's number as text and by name: numbers inside their bounds, or lists of them."""


def has_svt(folder: Path) -> bool:
    """Whether `export_hf` kept an SVT in a model folder."""
    return read_fields(folder).get("svt_jax") is not None


def read_svt(folder: Path) -> tuple[SVTConfig | None, Parameters | None]:
    """Reads what `export_hf` wrote into a folder's config.json, if it did: the SVTConfig and the functions' parameters.

    The parameters are None in a folder of an earlier version, which kept them among the tensors.
    """
    stored = read_fields(folder).get("svt_jax")
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
        solver: auto, svd, gram, gram64, shifted or poly (docs/how-it-works.md).
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
