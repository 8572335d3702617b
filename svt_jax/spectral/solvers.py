r"""How a matrix is decomposed. All solvers except `shifted` and `poly` return a `Decomposition`.

  svd     LAPACK's (or the accelerator's) singular value decomposition: the reference.
  gram    U from the eigenvectors of X X^T, diag(sigma) V^T = U^T X: two matrix products and one small symmetric
          eigenproblem, several times faster. X X^T squares the condition number: U mixes directions whose singular
          values are below about 1e-2 sigma_1 in float32 (docs/accuracy.md). Summing X X^T in pieces, or decomposing
          diag(sigma) V^T a second time, does not undo it: float32 eigenvectors are no better.
  gram64  gram with X X^T and its eigenvectors in float64, where squaring does no harm: as exact as svd. A tenth slower
          than gram on a CPU. TPUs have no float64 and use svd.
  shifted no eigenproblem: a sum of inverses of X X^T + z I, off by 3e-5 (shifted.py). For functions that vanish at zero
          and need the largest singular value only.
  poly    no factorisation: a polynomial in X X^T, by matrix products only (polynomial.py). For the same functions, off by
          up to 1e-2. On a CPU also slower than gram (docs/performance.md).

Lowering chooses what depends on the platform, not the machine that traces: a step can be lowered for an absent TPU.

Every LAPACK-backed decomposition of the package goes through `per_matrix`, for three reasons, each of them seen:

1. jaxlib before 0.11.1 on CPU splits a batched LAPACK call over the thread pool and waits for the pieces inside a
   pool thread. When enough such calls are in flight (two branches of one model, several simulated devices), the
   process hangs for ever. A call of one matrix runs inline and cannot hang.
2. Over a batch-sharded input, a loop over matrices makes the partitioner gather the batch; mesh.py keeps it local.
3. SciPy's OpenBLAS, which jaxlib calls, starts threads that fight with XLA's own: 4 to 20 times slower.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from svt_jax.mesh import left_to_partitioner, on_each_device, partitioned
from svt_jax.spectral.base import Parametric, solver_for

Array = jax.Array
DECOMPOSITION = "decomposition"
"""Name of what `decompose` returns, for policies of `jax.checkpoint`."""


_DOUBLE = {"tpu": "svd", "default": "gram64"}
BY_PLATFORM = {"auto": _DOUBLE, "gram64": _DOUBLE, "gram_or_shifted": {"tpu": "shifted", "default": "gram"}}
"""The solver that acts on each platform, by what `solver_for` returns, where that differs."""


def choose_solver(solver: str, function: Parametric) -> str:
    """Returns the solver that acts with this function on the default device.

    `gram` loses the directions of small singular values. That does no harm when the function vanishes at zero: what is
    small stays small. A function that does not vanish lifts those directions: at condition number 1e3 SoftDecay(-0.6)
    is off by 7e-3, its centred form by 4e-5 (docs/accuracy.md). So `auto` is `gram` for functions that vanish at zero
    and `gram64` for the others, whatever the shape. Each is the fastest solver that is right for its functions, on CPUs
    and far more so on GPUs, where `svd` takes two hundred times as long (docs/performance.md).

    TPUs have no float64 and compute an eigenproblem by many small steps. There `auto` is `shifted` for functions that
    vanish at zero and need the largest singular value only, and `svd` where it would be `gram64`. (Nothing was timed on
    a TPU yet.) Explicit choices stand, except that `gram64` is `svd` on TPUs.

    Raises:
      ValueError: for an unknown solver, or `shifted` or `poly` with a function that they cannot serve.

    Example:
      >>> from svt_jax import SoftDecay
      >>> choose_solver("auto", SoftDecay()), choose_solver("auto", SoftDecay(centered=True))
      ('gram64', 'gram')
    """
    solver = solver_for(function, solver)
    by_platform = BY_PLATFORM.get(solver, {})
    return by_platform.get(jax.default_backend(), by_platform.get("default", solver))


class Decomposition(NamedTuple):
    """X = U diag(sigma) V^T for X [..., L, D] with L <= D, where V^T = diag(unit) `rows`.

    V^T itself is not formed: `gram` computes diag(sigma) V^T first, and it costs less to scale the L x L matrices that
    are multiplied with it.

    Attributes:
      u: [..., L, L], orthogonal.
      sigma: [..., L] >= 0, descending (for `gram` and `gram64` up to rounding).
      rows: [..., L, D].
      unit: [..., L]. `gram` and `gram64` set 0 where sigma = 0: V's column is unknown there, and taken as 0.
      failed: bool[...], true where the solver returned NaN: it did not converge, or x is not finite. All other fields
        are 0 there, so that derivatives of unused values stay finite.
    """

    u: Array
    sigma: Array
    rows: Array
    unit: Array
    failed: Array


def decompose(x: Array, solver: str) -> Decomposition:
    """Decomposes each matrix of x, float32 or float64 [..., L, D] with L <= D, finite.

    Args:
      solver: "svd", "gram", "gram64", or "auto" for the exact one that is fastest on the platform.
    """
    if solver in ("shifted", "poly"):
        raise ValueError(f"solver {solver!r} decomposes nothing; this needs a decomposition. Use 'auto'.")
    if solver in BY_PLATFORM:
        by_platform = {
            name: functools.partial(_decompose, solver=choice) for name, choice in BY_PLATFORM[solver].items()
        }
        out = jax.lax.platform_dependent(x, **by_platform)
    else:
        out = _decompose(x, solver)
    # rematerialisation keeps it by this name: nothing else of its size costs as much to compute again
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, DECOMPOSITION), out)


def _decompose(x: Array, solver: str) -> Decomposition:
    return _svd(x) if solver == "svd" else _gram(x, double=solver == "gram64")


def _thin_svd(x: Array) -> tuple[Array, Array, Array]:
    u, sigma, vt = jnp.linalg.svd(x, full_matrices=False)
    return u, sigma, vt


def _svd(x: Array) -> Decomposition:
    u, sigma, vt = per_matrix(_thin_svd, x)
    failed = jnp.any(jnp.isnan(sigma), axis=-1)
    u, vt = (jnp.where(failed[..., None, None], 0.0, factor) for factor in (u, vt))
    sigma = jnp.where(failed[..., None], 0.0, sigma)
    return Decomposition(u, sigma, vt, jnp.ones_like(sigma), failed)


def _descending_eigh(gram: Array) -> tuple[Array, Array]:
    vectors, negated = jax.lax.linalg.eigh(-gram, symmetrize_input=False)  # LAPACK sorts ascending
    return vectors, negated


def _descending_eigh_of_square(x: Array) -> tuple[Array, Array]:
    with jax.enable_x64(True):  # for these lines, whatever the user's setting is
        double = x.astype(jnp.float64)
        vectors, negated = _descending_eigh(double @ double.T)
        return vectors.astype(x.dtype), negated.astype(x.dtype)


_SIZES = 4
_SMALLEST = 16
"""Rows of a matrix that is worth the time to compile it in every size."""


def of_leading_rows(compute: Callable[[int], Any], x: Array) -> tuple[Any, Array]:
    """compute(size), with the first quarter, half, three quarters or all of x's rows, the least that has all which are not 0.

    Rows of zeros at the end are those of an example shorter than the longest: with half the rows, an eigenproblem is an
    eighth. For one matrix on a CPU; every size is compiled, for matrices of 16 rows or more.

    Returns:
      what `compute` returned, and which size it was, 0 to 3: int32[].
    """
    if x.shape[0] < _SMALLEST:
        return compute(x.shape[0]), jnp.asarray(_SIZES - 1, jnp.int32)
    place = jnp.arange(x.shape[0], dtype=jnp.int32)
    rows = jnp.max(jnp.where(jnp.any(x != 0, axis=1), place + 1, 0))
    sizes = [max(1, x.shape[0] * n // _SIZES) for n in range(1, _SIZES + 1)]
    # no constant array here: custom_partitioning cannot carry one
    branch = sum(((rows > size).astype(jnp.int32) for size in sizes[1:-1]), (rows > sizes[0]).astype(jnp.int32))
    return jax.lax.switch(branch, [functools.partial(compute, size) for size in sizes]), branch


def _of_leading(
    decomposition: Callable[[Array], tuple[Array, Array]], symmetric: bool, x: Array
) -> tuple[Array, Array]:
    """Does a `_descending_eigh...` of one matrix `of_leading_rows`. The vectors of the other rows are those of the identity."""
    length = x.shape[0]

    def leading(size: int) -> tuple[Array, Array]:
        u, negated = decomposition(x[:size, :size] if symmetric else x[:size])
        return jnp.pad(u, (0, length - size)), jnp.pad(negated, (0, length - size))

    (u, negated), branch = of_leading_rows(leading, x)
    others = jnp.arange(length, dtype=jnp.int32) >= jnp.maximum(1, length * (branch + 1) // _SIZES)
    return jnp.where(others[:, None] & jnp.eye(length, dtype=bool), 1.0, u), negated


_LEADING_EIGH = functools.partial(_of_leading, _descending_eigh, True)
_LEADING_EIGH_OF_SQUARE = functools.partial(_of_leading, _descending_eigh_of_square, False)


def _gram(x: Array, *, double: bool) -> Decomposition:
    largest_entry = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    scale = jnp.where(largest_entry > 0, largest_entry, 1.0)  # keeps squares of 1e+-18 inside float32
    scaled = x / scale
    if double:
        u, negated = per_matrix(_descending_eigh_of_square, scaled, one=_LEADING_EIGH_OF_SQUARE)
    else:
        u, negated = per_matrix(_descending_eigh, product(scaled, scaled.mT), one=_LEADING_EIGH)
    # LAPACK reports a failure as NaN. (Also, if nothing read the eigenvalues, XLA would hand their buffer to the next
    # matrix's call, and the calls would wait for each other.)
    failed = jnp.any(jnp.isnan(negated), axis=-1)
    u = jnp.where(failed[..., None, None], 0.0, u)
    rows = product(u.mT, scaled)  # = diag(sigma) V^T: row norms are better singular values than eigenvalues' roots
    sigma = jnp.linalg.norm(rows, axis=-1)
    unit = jnp.where(sigma > 0, 1.0 / jnp.where(sigma > 0, sigma, 1.0), 0.0)
    return Decomposition(u, sigma * scale[..., 0], rows, unit, failed)


def product(a: Array, b: Array) -> Array:
    """Matrix product in full precision: accelerators' default (bfloat16, TF32) would ruin singular vectors."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def per_matrix(decomposition: Callable[[Array], Any], x: Array, one: Callable[[Array], Any] | None = None) -> Any:
    """Applies a decomposition of one matrix to each matrix of x [..., m, n]; see the head of this file.

    Args:
      one: what computes the same where matrices are decomposed one by one, and may branch on what a matrix holds.
    """
    _one_blas_thread()
    return _batched(decomposition, one or decomposition, 0)(x)


@functools.cache
def _batched(decomposition: Callable[[Array], Any], one: Callable[[Array], Any], mapped: int) -> Callable[[Array], Any]:
    # custom_vmap turns a dimension that vmap adds into one more batch dimension. Plain vmap of lax.map would put a
    # batched call inside the loop, which must not happen.
    @jax.custom_batching.custom_vmap
    def call(x: Array) -> Any:
        return on_each_device(functools.partial(_local, decomposition, one), x, mapped=mapped)

    @call.def_vmap
    def _one_more(axis_size: int, in_batched: list[bool], x: Array) -> Any:
        out = _batched(decomposition, one, mapped + 1)(x)
        return out, jax.tree.map(lambda _: True, out)

    return call


def _local(decomposition: Callable[[Array], Any], one: Callable[[Array], Any], x: Array) -> Any:
    batched = functools.partial(_flat, jax.vmap(decomposition))
    if jax.version.__version_info__ >= (0, 11, 1):
        return batched(x)
    one_by_one: Callable[[Array], Any] = functools.partial(_flat, functools.partial(_one_by_one, one))
    if left_to_partitioner(x):
        one_by_one = partitioned(one_by_one)
    return jax.lax.platform_dependent(x, cpu=one_by_one, default=batched)


def _flat(of_batch: Callable[[Array], Any], x: Array) -> Any:
    """Applies `of_batch`, which takes [B, m, n], to x [..., m, n]."""
    out = of_batch(x.reshape(-1, *x.shape[-2:]))
    return jax.tree.map(lambda leaf: leaf.reshape(*x.shape[:-2], *leaf.shape[1:]), out)


_UNROLLED = 4
"""Calls of one matrix in a row, which XLA may run side by side; each costs time to compile."""


def _one_by_one(decomposition: Callable[[Array], Any], x: Array) -> Any:
    """Computes `jax.vmap(decomposition)(x)` by calls of one matrix each."""

    def unrolled(part: Array) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[decomposition(matrix) for matrix in part])

    loops = x.shape[0] // _UNROLLED if x.shape[0] > _UNROLLED else 0
    looped, rest = x[: loops * _UNROLLED], x[loops * _UNROLLED :]
    parts = [unrolled(rest)] if rest.shape[0] else []
    if loops:
        chunks = jax.lax.map(unrolled, looped.reshape(loops, _UNROLLED, *x.shape[1:]))
        parts.insert(0, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), chunks))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


@functools.cache
def _one_blas_thread() -> None:
    """Holds the OpenBLAS that jaxlib calls (SciPy's own copy) to one thread; NumPy's and others' keep theirs.

    For the whole process, and until it ends; SVT_JAX_BLAS_THREADS=keep prevents it.
    """
    if os.environ.get("SVT_JAX_BLAS_THREADS") == "keep":
        return
    import scipy.linalg  # noqa: F401  (loads the library that jaxlib will call)
    from threadpoolctl import ThreadpoolController

    for library in ThreadpoolController().lib_controllers:
        # found by its folder: NumPy's copy, in numpy.libs, is also called libscipy_openblas
        folders = Path(library.filepath).parts[-3:-1]
        if library.internal_api == "openblas" and any(folder.startswith("scipy") for folder in folders):
            library.set_num_threads(1)
