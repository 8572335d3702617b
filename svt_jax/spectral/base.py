"""What a spectral function is, and the base class that makes any parametric function a dataclass and a pytree.

A spectral function maps the singular values sigma_1 >= ... >= sigma_R of one matrix to new ones, phi_i. It acts element
by element, once a few statistics of the whole spectrum (its largest value, its mean) are known:

    phi_i = g(sigma_i ; statistics of sigma)

`transform.svt` needs that split for an exact derivative at repeated singular values. It is also the whole interface: a
function is a class with one method, `__call__(values, spectrum)`.

A function is a pytree: its parameters are leaves and can be differentiated, batched and sharded.

Shape letters used in this package: `B` batch, `L` tokens, `D` hidden size, `R` = min(L, D).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from svt_jax.mesh import divided_like, whole_matrices

Array = jax.Array
Solver = Literal["auto", "svd", "gram", "gram64", "shifted", "poly"]
SOLVERS = ("auto", "svd", "gram", "gram64", "shifted", "poly")
TOKEN_SITES: tuple[str, ...] = ("feed_forward", "attention")
"""Sites of what maps token matrices: behind the feed-forward part, or behind attention."""


def static_field(*, default: Any) -> Any:
    """A field of a parametric function that is not differentiated: a flag or a constant of the formula."""
    return dataclasses.field(default=default, metadata={"static": True})


def _problem(function: Parametric, field: dataclasses.Field) -> str | None:
    """What is wrong with the value of a field, if anything."""
    value, default = getattr(function, field.name), field.default
    if isinstance(value, jax.core.Tracer):
        return None
    static = field.metadata.get("static", False)
    numbers: tuple[type, ...] = (int, float, np.number) if static else (int, float, np.number, np.ndarray, jax.Array)
    what = f"{field.name} of {type(function).__name__}"
    hint = "" if default is dataclasses.MISSING else f" Start from {default}."
    if isinstance(default, bool):
        return None if isinstance(value, bool) else f"{what} must be true or false, got {value!r}.{hint}"
    if not isinstance(default, numbers) and field.name not in function.bounds:
        return None  # a field of the user's own kind
    if isinstance(value, bool) or not isinstance(value, numbers):
        return f"{what} must be a number, got {value!r}.{hint}"
    if static and isinstance(default, int) and not isinstance(value, (int, np.integer)):
        return f"{what} must be a whole number, got {value!r}.{hint}"
    low, high = function.bounds.get(field.name, (-math.inf, math.inf))
    if not np.all((np.asarray(value) > low) & (np.asarray(value) < high)):  # also refuses NaN, which compares false
        return f"{what} must lie in ({low}, {high}), got {value}.{hint}"
    return None


def _split_fields(function: Any) -> tuple[list[str], list[str]]:
    fields = dataclasses.fields(function)
    static = [f.name for f in fields if f.metadata.get("static")]
    return [f.name for f in fields if f.name not in static], static


def _flatten_with_keys(function: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    parameters, static = _split_fields(function)
    leaves = [(jax.tree_util.GetAttrKey(name), getattr(function, name)) for name in parameters]
    return leaves, tuple(getattr(function, name) for name in static)


def _unflatten(cls: type, aux: tuple[Any, ...], leaves: Any) -> Any:
    # Bypasses __init__: a gradient also has this structure, and its values need not lie inside the bounds.
    function: Any = object.__new__(cls)
    parameters, static = _split_fields(cls)
    for name, value in [*zip(parameters, leaves, strict=True), *zip(static, aux, strict=True)]:
        object.__setattr__(function, name, value)
    return function


@dataclass_transform(frozen_default=True, field_specifiers=(static_field,))
class Parametric:
    """Base of all functions and remedies: annotate the parameters, and the class becomes a frozen dataclass and a JAX
    pytree.

    Fields are differentiable parameters unless they are made with `static_field`. Numbers are checked against the
    field's bounds and the kind of its default (a number, a whole number, a flag).

    Class attributes:
      bounds: open interval (low, high) for each parameter that has one. A module that trains the parameter keeps it
        inside through a smooth bijection.
      sites: where in an encoder it can act: names of `svt.site`.
      one_per: what a parameter has one number for, "heads" or "hidden" (dimensions). In an encoder a single number is
        where all of them start.
      decomposes: whether it reads `svt.solver`.

    Raises:
      ValueError: for a value of another kind than the default, or outside the bounds; all of them at once.
    """

    bounds: ClassVar[dict[str, tuple[float, float]]] = {}
    sites: ClassVar[tuple[str, ...]] = ()
    one_per: ClassVar[dict[str, str]] = {}
    decomposes: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)
        jax.tree_util.register_pytree_with_keys(
            cls, _flatten_with_keys, lambda aux, leaves: _unflatten(cls, aux, leaves)
        )

    def __post_init__(self) -> None:
        problems = [_problem(self, field) for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        if any(problems):
            raise ValueError(" ".join(problem for problem in problems if problem))


def work_dtype(dtype: Any) -> Any:
    """Returns the dtype of the work on an array of floating-point `dtype`: float64 for float64, float32 for all others.

    (`jnp.promote_types` refuses bfloat16 beside float32 under strict dtype promotion.)
    """
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def _problems(x: Array, mask: Array | None, who: str) -> list[str]:
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        return [f"{who} needs a floating-point array [..., L, D], got {x.dtype}{list(x.shape)}. Cast or reshape it."]
    if mask is not None and mask.shape != x.shape[:-1]:
        return [f"mask must have x's shape without its last axis, {x.shape[:-1]}; got {mask.shape}."]
    return []


def prepare(x: Array, mask: Array | None, who: str) -> tuple[Array, Array | None]:
    """Checks and casts what `svt`, token operations and measures receive.

    Args:
      x: float[..., L, D].
      mask: bool[..., L], true for real tokens; None for all.
      who: the caller's name in the message.
    Returns:
      x in float32 (float64 for float64) with zeros in rows of padding, gathered over Explicit mesh axes that divide its
      last two dimensions; and the mask as bool, None if it was None.
    Raises:
      ValueError: if x is not a floating-point array of at least two dimensions, or the mask does not fit it.
    """
    x, mask = jnp.asarray(x), None if mask is None else jnp.asarray(mask).astype(bool)
    if problems := _problems(x, mask, who):
        raise ValueError(" ".join(problems))
    work = x.astype(work_dtype(x.dtype))
    return whole_matrices(work if mask is None else jnp.where(mask[..., None], work, 0.0)), mask


@jax.custom_jvp
def first_order_only(x: Array) -> Array:
    """Returns x, in the derivative rule of a decomposition's result: differentiating that rule once more is an error.

    JAX would differentiate the decomposition, whose derivative is NaN at equal and at zero singular values.
    """
    return x


@first_order_only.defjvp
def _no_second_order(primals: tuple, tangents: tuple) -> Any:
    raise NotImplementedError(
        "a second derivative through a singular value decomposition; allowed are first derivatives, forward or reverse, "
        "and second ones in a function's parameters; put jax.lax.stop_gradient around one of the two, or take "
        "differences of first derivatives."
    )


class SpectralFunction(Parametric):
    """Base class: subclass it, annotate the parameters, write `__call__`.

    Class attributes (for `bounds` see `Parametric`):
      vanishes_at_zero: True when g(0) = 0 for every spectrum. Then the transformation is continuous at rank-deficient
        input and zero singular values need no special care; otherwise null directions are kept null.
      needs_largest_only: True when the function reads only the largest value of `spectrum`. Then the solvers
        `shifted` and `poly`, which know no other, can serve the function, if it also vanishes at zero.

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
    needs_largest_only: ClassVar[bool] = False
    sites: ClassVar[tuple[str, ...]] = TOKEN_SITES
    decomposes = True

    def __call__(self, values: Array, spectrum: Array) -> Array:
        """New singular values g(values; spectrum).

        Args:
          values: float[..., N] >= 0, where to evaluate g; element by element.
          spectrum: float[..., R], the singular values of the matrix; null directions are exactly 0.
        Returns:
          float[..., N].
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(values, spectrum)")


def solver_for(function: Parametric, solver: str) -> str:
    """Chooses the solver as far as the function decides it; lowering does the rest, by platform.

    Returns:
      a name of `SOLVERS`, or "gram_or_shifted" for a function that both can serve.

    Raises:
      ValueError: for an unknown solver, or `shifted` or `poly` with a function that they cannot serve.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; allowed are {', '.join(SOLVERS)}. Use 'auto' when in doubt.")
    vanishes = isinstance(function, SpectralFunction) and function.vanishes_at_zero
    largest_only = vanishes and getattr(function, "needs_largest_only", False)
    if solver in ("shifted", "poly") and not largest_only:
        raise ValueError(
            f"solver {solver!r} and {type(function).__name__}: allowed are functions that vanish at zero and need only the "
            "largest singular value, as centered_soft_decay and log_shift. Use one of these, or 'auto'."
        )
    if solver == "auto" and vanishes:
        return "gram_or_shifted" if largest_only else "gram"
    return solver


class TokenOperation(Parametric):
    """Base class of an operation on token matrices: subclass it, annotate the parameters, write `operate`.

    Calling an instance takes care of the mask, the dtype and compilation.

    Example:
      >>> import jax.numpy as jnp, svt_jax
      >>> class Scale(svt_jax.TokenOperation):
      ...     factor: float = 2.0
      ...     def operate(self, x, mask, solver):
      ...         return self.factor * x
      >>> Scale()(jnp.ones((2, 2)), mask=jnp.array([True, False]))
      Array([[2., 2.],
             [0., 0.]], dtype=float32)
    """

    sites: ClassVar[tuple[str, ...]] = TOKEN_SITES
    decomposes = True

    def operate(self, x: Array, mask: Array, solver: Solver) -> Array:
        """The operation itself.

        Args:
          x: float32 or float64 [..., L, D], rows zero where `mask` is false.
          mask: bool[..., L]; tokens that are not real must have no influence on the others.
          solver: "svd", "gram", "gram64" or "auto", for operations that decompose.
        Returns:
          [..., L, D]. The caller sets rows to zero where `mask` is false. The values are not finite where the operation
          failed: `svt` then returns that matrix unchanged.
        """
        raise NotImplementedError(f"{type(self).__name__} must define operate(x, mask, solver)")

    def __call__(self, x: Array, mask: Array | None = None, *, solver: Solver = "auto") -> Array:
        """Applies the operation to each token matrix; arguments, result and errors are those of `svt`."""
        x, mask = jnp.asarray(x), None if mask is None else jnp.asarray(mask)
        problems = _problems(x, mask, type(self).__name__)
        try:
            solver_for(self, solver)
        except ValueError as error:
            problems.append(str(error))
        if problems:
            raise ValueError(" ".join(problems))
        return _apply(self, x, mask, solver)


@functools.partial(jax.jit, static_argnames="solver")
def _apply(operation: TokenOperation, x: Array, mask: Array | None, solver: Solver) -> Array:
    work, mask = prepare(x, mask, type(operation).__name__)
    if x.size == 0:
        return x
    mask = jnp.ones(x.shape[:-1], bool) if mask is None else mask
    operation = jax.tree.map(lambda leaf: jnp.asarray(leaf, work.dtype), operation)
    out = divided_like(operation.operate(work, mask, solver), x)
    return jnp.where(mask[..., None], out, 0.0).astype(x.dtype)
