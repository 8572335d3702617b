"""Functions by the name that a config has for them: spectral functions, remedies, and a user's own."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from svt_jax.spectral.base import Parametric
from svt_jax.spectral.functions import Average, Identity, Linear, LogShift, SoftDecay, SoftExponential
from svt_jax.spectral.graph_filter import Polynomial
from svt_jax.text import did_you_mean


def _centered_soft_decay(alpha: Any = SoftDecay.alpha, eps: float = SoftDecay.eps) -> SoftDecay:
    return SoftDecay(alpha=alpha, centered=True, eps=eps)


_REGISTRY: dict[str, Callable[..., Parametric]] = {
    "soft_decay": SoftDecay,
    "centered_soft_decay": _centered_soft_decay,
    "soft_exponential": SoftExponential,
    "log_shift": LogShift,
    "linear": Linear,
    "average": Average,
    "identity": Identity,
    "polynomial": Polynomial,
}
_REMEDIES = {
    "contra_norm": "tokens:ContraNorm",
    "de_escalation": "tokens:DeEscalation",
    "feat_scale": "tokens:FeatScale",
    "token_whitening": "whitening:TokenWhitening",
    "token_all_but_the_top": "whitening:TokenAllButTheTop",
    "attn_scale": "attention:AttnScale",
    "gfsa": "attention:GFSA",
    "laplacian": "attention:LaplacianHeads",
    "neutreno": "attention:NeuTRENO",
    "i_star": "losses:IStar",
    "cos_reg": "losses:CosReg",
    "gor": "losses:GlobalOrthogonalRegularization",
    "spectrum_area": "losses:SpectrumArea",
}
"""They lie in a layer above this one, so they are imported only when they are asked for."""


def function_names() -> tuple[str, ...]:
    """Names that `get_function` knows, registered ones included."""
    return (*_REGISTRY, *_REMEDIES)


def get_function(name: str, **params: Any) -> Any:
    """Makes a spectral function or a remedy by its name.

    `svt` takes a spectral function and a remedy on token matrices; the others are called themselves, each as its base class
    says: `AttentionMapOperation`, `ValueOperation`, `LossTerm`.

    Args:
      name: one of `function_names()`.
      **params: the function's parameters; those left out have their defaults.
    Raises:
      ValueError: for an unknown name or parameter, or a value of the wrong kind or outside its bounds.

    Example:
      >>> get_function("soft_decay", alpha=-0.5)
      SoftDecay(alpha=-0.5, centered=False, eps=0.0)
      >>> get_function("gfsa", k=4).sites
      ('attention_map',)
    """
    if name not in function_names():
        advice = did_you_mean([name], function_names(), "Add your own with svt_jax.register_function.")
        raise ValueError(f"unknown function or remedy {name!r}; known are {', '.join(function_names())}. {advice}")
    make = _REGISTRY[name] if name in _REGISTRY else pkgutil.resolve_name(f"svt_jax.remedies.{_REMEDIES[name]}")
    try:
        inspect.signature(make).bind(**params)
    except TypeError as error:
        what = "spectral function" if name in _REGISTRY else "remedy"
        known = ", ".join(inspect.signature(make).parameters) or "none"
        raise ValueError(
            f"{what} {name!r}: {error}; its parameters are {known}. Leave it out or correct its name."
        ) from error
    return make(**params)


def register_function(name: str, cls: Callable[..., Parametric]) -> None:
    """Makes a user's own function or remedy available by name, for `get_function`, `SVTConfig` and a config of this process.

    Args:
      name: the new name.
      cls: a subclass of `SpectralFunction`, `TokenOperation`, `AttentionMapOperation`, `ValueOperation` or `LossTerm`, or
        anything callable that returns an instance.
    Raises:
      ValueError: if the name is taken.
    """
    if name in function_names():
        raise ValueError(f"a spectral function or remedy {name!r} is registered already. Choose another name.")
    _REGISTRY[name] = cls
