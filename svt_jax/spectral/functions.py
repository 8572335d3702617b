r"""Spectral functions: what happens to the singular values.

A spectral function maps the singular values sigma_1 >= ... >= sigma_R of one matrix to new ones, phi_i. Every function
here acts element by element, once a few statistics of the whole spectrum (its largest value, its mean) are known:

    phi_i = g(sigma_i ; statistics of sigma)

That split is what `transform.svt` needs for an exact derivative at repeated singular values, and it is the whole
interface: a function is a class with one method, `__call__(values, spectrum)`.

A function is a pytree: its parameters are leaves and can be differentiated, batched and sharded.

Shape letters used in this package: `B` batch, `L` tokens, `D` hidden size, `R` = min(L, D).

References:
  Yan, Gui, Li, He: "Addressing Token Uniformity in Transformers via Singular Value Transformation", UAI 2022,
  arXiv 2208.11790. Godfrey, Gashler: "A continuum among logarithmic, linear, and exponential functions", 2015,
  arXiv 1602.01321.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import Any, ClassVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def static_field(*, default: Any) -> Any:
    """A field of a spectral function that is not differentiated: a flag or a constant of the formula."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static_field,))
class SpectralFunction:
    """Base class: subclass it, annotate the parameters, write `__call__`.

    A subclass becomes a frozen dataclass and a JAX pytree by itself. Fields are differentiable parameters unless they
    are made with `static_field`.

    Class attributes:
      vanishes_at_zero: True when g(0) = 0 for every spectrum. Then the transformation is continuous at rank-deficient
        input and zero singular values need no special care; otherwise null directions are kept null.
      bounds: open interval (low, high) for each parameter that has one. Values given as numbers are checked against
        it, and a module that trains the parameter keeps it inside through a smooth bijection.

    Example:
      >>> import jax.numpy as jnp, svt_jax
      >>> class SquareRoot(svt_jax.SpectralFunction):
      ...     vanishes_at_zero = True
      ...     def __call__(self, values, spectrum):
      ...         largest = jnp.max(spectrum, axis=-1, keepdims=True)
      ...         return jnp.sqrt(values * largest)
      >>> SquareRoot()(jnp.array([4.0, 1.0]), jnp.array([4.0, 1.0]))
      Array([4., 2.], dtype=float32)
    """

    vanishes_at_zero: ClassVar[bool] = False
    bounds: ClassVar[dict[str, tuple[float, float]]] = {}

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)
        jax.tree_util.register_pytree_with_keys(
            cls, _flatten_with_keys, lambda aux, leaves: _unflatten(cls, aux, leaves)
        )

    def __post_init__(self) -> None:
        for name, (low, high) in self.bounds.items():
            value = getattr(self, name)
            if isinstance(value, jax.core.Tracer):
                continue
            if not np.all((np.asarray(value) > low) & (np.asarray(value) < high)):
                raise ValueError(
                    f"{name} of {type(self).__name__} must lie in ({low}, {high}), got {value}. "
                    f"Start from {_default(type(self), name)}."
                )

    def __call__(self, values: Array, spectrum: Array) -> Array:
        """New singular values g(values; spectrum).

        Args:
          values: float[..., N] >= 0, where to evaluate g; element by element.
          spectrum: float[..., R], the singular values of the matrix; null directions are exactly 0.
        Returns:
          float[..., N].
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(values, spectrum)")


def _default(cls: type, name: str) -> Any:
    return next(f.default for f in dataclasses.fields(cls) if f.name == name)


def _split_fields(function: Any) -> tuple[list[str], list[str]]:
    fields = dataclasses.fields(function)
    static = [f.name for f in fields if f.metadata.get("static")]
    return [f.name for f in fields if f.name not in static], static


def _flatten_with_keys(function: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    parameters, static = _split_fields(function)
    leaves = [(jax.tree_util.GetAttrKey(name), getattr(function, name)) for name in parameters]
    return leaves, tuple(getattr(function, name) for name in static)


def _unflatten(cls: type, aux: tuple[Any, ...], leaves: Any) -> Any:
    # Bypasses __init__: a gradient has this structure too, and its values need not lie inside the bounds.
    function: Any = object.__new__(cls)
    parameters, static = _split_fields(cls)
    for name, value in [*zip(parameters, leaves, strict=True), *zip(static, aux, strict=True)]:
        object.__setattr__(function, name, value)
    return function


def _largest(spectrum: Array) -> Array:
    return jnp.max(spectrum, axis=-1, keepdims=True)


class SoftDecay(SpectralFunction):
    r"""The paper's function: lifts small singular values, keeps the largest.

    With the soft exponential at negative alpha,

        f(sigma) = -ln(1 - alpha (sigma + alpha) + eps) / alpha,        phi_i = f(sigma_i) sigma_1 / f(sigma_1)

    f(0) = ln(1 - alpha^2)/|alpha| is not 0, so singular values below |alpha| change sign, and the transformation is
    discontinuous where the rank drops (null directions are kept null). The centred form f(sigma) - f(0) has neither
    trouble:

        phi_i = sigma_1 ln(1 + beta sigma_i) / ln(1 + beta sigma_1),    beta = |alpha| / (1 - alpha^2)

    Both tend to the identity as alpha -> 0. Neither is scale invariant: what happens depends on alpha * sigma.

    Args:
      alpha: in (-1, 0); the further from 0, the flatter the new spectrum. The authors start from -0.2 in fine-tuning
        and use -0.6 on sentence embeddings.
      centered: use f(sigma) - f(0).
      eps: added inside the logarithm; the authors' code has 1e-7.

    Raises:
      ValueError: if alpha is a number outside (-1, 0).

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> sigma = jnp.array([20.0, 1.0])
      >>> np.round(np.asarray(SoftDecay(alpha=-0.2)(sigma, sigma)), 3)
      array([20.   ,  1.854], dtype=float32)
      >>> np.round(np.asarray(SoftDecay(alpha=-0.2, centered=True)(sigma, sigma)), 3)
      array([20.   ,  2.305], dtype=float32)

    References:
      arXiv 2208.11790, section 4 (soft decay); arXiv 1602.01321, equation 1 (soft exponential, alpha < 0).
    """

    alpha: Any = -0.2
    centered: bool = static_field(default=False)
    eps: float = static_field(default=0.0)

    bounds: ClassVar = {"alpha": (-1.0, 0.0)}

    # A centred function with eps still vanishes at zero: f(0) is subtracted as it is computed.
    @property
    def vanishes_at_zero(self) -> bool:  # type: ignore[override]
        return self.centered

    def __call__(self, values: Array, spectrum: Array) -> Array:
        largest = _largest(spectrum)
        at_largest = self._decay(largest)
        # f crosses zero at sigma = |alpha|: a matrix whose largest value is just that has no finite rescaling.
        smallest_divisor = 1e-6 * jnp.maximum(largest, jnp.finfo(at_largest.dtype).tiny)
        sign = jnp.where(at_largest < 0, -1.0, 1.0)
        at_largest = jnp.where(jnp.abs(at_largest) < smallest_divisor, sign * smallest_divisor, at_largest)
        return self._decay(values) / at_largest * largest

    def _decay(self, sigma: Array) -> Array:
        alpha = self.alpha
        if self.centered:
            return -jnp.log1p(-alpha * sigma / (1.0 - alpha * alpha + self.eps)) / alpha
        return -jnp.log1p(-alpha * (sigma + alpha) + self.eps) / alpha


class Identity(SpectralFunction):
    """phi_i = sigma_i: the transformation that changes nothing, for controls and tests.

    Example:
      >>> import jax.numpy as jnp
      >>> Identity()(jnp.array([2.0, 1.0]), jnp.array([2.0, 1.0]))
      Array([2., 1.], dtype=float32)
    """

    vanishes_at_zero = True

    def __call__(self, values: Array, spectrum: Array) -> Array:
        return values


_REGISTRY: dict[str, Callable[..., SpectralFunction]] = {
    "soft_decay": SoftDecay,
    "centered_soft_decay": functools.partial(SoftDecay, centered=True),
    "identity": Identity,
}


def function_names() -> tuple[str, ...]:
    """Names that `get_function` knows, registered ones included."""
    return tuple(_REGISTRY)


def get_function(name: str, **params: Any) -> SpectralFunction:
    """Makes a spectral function by its name.

    Args:
      name: one of `function_names()`.
      **params: the function's parameters; those left out have their defaults.
    Raises:
      ValueError: for an unknown name or parameter, or a value outside its bounds.

    Example:
      >>> get_function("soft_decay", alpha=-0.5)
      SoftDecay(alpha=-0.5, centered=False, eps=0.0)
    """
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name, _REGISTRY, n=1)
        raise ValueError(
            f"unknown spectral function {name!r}; known are {', '.join(_REGISTRY)}. "
            + (f"Did you mean {near[0]!r}?" if near else "Add your own with svt_jax.register_function.")
        )
    try:
        return _REGISTRY[name](**params)
    except TypeError as error:
        raise ValueError(
            f"spectral function {name!r}: {error}. Leave the parameter out or correct its name."
        ) from error


def register_function(name: str, cls: Callable[..., SpectralFunction]) -> None:
    """Makes a user's own function available by name, in Python and as `svt.function` in a config.

    Args:
      name: the new name.
      cls: a subclass of `SpectralFunction`, or anything callable that returns an instance.
    Raises:
      ValueError: if the name is taken.
    """
    if name in _REGISTRY:
        raise ValueError(f"a spectral function {name!r} is registered already. Choose another name.")
    _REGISTRY[name] = cls
