"""Measures of two sets of rows, or of groups of rows, against each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from svt_jax.spectral.measures.arrays import centred, checked, mean_row, number_of, over, scaled
from svt_jax.spectral.measures.spectrum import values_of
from svt_jax.spectral.solvers import per_matrix, product

Array = jax.Array


@jax.jit
def linear_cka(x: Array, y: Array, mask: Array | None = None) -> Array:
    r"""Linear centred kernel alignment of two representations of the same rows, in [0, 1].

        |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)    of centred X and Y

    1 means equal up to rotation and scale. 0 where one of them is constant.

    Args:
      x: float[..., N, D].
      y: float[..., N, D'].
      mask: bool[..., N].
    Raises:
      ValueError: if x and y do not have the same rows.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
      >>> round(float(linear_cka(x, 3.0 * x[:, ::-1])), 4), round(float(linear_cka(x, x[:, :1])), 4)  # 2^2 / (sqrt(8) 2)
      (1.0, 0.7071)

    References:
      Kornblith, Norouzi, Lee, Hinton, "Similarity of neural network representations revisited", ICML 2019,
      arXiv 1905.00414.
    """
    x, mask = checked(x, mask)
    y, _ = checked(y, mask)
    if x.shape[:-1] != y.shape[:-1]:
        raise ValueError(
            f"linear_cka needs the same rows, x [..., N, D] and y [..., N, D']; got {x.shape} and {y.shape}."
        )
    x, y = (scaled(centred(rows, mask)) for rows in (x, y))
    if x.shape[-2] <= max(x.shape[-1], y.shape[-1]):  # the products of rows are smaller than those of columns
        ours, theirs = product(x, x.mT), product(y, y.mT)
        both = jnp.sum(ours * theirs, axis=(-2, -1))
    else:
        ours, theirs = product(x.mT, x), product(y.mT, y)
        both = jnp.sum(jnp.square(product(y.mT, x)), axis=(-2, -1))
    squares = (jnp.sum(jnp.square(each), axis=(-2, -1)) for each in (ours, theirs))
    ours, theirs = (jnp.where(each > 0, jnp.sqrt(jnp.where(each > 0, each, 1.0)), 0.0) for each in squares)
    return over(both, ours * theirs)


@jax.jit
def lidar(x: Array, mask: Array | None = None, *, delta: float = 1e-4) -> Array:
    r"""LiDAR: the effective rank of what tells groups of rows apart, in [1, min(N - 1, D)]; 0 if nothing does.

        exp(-sum p_i ln p_i),  p the eigenvalues of S_w^-1/2 S_b S_w^-1/2 as shares
        S_b = sum_g (m_g - m)(m_g - m)^T / (N - 1),   S_w = sum_gi (x_gi - m_g)(x_gi - m_g)^T / sum_g (q_g - 1) + delta I

    m_g are the means of the N groups, m their mean. In the source a group holds q views of one image; the probe takes the
    tokens of one sentence. (Published programs add 1e-8 or 1e-12 inside the logarithm. One leaves out the exp.)

    Args:
      x: float[..., N, q, D].
      mask: bool[..., N, q], true for real rows; a group without any does not count.
      delta: what makes S_w invertible, in the units of x squared.
    Raises:
      ValueError: if x is not [..., N, q, D].

    Example:
      >>> import jax.numpy as jnp
      >>> centres = jnp.array([[4.0, 0.0, 0.0], [-4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, -4.0, 0.0]])
      >>> views = jnp.concatenate([jnp.eye(3), -jnp.eye(3)])  # groups differ in two directions, by as much in each
      >>> round(float(lidar(centres[:, None] + views[None])), 4)
      2.0

    References:
      Thilak et al., "LiDAR: sensing linear probing performance in joint embedding SSL architectures", ICLR 2024,
      arXiv 2312.04000.
    """
    x, mask = checked(x, mask)
    if x.ndim < 3:
        raise ValueError(f"lidar needs groups of rows [..., N, q, D]; got {x.shape}. Reshape them.")
    views = number_of(mask, x.dtype)  # [..., N]
    there = views > 0
    within = jnp.where(mask[..., None], x - mean_row(x, mask), 0.0)
    flat = within.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])
    freedom = jnp.maximum(jnp.sum(jnp.maximum(views - 1.0, 0.0), axis=-1), 1.0)[..., None, None]
    inverse = _inverse_of_ridge(flat / jnp.sqrt(freedom * jnp.asarray(delta, x.dtype)))  # of S_w / delta
    means = centred(jnp.where(there[..., None], mean_row(x, mask)[..., 0, :], 0.0), there)  # [..., N, D]
    between = scaled(product(product(means, inverse), means.mT))  # its eigenvalues are those, times a number
    values = values_of(between)
    shares = over(values, jnp.sum(values, axis=-1, keepdims=True))
    live = shares > float(jnp.finfo(x.dtype).eps) * max(shares.shape[-1], 1)
    entropy = -jnp.sum(jnp.where(live, shares * jnp.log(jnp.where(live, shares, 1.0)), 0.0), axis=-1)
    return jnp.where(jnp.any(live, axis=-1), jnp.exp(entropy), 0.0)


def _inverse_of_one(x: Array) -> Array:
    if x.dtype != jnp.float32 or jax.default_backend() == "tpu":  # TPUs have no float64
        return jnp.linalg.inv(x.T @ x + jnp.eye(x.shape[1], dtype=x.dtype))
    with jax.enable_x64(True):  # the ridge is far smaller than what float32 keeps of the sum
        double = x.astype(jnp.float64)
        return jnp.linalg.inv(double.T @ double + jnp.eye(x.shape[1], dtype=jnp.float64)).astype(x.dtype)


@jax.custom_jvp
def _inverse_of_ridge(x: Array) -> Array:
    """(I + X^T X)^-1 [..., D, D] of x [..., L, D]."""
    return per_matrix(_inverse_of_one, x)


@_inverse_of_ridge.defjvp
def _inverse_of_ridge_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    x, dx = primals[0], tangents[0]
    out = _inverse_of_ridge(x)
    half = product(product(out, dx.mT), product(x, out))
    return out, -(half + half.mT)
