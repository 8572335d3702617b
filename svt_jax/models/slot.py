"""The NNX module that owns the parameters of a spectral function or a remedy, and applies it to token matrices.

`sites.py` applies those of the other sites.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svt_jax.mesh import shard_batch
from svt_jax.models.layers import DropoutBits, dropout, dropout_once
from svt_jax.models.packed import Layout
from svt_jax.models.svt_config import SVTConfig
from svt_jax.remedies.base import LossTerm
from svt_jax.spectral.transform import svt_and_failures
from svt_jax.text import listed, printable

Array = jax.Array


class SVTParam(nnx.Param):
    """A trainable parameter of a spectral function: its own learning rate, no weight decay."""


class SVTConstant(nnx.Variable):
    """The same, but not trained (`svt.learnable: false`): it has no gradient, and is saved with the weights."""


class SVTState(nnx.Variable):
    """What a loss term keeps from step to step."""


class SVTLayer(nnx.Module):
    """Applies dropout, then the transformation of each example's real tokens in float32.

    Args:
      config: which function.
      alpha: where its alpha starts.
      sizes: the encoder's numbers of "heads" and of "hidden" dimensions, for a function with a number for each.

    Raises:
      ValueError: if a parameter starts with another number of values than the encoder has heads or dimensions.

    A parameter with bounds is stored unbounded, so that no step can leave the interval. For (low, high) it is the
    logit of its place in it, for (low, inf) the inverse softplus of its distance from low.
    """

    def __init__(self, config: SVTConfig, alpha: float, sizes: Mapping[str, int] | None = None):
        function = _with_sizes(config.make_function(alpha), sizes or {})
        kind = SVTParam if config.learnable else SVTConstant
        leaves, self._treedef = jax.tree_util.tree_flatten_with_path(function)
        self._names = tuple(jax.tree_util.keystr(path, simple=True) for path, _ in leaves)
        self._bounds = tuple(function.bounds.get(name) for name in self._names)

        def variable(value: Any, bounds: tuple[float, float] | None) -> nnx.Variable:
            # explicit dtype: a weakly typed scalar would cost a second compilation
            array = jnp.asarray(_unbounded_array(value, bounds), jnp.float32)
            return kind(array, logical_axes=("parameter",) * array.ndim)

        self.parameters = nnx.Dict(
            {
                name: variable(value, bounds)
                for name, (_, value), bounds in zip(self._names, leaves, self._bounds, strict=True)
            }
        )
        self._config = config
        state = function.initial_state((sizes or {}).get("hidden", 1)) if isinstance(function, LossTerm) else None
        self.state = None if state is None else SVTState(state, logical_axes=("parameter",) * state.ndim)

    @property
    def site(self) -> str:
        return self._config.site

    @property
    def weight(self) -> float:
        return self._config.weight

    @property
    def values(self) -> dict[str, Array]:
        """The present value of each of the function's parameters by name, inside its bounds."""
        return {
            name: _bounded(self.parameters[name][...], bounds)
            for name, bounds in zip(self._names, self._bounds, strict=True)
        }

    @property
    def function(self) -> Any:
        """The function with its present parameters."""
        return jax.tree_util.tree_unflatten(self._treedef, list(self.values.values()))

    def __call__(self, x: Array, mask: Array | None, *, rngs: nnx.Rngs | None) -> tuple[Array, Array]:
        """Transforms x [B, L, D]; mask bool [B, L]. Rows of padding come back as zeros when they are masked.

        Also returns bool [B], true where the decomposition failed and the input came back as it was.
        """
        x = dropout_once(x, self._config.dropout, None if rngs is None else rngs.dropout())
        return self._transformed(x, mask if self._config.mask_padding else None)

    def on_rows(self, x: Array, layout: Layout, *, bits: DropoutBits | None) -> tuple[Array, Array, Array]:
        """Transforms the token matrices of rows x [R, S, D].

        Returns the matrices [E, L, D] before and after, and bool [E], true where it failed.
        """
        before = layout.to_matrices(dropout(x, self._config.dropout, bits))
        return before, *self._transformed(before, layout.takes_part(self._config.mask_padding))

    def _transformed(self, x: Array, mask: Array | None) -> tuple[Array, Array]:
        return svt_and_failures(shard_batch(x), self.function, mask=mask, solver=self._config.solver)


def _with_sizes(function: Any, sizes: Mapping[str, int]) -> Any:
    """The function with a value for each head or dimension where it has one."""
    changed, problems = {}, []
    for name, kind in function.one_per.items():
        value = np.asarray(getattr(function, name), np.float64)
        if not sizes:
            continue
        if kind not in sizes:
            problems.append(
                f"{type(function).__name__}.one_per says {kind!r} for {name}; allowed are {' and '.join(sizes)}. Correct it."
            )
            continue
        if value.shape in ((), (sizes[kind],)):
            changed[name] = np.broadcast_to(value, (sizes[kind],))
        else:
            problems.append(
                f"svt.params.{name} has the shape {list(value.shape)} and the model has {sizes[kind]} {kind} "
                f"{'dimensions' if kind == 'hidden' else ''}".rstrip()
                + f"; allowed is one number, or {sizes[kind]}. Correct it."
            )
    if problems:
        raise ValueError(" ".join(problems))
    return dataclasses.replace(function, **changed) if changed else function


def plain_parameters(by_layer: Mapping[int, Mapping[str, jax.Array]]) -> dict[str, dict[str, Any]]:
    """Makes JSON of spectral functions' parameters, by layer and name: numbers, and lists for arrays.

    Example:
      >>> plain_parameters({11: {"alpha": np.float32(-0.25), "scale": np.ones(2)}})
      {'11': {'alpha': -0.25, 'scale': [1.0, 1.0]}}
    """
    return {
        str(layer): {name: np.asarray(value).tolist() for name, value in by_name.items()}
        for layer, by_name in by_layer.items()
    }


_MARGIN = 1e-6
"""Share of an interval that is kept free at its ends: in float32 a sigmoid reaches 0 and 1, and alpha = 0 is 0/0. A
value that is nearer to an end starts at twice the margin."""


def _unbounded(value: float, bounds: tuple[float, float] | None, nearest: float = _MARGIN) -> float:
    if bounds is None:
        return value
    low, high = bounds
    if math.isinf(high):
        distance = max(value - low - _MARGIN, nearest)
        return distance + math.log(-math.expm1(-distance))  # log(exp(distance) - 1), which overflows
    share = ((value - low) / (high - low) - _MARGIN) / (1.0 - 2.0 * _MARGIN)
    share = min(max(share, nearest), 1.0 - nearest)
    return math.log(share / (1.0 - share))


def _unbounded_array(value: Any, bounds: tuple[float, float] | None, nearest: float = _MARGIN) -> np.ndarray:
    array = np.asarray(value, np.float64)
    return np.asarray([_unbounded(each, bounds, nearest) for each in array.ravel().tolist()]).reshape(array.shape)


def _bounded(stored: Array, bounds: tuple[float, float] | None) -> Array:
    if bounds is None:
        return stored
    low, high = bounds
    if math.isinf(high):
        return low + _MARGIN + jax.nn.softplus(stored)
    return low + (high - low) * (_MARGIN + (1.0 - 2.0 * _MARGIN) * jax.nn.sigmoid(stored))


_NEAREST = 2.0**-53
"""The same for a trained value, which need not keep away from the ends, where training would stand still."""


def learned_values(layer: SVTLayer) -> dict[str, Any]:
    """Returns the function's parameters by name, inside their bounds: each a number or a list, in double precision.

    In float32 a value near an end of its interval would not restore what is stored.
    """
    return {
        name: _bounded_double(np.asarray(layer.parameters[name][...], np.float64), bounds).tolist()
        for name, bounds in zip(layer._names, layer._bounds, strict=True)
    }


def stored_values(layer: SVTLayer, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns what the layer stores for these values of its function's parameters: the inverse of `learned_values`.

    Raises:
      ValueError: if a parameter is missing, unknown, no number, or outside of its bounds.
    """
    bounds = dict(zip(layer._names, layer._bounds, strict=True))
    if values.keys() != bounds.keys():
        raise ValueError(f"the parameters are {listed(sorted(values))} and not {', '.join(bounds) or 'none'}")
    stored = {}
    for name, value in values.items():
        low, high = bounds[name] or (-math.inf, math.inf)
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            array = np.asarray(math.nan)
        shaped = not bounds[name] or array.shape == layer.parameters[name].get_value().shape
        if not (shaped and np.all((low < array) & (array < high))):
            raise ValueError(f"{name} is {printable(repr(value))}, which does not lie in ({low:g}, {high:g})")
        stored[name] = np.asarray(_unbounded_array(array, bounds[name], _NEAREST), np.float32)
    return stored


def _bounded_double(stored: np.ndarray, bounds: tuple[float, float] | None) -> np.ndarray:
    """`_bounded` in double precision."""
    if bounds is None:
        return stored
    low, high = bounds
    if math.isinf(high):
        return low + _MARGIN + np.logaddexp(0.0, stored)
    return low + (high - low) * (_MARGIN + (1.0 - 2.0 * _MARGIN) * (0.5 + 0.5 * np.tanh(0.5 * stored)))
