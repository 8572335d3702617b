"""Which remedy acts and where, from a config or from what `export_hf` kept in a config.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from svt_jax.models.config import EncoderConfig, read_fields
from svt_jax.spectral.base import SOLVERS, TOKEN_SITES, Parametric, Solver, solver_for
from svt_jax.spectral.registry import function_names, get_function
from svt_jax.text import did_you_mean, printable

Site = Literal["feed_forward", "attention", "attention_map", "value", "loss"]
SITES = ("feed_forward", "attention", "attention_map", "value", "loss")
Placement = Literal[
    "before_norm", "after_norm", "replace_norm", "output", "norm_input", "before_residual", "final_norm"
]
POST_NORM_PLACEMENTS = ("before_norm", "after_norm", "replace_norm", "output", "norm_input", "before_residual")
PRE_NORM_PLACEMENTS = ("output", "before_residual", "final_norm")
PLACEMENTS = (*POST_NORM_PLACEMENTS, "final_norm")

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
        parameters, function = stored.get("parameters"), stored["svt"]["function"]
        if function not in ("none", *function_names()):
            raise ValueError(
                f"function {function!r} is not registered here; do that with svt_jax.register_function, or --plugin"
            )
        if parameters is not None and not all(isinstance(named, dict) for named in parameters.values()):
            raise TypeError("parameters is no table of layers and names")
        return SVTConfig(**stored["svt"]), parameters
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'config.json'}: svt_jax is none that this version wrote ({printable(str(error))}). Pass svt, or export the model again."
        ) from error


@dataclasses.dataclass(frozen=True)
class SVTConfig:
    """Which remedy acts, and where.

    Attributes:
        function: Spectral function, or another remedy, by name; `none` switches it off, exactly.
        layers: Layers that get one: a list (negative numbers count from the end), `all`, or `every:K` (each K-th).
        placement: Where behind the part, for the sites feed_forward and attention. With h the part's output after its
            dropout, x its input, LN its norm, drop this section's dropout: before_norm LN(SVT(drop(h + x)) + x);
            after_norm SVT(drop(LN(h + x) + x)); replace_norm SVT(drop(h + x)); output SVT(LN(h + x)); norm_input
            LN(SVT(drop(h + x))); before_residual LN(SVT(drop(h)) + x). A pre-norm encoder (modernbert, esm) has output,
            SVT(h + x) on its residual stream, before_residual, SVT(drop(h)) + x, and final_norm, SVT(LN(x)) behind its
            last layer's norm.
        alpha: Where the function's alpha starts: one number inside its bounds, (-1, 0) for SoftDecay, or one per chosen
            layer. A function without alpha does not read it.
        learnable: Train the function's parameters.
        solver: auto, svd, gram, gram64, shifted or poly (docs/how-it-works.md).
        mask_padding: Keep padding out of the decomposition. False reproduces the published code.
        dropout: Dropout in front of the transformation while training; the published code has 0.1.
        params: The function's other parameters by name, as in {gamma: 5.0} for log_shift; where they start, if they are
            trained. Those left out have their defaults. At site loss also weight, by which the term is multiplied; 0.
        site: Where in the layer, of those that the remedy has. feed_forward and attention: on the tokens behind that part
            of the layer, as the placement says; attention_map: on the map of each head; value: on what attention
            gathers; loss: a term of the training loss, on the outputs of these layers.
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
    site: Site = "feed_forward"

    def __post_init__(self) -> None:
        for name in ("layers", "alpha"):  # tuples keep the config hashable, and a generator can be read once
            value = getattr(self, name)
            value = value.tolist() if hasattr(value, "tolist") else value  # NumPy's numbers are none of JSON's
            several = isinstance(value, Iterable) and not isinstance(value, str)
            object.__setattr__(self, name, tuple(value) if several else value)
        if self.function != "none" and self.function not in function_names():
            known = ("none", *function_names())
            advice = did_you_mean([self.function], known, "Register your own with svt_jax.register_function.")
            raise ValueError(f"svt.function is {self.function!r}; allowed are {', '.join(known)}. {advice}")
        if self.site not in SITES:
            raise ValueError(f"svt.site is {self.site!r}; allowed are {', '.join(SITES)}. Correct it.")
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
            self._check_site(function)
            solver_for(function, self.solver)
            if hasattr(function, "alpha"):
                (low, high), usual = function.bounds.get("alpha", (-math.inf, math.inf)), function.alpha
        for alpha in self.alpha if isinstance(self.alpha, tuple) else [self.alpha]:
            if not low < alpha < high:
                raise ValueError(f"svt.alpha is {alpha}; it must lie in ({low:g}, {high:g}). Start from {usual}.")

    def _check_site(self, function: Parametric) -> None:
        problems = []
        if self.site not in function.sites:
            advice = "Set svt.site to it" if len(function.sites) == 1 else "Set svt.site to one of these"
            problems.append(
                f"svt.site is {self.site} and svt.function is {self.function}, which has the site "
                f"{' or '.join(function.sites) or 'of no kind'}. {advice}."
            )
        without = self.site if self.site in function.sites else function.sites[0] if function.sites else self.site
        if without not in TOKEN_SITES and self.placement != SVTConfig.placement:
            problems.append(
                f"svt.placement is {self.placement} and the site {without} has none; placements go with "
                f"{' and '.join(TOKEN_SITES)}. Leave it out."
            )
        if self.site == "loss" and (type(self.weight) not in (int, float) or not math.isfinite(self.weight)):
            problems.append(f"svt.params.weight is {self.weight!r}; it must be a number of either sign. Correct it.")
        if problems:
            raise ValueError(" ".join(problems))

    @property
    def weight(self) -> float:
        """What a loss term is multiplied by."""
        weight: float = self.params.get("weight", 0.0)
        return weight

    def _function_but_alpha(self) -> Parametric:
        own = ("alpha", "weight") if self.site == "loss" else ("alpha",)
        others = {name: _array(value) for name, value in self.params.items() if name not in own}
        try:
            function: Parametric = get_function(self.function, **others)
        except ValueError as error:
            raise ValueError(f"svt.params: {error}") from error
        if "alpha" in self.params:
            advice = "Set svt.alpha instead" if hasattr(function, "alpha") else f"{self.function} has none: remove it"
            raise ValueError(f"svt.params holds alpha, which is not set there. {advice}.")
        return function

    def make_function(self, alpha: float) -> Any:
        """Makes a layer's function as it is at the start of training; `alpha` counts where it has one.

        Example:
          >>> SVTConfig("soft_decay", params={"eps": 1e-7}).make_function(alpha=-0.3)
          SoftDecay(alpha=-0.3, centered=False, eps=1e-07)
        """
        function = self._function_but_alpha()
        return dataclasses.replace(function, alpha=alpha) if hasattr(function, "alpha") else function  # type: ignore[type-var]

    def check_norms(self, encoder: EncoderConfig) -> None:
        """Refuses placements by a norm that the encoder does not have."""
        if not self.enabled or self.site not in TOKEN_SITES:
            return
        if encoder.norm == "pre" and self.placement not in PRE_NORM_PLACEMENTS:
            raise ValueError(
                f"svt.placement is {self.placement}, which is by the norm behind a part, and {encoder.model_type} has its "
                f"norms in front; allowed are {', '.join(PRE_NORM_PLACEMENTS)}. Use output, which acts on the residual stream."
            )
        if self.placement == "final_norm":
            if not encoder.final_norm:
                raise ValueError(
                    f"svt.placement is final_norm and {encoder.model_type} has no norm behind its last layer; allowed are "
                    f"{', '.join(POST_NORM_PLACEMENTS)}. Use output, which acts on what the last layer's norm returns."
                )
            layers = list(self.alpha_by_layer(encoder.num_layers))
            if self.site != "feed_forward" or layers != [encoder.num_layers - 1]:
                raise ValueError(
                    f"svt.placement is final_norm with svt.site {self.site} and svt.layers {layers}; allowed are feed_forward "
                    "and the last layer, -1, behind which that norm is. Leave both out."
                )

    @property
    def enabled(self) -> bool:
        return self.function != "none"

    @property
    def decomposes(self) -> bool:
        """Whether the remedy reads `solver`."""
        return self.enabled and self._function_but_alpha().decomposes

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
        if self.site not in TOKEN_SITES:
            unread = [name for name in ("dropout", "mask_padding") if name in changed]
            found += [f"svt.{name} does nothing, for svt.site is {self.site}. Leave it out." for name in unread]
        elif "dropout" in changed and self.placement in ("output", "final_norm"):
            found.append(f"svt.dropout does nothing, for svt.placement is {self.placement}. Leave it out.")
        if "solver" in changed and not function.decomposes:
            found.append(f"svt.solver does nothing, for {self.function} decomposes no matrix by it. Leave it out.")
        if self.site == "loss" and not self.weight:
            found.append("svt.function does nothing, for svt.params.weight is 0. Give it a weight of either sign.")
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

    def slots(self, num_layers: int) -> dict[int, float]:
        """As `alpha_by_layer`, for layers that own parameters: a loss has one set, which the last of its layers owns."""
        alphas = self.alpha_by_layer(num_layers)
        return alphas if self.site != "loss" else {n: alpha for n, alpha in alphas.items() if n == max(alphas)}

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


def _array(value: Any) -> Any:
    """A list of numbers as an array, anything else as it is."""
    numbers = isinstance(value, list | tuple) and all(type(each) in (int, float) for each in value)
    return np.asarray(value, np.float64) if numbers else value
