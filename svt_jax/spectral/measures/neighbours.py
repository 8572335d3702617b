"""Measures of neighbourhoods among rows: what a transformation keeps of them, and the dimension that they show."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from svt_jax.spectral.base import first_order_only
from svt_jax.spectral.measures.arrays import checked, number_of, over, pairs_of, scaled, squared_distances, unit_rows
from svt_jax.spectral.solvers import per_matrix, product

Array = jax.Array


def _barycentric_weights(gram: Array) -> Array:
    weights = jnp.linalg.solve(gram, jnp.ones(gram.shape[-1], gram.dtype))
    return weights / jnp.sum(weights)


@jax.custom_jvp
def _weights(gram: Array) -> Array:
    """w [..., k] = G^-1 1 / (1^T G^-1 1) of symmetric matrices G [..., k, k]."""
    return per_matrix(_barycentric_weights, gram)


@_weights.defjvp
def _weights_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # dw = -(G^-1 - s w w^T) dG w with s = 1^T G^-1 1
    gram = first_order_only(primals[0])
    weights, inverse = _weights(gram), per_matrix(jnp.linalg.inv, gram)
    moved = product(inverse, product(tangents[0], weights[..., None]))[..., 0]
    return weights, weights * jnp.sum(moved, axis=-1, keepdims=True) - moved


@functools.partial(jax.jit, static_argnames="k")
def local_structure(x: Array, y: Array, k: int = 12) -> Array:
    r"""How well y keeps the neighbourhoods of x: the error of rebuilding each y_i from its neighbours in x; 0 is perfect.

    With u, v the unit rows of x and y, N(i) the k nearest u_j to u_i with j != i, and w_ij the barycentric weights that
    rebuild u_i best from them (summing to 1, regularised by 1e-3 of the trace as in locally linear embedding),

        sqrt( sum_i | v_i - sum_{j in N(i)} w_ij v_j |^2 )

    `local_structure(x, x)` is the error that x itself has. (The published code counts each point among its own
    neighbours. The point takes nearly all the weight, so the score is near 0 whatever the transformation.)

    Args:
      x: float[N, D], before.
      y: float[N, D'], after.
      k: number of neighbours, less than N.
    Raises:
      ValueError: if x and y have different numbers of rows, or no more than k.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jax.random.normal(jax.random.key(0), (50, 8))
      >>> rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (8, 8)))[0]
      >>> bool(jnp.allclose(local_structure(x, x @ rotation), local_structure(x, x), rtol=1e-4))
      True

    References:
      arXiv 2208.11790, section 5 (LSDS); Roweis, Saul, "Nonlinear dimensionality reduction by locally linear
      embedding", Science 290, 2000.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0] or x.shape[0] <= k:
        raise ValueError(f"local_structure needs x [N, D] and y [N, D'] with N > k = {k}; got {x.shape} and {y.shape}.")
    u, v = (unit_rows(checked(rows, None)[0]) for rows in (x, y))
    cosines = jnp.where(jnp.eye(u.shape[0], dtype=bool), -jnp.inf, jax.lax.stop_gradient(product(u, u.mT)))
    neighbours = jnp.argsort(-cosines, axis=-1)[:, :k]  # (lax.top_k would gather a batch sharded over devices)
    offsets = u[neighbours] - u[:, None]  # [N, k, D]
    gram = product(offsets, offsets.mT)
    trace = jnp.trace(gram, axis1=-2, axis2=-1)
    ridge = jnp.where(trace > 0, 1e-3 * trace, 1.0)  # equal points: any weights rebuild them
    weights = _weights(gram + ridge[:, None, None] * jnp.eye(k, dtype=gram.dtype)[None])
    rebuilt = jnp.einsum("nk,nkd->nd", weights, v[neighbours], precision=jax.lax.Precision.HIGHEST)
    total = jnp.sum(jnp.square(v - rebuilt))
    return jnp.where(total > 0, jnp.sqrt(jnp.where(total > 0, total, 1.0)), 0.0)


@functools.partial(jax.jit, static_argnames="discard")
def two_nn(x: Array, mask: Array | None = None, *, discard: float = 0.1) -> Array:
    r"""TwoNN: the intrinsic dimension of a set of points, from each one's two nearest others; at least 0.

    Where points are spread evenly over d dimensions, mu_i = r_i2 / r_i1, the ratio of the distances of the second and the
    first neighbour, has the distribution 1 - mu^-d. So d is the slope, through the origin, of -ln(1 - i/n) over ln mu_(i)
    in ascending order, without the largest ones:

        d = sum_i y_i ln mu_(i) / sum_i (ln mu_(i))^2,    y_i = -ln(1 - i/n),    i = 1 .. floor((1 - discard) n)

    Points with an equal twin have no ratio and do not count. 0 with fewer than three points. (scikit-dimension counts i
    from 0.)

    Args:
      discard: share of the largest ratios that are left out, in (0, 1).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> plane = jax.random.normal(jax.random.key(0), (500, 2)) @ jnp.ones((2, 9)).at[0, 4:].set(0.0)
      >>> bool(1.8 < two_nn(plane) < 2.2)
      True

    References:
      Facco, d'Errico, Rodriguez, Laio, "Estimating the intrinsic dimension of datasets by a minimal neighborhood
      information", Scientific Reports 7, 2017, arXiv 1803.06992.
    """
    if not 0 < discard < 1:
        raise ValueError(f"discard is {discard}; allowed are shares above 0 and below 1. The paper takes 0.1.")
    x, mask = checked(x, mask)
    x = scaled(x)
    rows = x.shape[-2]
    if rows < 3:
        return jnp.sum(x, axis=(-2, -1)) * 0.0
    distances = jnp.where(pairs_of(mask), jax.lax.stop_gradient(squared_distances(x)), jnp.inf)
    first = jnp.argmin(distances, axis=-1)
    column = jnp.arange(rows).reshape((1,) * mask.ndim + (rows,))
    second = jnp.argmin(jnp.where(column == first[..., None], jnp.inf, distances), axis=-1)
    near, next_one = (_distance_to(x, index) for index in (first, second))
    enough = (jnp.sum(mask, axis=-1) > 2)[..., None]
    live = mask & enough & (near > 0)
    # (rounding in the products may have changed the order of the two)
    ratio = jnp.abs(0.5 * (jnp.log(jnp.where(live, next_one, 1.0)) - jnp.log(jnp.where(live, near, 1.0))))
    order = jnp.argsort(jnp.where(live, jax.lax.stop_gradient(ratio), jnp.inf), axis=-1)
    ratio = jnp.take_along_axis(ratio, order, axis=-1)
    n = number_of(live, x.dtype)[..., None]
    place = (jnp.arange(rows) + 1).astype(x.dtype).reshape((1,) * (mask.ndim - 1) + (rows,))
    kept = place <= jnp.floor((1.0 - discard) * n)
    up = -jnp.log1p(-jnp.where(kept, place / jnp.maximum(n, 1.0), 0.0))
    ratio = jnp.where(kept, ratio, 0.0)
    return over(jnp.sum(up * ratio, axis=-1), jnp.sum(jnp.square(ratio), axis=-1))


def _distance_to(x: Array, index: Array) -> Array:
    """|x_i - x_index(i)|^2 [..., L] by differences: products lose the digits of near points."""
    return jnp.sum(jnp.square(x - jnp.take_along_axis(x, index[..., None], axis=-2)), axis=-1)
