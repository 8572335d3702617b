"""What remedies are that act on attention maps, on values, or as a loss. `spectral.base` has those on token matrices.

Shape letters: `N` heads, `L` tokens, `H` head size, `D` hidden size.
"""

from __future__ import annotations

import functools
from typing import ClassVar, TypeVar

import jax
import jax.numpy as jnp

from svt_jax.spectral.base import Parametric, prepare, work_dtype

Array = jax.Array
_R = TypeVar("_R", bound=Parametric)


class AttentionMapOperation(Parametric):
    """Base class of a remedy at site `attention_map`: subclass it, annotate the parameters, write `operate`.

    Class attributes (others: `Parametric`):
      behind_dropout: whether it acts on the map that the attention's dropout has thinned out, or on the map before it.

    Example:
      >>> import jax.numpy as jnp, svt_jax
      >>> class Sharper(svt_jax.AttentionMapOperation):
      ...     share: float = 0.5
      ...     def operate(self, attention, attends):
      ...         return (1.0 - self.share) * attention + self.share * jnp.square(attention)
      >>> Sharper()(jnp.array([[[1.0, 0.0], [0.5, 0.5]]]))
      Array([[[1.   , 0.   ],
              [0.375, 0.375]]], dtype=float32)
    """

    sites: ClassVar[tuple[str, ...]] = ("attention_map",)
    behind_dropout: ClassVar[bool] = False

    def operate(self, attention: Array, attends: Array) -> Array:
        """The operation itself.

        Args:
          attention: float32 or float64 [..., N, L, L], rows ask, columns are keys; zero where `attends` is false.
          attends: bool[..., 1, L or 1, L], which keys each token attends to. With packed rows these are the tokens of its
            own example, so that a map has one block for each example.
        Returns:
          like attention. The caller sets to zero what `attends` excludes.
        """
        raise NotImplementedError(f"{type(self).__name__} must define operate(attention, attends)")

    def __call__(self, attention: Array, mask: Array | None = None) -> Array:
        """Applies the operation to the attention maps of all heads.

        Args:
          attention: float[..., N, L, L], rows ask, columns are keys.
          mask: bool[..., L], true for real keys; None for all.
        Returns:
          like attention; the columns of masked keys are zero. The work is done in float32 (float64 for float64).
        Raises:
          ValueError: if attention is not a floating-point array of that shape, or the mask does not fit it.
        """
        attention = jnp.asarray(attention)
        shape, who = attention.shape, type(self).__name__
        if attention.ndim < 3 or shape[-1] != shape[-2] or not jnp.issubdtype(attention.dtype, jnp.floating):
            raise ValueError(
                f"{who} needs a floating-point array [..., N, L, L], got {attention.dtype}{list(shape)}. Cast or reshape it."
            )
        mask = _mask_of(mask, (*shape[:-3], shape[-1]), "keys")
        return self.on_attended(attention, mask[..., None, None, :])

    def on_attended(self, attention: Array, attends: Array) -> Array:
        """As a call, with the keys of each token: bool[..., 1, L or 1, L]."""
        return _on_map(self, attention, attends)


@jax.jit
def _on_map(remedy: AttentionMapOperation, attention: Array, attends: Array) -> Array:
    work = jnp.where(attends, attention.astype(work_dtype(attention.dtype)), 0.0)
    out = in_dtype(remedy, work).operate(work, attends)
    return jnp.where(attends, out, 0.0).astype(attention.dtype)


class ValueOperation(Parametric):
    """Base class of a remedy at site `value`: subclass it, annotate the parameters, write `operate`.

    Class attributes (others: `Parametric`):
      token_wise: whether each token's result needs nothing of other tokens. With packed rows the encoder then need not
        take the examples out of their rows.

    Example:
      >>> import jax.numpy as jnp, svt_jax
      >>> class Skip(svt_jax.ValueOperation):
      ...     share: float = 0.5
      ...     token_wise = True
      ...     def operate(self, mixed, values, first_values, mask):
      ...         return mixed + self.share * values
      >>> Skip()(jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3)), jnp.zeros((1, 2, 3)))[0, 0]
      Array([1.5, 1.5, 1.5], dtype=float32)
    """

    sites: ClassVar[tuple[str, ...]] = ("value",)
    token_wise: ClassVar[bool] = False

    def operate(self, mixed: Array, values: Array, first_values: Array, mask: Array) -> Array:
        """The operation itself.

        Args:
          mixed: float32 or float64 [..., N, L, H], A V: what the tokens gather.
          values: like mixed, V.
          first_values: like mixed, the values of the encoder's first layer.
          mask: bool[..., L], true for real tokens; the three arrays are zero elsewhere.
        Returns:
          like mixed. The caller sets rows to zero where `mask` is false.
        """
        raise NotImplementedError(f"{type(self).__name__} must define operate(mixed, values, first_values, mask)")

    def __call__(self, mixed: Array, values: Array, first_values: Array, mask: Array | None = None) -> Array:
        """Applies the operation to the values of all heads.

        Args:
          mixed, values, first_values: float[..., N, L, H]: A V, V, and the first layer's V.
          mask: bool[..., L], true for real tokens; None for all.
        Returns:
          like mixed; masked rows are zero. The work is done in float32 (float64 for float64).
        Raises:
          ValueError: if the arrays are not floating-point arrays of one such shape, or the mask does not fit them.
        """
        arrays = [jnp.asarray(x) for x in (mixed, values, first_values)]
        shape, who = arrays[0].shape, type(self).__name__
        if len(shape) < 3 or any(x.shape != shape or not jnp.issubdtype(x.dtype, jnp.floating) for x in arrays):
            what = ", ".join(f"{x.dtype}{list(x.shape)}" for x in arrays)
            raise ValueError(
                f"{who} needs three floating-point arrays [..., N, L, H] of one shape, got {what}. Cast or reshape them."
            )
        return _on_values(self, *arrays, _mask_of(mask, (*shape[:-3], shape[-2]), "tokens"))


def _mask_of(mask: Array | None, shape: tuple[int, ...], what: str) -> Array:
    """The mask as bool; all true for None. Raises ValueError if it has another shape."""
    mask = jnp.ones(shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
    if mask.shape != shape:
        raise ValueError(f"mask must have the {what}' shape {shape}; got {mask.shape}.")
    return mask


@jax.jit
def _on_values(remedy: ValueOperation, mixed: Array, values: Array, first_values: Array, mask: Array) -> Array:
    keep = mask[..., None, :, None]
    real = lambda x: jnp.where(keep, x.astype(work_dtype(mixed.dtype)), 0.0)
    work = real(mixed)
    out = in_dtype(remedy, work).operate(work, real(values), real(first_values), mask)
    return jnp.where(keep, out, 0.0).astype(mixed.dtype)


class LossTerm(Parametric):
    """Base class of a remedy at site `loss`: a term of the training loss. Subclass it, write `operate`.

    A term may keep a state from step to step, one array. Then it also defines `initial_state` and `next_state`.

    Example:
      >>> import jax.numpy as jnp, svt_jax
      >>> class MeanSquare(svt_jax.LossTerm):
      ...     def operate(self, x, mask, state):
      ...         return jnp.sum(jnp.square(x)) / jnp.sum(mask, dtype=x.dtype)
      >>> float(MeanSquare()(jnp.array([[3.0, 4.0], [9.0, 9.0]]), jnp.array([True, False])))
      25.0
    """

    sites: ClassVar[tuple[str, ...]] = ("loss",)

    def operate(self, x: Array, mask: Array, state: Array | None) -> Array:
        """The term itself, without its weight.

        Args:
          x: float32 or float64 [..., L, D], rows zero where `mask` is false. In an encoder the hidden states [E, K, L, D]
            of E examples behind the K layers of `svt.layers`.
          mask: bool[..., L]; tokens that are not real must have no influence. A matrix may have none.
          state: the state before this step; None if there is none.
        Returns:
          a number.
        """
        raise NotImplementedError(f"{type(self).__name__} must define operate(x, mask, state)")

    def initial_state(self, size: int) -> Array | None:
        """The state before the first step for hidden states of this size; None for a term without state."""
        return None

    def next_state(self, x: Array, mask: Array, state: Array) -> Array:
        """The state after a step, from the arguments of `operate`."""
        return state

    def __call__(self, x: Array, mask: Array | None = None, state: Array | None = None) -> Array:
        """Returns the term, a float32 (float64 for float64 input), without its weight.

        Args:
          x: float[..., L, D].
          mask: bool[..., L], true for real tokens; None for all.
          state: the state before this step; None for none.
        Raises:
          ValueError: if x is not a floating-point array of at least two dimensions, or the mask does not fit it.
        """
        return _term(self, jnp.asarray(x), mask, state)


@jax.jit
def _term(remedy: LossTerm, x: Array, mask: Array | None, state: Array | None) -> Array:
    work, mask = prepare(x, mask, type(remedy).__name__)
    mask = jnp.ones(x.shape[:-1], bool) if mask is None else mask
    return in_dtype(remedy, work).operate(work, mask, None if state is None else jnp.asarray(state, work.dtype))


def in_dtype(remedy: _R, x: Array) -> _R:
    """The remedy with its parameters in x's dtype."""
    return jax.tree.map(functools.partial(jnp.asarray, dtype=x.dtype), remedy)
