"""What a spectral function is: the base class that makes a subclass a dataclass and a pytree.

A spectral function maps the singular values sigma_1 >= ... >= sigma_R of one matrix to new ones, phi_i. It acts element
by element, once a few statistics of the whole spectrum (its largest value, its mean) are known:

    phi_i = g(sigma_i ; statistics of sigma)

That split is what `transform.svt` needs for an exact derivative at repeated singular values, and it is the whole
interface: a function is a class with one method, `__call__(values, spectrum)`.

A function is a pytree: its parameters are leaves and can be differentiated, batched and sharded.

Shape letters used in this package: `B` batch, `L` tokens, `D` hidden size, `R` = min(L, D).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, dataclass_transform

import jax
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
