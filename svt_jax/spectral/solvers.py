r"""How the decomposition is got: `svd` (the reference) or `gram` (an eigendecomposition of the smaller Gram matrix).

Both return the same thing for X in R^{L x D} with L <= D: U [L, L], sigma [L] and V^T [L, D], X = U diag(sigma) V^T.

`per_matrix` is the package's only door to LAPACK-backed decompositions. It exists for three reasons, each of them seen:

1. jaxlib before 0.11.1 on CPU splits a batched LAPACK call over the thread pool and waits for the pieces inside a
   pool thread; when enough such calls are in flight (two branches of one model, several simulated devices) the
   process hangs for ever. One matrix a call runs inline and cannot hang.
2. Over a batch-sharded input, a loop over matrices makes the partitioner gather the batch; `shard_map` keeps it local.
3. SciPy's OpenBLAS, which jaxlib calls, starts threads that fight with XLA's own: 4 to 20 times slower.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from svt_jax.spectral.base import SpectralFunction

Array = jax.Array
Solver = Literal["auto", "svd", "gram"]
SOLVERS = ("auto", "svd", "gram")
BATCH_AXES = ("data", "fsdp")
"""Mesh axes over which the leading (batch) dimension of an input may be sharded."""


def choose_solver(solver: str, function: SpectralFunction) -> str:
    """`svd` or `gram` for `auto`; the solver itself otherwise.

    `gram` squares the condition number: in float32 the directions below about 3e-4 sigma_1 are noise. That is harmless
    when the function vanishes at zero (noise stays small), and ruins one that does not. So `auto` is `gram` for
    functions that vanish at zero and `svd` for the others.

    Example:
      >>> from svt_jax import SoftDecay
      >>> choose_solver("auto", SoftDecay()), choose_solver("auto", SoftDecay(centered=True))
      ('svd', 'gram')
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; allowed are {', '.join(SOLVERS)}. Use 'auto' when in doubt.")
    if solver == "auto":
        return "gram" if function.vanishes_at_zero else "svd"
    return solver


def decompose(x: Array, solver: str) -> tuple[Array, Array, Array]:
    """Singular value decomposition of each matrix.

    Args:
      x: float32 or float64 [..., L, D] with L <= D, finite.
      solver: "svd" or "gram".
    Returns:
      U [..., L, L], sigma [..., L] >= 0 (descending; for `gram` up to rounding), V^T [..., L, D]. Where sigma is 0,
      `gram` gives a zero row of V^T and `svd` any orthonormal one.
    """
    return {"svd": _svd, "gram": _gram}[solver](x)


def _thin_svd(x: Array) -> tuple[Array, Array, Array]:
    u, sigma, vt = jnp.linalg.svd(x, full_matrices=False)
    return u, sigma, vt


def _svd(x: Array) -> tuple[Array, Array, Array]:
    return per_matrix(_thin_svd, x)


def _gram(x: Array) -> tuple[Array, Array, Array]:
    largest_entry = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    scale = jnp.where(largest_entry > 0, largest_entry, 1.0)  # keeps squares of 1e+-18 inside float32
    scaled = x / scale
    _, u = per_matrix(jnp.linalg.eigh, product(scaled, scaled.mT))
    u = u[..., ::-1]  # eigh sorts ascending
    projected = product(u.mT, scaled)  # = diag(sigma) V^T: row norms are better singular values than eigenvalues' roots
    sigma = jnp.linalg.norm(projected, axis=-1)
    inverse = jnp.where(sigma > 0, 1.0 / jnp.where(sigma > 0, sigma, 1.0), 0.0)
    return u, sigma * scale[..., 0], projected * inverse[..., None]


def product(a: Array, b: Array) -> Array:
    """Matrix product in full precision: accelerators' default (bfloat16, TF32) would ruin singular vectors."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def per_matrix(decomposition: Callable[[Array], Any], x: Array) -> Any:
    """Applies a decomposition of one matrix to each matrix of x [..., m, n]; see the head of this file."""
    _one_blas_thread()
    batch_shape = x.shape[:-2]
    flat = x.reshape(-1, *x.shape[-2:])
    out = _batched(decomposition)(flat)
    return jax.tree.map(lambda leaf: leaf.reshape(*batch_shape, *leaf.shape[1:]), out)


@functools.cache
def _batched(decomposition: Callable[[Array], Any]) -> Callable[[Array], Any]:
    # custom_vmap folds a batch dimension that vmap adds into the existing one; plain vmap of lax.map would put a
    # batched call inside the loop, which is what must not happen.
    @jax.custom_batching.custom_vmap
    def call(x: Array) -> Any:
        hangs = jax.version.__version_info__ < (0, 11, 1) and jax.default_backend() == "cpu"
        local = functools.partial(jax.lax.map, decomposition) if hangs else jax.vmap(decomposition)
        mesh = jax.sharding.get_abstract_mesh()
        axes = () if mesh.empty else tuple(a for a in BATCH_AXES if a in mesh.axis_names)
        shards = 1
        for axis in axes:
            shards *= mesh.shape[axis]
        if not axes or x.shape[0] % shards:
            return local(x)
        spec = PartitionSpec(axes)
        return jax.shard_map(local, in_specs=spec, out_specs=spec)(x)

    @call.def_vmap
    def _fold(axis_size: int, in_batched: list[bool], x: Array) -> Any:
        folded = call(x.reshape(-1, *x.shape[2:]))
        out = jax.tree.map(lambda leaf: leaf.reshape(axis_size, -1, *leaf.shape[1:]), folded)
        return out, jax.tree.map(lambda _: True, out)

    return call


@functools.cache
def _one_blas_thread() -> None:
    """Holds the OpenBLAS that jaxlib calls (SciPy's own copy) to one thread; NumPy's and others' are left alone."""
    import scipy.linalg  # noqa: F401  (loads the library that jaxlib will call)
    from threadpoolctl import ThreadpoolController

    for library in ThreadpoolController().lib_controllers:
        if library.internal_api == "openblas" and "scipy" in library.filepath:
            library.set_num_threads(1)
